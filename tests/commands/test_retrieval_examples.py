"""Examples of retrieval against a brute-force search."""

import numpy as np
import torch
import torch.nn.functional as F
from pictures import noise

from beamclip.commands.retrieval_examples import FOUND, QUERIES, retrieval_examples


def test_examples_are_the_nearest_of_all_and_ranks_those_of_a_full_sort() -> None:
    torch.manual_seed(0)
    images, texts = F.normalize(torch.randn(20, 8), dim=1), F.normalize(torch.randn(50, 8), dim=1)
    owners = [m % 20 for m in range(50)]
    captions = [f"caption {m}" for m in range(50)]
    unreadable = 0
    asked: list[int] = []

    def load(rows: list[int]) -> dict[int, np.ndarray]:
        asked.extend(rows)
        return {i: noise(4, 4, seed=i) for i in rows if i != unreadable}

    made = retrieval_examples(images, texts, captions, owners, load)
    assert (made.images, made.texts) == (20, 50)
    assert len(set(asked)) == len(asked)
    assert len(made.by_image) == QUERIES
    for query in made.by_image:
        own = [captions.index(text) for text in query.captions]
        (image,) = {owners[m] for m in own}
        order = (texts @ images[image]).argsort(descending=True).tolist()
        assert [found.text for found in query.found] == [captions[m] for m in order[:FOUND]]
        assert [found.right for found in query.found] == [owners[m] == image for m in order[:FOUND]]
        assert query.rank == 1 + min(order.index(m) for m in own)
    assert 0 < len(made.by_text) <= QUERIES
    for query in made.by_text:
        m = captions.index(query.text)
        cosines = images @ texts[m]
        order = cosines.argsort(descending=True).tolist()
        assert unreadable not in order[:FOUND]
        assert query.rank == 1 + order.index(owners[m])
        np.testing.assert_allclose([f.similarity for f in query.found], cosines[order[:FOUND]], rtol=1e-5)
