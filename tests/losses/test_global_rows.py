"""Losses of pairs over rows in any order, with padding and unusable samples, against the good pairs alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from beamclip.losses.config import PsdConfig
from beamclip.losses.contrastive import GlobalRows, clip_loss
from beamclip.losses.psd import PsdStep, psd_loss
from beamclip.losses.sigmoid import sigmoid_loss

SIZE = 9
PADDING = SIZE
NUMBERS = torch.tensor([6, PADDING, 0, 3, 8, PADDING, 5, 1, 2, PADDING, 4, 7])
UNUSABLE = (2, 5)
GOOD_NUMBERS = torch.tensor([0, 1, 3, 4, 6, 7, 8])
GOOD = torch.tensor([NUMBERS.tolist().index(number) for number in GOOD_NUMBERS])
"""Rows of the good samples, in the order of their numbers."""
BIAS = -5.0
SEED = 3
SHARE = 0.5
Found = tuple[Tensor, dict[str, Tensor]]
"""A loss and its metrics."""
Loss = Callable[..., Found]


def global_rows() -> GlobalRows:
    weights = torch.zeros(len(NUMBERS), dtype=torch.float64)
    weights[GOOD] = 1 / len(GOOD)
    return GlobalRows(weights, NUMBERS, SIZE)


def embeddings(seed: int) -> tuple[Tensor, Tensor]:
    """Embeddings of all rows; those of rows that do not count are long, and would count for much."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randn(len(NUMBERS), 8, generator=generator, dtype=torch.float64) for _ in range(2))
    length = torch.full((len(NUMBERS), 1), 30.0)
    length[GOOD] = 1.0
    image, text = (F.normalize(x, dim=1) * length for x in drawn)
    return image, text


def distinct() -> Tensor:
    return torch.arange(len(NUMBERS))


def equal_in_part() -> Tensor:
    """Caption ids of which two good samples have one, and a third one that of samples that do not count."""
    ids = distinct()
    ids[NUMBERS == 7] = ids[NUMBERS == 0]
    ids[(NUMBERS == PADDING) | (NUMBERS == 5)] = ids[NUMBERS == 4]
    return ids


def dense_clip(image: Tensor, text: Tensor, scale: Tensor) -> Found:
    logits = scale * image @ text.T
    return -(logits.log_softmax(1).diagonal() + logits.log_softmax(0).diagonal()).mean() / 2, {}


def dense_sigmoid(image: Tensor, text: Tensor, scale: Tensor) -> Found:
    signs = 2 * torch.eye(len(image), dtype=image.dtype) - 1
    return (1 + (-signs * (scale * image @ text.T + BIAS)).exp()).log().sum() / len(image), {}


def dense_psd(
    config: PsdConfig, share: float, ids: Tensor, image: Tensor, text: Tensor, scale: Tensor
) -> Found:
    """PSD over the good pairs alone, of which as many are self-distilled as of the whole batch."""
    count, logits = round(share * SIZE), scale * image @ text.T
    if config.psd_select == "random":
        drawn = torch.randperm(SIZE, generator=torch.Generator().manual_seed(SEED))[:count]
        chosen = torch.isin(GOOD_NUMBERS, drawn)
    else:
        sure = logits.softmax(1).diagonal() + logits.softmax(0).diagonal()
        chosen = torch.zeros(len(image), dtype=torch.bool)
        chosen[sure.argsort()[:count]] = True
    same = (ids[:, None] == ids).double()
    identity = same / same.sum(1, keepdim=True)
    loss, entropy, agreement = torch.zeros(()), torch.zeros(()), torch.zeros(())
    for x, q in zip((logits, logits.T), dense_targets(config, image, text, scale), strict=True):
        floored = (1 - config.psd_identity) * q + config.psd_identity * identity
        target = torch.where(chosen[:, None], floored, identity).detach()
        loss = loss - (target * x.log_softmax(1)).sum() / (2 * len(image))
        entropy = entropy - torch.special.xlogy(target, target)[chosen].sum() / (2 * max(1, chosen.sum()))
        agreed = target.argmax(1) == torch.arange(len(image))
        agreement = agreement + agreed[chosen].sum() / (2 * max(1, chosen.sum()))
    return loss, {"psd/share": torch.tensor(share), "psd/entropy": entropy, "psd/agreement": agreement}


def dense_targets(config: PsdConfig, image: Tensor, text: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    if config.psd_target == "ema":
        image, text = (x[GOOD] for x in embeddings(seed=1))
    plan = (config.psd_sharpness * scale * image @ text.T).exp()
    if config.psd_target in ("self", "ema"):
        return plan / plan.sum(1, keepdim=True), plan.T / plan.T.sum(1, keepdim=True)

    def alternated(matrix: Tensor) -> Tensor:
        for _ in range(3 if config.psd_target == "sinkhorn" else 1):
            matrix = matrix / matrix.sum(0, keepdim=True)
            matrix = matrix / matrix.sum(1, keepdim=True)
        return matrix

    return alternated(plan), alternated(plan.T)


def psd(config: PsdConfig, share: float, ids: Tensor) -> Loss:
    teacher = embeddings(seed=1) if config.psd_target == "ema" else None
    return lambda image, text, scale, rows: psd_loss(
        image, text, scale, caption_ids=ids, step=PsdStep(share, SEED, config), teacher=teacher, rows=rows
    )


def clip(image: Tensor, text: Tensor, scale: Tensor, rows: GlobalRows) -> Found:
    return clip_loss(image, text, scale, rows), {}


def sigmoid(image: Tensor, text: Tensor, scale: Tensor, rows: GlobalRows) -> Found:
    return sigmoid_loss(image, text, scale, torch.tensor(BIAS), rows), {}


def assert_same(loss: Loss, dense: Loss) -> None:
    """Check value, gradients and metrics against those of a formula for the good pairs alone."""
    image, text = (x.requires_grad_() for x in embeddings(seed=0))
    scale = torch.tensor(9.0, dtype=torch.float64, requires_grad=True)
    got, metrics = loss(image, text, scale, global_rows())
    want, want_metrics = dense(image[GOOD], text[GOOD], scale)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-10)
    inputs = (image, text, scale)
    gradients, want_gradients = (torch.autograd.grad(x, inputs) for x in (got, want))
    torch.testing.assert_close(gradients, want_gradients, rtol=1e-10, atol=1e-10)
    assert set(metrics) == set(want_metrics)
    for name, value in want_metrics.items():
        assert metrics[name].item() == pytest.approx(value.item(), rel=1e-6), name


@pytest.mark.parametrize(("loss", "dense"), [(clip, dense_clip), (sigmoid, dense_sigmoid)])
def test_contrastive_losses_are_those_of_the_good_pairs_alone(loss: Loss, dense: Loss) -> None:
    assert_same(loss, dense)


@pytest.mark.parametrize("ids", [distinct(), equal_in_part()], ids=["distinct", "equal"])
@pytest.mark.parametrize("share", [0.0, SHARE, 1.0])
@pytest.mark.parametrize("select", ["random", "low_confidence"])
@pytest.mark.parametrize("target", ["swap", "self", "sinkhorn", "ema"])
def test_psd_is_that_of_the_good_pairs_alone(target: Any, select: Any, share: float, ids: Tensor) -> None:
    config = PsdConfig(psd_target=target, psd_select=select, psd_sharpness=1.5, psd_identity=0.2)

    def dense(*pairs: Tensor) -> Found:
        return dense_psd(config, share, ids[GOOD], *pairs)

    assert_same(psd(config, share, ids), dense)


EVERY: dict[str, Loss] = {
    "clip": clip,
    "sigmoid": sigmoid,
    "psd": psd(PsdConfig(psd_target="sinkhorn"), SHARE, equal_in_part()),
    "psd random": psd(PsdConfig(psd_select="random"), SHARE, equal_in_part()),
}
every_loss = pytest.mark.parametrize("loss", EVERY.values(), ids=EVERY)


@every_loss
def test_rows_in_order_that_count_alike_are_the_default(loss: Loss) -> None:
    count = len(NUMBERS)
    even = GlobalRows(torch.full((count,), 1 / count, dtype=torch.float64), torch.arange(count), count)
    image, text = (F.normalize(x, dim=1).requires_grad_() for x in embeddings(seed=0))
    got, want = (loss(image, text, torch.tensor(9.0), rows)[0] for rows in (even, None))
    assert torch.equal(got, want)
    assert all(map(torch.equal, *(torch.autograd.grad(x, (image, text)) for x in (got, want))))


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_without_a_good_sample_has_loss_and_gradient_zero(loss: Loss, dtype: torch.dtype) -> None:
    image, text = (x.to(dtype).requires_grad_() for x in embeddings(seed=0))
    scale = torch.tensor(9.0, requires_grad=True)
    rows = replace(global_rows(), weights=torch.zeros(len(NUMBERS)))
    value, metrics = loss(image, text, scale, rows)
    assert value == 0
    assert all(gradient.count_nonzero() == 0 for gradient in torch.autograd.grad(value, (image, text, scale)))
    assert all(metric == 0 for name, metric in metrics.items() if name != "psd/share")


@every_loss
def test_a_number_that_no_row_has_is_one_that_does_not_count(loss: Loss) -> None:
    image, text = embeddings(seed=0)
    rows, scale = global_rows(), torch.tensor(9.0)
    lost = replace(rows, numbers=torch.where(torch.isin(NUMBERS, torch.tensor(UNUSABLE)), PADDING, NUMBERS))
    torch.testing.assert_close(loss(image, text, scale, lost), loss(image, text, scale, rows))


@every_loss
def test_rows_that_do_not_fit_are_refused(loss: Loss) -> None:
    image, text = embeddings(seed=0)
    rows = global_rows()
    with pytest.raises(ValueError, match="weights are"):
        loss(image, text, torch.tensor(9.0), replace(rows, weights=rows.weights[1:]))
    with pytest.raises(ValueError, match="numbers are"):
        loss(image, text, torch.tensor(9.0), replace(rows, numbers=rows.numbers[1:]))
