"""What a run is sized by where nobody says, against the arithmetic of its promise."""

import itertools

import pytest

from beamclip.data.config import StreamConfig
from beamclip.training.config import OptimConfig, ValidationConfig
from beamclip.training.recipe import (
    DISTILLATION,
    FINE_TUNING,
    LEAST_IN_A_SHARE,
    PRETRAINING,
    ValidationCosts,
    complete,
    complete_validation,
    total_steps,
    validation_share,
)

OPEN = (StreamConfig(), OptimConfig())
RECIPES = pytest.mark.parametrize(
    "recipe",
    [DISTILLATION, PRETRAINING, FINE_TUNING],
    ids=["distillation", "pretraining", "fine-tuning"],
)


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


DISTILLED = ValidationCosts(sample=4.0, image=1.0, once=1.0)
PRETRAINED = ValidationCosts(sample=6.0, image=2.0, texts=500.0)


@pytest.mark.parametrize("costs", [DISTILLED, PRETRAINED], ids=["distillation", "pretraining"])
@pytest.mark.parametrize("steps", [1, 20, 200, 600, 1200, 10_000, 1_000_000])
@pytest.mark.parametrize("batch_size", [16, 256, 4096])
def test_validation_takes_one_per_cent_at_most_unless_it_is_asked_for(costs, steps, batch_size):
    length = {"steps": steps, "batch_size": batch_size}
    own = complete_validation(ValidationConfig(), costs, available=50_000, **length)
    if own.eval_every:
        assert validation_share(own, costs, **length) <= 0.01
        assert 3 <= -(-steps // own.eval_every) <= 40
        assert 100 <= own.val_images <= 2000
    asked = complete_validation(ValidationConfig(val_data="held-out"), costs, available=50_000, **length)
    assert min(steps, 2) <= -(-steps // asked.eval_every) <= 40


def test_an_interval_and_a_number_of_images_that_are_given_stay():
    given = ValidationConfig(eval_every=7, val_images=30)
    assert complete_validation(given, DISTILLED, steps=20, batch_size=16, available=500) == given
    few = complete_validation(given, DISTILLED, steps=20, batch_size=16, available=12)
    assert (few.eval_every, few.val_images) == (7, 12)


def test_without_images_nothing_is_validated():
    own = complete_validation(ValidationConfig(), DISTILLED, steps=9999, batch_size=16, available=0)
    assert own == ValidationConfig()


def test_the_options_of_a_training_too_short_for_validation_stay_open():
    own = complete_validation(ValidationConfig(), DISTILLED, steps=5, batch_size=16, available=500)
    assert own == ValidationConfig()
