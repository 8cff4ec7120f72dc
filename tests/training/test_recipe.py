"""What a run is sized by where nobody says, against the arithmetic of its promise."""

import itertools

import pytest

from beamclip.data.config import StreamConfig
from beamclip.training.config import OptimConfig
from beamclip.training.recipe import DISTILLATION, LEAST_IN_A_SHARE, PRETRAINING, complete, total_steps

OPEN = (StreamConfig(), OptimConfig())
RECIPES = pytest.mark.parametrize("recipe", [DISTILLATION, PRETRAINING], ids=["distillation", "pretraining"])


@RECIPES
@pytest.mark.parametrize("images", [1, 50, 200, 3834, 8000, 30_000, 1_000_000, 400_000_000])
def test_every_number_of_images_gets_its_epochs_its_steps_and_a_batch_that_it_fills(recipe, images):
    stream, optim = complete(recipe, images, *OPEN)
    assert stream.batch_size <= min(images, recipe.largest_batch)
    assert optim.epochs >= recipe.epochs
    assert total_steps(optim, images, stream.batch_size) >= recipe.steps


@RECIPES
def test_more_images_never_mean_fewer_of_them_seen_or_smaller_batches(recipe):
    sizes = [2**n for n in range(6, 28)]
    sized = [complete(recipe, images, *OPEN) for images in sizes]
    batches = [stream.batch_size for stream, _ in sized]
    seen = [optim.epochs * images for images, (_, optim) in zip(sizes, sized, strict=True)]
    assert batches == sorted(batches)
    assert batches[-1] == recipe.largest_batch
    assert all(later >= 0.95 * earlier for earlier, later in itertools.pairwise(seen))


def test_what_is_given_stays():
    stream, optim = complete(
        DISTILLATION, 3834, StreamConfig(batch_size=100), OptimConfig(epochs=2.5, lr=0.123)
    )
    assert (stream.batch_size, optim.epochs, optim.lr) == (100, 2.5, 0.123)


def test_a_run_of_given_steps_has_no_epochs_chosen_for_it():
    _, optim = complete(DISTILLATION, 3834, StreamConfig(), OptimConfig(steps=7))
    assert (optim.epochs, total_steps(optim, 3834, 64)) == (None, 7)


def test_a_complete_configuration_is_left_as_it_is():
    once = complete(PRETRAINING, 3834, *OPEN)
    assert complete(PRETRAINING, 3834, *once) == once


@pytest.mark.parametrize("workers", [1, 3, 5, 64])
def test_a_chosen_batch_is_cut_evenly_and_feeds_every_worker(workers):
    stream, _ = complete(DISTILLATION, 100_000, *OPEN, num_workers=workers)
    assert stream.batch_size % workers == 0
    assert stream.batch_size // workers >= LEAST_IN_A_SHARE
