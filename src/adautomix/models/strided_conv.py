"""Workaround for a crash of oneDNN in the backward pass of narrow strided 1×1 convolutions."""

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SubsampledConv2d(nn.Conv2d):
    """A strided 1×1 convolution that drops the skipped pixels first; the results are the same.

    On CPUs oneDNN writes past its workspace in the backward pass of such a convolution if the
    input is channels-last and has fewer channels than a block (16 with AVX-512, 8 with AVX2). The
    process then crashes, hangs or gets wrong gradients, still with PyTorch 2.14
    (https://github.com/uxlfoundation/oneDNN/issues/6035).
    """

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> Self:
        """Create the layer with the parameters of `conv`, a 1×1 convolution without padding."""
        layer = cls(
            conv.in_channels,
            conv.out_channels,
            kernel_size=1,
            stride=(conv.stride[0], conv.stride[1]),
            bias=conv.bias is not None,
            device=torch.device("meta"),
        )
        layer.weight, layer.bias = conv.weight, conv.bias
        return layer.train(conv.training)

    def forward(self, input: Tensor) -> Tensor:
        """Convolve `[B, C, H, W]` to `[B, C', ceil(H / stride), ceil(W / stride)]`."""
        stride_y, stride_x = self.stride
        return F.conv2d(input[:, :, ::stride_y, ::stride_x], self.weight, self.bias)


def replace_narrow_strided_convs(model: nn.Module) -> None:
    """Replace, in place, every convolution that the oneDNN bug affects by `SubsampledConv2d`."""
    for name, module in list(model.named_modules()):
        if type(module) is nn.Conv2d and _is_affected(module):
            model.set_submodule(name, SubsampledConv2d.from_conv(module))


def _is_affected(conv: nn.Conv2d) -> bool:
    is_pointwise = conv.kernel_size == (1, 1) and conv.padding == (0, 0) and conv.groups == 1
    return is_pointwise and conv.stride != (1, 1) and conv.in_channels < 16
