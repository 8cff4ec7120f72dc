"""Nearest neighbours against scikit-learn's classifier and against a sort by hand."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from beamclip.evaluation import knn
from beamclip.evaluation.knn import knn_ranks, knn_scores, nearest_neighbours

TRAIN, TEST, WIDTH, CLASSES = 150, 60, 8, 6


@pytest.fixture
def data() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Train features and labels, test features and labels, of overlapping classes."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(CLASSES, WIDTH, generator=generator)
    labels = torch.randint(CLASSES, (TRAIN + TEST,), generator=generator)
    features = centres[labels] + torch.randn(TRAIN + TEST, WIDTH, generator=generator)
    features *= 1 + 9 * torch.rand(TRAIN + TEST, 1, generator=generator)
    return features[:TRAIN], labels[:TRAIN], features[TRAIN:], labels[TRAIN:]


def unit(features: Tensor) -> np.ndarray:
    array = features.double().numpy()
    return array / np.linalg.norm(array, axis=1, keepdims=True)


@pytest.mark.parametrize("neighbours", [1, 10, 20, 1000])
def test_votes_equal_those_of_scikit_learn(data, neighbours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """On unit vectors the distance d and the cosine c are tied by d^2 = 2 - 2c."""
    monkeypatch.setattr(knn, "CHUNK_ELEMENTS", 700)
    monkeypatch.setattr(knn, "_TRAIN_ROWS", 37)
    train, train_labels, test, _ = data
    scores = knn_scores(train, train_labels, test, CLASSES, neighbours=neighbours)
    reference = KNeighborsClassifier(
        min(neighbours, TRAIN), algorithm="brute", weights=lambda d: np.exp(-(d**2) / 2 / 0.07)
    ).fit(unit(train), train_labels.numpy())
    wanted = reference.predict_proba(unit(test))
    np.testing.assert_allclose((scores / scores.sum(dim=1, keepdim=True)).numpy(), wanted, atol=1e-4)


def test_ranks_count_the_classes_with_more_votes(data) -> None:
    train, train_labels, test, labels = data
    found = nearest_neighbours(train, train_labels, test, 20)
    ranks = knn_ranks(found, labels, CLASSES, neighbours=2)
    scores = knn_scores(train, train_labels, test, CLASSES, neighbours=2).numpy()
    own = scores[np.arange(TEST), labels.numpy()]
    wanted = (scores > own[:, None]).sum(axis=1)
    voted = own > 0
    assert ranks[torch.from_numpy(voted)].tolist() == wanted[voted].tolist()
    assert (ranks[torch.from_numpy(~voted)] == torch.iinfo(torch.long).max).all()
    assert 0 < voted.sum() < TEST
    assert 0 < (ranks < 1).sum() < TEST


def test_a_colder_temperature_gives_the_nearest_more_weight() -> None:
    """One neighbour at the cosine 0.9 of class 0 against two at 0.8 of class 1."""
    angles = torch.tensor([0.9, 0.8, 0.8]).arccos() * torch.tensor([1, 1, -1])
    train = torch.stack([angles.cos(), angles.sin()], dim=1)
    query, labels = torch.tensor([[5.0, 0.0]]), torch.tensor([0, 1, 1])
    for temperature, winner in ((0.07, 0), (1.0, 1)):
        scores = knn_scores(train, labels, query, 2, neighbours=3, temperature=temperature)
        assert scores.argmax() == winner
        wanted = [np.exp(-0.1 / temperature), 2 * np.exp(-0.2 / temperature)]
        np.testing.assert_allclose(scores[0].numpy(), wanted, rtol=1e-4)


def test_what_does_not_fit_is_refused() -> None:
    features, labels = torch.ones(3, 2), torch.zeros(3, dtype=torch.long)
    with pytest.raises(ValueError, match="neighbours is 0"):
        knn_scores(features, labels, features, 1, neighbours=0)
    with pytest.raises(ValueError, match=r"features \[3, 1\]"):
        knn_scores(features, labels, features[:, :1], 1, neighbours=1)
    with pytest.raises(ValueError, match="at least one row"):
        knn_scores(features[:0], labels[:0], features, 1, neighbours=1)
