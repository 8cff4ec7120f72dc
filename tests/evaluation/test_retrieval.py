"""Retrieval against a ranking by hand and by argsort."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from beamclip.evaluation import retrieval
from beamclip.evaluation.retrieval import retrieval_metrics


def by_sorting(
    images: torch.Tensor, texts: torch.Tensor, owners: torch.Tensor, k: int
) -> tuple[float, float]:
    """Recalls from a full sort of each row."""
    scores = (images @ texts.T).numpy()
    nearest = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    i2t = np.mean([np.any(owners.numpy()[row] == i) for i, row in enumerate(nearest)])
    nearest = np.argsort(-scores.T, axis=1, kind="stable")[:, :k]
    t2i = np.mean([owners[j].item() in row for j, row in enumerate(nearest)])
    return float(i2t), float(t2i)


def test_recalls_equal_those_of_a_full_sort(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    images = F.normalize(torch.randn(40, 8, generator=generator), dim=1)
    owners = torch.cat([torch.arange(40), torch.randint(40, (60,), generator=generator)])
    texts = F.normalize(images[owners] + 0.7 * torch.randn(100, 8, generator=generator), dim=1)
    # Several blocks both ways, the last ones shorter.
    monkeypatch.setattr(retrieval, "BLOCK", 17)
    got = retrieval_metrics(images, texts, owners, ks=(1, 5))
    for k in (1, 5):
        want = by_sorting(images, texts, owners, k)
        assert (got[f"retrieval_i2t_r{k}"], got[f"retrieval_t2i_r{k}"]) == pytest.approx(want)
        assert 0.0 < want[0] < 1.0


@pytest.mark.parametrize("block", [3, 4096])
def test_of_equal_similarities_the_lower_index_is_ahead(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings of a few values on a grid: most similarities occur many times."""
    monkeypatch.setattr(retrieval, "BLOCK", block)
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(-1, 2, (15, 3), generator=generator).float()
    owners = torch.cat([torch.arange(15), torch.randint(15, (9,), generator=generator)])
    texts = torch.randint(-1, 2, (24, 3), generator=generator).float()
    got = retrieval_metrics(images, texts, owners, ks=(1, 4))
    for k in (1, 4):
        want = by_sorting(images, texts, owners, k)
        assert (got[f"retrieval_i2t_r{k}"], got[f"retrieval_t2i_r{k}"]) == pytest.approx(want)


def test_an_image_is_found_by_any_of_its_captions() -> None:
    images = torch.eye(2)
    texts = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.6, 0.8]])
    got = retrieval_metrics(images, texts, torch.tensor([0, 0, 1]), ks=(1,))
    # Caption 0 of image 0 lies on image 1 and takes it from caption 2, which itself finds image 1.
    assert got == {"retrieval_i2t_r1": 0.5, "retrieval_t2i_r1": pytest.approx(2 / 3)}


def test_embeddings_that_all_coincide_find_one_image_of_many() -> None:
    same = torch.ones(10, 4) / 2
    got = retrieval_metrics(same, same, torch.arange(10), ks=(1, 5))
    assert got["retrieval_i2t_r1"] == got["retrieval_t2i_r1"] == pytest.approx(0.1)
    assert got["retrieval_i2t_r5"] == pytest.approx(0.5)


def test_nan_finds_nothing() -> None:
    nothing = torch.full((4, 3), torch.nan)
    got = retrieval_metrics(nothing, nothing, torch.arange(4))
    assert set(got.values()) == {0.0}
    images, texts = torch.eye(3), torch.eye(3)
    texts[1] = torch.nan
    got = retrieval_metrics(images, texts, torch.arange(3), ks=(1,))
    assert got == {"retrieval_i2t_r1": pytest.approx(2 / 3), "retrieval_t2i_r1": pytest.approx(2 / 3)}


@pytest.mark.parametrize(
    ("images", "texts", "owners", "ks", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), torch.arange(2), (1,), "rows of one width"),
        (torch.ones(2, 3), torch.ones(2, 3), torch.arange(3), (1,), "an image for each of 2"),
        (torch.ones(2, 3), torch.ones(2, 3), torch.zeros(2), (1,), "each of the 2 images at least once"),
        (torch.ones(2, 3), torch.ones(3, 3), torch.arange(3), (1,), "and no other"),
        (torch.ones(2, 3), torch.ones(2, 3), torch.arange(2), (0,), "every k must be at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(images, texts, owners, ks, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retrieval_metrics(images, texts, owners, ks=ks)
