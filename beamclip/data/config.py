"""Options of how images and captions reach training; parsing options must not import torch."""

from dataclasses import dataclass, fields, replace
from typing import Annotated, Any, Literal

from beamclip.errors import InputError
from beamclip.ranges import Count, Positive, Range, Share, check_ranges

Preset = Literal["drawings", "photos", "none"]
TeacherView = Literal["same", "weak"]
Degrees = Annotated[float, Range(0, 180)]
DecodePlace = Literal["worker", "tasks"]
"""Where images are decoded: in the threads of a training worker, or in tasks of Ray Data."""


@dataclass(frozen=True)
class CaptionConfig:
    """The text that an image is paired with each time it is seen."""

    caption_columns: tuple[str, ...] = ()
    """Fields of a sample's JSON with texts besides its caption: each a text, or a list of tags."""
    caption_join: Literal["sample", "concat"] = "sample"
    """sample: one of the sample's texts. concat: all of them, in a new order each time, joined by commas."""
    caption_dropout: Share = 0.0
    """Probability of leaving out each of a sample's texts; one always stays."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class StreamConfig:
    """How samples reach the training loop."""

    batch_size: Count | None = None
    """Images in a global batch, over all workers; by default chosen from the number of images."""
    data_weights: tuple[Positive, ...] = ()
    """Shares of the data sets of --data in each batch, in their order: `2 1` takes twice as many samples of
    the first. By default all are one data set, of which each epoch has each sample once."""
    shuffle_window: Count = 4096
    """Samples from all over the data that are shuffled among each other; twice as many are held, encoded."""
    decode: Literal["auto", "worker", "tasks"] = "auto"
    """Where images are decoded. worker: in threads of each training worker. tasks: in tasks of Ray Data, by
    the CPUs of all nodes. auto: in tasks where workers train on GPUs and leave four CPUs each or more."""
    decode_threads: Count = 2
    """Threads that decode and crop in each worker, with --decode worker."""
    prefetch_batches: Count = 4
    """Batches decoded ahead of the training loop, in each worker."""
    allow_missing_shards: bool = False
    """Count the samples of a shard that cannot be opened as lost, instead of ending the command."""

    def __post_init__(self) -> None:
        check_ranges(self)


@dataclass(frozen=True)
class Augmentation:
    """How training images are changed; evaluation changes none. The defaults suit drawings."""

    crop_scale_min: Annotated[float, Range(0, 1, beyond_least=True)] = 0.6
    """Smallest share of the image's area that a random crop keeps; 1 keeps the whole image."""
    crop_ratio: Annotated[float, Range(1)] = 4 / 3
    """Largest aspect ratio of a random crop, its inverse the smallest; exceeded where no such crop fits."""
    flip_prob: Share = 0.0
    """Probability of a horizontal mirror image."""
    rotate: Degrees = 10.0
    """Largest rotation, degrees to either side."""
    translate: Share = 0.06
    """Largest shift along each axis, as a share of the image's width."""
    zoom: Share = 0.1
    """Largest relative change of scale, to either side."""
    jitter: Share = 0.3
    """Largest relative change of brightness, contrast and saturation, to either side."""
    grey_prob: Share = 0.0
    """Probability of removing all colour."""
    blur_prob: Share = 0.0
    """Probability of a Gaussian blur."""
    blur_sigma_min: Positive = 0.1
    """Smallest standard deviation of the blur, pixels of the crop."""
    blur_sigma_max: Positive = 2.0
    """Largest standard deviation of the blur, pixels of the crop."""
    scaled_decoding: bool = True
    """Whether a JPEG that is much larger than the crop needs is decoded at a half, a quarter or an eighth."""
    teacher_view: TeacherView = "same"
    """What the teacher sees; see AugmentConfig."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.blur_sigma_min > self.blur_sigma_max:
            raise InputError(
                f"blur_sigma_min is {self.blur_sigma_min} and blur_sigma_max {self.blur_sigma_max}: "
                "give the smaller one first."
            )


_STILL: dict[str, Any] = {"rotate": 0.0, "translate": 0.0, "zoom": 0.0}
PRESETS: dict[Preset, Augmentation] = {
    "drawings": Augmentation(),
    "photos": Augmentation(crop_scale_min=0.4, flip_prob=0.5, jitter=0.2, **_STILL),
    "none": Augmentation(crop_scale_min=1.0, jitter=0.0, **_STILL),
}
"""Augmentations by name; their values are this project's."""


@dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images; evaluation uses none of it."""

    augment: Preset = "drawings"
    """What the other options are by default. photos: crops from 0.4 of the area, mirror images, weak colours.
    drawings: crops from 0.6, rotations, shifts, stronger colours, no mirror images, which turn letters and
    arrows around. none: the whole image."""
    teacher_view: TeacherView = "same"
    """same: the teacher sees the student's pixels. weak: it sees the crop as it was before mirroring, shifts,
    colours and blur. A teacher cache holds one or the other."""
    crop_scale_min: Annotated[float, Range(0, 1, beyond_least=True)] | None = None
    """Smallest share of the image's area that a random crop keeps; 1 keeps the whole image."""
    crop_ratio: Annotated[float, Range(1)] | None = None
    """Largest aspect ratio of a random crop, its inverse the smallest; exceeded where no such crop fits. By
    default 4/3."""
    flip_prob: Share | None = None
    """Probability of a horizontal mirror image; leave it at 0 where left and right carry meaning."""
    rotate: Degrees | None = None
    """Largest rotation, degrees to either side; for drawings 10."""
    translate: Share | None = None
    """Largest shift along each axis, as a share of the image's width; for drawings 0.06."""
    zoom: Share | None = None
    """Largest relative change of scale, to either side; for drawings 0.1."""
    jitter: Share | None = None
    """Largest relative change of brightness, contrast and saturation, to either side; for drawings 0.3, for
    photos 0.2."""
    grey_prob: Share | None = None
    """Probability of removing all colour; by default 0."""
    blur_prob: Share | None = None
    """Probability of a Gaussian blur; by default 0."""
    blur_sigma_min: Positive | None = None
    """Smallest standard deviation of the blur, pixels of the crop; by default 0.1."""
    blur_sigma_max: Positive | None = None
    """Largest standard deviation of the blur, pixels of the crop; by default 2."""
    scaled_decoding: bool = True
    """Decode a JPEG that is much larger than the crop needs at a half, a quarter or an eighth of its size."""

    def __post_init__(self) -> None:
        check_ranges(self)
        self.chosen()

    def chosen(self) -> Augmentation:
        """Return the augmentation: the preset with the options that are given."""
        given = {item.name: getattr(self, item.name) for item in fields(Augmentation)}
        values = {name: value for name, value in given.items() if value is not None}
        return replace(PRESETS[self.augment], **values)
