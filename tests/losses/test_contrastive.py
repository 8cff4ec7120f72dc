"""CLIP's loss against open_clip's, in one process and across two real gloo workers."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from torch import Tensor

import beamclip
from beamclip.losses.contrastive import clip_loss, gather_with_grad

WORKER = Path(__file__).with_name("two_tower_worker.py")
SOURCES = Path(beamclip.__file__).parents[1]


def pair(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(6, 8, generator=generator, dtype=dtype), dim=1) for _ in range(2))
    return image.requires_grad_(), text.requires_grad_()


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_clip_loss_and_its_gradients_equal_those_of_open_clip(scale: float) -> None:
    image, text = pair()
    logit_scale = torch.tensor(scale, requires_grad=True)
    got = clip_loss(image, text, logit_scale)
    want = ClipLoss()(image, text, logit_scale)
    torch.testing.assert_close(got, want)
    inputs = (image, text, logit_scale)
    torch.testing.assert_close(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs))


def test_clip_loss_of_embeddings_that_are_all_alike_is_the_logarithm_of_the_batch_size() -> None:
    alike = F.normalize(torch.ones(6, 8), dim=1)
    torch.testing.assert_close(clip_loss(alike, alike, torch.tensor(100.0)), torch.tensor(6.0).log())


def test_clip_loss_computes_in_float32_under_bf16_autocast() -> None:
    image, text = pair()
    logit_scale = torch.tensor(100.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = clip_loss(image, text, logit_scale)
    torch.testing.assert_close(loss, ClipLoss()(image, text, logit_scale))


def test_clip_loss_refuses_shapes_that_differ() -> None:
    image, text = pair()
    with pytest.raises(ValueError, match=r"image is \[6, 8\] and text is \[5, 8\]"):
        clip_loss(image, text[:5], torch.tensor(1.0))


def test_gathering_in_one_process_returns_the_tensor_itself() -> None:
    image, _ = pair()
    assert gather_with_grad(image) is image


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two workers left their losses and gradients after one step on half a batch each."""
    folder = tmp_path_factory.mktemp("two-workers")
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([sys.executable, str(WORKER), str(rank), "2", str(folder)], env=environment)
        for rank in range(2)
    ]
    try:
        assert [worker.wait(timeout=100) for worker in workers] == [0, 0]
    finally:
        for worker in workers:
            worker.kill()
    return folder


def step_on_the_whole_batch() -> tuple[Tensor, dict[str, Tensor]]:
    definitions = runpy.run_path(str(WORKER))
    towers = definitions["seeded_towers"]()
    loss = ClipLoss()(*towers(*definitions["global_batch"]()))
    loss.backward()
    return loss.detach(), {name: parameter.grad for name, parameter in towers.named_parameters()}


def test_gradients_of_two_workers_on_halves_equal_those_of_one_on_the_whole_batch(two_workers: Path) -> None:
    _, want = step_on_the_whole_batch()
    got = torch.load(two_workers / "gradients.pt")
    assert min(gradient.abs().max() for gradient in want.values()) > 1e-3
    torch.testing.assert_close(got, want)


def test_losses_of_two_workers_average_to_the_loss_of_the_whole_batch(two_workers: Path) -> None:
    want, _ = step_on_the_whole_batch()
    losses = torch.stack([torch.load(two_workers / f"loss-{rank}.pt") for rank in range(2)])
    assert losses[0] != losses[1]
    torch.testing.assert_close(losses.mean(), want)
