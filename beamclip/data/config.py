"""Options of how images and captions reach training; parsing options must not import torch."""

from dataclasses import dataclass
from typing import Annotated, Literal

from beamclip.errors import InputError
from beamclip.ranges import Count, Positive, Range, Share, check_ranges

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
class AugmentConfig:
    """Augmentation of training images; evaluation uses none of it."""

    crop_scale_min: Annotated[float, Range(0, 1, beyond_least=True)] = 0.6
    """Smallest share of the image's area that a random crop keeps; 1 keeps the whole image."""
    crop_ratio: Annotated[float, Range(1)] = 4 / 3
    """Largest aspect ratio of a random crop, its inverse the smallest; exceeded where no such crop fits."""
    flip_prob: Share = 0.0
    """Probability of a horizontal mirror image; leave it at 0 where left and right carry meaning."""
    rotate: Annotated[float, Range(0, 180)] = 10.0
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
    """Decode a JPEG that is much larger than the crop needs at a half, a quarter or an eighth of its size."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.blur_sigma_min > self.blur_sigma_max:
            raise InputError(
                f"blur_sigma_min is {self.blur_sigma_min} and blur_sigma_max {self.blur_sigma_max}: "
                "give the smaller one first."
            )
