"""Similarities are products in float32 proper, also where the networks' are not."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from beamclip.evaluation.zeroshot import class_scores
from beamclip.losses.config import PsdConfig
from beamclip.losses.contrastive import clip_loss
from beamclip.losses.csm import csm_ensemble_loss, csm_loss
from beamclip.losses.psd import PsdStep, psd_loss
from beamclip.losses.sigmoid import sigmoid_loss
from beamclip.losses.similarity import similarities
from beamclip.prompts.anchors import Anchors

SCALE = torch.tensor(100.0)
TAUS = {"tau_student": 0.05, "tau_teacher": 0.02}
OF_TWO = {"tau_student": 0.05, "tau_teachers": (0.02, 0.04)}


class Watch(TorchDispatchMode):
    """Notes under which setting each matrix product is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.settings: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.addmm_.default):
            self.settings.append(torch.get_float32_matmul_precision())
        return func(*args, **(kwargs or {}))


@pytest.fixture
def fast_products() -> Iterator[None]:
    """The setting of a training, under which a GPU rounds factors to 10 bits."""
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


def _scored(a: Tensor, b: Tensor) -> Tensor:
    return class_scores(a, Anchors(b, torch.arange(len(b))), len(b), temperature=0.01).sum()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "clip": lambda a, b: clip_loss(a, b, SCALE),
    "siglip": lambda a, b: sigmoid_loss(a, b, SCALE, torch.tensor(-10.0)),
    "psd": lambda a, b: psd_loss(a, b, SCALE, caption_ids=torch.arange(6), step=PsdStep(0.5, 0, PsdConfig()))[
        0
    ],
    "csm": lambda a, b: csm_loss(a, b.detach(), b, **TAUS),
    "csm in chunks": lambda a, b: csm_loss(a, b.detach(), b, **TAUS, chunk_size=2),
    "csm of two teachers": lambda a, b: csm_ensemble_loss(a, b, [(b, b), (b, b)], **OF_TWO),
    "scores": _scored,
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_scores_multiply_in_float32_forwards_and_backwards(name: str, fast_products: None) -> None:
    a, b = (F.normalize(torch.randn(6, 8), dim=1).requires_grad_() for _ in range(2))
    with Watch() as watch:
        LOSSES[name](a, b).backward()
    assert len(watch.settings) >= 2
    assert set(watch.settings) == {"highest"}
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.parametrize("name", ["clip", "psd", "csm", "csm in chunks"])
def test_second_derivatives_are_refused_rather_than_wrong(name: str) -> None:
    a, b = (F.normalize(torch.randn(6, 8), dim=1).requires_grad_() for _ in range(2))
    # Weighted, so that what comes back through a loss whose gradient is a constant has a graph as well.
    weight = torch.ones((), requires_grad=True)
    (gradient,) = torch.autograd.grad(weight * LOSSES[name](a, b), a, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_similarities_and_their_gradients_are_those_of_the_plain_product() -> None:
    a, b = (torch.randn(n, 4, dtype=torch.float64, requires_grad=True) for n in (5, 3))
    torch.testing.assert_close(similarities(a, b), a @ b.T)
    assert torch.autograd.gradcheck(similarities, (a, b))
