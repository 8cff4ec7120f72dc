"""Strided convolutions of 1x1 in another form: torch's own crash on CPUs.

In torch 2.14, on a CPU and with channels last, the backward pass of a strided 1x1 convolution of fewer than
16 channels writes past its memory if the image is large (224 pixels). The stems of FastViT, MobileOne and
RepVGG have one.
"""

import torch.nn.functional as F
from torch import Tensor, nn

SAFE_CHANNELS = 16
"""Least number of input channels with which torch's own has not crashed."""


class SubsampledConv(nn.Conv2d):
    """A 1x1 convolution of every s-th pixel, which is what a stride of s means."""

    def forward(self, x: Tensor) -> Tensor:
        """Compute what nn.Conv2d does: [B, C, H, W] -> [B, D, ceil(H / s), ceil(W / s)]."""
        down, across = self.stride
        return F.conv2d(x[:, :, ::down, ::across], self.weight, self.bias, groups=self.groups)


def subsample_pointwise(network: nn.Module) -> None:
    """Give the affected convolutions of a network, which keep their weights and names, the other form."""
    for module in network.modules():
        if type(module) is nn.Conv2d and _is_affected(module):
            module.__class__ = SubsampledConv


def _is_affected(conv: nn.Conv2d) -> bool:
    pointwise = conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.stride != (1, 1)
    return pointwise and conv.in_channels < SAFE_CHANNELS
