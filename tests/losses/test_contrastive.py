"""CLIP's loss against open_clip's."""

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import ClipLoss
from torch import Tensor

from beamclip.losses.contrastive import clip_loss, gather_with_grad


def pair(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(6, 8, generator=generator, dtype=dtype), dim=1) for _ in range(2))
    return image.requires_grad_(), text.requires_grad_()


@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_clip_loss_and_its_gradients_equal_those_of_open_clip(scale: float) -> None:
    image, text = pair()
    logit_scale = torch.tensor(scale, requires_grad=True)
    got = clip_loss(image, text, logit_scale)
    want = ClipLoss()(image, text, logit_scale)
    torch.testing.assert_close(got, want)
    inputs = (image, text, logit_scale)
    torch.testing.assert_close(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs))


def test_clip_loss_of_embeddings_that_are_all_alike_is_the_logarithm_of_the_batch_size() -> None:
    alike = F.normalize(torch.ones(6, 8), dim=1)
    torch.testing.assert_close(clip_loss(alike, alike, torch.tensor(100.0)), torch.tensor(6.0).log())


def test_clip_loss_computes_in_float32_under_bf16_autocast() -> None:
    image, text = pair()
    logit_scale = torch.tensor(100.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = clip_loss(image, text, logit_scale)
    torch.testing.assert_close(loss, ClipLoss()(image, text, logit_scale))


def test_clip_loss_refuses_shapes_that_differ() -> None:
    image, text = pair()
    with pytest.raises(ValueError, match=r"image is \[6, 8\] and text is \[5, 8\]"):
        clip_loss(image, text[:5], torch.tensor(1.0))


def test_gathering_in_one_process_returns_the_tensor_itself() -> None:
    image, _ = pair()
    assert gather_with_grad(image) is image
