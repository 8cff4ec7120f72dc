"""The sigmoid loss against open_clip's."""

import pytest
import torch
import torch.nn.functional as F
from open_clip.loss import SigLipLoss
from torch import Tensor

from beamclip.losses.sigmoid import sigmoid_loss


def pair() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image, text = (F.normalize(torch.randn(6, 8, generator=generator), dim=1) for _ in range(2))
    return image.requires_grad_(), text.requires_grad_()


@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (10.0, -10.0), (100.0, -20.0)])
def test_the_sigmoid_loss_and_its_gradients_equal_those_of_open_clip(scale: float, bias: float) -> None:
    inputs = (*pair(), torch.tensor(scale, requires_grad=True), torch.tensor(bias, requires_grad=True))
    got, want = sigmoid_loss(*inputs), SigLipLoss()(*inputs)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, inputs), torch.autograd.grad(want, inputs))


def test_shapes_that_differ_are_refused() -> None:
    image, text = pair()
    with pytest.raises(ValueError, match=r"image is \[6, 8\] and text is \[5, 8\]"):
        sigmoid_loss(image, text[:5], torch.tensor(10.0), torch.tensor(-10.0))
