"""How fast pictures become class names, on one core."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from beamclip.data.transforms import load_evaluation_image
from beamclip.evaluation.zeroshot import class_scores
from beamclip.models.clip import LoadedClip
from beamclip.models.teacher import copied_image_teacher
from beamclip.prompts.anchors import Anchors

Picture = TypeVar("Picture")


def class_namer(
    clip: LoadedClip,
    anchors: Anchors,
    num_classes: int,
    encode: Callable[[Tensor], Tensor] | None = None,
) -> Callable[[Sequence[bytes]], list[int]]:
    """Return a function that decodes pictures, encodes them, and finds the nearest class of each.

    Args:
        anchors: of the model's text tower, one or more for each of `num_classes` classes.
        encode: uint8 [B, 3, S, S] to embeddings [B, D] of unit length; by default by a copy of the model's
            image tower.

    Returns:
        Encoded pictures (PNG, JPEG, ...) to indices of classes, as zero-shot scoring finds them.
    """
    encode = encode or copied_image_teacher(clip).encode_image
    preprocess = clip.preprocess_cfg

    def pixels(picture: bytes) -> Tensor:
        image = load_evaluation_image(
            picture,
            clip.image_size,
            resize_mode=preprocess["resize_mode"],
            interpolation=preprocess["interpolation"],
            fill_color=preprocess["fill_color"],
        )
        return torch.from_numpy(image.copy()).permute(2, 0, 1)

    @torch.inference_mode()
    def name(pictures: Sequence[bytes]) -> list[int]:
        embeddings = encode(torch.stack([pixels(picture) for picture in pictures]))
        found: list[int] = class_scores(embeddings, anchors, num_classes, temperature=0.01).argmax(1).tolist()
        return found

    return name


def images_per_core_second(
    contenders: Mapping[str, Callable[[Sequence[Picture]], object]],
    pictures: Sequence[Picture],
    *,
    batch_size: int = 32,
    rounds: int = 5,
) -> dict[str, float]:
    """Measure how many pictures each function processes in a second of one core.

    The functions take turns, so that whatever else the machine does slows all of them alike. What counts is
    the CPU time of this thread, not the time that passes: torch gets one thread meanwhile.

    Args:
        contenders: functions of a batch of pictures, which must work in the thread that calls them.
        pictures: at least one; all are processed in each round.

    Returns:
        For each contender the median of its rounds, pictures per second.
    """
    batches = [pictures[start : start + batch_size] for start in range(0, len(pictures), batch_size)]
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for process in contenders.values():
            process(batches[0])  # the first batch also pays for choosing kernels and reserving memory
        for _ in range(rounds):
            for name, process in contenders.items():
                began = time.thread_time()
                for batch in batches:
                    process(batch)
                seconds[name].append(time.thread_time() - began)
    finally:
        torch.set_num_threads(threads)
    return {name: len(pictures) / statistics.median(each) for name, each in seconds.items()}
