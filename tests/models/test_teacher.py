"""The frozen teacher."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from beamclip.models.clip import LoadedClip, new_clip
from beamclip.models.teacher import Teacher

TEXTS = ["a photo of a crane", "a drawing of a whale", "an emoji"]


@pytest.fixture(scope="module")
def convolutional() -> LoadedClip:
    return new_clip("tiny-resnet10t", seed=0)


def photos(count: int, side: int) -> torch.Tensor:
    """Noise smoothed to look like something: uint8 [count, 3, side, side]."""
    noise = torch.rand(count, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return (F.interpolate(noise, (side, side), mode="bilinear") * 255).to(torch.uint8)


def test_embeddings_are_those_of_open_clips_own_pipeline(micro_clip: LoadedClip) -> None:
    pixels = photos(1, 40)
    image = Image.fromarray(np.ascontiguousarray(pixels[0].permute(1, 2, 0).numpy()))
    preprocess = image_transform_v2(PreprocessCfg(**micro_clip.preprocess_cfg), is_train=False)
    with torch.no_grad():
        expected = F.normalize(micro_clip.model.encode_image(preprocess(image)[None]), dim=-1)
        texts = F.normalize(micro_clip.model.encode_text(micro_clip.tokenizer(TEXTS)), dim=-1)
    teacher = Teacher(micro_clip)
    torch.testing.assert_close(teacher.encode_image(pixels), expected, atol=5e-3, rtol=0)
    torch.testing.assert_close(teacher.encode_text(TEXTS), texts)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["transformer", "convolutional"])
def test_embeddings_are_float32_unit_and_without_gradients(
    micro_clip: LoadedClip, convolutional: LoadedClip, kind: str, precision: str
) -> None:
    teacher = Teacher(micro_clip if kind == "transformer" else convolutional, precision)  # type: ignore[arg-type]
    for embeddings in (teacher.encode_image(photos(3, 32)), teacher.encode_text(TEXTS)):
        assert embeddings.dtype == torch.float32
        assert not embeddings.requires_grad
        torch.testing.assert_close(embeddings.norm(dim=-1), torch.ones(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["transformer", "convolutional"])
def test_bf16_changes_the_arithmetic_but_hardly_the_direction(
    micro_clip: LoadedClip, convolutional: LoadedClip, kind: str
) -> None:
    clip = micro_clip if kind == "transformer" else convolutional
    exact, fast = Teacher(clip), Teacher(clip, "bf16")
    pixels = photos(8, 32)
    cosine = (exact.encode_image(pixels) * fast.encode_image(pixels)).sum(dim=-1)
    assert cosine.min() > 0.999
    assert not torch.equal(exact.encode_image(pixels), fast.encode_image(pixels))
    assert torch.equal(exact.encode_text(TEXTS), fast.encode_text(TEXTS))


def test_bf16_casts_a_transformer_whole_and_a_convolutional_network_not_at_all(
    micro_clip: LoadedClip, convolutional: LoadedClip
) -> None:
    assert {p.dtype for p in Teacher(micro_clip, "bf16").clip.visual.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in Teacher(convolutional, "bf16").clip.visual.parameters()} == {torch.float32}


def test_train_leaves_the_teacher_in_eval_mode_and_its_statistics_alone(convolutional: LoadedClip) -> None:
    teacher = Teacher(convolutional).train()
    assert not any(module.training for module in teacher.modules())
    before = {name: buffer.clone() for name, buffer in teacher.named_buffers()}
    teacher.encode_image(photos(4, 48))
    assert all(torch.equal(buffer, before[name]) for name, buffer in teacher.named_buffers())


def test_nothing_in_the_teacher_can_train_and_the_given_model_still_can(micro_clip: LoadedClip) -> None:
    teacher = Teacher(micro_clip, "bf16")
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(parameter.requires_grad for parameter in micro_clip.model.parameters())
    assert all(parameter.dtype == torch.float32 for parameter in micro_clip.model.parameters())


def test_a_students_autocast_around_the_call_does_not_reach_the_teacher(convolutional: LoadedClip) -> None:
    teacher = Teacher(convolutional)
    pixels = photos(2, 48)
    with torch.autocast("cpu", torch.bfloat16):
        images, texts = teacher.encode_image(pixels), teacher.encode_text(TEXTS)
    assert torch.equal(images, teacher.encode_image(pixels))
    assert torch.equal(texts, teacher.encode_text(TEXTS))


def test_embeddings_can_be_used_in_a_loss_that_is_differentiated(micro_clip: LoadedClip) -> None:
    student = torch.ones(2, 24, requires_grad=True)
    (student * Teacher(micro_clip).encode_image(photos(2, 32))).sum().backward()
    assert student.grad is not None


def test_texts_are_encoded_alike_in_batches_of_any_size(micro_clip: LoadedClip) -> None:
    teacher = Teacher(micro_clip)
    torch.testing.assert_close(teacher.encode_text(TEXTS, batch_size=2), teacher.encode_text(TEXTS))


def test_no_texts_are_refused(micro_clip: LoadedClip) -> None:
    with pytest.raises(ValueError, match="no texts"):
        Teacher(micro_clip).encode_text([])


def test_the_teachers_own_mean_and_std_are_used(micro_file: Path, tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text(micro_file.read_text()[:-1] + ', "preprocess": {"mean": [0, 0, 0], "std": [1, 1, 1]}}')
    clip = new_clip(own, seed=0)
    pixels = photos(1, 32)
    with torch.no_grad():
        expected = F.normalize(clip.model.encode_image(pixels / 255.0), dim=-1)
    torch.testing.assert_close(Teacher(clip).encode_image(pixels), expected, atol=1e-5, rtol=0)
