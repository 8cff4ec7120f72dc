"""Zero-shot scores against loops, hand-computed cases and scikit-learn."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import top_k_accuracy_score
from torch import Tensor

from beamclip.evaluation import zeroshot
from beamclip.evaluation.zeroshot import class_scores, label_ranks, topk_accuracy, zeroshot_metrics
from beamclip.prompts.anchors import Anchors


def unit_rows(rows: int, width: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)), dim=1)


def one_anchor_each(embeddings: Tensor) -> Anchors:
    return Anchors(embeddings, torch.arange(len(embeddings)))


def soft_maximum_by_hand(
    images: Tensor, anchors: Anchors, num_classes: int, temperature: float
) -> list[list[float]]:
    """temperature * log(sum(exp(similarity / temperature))) in double precision, a number at a time."""
    similarity = (images.double() @ anchors.embeddings.double().T).tolist()
    owners = anchors.class_index.tolist()
    return [
        [
            temperature
            * math.log(sum(math.exp(s / temperature) for s, c in zip(row, owners, strict=True) if c == k))
            for k in range(num_classes)
        ]
        for row in similarity
    ]


def test_one_anchor_a_class_scores_by_cosine_similarity_at_any_temperature() -> None:
    images, texts = unit_rows(5, 8, 0), unit_rows(3, 8, 1)
    for temperature in (0.01, 1.0):
        scores = class_scores(images, one_anchor_each(texts), 3, temperature=temperature)
        torch.testing.assert_close(scores, images @ texts.T)


def test_anchors_out_of_class_order_score_under_their_own_class() -> None:
    images, texts = unit_rows(5, 8, 0), unit_rows(3, 8, 1)
    shuffled = Anchors(texts[[2, 0, 1]], torch.tensor([2, 0, 1]))
    torch.testing.assert_close(class_scores(images, shuffled, 3, temperature=0.1), images @ texts.T)


@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_several_anchors_score_by_the_logsumexp_over_their_class(temperature: float) -> None:
    images = unit_rows(6, 8, 2)
    anchors = Anchors(unit_rows(7, 8, 3), torch.tensor([0, 1, 1, 2, 0, 2, 2]))
    expected = soft_maximum_by_hand(images, anchors, 3, temperature)
    scores = class_scores(images, anchors, 3, temperature=temperature)
    torch.testing.assert_close(scores, torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=1e-5)


def test_a_tiny_temperature_gives_the_best_anchor_of_the_class_without_overflow() -> None:
    images = unit_rows(4, 8, 4)
    anchors = Anchors(unit_rows(4, 8, 5), torch.tensor([0, 0, 1, 1]))
    similarity = images @ anchors.embeddings.T
    best = torch.stack([similarity[:, :2].amax(1), similarity[:, 2:].amax(1)], dim=1)
    scores = class_scores(images, anchors, 2, temperature=1e-5)
    torch.testing.assert_close(scores, best, atol=2e-5, rtol=0)


@pytest.mark.parametrize("owners", [[0, 1, 2, 3], [0, 1, 1, 2]])
def test_scores_do_not_depend_on_the_chunking(owners: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    images = unit_rows(11, 8, 6)
    anchors, num_classes = Anchors(unit_rows(4, 8, 7), torch.tensor(owners)), max(owners) + 1
    whole = class_scores(images, anchors, num_classes, temperature=0.1)
    monkeypatch.setattr(zeroshot, "CHUNK_ELEMENTS", 12)
    torch.testing.assert_close(class_scores(images, anchors, num_classes, temperature=0.1), whole)


def test_half_precision_embeddings_give_float32_scores() -> None:
    images, texts = unit_rows(5, 8, 0).half(), unit_rows(3, 8, 1)
    scores = class_scores(images, one_anchor_each(texts), 3, temperature=1.0)
    torch.testing.assert_close(scores, images.float() @ texts.T)


def test_no_images_give_no_scores() -> None:
    assert class_scores(torch.empty(0, 8), one_anchor_each(unit_rows(3, 8, 1)), 3, temperature=1.0).shape == (
        0,
        3,
    )


@pytest.mark.parametrize(
    ("class_index", "num_classes", "message"),
    [([0, 2], 3, "class 1 of 3 has no anchor"), ([0, 3], 3, r"0\.\.2"), ([-1, 0], 3, r"0\.\.2")],
)
def test_anchors_that_do_not_cover_the_classes_are_refused(
    class_index: list[int], num_classes: int, message: str
) -> None:
    anchors = Anchors(unit_rows(2, 8, 1), torch.tensor(class_index))
    with pytest.raises(ValueError, match=message):
        class_scores(unit_rows(2, 8, 0), anchors, num_classes, temperature=1.0)


def test_embeddings_of_another_width_are_refused_with_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"\[2, 4\].*\[3, 8\]"):
        class_scores(unit_rows(2, 4, 0), one_anchor_each(unit_rows(3, 8, 1)), 3, temperature=1.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        class_scores(unit_rows(2, 8, 0), one_anchor_each(unit_rows(3, 8, 1)), 3, temperature=temperature)


def test_topk_accuracy_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 12)).astype(np.float32), rng.integers(0, 12, 200)
    accuracy = topk_accuracy(torch.from_numpy(scores), torch.from_numpy(labels), ks=(1, 3, 5))
    for k, value in accuracy.items():
        assert value == pytest.approx(top_k_accuracy_score(labels, scores, k=k, labels=np.arange(12)))


def test_topk_accuracy_counts_by_hand() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.9, 0.5, 0.1], [0.1, 0.2, 0.3]])
    accuracy = topk_accuracy(scores, torch.tensor([0, 1, 2, 2]), ks=(1, 2, 3))
    assert accuracy == {1: 0.5, 2: 0.75, 3: 1.0}


def test_k_beyond_the_number_of_classes_counts_every_row() -> None:
    assert topk_accuracy(torch.rand(7, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0]), ks=(5,)) == {5: 1.0}


def test_equal_scores_go_to_the_lower_class_as_in_argmax() -> None:
    scores, labels = torch.zeros(4, 4), torch.arange(4)
    assert label_ranks(scores, labels).tolist() == [0, 1, 2, 3]
    assert topk_accuracy(scores, labels, ks=(1,))[1] == float((scores.argmax(1) == labels).float().mean())


def test_a_row_with_nan_is_a_miss_at_every_k() -> None:
    scores = torch.tensor([[math.nan, 1.0], [0.0, 1.0]])
    assert topk_accuracy(scores, torch.tensor([1, 1]), ks=(1, 5)) == {1: 0.5, 5: 0.5}


@pytest.mark.parametrize(
    ("shape", "labels", "ks", "message"),
    [
        ((0, 3), [], (1,), "at least one row"),
        ((2, 3), [0], (1,), r"\[2, 3\], labels \[1\]"),
        ((2, 3), [0, 3], (1,), "from 0 to 3, but there are 3 classes"),
        ((2, 3), [-1, 0], (1,), "from -1 to 0"),
        ((2, 3), [0, 1], (0, 1), "at least 1"),
    ],
)
def test_labels_that_do_not_fit_the_scores_are_refused(
    shape: tuple[int, int], labels: list[int], ks: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        topk_accuracy(torch.zeros(shape), torch.tensor(labels, dtype=torch.long), ks=ks)


def test_zeroshot_metrics_are_the_accuracies_of_the_class_scores() -> None:
    images, texts = unit_rows(60, 16, 8), unit_rows(9, 16, 9)
    labels = torch.randint(0, 9, (60,), generator=torch.Generator().manual_seed(10))
    metrics = zeroshot_metrics(images, labels, one_anchor_each(texts), 9, temperature=0.01)
    similarity = (images @ texts.T).numpy()
    for k in (1, 5):
        expected = top_k_accuracy_score(labels.numpy(), similarity, k=k, labels=np.arange(9))
        assert metrics[f"zeroshot_top{k}"] == pytest.approx(expected)
    assert list(metrics) == ["zeroshot_top1", "zeroshot_top5"]


def test_images_on_their_own_anchor_are_all_right() -> None:
    texts = unit_rows(6, 16, 9)
    metrics = zeroshot_metrics(texts, torch.arange(6), one_anchor_each(texts), 6, temperature=0.01)
    assert metrics == {"zeroshot_top1": 1.0, "zeroshot_top5": 1.0}
