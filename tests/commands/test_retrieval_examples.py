"""Examples of retrieval against a brute-force search."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pictures import noise

from beamclip.commands.retrieval_examples import FOUND, QUERIES, _names, retrieval_examples
from beamclip.evaluation.encode import distinct_keys
from beamclip.evaluation.results import Ints, as_ranks
from beamclip.evaluation.retrieval import retrieval_ranks


def ranks_of(images: torch.Tensor, texts: torch.Tensor, owners: list[int]) -> tuple[Ints, Ints]:
    of_images, of_texts = retrieval_ranks(images, texts, torch.tensor(owners))
    return as_ranks(of_images), as_ranks(of_texts)


def test_of_equal_captions_the_rank_is_that_of_the_table() -> None:
    """Two images of one caption: the second one's own is behind the first one's."""
    images, texts, owners = torch.eye(2), torch.tensor([[1.0, 0.0], [1.0, 0.0]]), [0, 1]
    made = retrieval_examples(
        images,
        texts,
        ["a", "a"],
        owners,
        ranks_of(images, texts, owners),
        lambda rows: {i: noise(4, 4, seed=i) for i in rows},
    )
    assert [query.rank for query in made.by_image] == [1, 2]


@pytest.mark.parametrize("keys", [["cat (1)", "dog"], ["cat (1)", "cat (1)"], ["a", "a", "b"]])
def test_an_image_is_found_again_by_its_name(keys: list[str]) -> None:
    names = distinct_keys(keys, ["0.tar"] * len(keys))
    for name, key in zip(names, keys, strict=True):
        assert _names(name, key)
        assert not _names(name, "at (1)")
        assert not _names(name, "other")


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

    made = retrieval_examples(images, texts, captions, owners, ranks_of(images, texts, owners), load)
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
