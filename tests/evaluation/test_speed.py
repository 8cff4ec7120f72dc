"""Names of pictures as zero-shot scoring finds them, and how many a core finds in a second."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from beamclip.evaluation.speed import class_namer, images_per_core_second
from beamclip.models.clip import new_clip
from beamclip.models.teacher import Teacher
from beamclip.prompts.anchors import Anchors


@pytest.fixture(scope="module")
def clip():
    return new_clip("nano-resnet10t", seed=0)


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "png")
    return encoded.getvalue()


def test_a_picture_gets_the_class_of_the_nearest_anchor(clip):
    teacher = Teacher(clip)
    pictures = [png(seed) for seed in range(6)]
    pixels = torch.stack(
        [torch.from_numpy(np.array(Image.open(io.BytesIO(each)))).permute(2, 0, 1) for each in pictures]
    )
    embeddings = teacher.encode_image(pixels)
    # Each picture's own embedding is the anchor of a class, in another order.
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    namer = class_namer(clip, Anchors(embeddings[order], torch.arange(6)), 6)
    assert [order[found].item() for found in namer(pictures)] == list(range(6))


def test_every_function_sees_every_picture_in_each_round_and_threads_are_restored():
    threads, seen = torch.get_num_threads(), {"a": [], "b": []}
    torch.set_num_threads(2)
    try:
        rates = images_per_core_second(
            {name: calls.extend for name, calls in seen.items()}, range(70), batch_size=32, rounds=3
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert rates.keys() == seen.keys()
    for calls in seen.values():
        assert calls == [*range(32), *list(range(70)) * 3]
