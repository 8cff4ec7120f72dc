"""Augmentations by name, and options that change them."""

import pytest

from beamclip.data.config import PRESETS, Augmentation, AugmentConfig
from beamclip.errors import InputError


def test_given_options_change_the_preset() -> None:
    photos = AugmentConfig(augment="photos", rotate=5.0).chosen()
    assert (photos.flip_prob, photos.rotate, photos.zoom) == (0.5, 5.0, 0.0)
    assert AugmentConfig().chosen() == PRESETS["drawings"] == Augmentation()


def test_none_leaves_images_as_they_are() -> None:
    none = AugmentConfig(augment="none").chosen()
    moves = (none.flip_prob, none.rotate, none.translate, none.zoom)
    colours = (none.jitter, none.grey_prob, none.blur_prob)
    assert (*moves, *colours) == (0.0,) * 7
    assert none.crop_scale_min == 1.0


def test_values_that_do_not_fit_together_are_refused_before_training() -> None:
    with pytest.raises(InputError, match="give the smaller one first"):
        AugmentConfig(blur_sigma_min=3.0)
