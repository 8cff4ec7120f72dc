"""Figures of anchors, against other formulas and by brute force."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from beamclip.evaluation import anchor_spread
from beamclip.evaluation.anchor_spread import class_means, closest_pairs, effective_rank, nearest, spread
from beamclip.prompts.anchors import Anchors


def units(count: int, width: int = 6) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(0)), dim=1)


@pytest.fixture(params=[3, 1000], autouse=True)
def _rows_at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anchor_spread, "ROWS_AT_ONCE", request.param)


def test_spread_agrees_with_numpy_over_all_pairs() -> None:
    vectors = units(20)
    cosines = vectors.double().numpy() @ vectors.double().numpy().T
    off = cosines[~np.eye(20, dtype=bool)].reshape(20, 19)
    found = spread(vectors)
    assert found.mean_cosine == pytest.approx(off.mean(), abs=1e-6)
    assert found.nearest_cosine == pytest.approx(off.max(axis=1).mean(), abs=1e-6)
    torch.testing.assert_close(nearest(vectors), torch.tensor(off.max(axis=1)).float())


def test_effective_rank_counts_equal_directions_and_less_of_unequal_ones() -> None:
    assert effective_rank(torch.eye(5)) == pytest.approx(5)
    assert effective_rank(torch.ones(4, 3)) == pytest.approx(1)
    # Singular values 3 and 1: shares of three and one quarters.
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert effective_rank(torch.diag(torch.tensor([3.0, 1.0]))) == pytest.approx(math.exp(entropy))


def test_closest_pairs_are_those_of_all_pairs_in_order() -> None:
    vectors = units(17)
    cosines = (vectors @ vectors.T).tolist()
    everything = sorted((-cosines[a][b], a, b) for a in range(17) for b in range(a + 1, 17))
    assert closest_pairs(vectors, 9) == [(a, b) for _, a, b in everything[:9]]
    assert closest_pairs(vectors, 1_000) == [(a, b) for _, a, b in everything]


def test_a_class_of_several_anchors_stands_where_their_unit_mean_does() -> None:
    vectors = units(5)
    means = class_means(Anchors(vectors, torch.tensor([0, 1, 1, 0, 1])), 2)
    torch.testing.assert_close(means[0], F.normalize(vectors[[0, 3]].mean(dim=0), dim=0))
    torch.testing.assert_close(means[1], F.normalize(vectors[[1, 2, 4]].mean(dim=0), dim=0))
