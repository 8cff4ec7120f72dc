"""The linear probe against scikit-learn called directly, separable data and counted classes."""

import math
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import top_k_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from beamclip.evaluation import probe
from beamclip.evaluation.probe import Probe, fit_probe, unseen_note


@dataclass(frozen=True)
class Result:
    """A probe, and how it ranked the test images."""

    probe: Probe
    ranks: Tensor

    @property
    def top1(self) -> float:
        return float((self.ranks < 1).double().mean())

    @property
    def top5(self) -> float:
        return float((self.ranks < 5).double().mean())


def linear_probe(
    train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor, **options: Any
) -> Result:
    fitted = fit_probe(train, train_labels, **options)
    return Result(fitted, fitted.ranks(test, test_labels))


def blobs(classes: int, per_class: int, noise: float, seed: int, width: int = 12) -> tuple[Tensor, Tensor]:
    """Features around centres that depend on the class alone; other seeds draw other images of it."""
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(1234))
    labels = torch.arange(classes).repeat_interleave(per_class)
    spread = torch.randn(len(labels), width, generator=torch.Generator().manual_seed(seed))
    return centres[labels] + noise * spread, labels


def test_a_single_c_reproduces_scikit_learn_called_directly() -> None:
    train, train_labels = blobs(8, 12, 1.5, seed=0)
    test, test_labels = blobs(8, 25, 1.5, seed=1)
    result = linear_probe(
        train, train_labels, test, test_labels, inverse_regularisation=0.1, max_iterations=500
    )
    direct = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=1e-6, max_iter=500))
    direct.fit(train.double().numpy(), train_labels.numpy())
    scores = direct.decision_function(test.double().numpy())
    assert 0.3 < result.top1 < 0.95
    assert result.top1 == pytest.approx(direct.score(test.double().numpy(), test_labels.numpy()), abs=0.006)
    assert result.top5 == pytest.approx(top_k_accuracy_score(test_labels.numpy(), scores, k=5), abs=0.006)
    assert result.probe.notes == ()


def test_separable_features_are_classified_without_error() -> None:
    train, train_labels = blobs(6, 10, 0.05, seed=0)
    test, test_labels = blobs(6, 7, 0.05, seed=1)
    result = linear_probe(train, train_labels, test, test_labels)
    assert (result.top1, result.top5) == (1.0, 1.0)
    assert (result.probe.train_images, len(result.probe.classes)) == (60, 6)


def test_features_without_information_score_near_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(400, 6, generator=generator), torch.randn(2000, 6, generator=generator)
    labels = torch.arange(2000) % 10
    result = linear_probe(train, labels[:400], test, labels)
    five_deviations = 5 * math.sqrt(0.1 * 0.9 / 2000)
    assert abs(result.top1 - 0.1) < five_deviations


def test_the_scale_and_offset_of_the_features_do_not_matter() -> None:
    train, train_labels = blobs(5, 10, 1.5, seed=0)
    test, test_labels = blobs(5, 20, 1.5, seed=1)
    plain = linear_probe(train, train_labels, test, test_labels, max_iterations=500)
    moved = linear_probe(64 * train + 3, train_labels, 64 * test + 3, test_labels, max_iterations=500)
    assert moved.probe.inverse_regularisation == plain.probe.inverse_regularisation
    assert moved.top1 == pytest.approx(plain.top1, abs=0.011)


def test_strong_regularisation_is_chosen_where_the_features_are_mostly_noise() -> None:
    """Every feature tells a little: near the class means no fit is needed, a loose one follows the noise."""
    labels = torch.arange(1200) % 2
    features = torch.randn(1200, 150, generator=torch.Generator().manual_seed(3)) + 0.3 * labels[:, None]
    split = (features[:200], labels[:200], features[200:], labels[200:])
    chosen = linear_probe(*split, max_iterations=100)
    loose = linear_probe(*split, inverse_regularisation=1e3, max_iterations=100)
    assert chosen.probe.inverse_regularisation < 0.1
    assert chosen.top1 > loose.top1


def test_weak_regularisation_is_chosen_where_a_strong_one_cannot_fit() -> None:
    """With next to no weight the bias alone decides, for the larger class."""
    labels = torch.tensor([0] * 40 + [1] * 20)
    features = torch.linspace(-1, 1, 60)[:, None]
    result = linear_probe(features, labels, features, labels)
    assert result.probe.inverse_regularisation > 1e-3
    assert result.top1 > 0.9


@pytest.mark.parametrize("peak", [0, 1, 33, 48, 90, 96])
def test_the_search_finds_a_single_peak_in_a_sixth_of_the_grid(peak: int) -> None:
    tried: list[int] = []

    def accuracy_of(place: int) -> float:
        tried.append(place)
        return 1 - abs(place - peak) / 100

    assert probe.search(accuracy_of, 50) == peak
    assert len(tried) == len(set(tried)) <= 15


def test_of_equal_accuracies_the_strongest_regularisation_is_taken() -> None:
    assert probe.search(lambda place: 0.5, 100) == 0
    assert probe.search(lambda place: float(place >= 40), 100) == 40


def test_past_a_clear_peak_no_larger_value_is_tried() -> None:
    tried: list[int] = []

    def accuracy_of(place: int) -> float:
        tried.append(place)
        return 0.6 - 0.01 * abs(place - 20)

    assert probe.search(accuracy_of, 1000) == 20
    assert max(tried) == 48
    tried.clear()
    # With few images the same fall may be chance.
    assert probe.search(accuracy_of, 10) == 20
    assert max(tried) > 48


@pytest.mark.parametrize("counts", [[2, 2, 2], [2, 5, 10, 23], [40, 2]])
def test_held_out_images_are_a_fifth_of_each_class_and_at_least_one(counts: list[int]) -> None:
    index = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts)), counts))
    held_out = probe._held_out(index, np.random.default_rng(0))
    assert np.bincount(index[held_out], minlength=len(counts)).tolist() == [max(1, n // 5) for n in counts]


def test_the_seed_alone_decides_what_is_held_out() -> None:
    index = np.repeat(np.arange(5), 10)
    masks = [probe._held_out(index, np.random.default_rng(seed)) for seed in (0, 0, 1)]
    assert (masks[0] == masks[1]).all()
    assert (masks[0] != masks[2]).any()


def test_one_image_a_class_leaves_the_default_c_and_says_so() -> None:
    train, train_labels = blobs(6, 1, 0.05, seed=0)
    test, test_labels = blobs(6, 5, 0.05, seed=1)
    result = linear_probe(train, train_labels, test, test_labels)
    assert (result.probe.inverse_regularisation, result.top1) == (0.1, 1.0)
    assert "C=0.1 " in result.probe.notes[0]


def test_many_classes_are_fitted_although_only_some_choose_c(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "SWEEP_CLASSES", 3)
    train, train_labels = blobs(20, 4, 0.1, seed=0, width=40)
    test, test_labels = blobs(20, 3, 0.1, seed=1, width=40)
    result = linear_probe(train, train_labels, test, test_labels)
    assert (len(result.probe.classes), result.top1) == (20, 1.0)


def test_hundreds_of_classes_with_faint_means_are_fitted_until_they_converge() -> None:
    features, labels = (each.numpy() for each in blobs(300, 2, 0.5, seed=0, width=32))
    faint, inverse_regularisation = np.float32(0.02) * features, 0.1 / 0.02**2
    tight = LogisticRegression(C=inverse_regularisation, tol=1e-9, max_iter=1000).fit(faint, labels)
    weights, iterations = probe.fit(torch.from_numpy(faint), labels, inverse_regularisation, 1000)
    assert iterations < 1000
    assert np.linalg.norm(weights[:-1].T - tight.coef_) < 0.01 * np.linalg.norm(tight.coef_)


def test_images_of_classes_without_training_images_are_misses_and_noted() -> None:
    train, train_labels = blobs(4, 10, 0.05, seed=0)
    test, test_labels = blobs(6, 10, 0.05, seed=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(probe, "SWEEP_CLASSES", 4)
        result = linear_probe(train, train_labels, test[:50], test_labels[:50])
    assert result.probe.classes.tolist() == [0, 1, 2, 3]
    assert (result.top1, result.top5) == (0.8, 0.8)
    (note,) = unseen_note(test_labels[:50], train_labels)
    assert "1 test class (10 of 50 images)" in note
    assert unseen_note(train_labels, train_labels) == []


def test_labels_may_be_any_numbers_and_two_classes_are_enough() -> None:
    train, train_labels = blobs(2, 10, 0.05, seed=0)
    test, test_labels = blobs(2, 5, 0.05, seed=1)
    result = linear_probe(train, 700 - 9 * train_labels, test, 700 - 9 * test_labels)
    assert (result.top1, result.top5, len(result.probe.classes)) == (1.0, 1.0, 2)


def test_a_fit_cut_short_is_noted_and_warns_nobody() -> None:
    train, train_labels = blobs(5, 10, 2.0, seed=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = linear_probe(train, train_labels, train, train_labels, max_iterations=2)
    assert any("stopped at 2 iterations" in note for note in result.probe.notes)


def test_equal_calls_give_equal_results() -> None:
    train, train_labels = blobs(5, 10, 2.0, seed=0)
    one, other = (linear_probe(train, train_labels, train, train_labels) for _ in range(2))
    assert one.probe.inverse_regularisation == other.probe.inverse_regularisation
    assert one.ranks.tolist() == other.ranks.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"train": torch.empty(0, 4), "train_labels": torch.empty(0)},
            r"train features are \[0, 4\]",
        ),
        ({"test": torch.empty(0, 4), "test_labels": torch.empty(0)}, r"test features are \[0, 4\]"),
        ({"train_labels": torch.tensor([0, 1, 0])}, r"\[4, 4\], labels \[3\]"),
        ({"test": torch.ones(4, 3)}, "width 4, test features 3"),
        ({"train": torch.full((4, 4), math.nan)}, "4 of 4 rows of train features are not finite"),
        ({"train_labels": torch.zeros(4, dtype=torch.long)}, "two classes"),
        ({"inverse_regularisation": 0.0}, "above 0"),
        ({"max_iterations": 0}, "max_iterations 0; both"),
    ],
)
def test_input_that_cannot_be_fitted_is_refused(changes: dict[str, object], message: str) -> None:
    arguments = {
        "train": torch.rand(4, 4),
        "train_labels": torch.tensor([0, 1, 0, 1]),
        "test": torch.rand(4, 4),
        "test_labels": torch.tensor([0, 1, 0, 1]),
    }
    with pytest.raises(ValueError, match=message):
        linear_probe(**{**arguments, **changes})  # type: ignore[arg-type]
