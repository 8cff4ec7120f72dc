"""Losses over the global batch, across two and three real gloo workers."""

import os
import runpy
import subprocess
from pathlib import Path

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor

import beamclip

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("two_tower_worker.py")
SOURCES = Path(beamclip.__file__).parents[1]
DEFINITIONS = runpy.run_path(str(WORKER))


@pytest.fixture(scope="module")
def two_workers(python: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which two workers left their losses and gradients."""
    return run_workers(2, python, tmp_path_factory.mktemp("two-workers"))


@pytest.fixture(scope="module")
def three_workers(python: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which three workers left their losses and gradients."""
    return run_workers(3, python, tmp_path_factory.mktemp("three-workers"))


def run_workers(count: int, python: list[str], folder: Path) -> Path:
    environment = {**os.environ, "PYTHONPATH": str(SOURCES), "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen([*python, str(WORKER), str(rank), str(count), str(folder)], env=environment)
        for rank in range(count)
    ]
    try:
        assert [worker.wait(timeout=600) for worker in workers] == [0] * count
    finally:
        for worker in workers:
            worker.kill()
    return folder


def step_on_the_whole_batch(name: str) -> tuple[Tensor, dict[str, Tensor]]:
    towers = DEFINITIONS["seeded_towers"]()
    rows = torch.arange(DEFINITIONS["BATCH"])
    loss = DEFINITIONS["LOSSES"][name](*towers(*DEFINITIONS["global_batch"]()), rows)
    loss.backward()
    return loss.detach(), {key: parameter.grad for key, parameter in towers.named_parameters()}


@pytest.mark.parametrize("name", DEFINITIONS["LOSSES"])
def test_gradients_of_two_workers_on_halves_equal_those_of_one_on_the_whole_batch(
    two_workers: Path, name: str
) -> None:
    _, want = step_on_the_whole_batch(name)
    assert min(gradient.abs().max() for gradient in want.values()) > 1e-3
    torch.testing.assert_close(torch.load(two_workers / f"{name}.gradients.pt"), want)


@pytest.mark.parametrize("name", DEFINITIONS["LOSSES"])
def test_losses_of_two_workers_average_to_the_loss_of_the_whole_batch(two_workers: Path, name: str) -> None:
    want, _ = step_on_the_whole_batch(name)
    losses = torch.stack([torch.load(two_workers / f"{name}.{rank}.pt") for rank in range(2)])
    assert losses[0] != losses[1]
    torch.testing.assert_close(losses.mean(), want)


@pytest.mark.parametrize("name", DEFINITIONS["LOSSES"])
@pytest.mark.parametrize("world_size", [2, 3])
def test_a_batch_that_is_dealt_out_has_the_loss_and_gradients_of_one_worker(
    world_size: int, name: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue({2: "two_workers", 3: "three_workers"}[world_size])
    towers = DEFINITIONS["seeded_towers"]().double()
    want = DEFINITIONS["dealt_step"](towers, DEFINITIONS["LOSSES"][name], 0, 1)
    losses = [torch.load(folder / f"{name}.dealt.{rank}.pt") for rank in range(world_size)]
    exact = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(torch.stack(losses).mean(), want, **exact)
    gradients = {key: parameter.grad for key, parameter in towers.named_parameters()}
    assert min(gradient.abs().max() for gradient in gradients.values()) > 1e-3
    torch.testing.assert_close(torch.load(folder / f"{name}.dealt.gradients.pt"), gradients, **exact)


def test_a_batch_that_is_dealt_out_has_the_clip_loss_of_its_good_samples() -> None:
    towers = DEFINITIONS["seeded_towers"]().double()
    got = DEFINITIONS["dealt_step"](towers, DEFINITIONS["LOSSES"]["clip"], 0, 1)
    good = [i for i in range(DEFINITIONS["BATCH"]) if i not in DEFINITIONS["UNUSABLE"]]
    want = ClipLoss()(*towers(*(x.double()[good] for x in DEFINITIONS["global_batch"]())))
    torch.testing.assert_close(got, want.detach(), rtol=1e-10, atol=1e-10)


def test_the_whole_batch_has_the_losses_of_open_clip() -> None:
    image, text, scale = DEFINITIONS["seeded_towers"]()(*DEFINITIONS["global_batch"]())
    torch.testing.assert_close(step_on_the_whole_batch("clip")[0], ClipLoss()(image, text, scale).detach())
    want = SigLipLoss()(image, text, scale, torch.tensor(-5.0)).detach()
    torch.testing.assert_close(step_on_the_whole_batch("sigmoid")[0], want)
