"""Strided 1x1 convolutions of few channels, in a form whose backward pass does not crash torch on a CPU."""

import copy

import timm
import torch
from torch import nn

from beamclip.models.pointwise import SubsampledConv, subsample_pointwise


def test_the_other_form_has_the_same_outputs_and_gradients() -> None:
    plain = nn.Conv2d(3, 8, 1, stride=2)
    other = copy.deepcopy(plain)
    subsample_pointwise(other)
    assert type(other) is SubsampledConv
    # Small and contiguous, where torch's own is right; of odd size too.
    for side in (16, 15):
        images = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))
        of_plain, of_other = (images.clone().requires_grad_() for _ in range(2))
        want, got = plain(of_plain), other(of_other)
        torch.testing.assert_close(got, want)
        weights = torch.randn_like(want)
        plain.zero_grad()
        other.zero_grad()
        (want * weights).sum().backward()
        (got * weights).sum().backward()
        torch.testing.assert_close(of_other.grad, of_plain.grad)
        torch.testing.assert_close(other.weight.grad, plain.weight.grad)
        torch.testing.assert_close(other.bias.grad, plain.bias.grad)


def test_fastvit_trains_on_photos_of_256_pixels_with_channels_last() -> None:
    """Torch's own convolution of its stem crashes the process here."""
    network = timm.create_model("fastvit_t8", num_classes=0)
    names = list(network.state_dict())
    subsample_pointwise(network)
    assert list(network.state_dict()) == names
    changed = [module for module in network.modules() if isinstance(module, SubsampledConv)]
    assert len(changed) == 1
    stem = network.stem[0].to(memory_format=torch.channels_last).train()
    for _ in range(3):
        images = torch.rand(2, 3, 256, 256).to(memory_format=torch.channels_last)
        stem(images).square().mean().backward()
    assert changed[0].weight.grad.isfinite().all()
