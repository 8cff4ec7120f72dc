"""Averages of two models' weights: their ends, their middle, and what has none."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from beamclip.errors import InputError
from beamclip.models.clip import LoadedClip, new_clip, with_logit_bias
from beamclip.models.config import StudentConfig
from beamclip.models.interpolation import interpolated
from beamclip.models.student import build_student


def embeddings(clip: LoadedClip) -> tuple[Tensor, Tensor]:
    size = clip.image_size
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return clip.model.encode_image(images), clip.model.encode_text(clip.tokenizer(["a crane", "an owl"]))


def students(teacher: LoadedClip) -> list[LoadedClip]:
    """Two students of one teacher, whose batch norms have seen one and two batches."""
    found = []
    for seed in range(2):
        student = build_student(StudentConfig(student="test_resnet"), teacher, seed=seed)
        for _ in range(seed + 1):
            with torch.no_grad():
                student.model.encode_image(torch.randn(8, 3, 32, 32))
        found.append(replace(student, model=student.model.eval()))
    return found


@pytest.mark.parametrize("alpha", [0, 1])
def test_at_either_end_the_embeddings_are_those_of_a_parent(micro_clip: LoadedClip, alpha: int) -> None:
    torch.manual_seed(0)
    parents = students(micro_clip)
    for own, expected in zip(
        embeddings(interpolated(*parents, alpha)), embeddings(parents[alpha]), strict=True
    ):
        assert torch.equal(own, expected)


def test_floating_tensors_are_averaged_and_counters_are_the_seconds(micro_clip: LoadedClip) -> None:
    torch.manual_seed(0)
    first, second = students(micro_clip)
    with torch.no_grad():
        second.model.logit_scale.add_(1.0)
    between = interpolated(first, second, 0.3).model.state_dict()
    states = first.model.state_dict(), second.model.state_dict()
    assert between.keys() == states[0].keys()
    for name, own in between.items():
        one, other = (state[name].numpy().astype(np.float64) for state in states)
        expected = other if name.endswith("num_batches_tracked") else 0.7 * one + 0.3 * other
        np.testing.assert_allclose(own.numpy(), expected, rtol=1e-5, atol=1e-6, err_msg=name)
    assert any(name.endswith("running_var") for name in between)
    # The text tower is that of the same teacher in both.
    assert torch.equal(between["token_embedding.weight"], states[0]["token_embedding.weight"])


def test_parents_keep_their_weights(micro_file: Path) -> None:
    first, second = (new_clip(micro_file, seed=seed) for seed in range(2))
    before = embeddings(first), embeddings(second)
    assert interpolated(first, second, 0.5).fingerprint not in (first.fingerprint, second.fingerprint)
    after = embeddings(first), embeddings(second)
    assert all(torch.equal(*pair) for pair in zip(sum(before, ()), sum(after, ()), strict=True))


def test_tensors_that_two_towers_share_are_averaged_once() -> None:
    first, second = (new_clip("tiny-msclip", seed=seed) for seed in range(2))
    between = interpolated(first, second, 0.25).model
    block, twin = between.visual.transformer.resblocks[1], between.text.transformer.resblocks[1]
    assert block.mlp.c_fc.weight is twin.mlp.c_fc.weight
    one, other = (clip.model.visual.transformer.resblocks[1].mlp.c_fc.weight for clip in (first, second))
    torch.testing.assert_close(block.mlp.c_fc.weight, 0.75 * one + 0.25 * other)


def changed(config: dict[str, Any], path: Path, **entries: Any) -> LoadedClip:
    path.write_text(json.dumps({**config, **entries}))
    return new_clip(path, seed=1)


def test_models_that_differ_in_more_than_weights_are_refused_by_the_first_difference(
    micro_clip: LoadedClip, micro_config: dict[str, Any], tmp_path: Path
) -> None:
    file = tmp_path / "other.json"
    wider = changed(micro_config, file, vision_cfg={**micro_config["vision_cfg"], "layers": 3})
    quick = changed(micro_config, file, quick_gelu=True)
    greyer = changed(micro_config, file, preprocess={"mean": [0.5, 0.5, 0.5]})
    biased = with_logit_bias(changed(micro_config, file), -10.0)
    for other, message in (
        (wider, r"vision_cfg\.layers is 2 and 3, in this order"),
        (quick, "quick_gelu is null and true"),
        (greyer, r"the mean of pixels is \[0\.48.*\] and \[0\.5, 0\.5, 0\.5\]"),
        (biased, r"the tensor logit_bias is missing and \[\]"),
    ):
        with pytest.raises(InputError, match=message):
            interpolated(micro_clip, other, 0.5)


def test_how_weights_began_is_no_difference(micro_clip: LoadedClip, micro_config, tmp_path: Path) -> None:
    sharper = changed(micro_config, tmp_path / "other.json", init_logit_scale=4.0)
    scale = interpolated(micro_clip, sharper, 0.5).model.logit_scale
    torch.testing.assert_close(scale, (micro_clip.model.logit_scale + 4.0) / 2)
