"""A work-around for narrow strided 1×1 convolutions on CPUs."""

import torch.nn.functional as F
from torch import Tensor, nn


class SkippingConv2d(nn.Conv2d):
    """A 1×1 convolution with a stride, which leaves out pixels first: the same numbers.

    On CPUs with AVX-512 the backward of such a convolution with fewer than 16 input channels writes
    beyond its memory when the batch is odd (oneDNN as of PyTorch 2.14): the process crashes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C', H / stride, W / stride]`."""
        down, across = self.stride
        return F.conv2d(input[:, :, ::down, ::across], self.weight, self.bias)


def spare_narrow_shortcuts(backbone: nn.Module) -> None:
    """Make the strided 1×1 convolutions of few channels safe on the CPU; see `SkippingConv2d`."""
    for module in backbone.modules():
        if type(module) is nn.Conv2d and module.in_channels < 16 and module.groups == 1:
            plain = module.kernel_size == (1, 1) and module.padding == (0, 0)
            if plain and module.stride != (1, 1):
                module.__class__ = SkippingConv2d
