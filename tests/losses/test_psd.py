"""Progressive self-distillation against the formulas of the dense [N, N] matrices."""

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from torch import Tensor

from beamclip.losses.config import PsdConfig
from beamclip.losses.psd import PsdStep, psd_loss, psd_share

N = 12
SCALE = torch.tensor(9.0, dtype=torch.float64)
DISTINCT = torch.arange(N)
TARGETS = ("swap", "self", "sinkhorn", "ema")


def embeddings(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randn(N, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    image, text = (F.normalize(x, dim=1) for x in drawn)
    return image.requires_grad_(), text.requires_grad_()


def loss_of(image: Tensor, text: Tensor, config: PsdConfig, share: float, **options: Any) -> Any:
    if config.psd_target == "ema":
        options.setdefault("teacher", tuple(x.detach() for x in embeddings(seed=1)))
    step = PsdStep(share, options.pop("row_seed", 3), config)
    return psd_loss(image, text, SCALE, step=step, **{"caption_ids": DISTINCT, **options})


def dense_target(image: Tensor, text: Tensor, config: PsdConfig) -> tuple[Tensor, Tensor]:
    """q of the formulas, for every row, by matrices that are scaled again and again."""
    sharp = config.psd_sharpness * SCALE
    if config.psd_target == "ema":
        image, text = embeddings(seed=1)
    plan = (sharp * image @ text.T).detach().exp()
    if config.psd_target in ("self", "ema"):
        return plan / plan.sum(1, keepdim=True), plan.T / plan.T.sum(1, keepdim=True)

    def alternated(matrix: Tensor) -> Tensor:
        for _ in range(3 if config.psd_target == "sinkhorn" else 1):
            matrix = matrix / matrix.sum(0, keepdim=True)
            matrix = matrix / matrix.sum(1, keepdim=True)
        return matrix

    return alternated(plan), alternated(plan.T)


@pytest.mark.parametrize("target", TARGETS)
def test_share_zero_is_clips_loss(target: Any) -> None:
    image, text = embeddings()
    loss, metrics = loss_of(image, text, PsdConfig(psd_target=target), 0.0)
    want = ClipLoss()(image, text, SCALE)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(*(torch.autograd.grad(x, (image, text)) for x in (loss, want)))
    assert {name: value.item() for name, value in metrics.items()} == {
        "psd/share": 0.0, "psd/entropy": 0.0, "psd/agreement": 0.0
    }  # fmt: skip


@pytest.mark.parametrize("sharpness", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("target", TARGETS)
def test_share_one_is_the_cross_entropy_with_the_dense_target(target: Any, sharpness: float) -> None:
    image, text = embeddings()
    config = PsdConfig(psd_target=target, psd_sharpness=sharpness, psd_identity=0.2)
    loss, metrics = loss_of(image, text, config, 1.0)
    logits = SCALE * image @ text.T
    mixed = [0.8 * q + 0.2 * torch.eye(N) for q in dense_target(image, text, config)]
    want = -sum((y * x.log_softmax(1)).sum() for y, x in zip(mixed, (logits, logits.T), strict=True)) / (
        2 * N
    )
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(*(torch.autograd.grad(x, (image, text)) for x in (loss, want)))
    entropy = -sum((y * y.log()).sum() for y in mixed) / (2 * N)
    agreement = sum((y.argmax(1) == DISTINCT).double().mean() for y in mixed) / 2
    torch.testing.assert_close(metrics["psd/entropy"], entropy)
    assert metrics["psd/agreement"].item() == pytest.approx(float(agreement))


def test_a_target_made_in_the_same_way_as_the_prediction_teaches_nothing() -> None:
    image, text = embeddings()
    loss, _ = loss_of(image, text, PsdConfig(psd_target="self", psd_identity=0.0), 1.0)
    for gradient in torch.autograd.grad(loss, (image, text)):
        assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("select", ["random", "low_confidence"])
def test_between_the_ends_the_chosen_rows_alone_are_soft(select: Any) -> None:
    image, text = embeddings()
    config = PsdConfig(psd_select=select)
    loss, metrics = loss_of(image, text, config, 0.25)
    logits = SCALE * image @ text.T
    soft = [part.detach() for part in dense_target(image, text, config)]
    if select == "random":
        chosen = torch.randperm(N, generator=torch.Generator().manual_seed(3))[:3]
    else:
        chosen = (logits.softmax(1).diagonal() + logits.softmax(0).diagonal()).argsort()[:3]
    want = torch.tensor(0.0, dtype=torch.float64)
    for q, x in zip(soft, (logits, logits.T), strict=True):
        target = torch.eye(N, dtype=torch.float64)
        target[chosen] = 0.9 * q[chosen] + 0.1 * target[chosen]
        want = want - (target * x.log_softmax(1)).sum() / (2 * N)
    torch.testing.assert_close(loss, want)
    assert metrics["psd/share"].item() == 0.25


def test_other_seeds_choose_other_rows() -> None:
    image, text = embeddings()
    config = PsdConfig(psd_select="random")
    losses = {loss_of(image, text, config, 0.5, row_seed=seed)[0].item() for seed in range(4)}
    assert len(losses) == 4


def test_equal_captions_share_their_target() -> None:
    """Rows 0 and 1 have one caption, though dropout in the text tower told their embeddings apart."""
    image, text = embeddings()
    ids = torch.tensor([7, 7, *range(20, 20 + N - 2)])
    identity = torch.eye(N, dtype=torch.float64)
    identity[:2, :2] = 0.5
    logits = SCALE * image @ text.T
    for share in (0.0, 1.0):
        loss, _ = loss_of(image, text, PsdConfig(psd_identity=0.3), share, caption_ids=ids)
        want = torch.tensor(0.0, dtype=torch.float64)
        for q, x in zip(dense_target(image, text, PsdConfig()), (logits, logits.T), strict=True):
            target = 0.7 * q + 0.3 * identity if share else identity
            want = want - (target * x.log_softmax(1)).sum() / (2 * N)
        torch.testing.assert_close(loss, want)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.0, 0.6, 0.6, 0.6]),
        ("linear", [0.0, 0.2, 0.4, 0.6]),
        ("cosine", [0.0, 0.2, 0.4, 0.6]),
    ],
)
def test_the_share_grows_from_start_to_end_after_the_warm_up(schedule: Any, expected: list[float]) -> None:
    config = PsdConfig(psd_schedule=schedule, psd_start=0.2, psd_end=0.6, psd_warmup=0.2)
    assert [psd_share(progress, config) for progress in (0.1, 0.2, 0.6, 1.0)] == pytest.approx(expected)


def test_the_cosine_starts_and_ends_slowly() -> None:
    config = PsdConfig(psd_warmup=0.0, psd_end=1.0)
    assert psd_share(0.1, config) < 0.05
    assert psd_share(0.25, config) == pytest.approx((1 - 2**-0.5) / 2)
    assert psd_share(0.9, config) > 0.95


def test_bf16_autocast_changes_nothing() -> None:
    image, text = (x.detach().float() for x in embeddings())
    config = PsdConfig(psd_target="sinkhorn")
    want, _ = loss_of(image, text, config, 0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, _ = loss_of(image, text, config, 0.5)
    assert torch.equal(got, want)


def test_what_does_not_fit_is_refused() -> None:
    image, text = embeddings()
    with pytest.raises(ValueError, match=r"caption_ids are \[11\]"):
        loss_of(image, text, PsdConfig(), 0.5, caption_ids=DISTINCT[1:])
    with pytest.raises(ValueError, match=r"share is 1\.5"):
        loss_of(image, text, PsdConfig(), 1.5)
    with pytest.raises(ValueError, match="moving average"):
        loss_of(image, text, replace(PsdConfig(), psd_target="ema"), 0.5, teacher=None)
