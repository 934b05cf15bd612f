"""Where the content of an image is: saliency maps, batched and on the device of the images.

All maps are `[B, H, W]`, float32 and non-negative. What they are made of:

    spectral_residual  |F⁻¹(exp(log A - box₃(log A) + iP))|, A and P amplitude and phase of the
                       Fourier transform of the gray image; an FFT there and back
                       (Hou and Zhang, "Saliency Detection: A Spectral Residual Approach",
                       CVPR 2007)
    fine_grained       how much brighter, and how much darker, a pixel is than its surroundings,
                       summed over six sizes of surroundings; box means from one integral image
                       (Montabone and Soto, Image and Vision Computing 2010, as in OpenCV)
    gradient_saliency  sqrt(mean_c (dCE/dx)²), one forward and one backward of the network, 2F
                       (Simonyan et al., 2013, arXiv 1312.6034)

None of these waits for the device, and none depends on the scale or the offset of the pixels, so
that normalized images do. All are computed in float32 whatever the images are and whatever
precision the caller's networks use.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.transforms.v2 import functional as tvf

from adautomix.errors import UsageError
from adautomix.models import frozen_statistics

LUMA = (0.299, 0.587, 0.114)
# Half-widths of the surroundings of `fine_grained`, in pixels.
SURROUNDINGS = (12, 24, 48, 28, 56, 112)


def gradient_saliency(student: Any, images: Tensor, targets: Tensor, head: str = "clean") -> Tensor:
    """The share of each pixel in `sqrt(mean_c (dCE/dx)²)`, one map an image; not smoothed.

    A forward and a backward through the activations only (2F): no parameter gets a gradient, no
    buffer moves, nothing is left attached to a graph. Batch norm runs in the student's mode,
    dropout and stochastic depth are off. Works inside `torch.no_grad` and under autocast.

    Args:
        student: called as `student(images, head=head)`, gives logits `[B, K]`.
        images: normalized, `[B, C, H, W]`.
        targets: soft labels, `[B, K]`.
        head: the head whose cross-entropy is differentiated.

    Returns:
        `[B, H, W]`, float32, non-negative, each map sums to 1; uniform where the gradient is 0.
    """
    with torch.enable_grad(), looking(student):
        inputs = images.detach().requires_grad_()
        weights = {name: weight.detach() for name, weight in student.named_parameters()}
        # A view, as hooks on what enters a module (those that count operations) take no leaf here.
        features = inputs.view_as(inputs)
        logits = torch.func.functional_call(student, weights, (features,), {"head": head})
        # The sum and not the mean: no image's gradient shrinks with how many there are.
        loss = F.cross_entropy(logits.float(), targets, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, inputs)
    return shares(gradient.float().square().mean(dim=1).sqrt())


def spectral_residual(images: Tensor, size: int) -> Tensor:
    """Amplitude of the image whose spectrum keeps only what its neighborhood does not predict.

    Args:
        images: `[B, C, H, W]`; shrunk to `size` × `size` before where a side is larger.
        size: pixels; the larger, the finer the details that count.

    Returns:
        `[B, H, W]`, or `[B, size, size]` where the images were shrunk; neither smoothed nor scaled.
    """
    gray = to_gray(images)
    if max(gray.shape[1:]) > size:
        gray = resized(gray, size, size)
    spectrum = torch.fft.fft2(gray)
    amplitude = (spectrum.real.square() + spectrum.imag.square() + 1e-10).sqrt()
    log = amplitude.log()
    local = F.avg_pool2d(F.pad(log[:, None], (1, 1, 1, 1), mode="replicate"), 3, stride=1)[:, 0]
    residual: Tensor = torch.fft.ifft2(spectrum * ((log - local).exp() / amplitude))
    return residual.abs()


def fine_grained(images: Tensor) -> Tensor:
    """Contrast of each pixel with its surroundings, brighter and darker alike, `[B, H, W]`.

    Args:
        images: `[B, C, H, W]`.
    """
    # Two passes with the weights (1, 2, 1) / 4, which are those of this σ.
    gray = blurred(blurred(to_gray(images), 3, 0.8493218), 3, 0.8493218)
    sums = F.pad(gray.cumsum(dim=1).cumsum(dim=2), (1, 0, 1, 0))
    brighter, darker = torch.zeros_like(gray), torch.zeros_like(gray)
    for half in SURROUNDINGS:
        contrast = gray - surrounding_mean(gray, sums, half)
        brighter += contrast.relu()
        darker += (-contrast).relu()
    return scaled(brighter) + scaled(darker)


def surrounding_mean(gray: Tensor, sums: Tensor, half: int) -> Tensor:
    """Mean of the pixels around each, itself left out: `2 half` a side, clipped to the image.

    Args:
        gray: `[B, H, W]`.
        sums: integral image of it, `[B, H + 1, W + 1]`.
        half: pixels; one less reaches up and to the left, as OpenCV has it.
    """
    (top, bottom), (left, right) = (stretch(side, half, gray.device) for side in gray.shape[1:])
    rows = sums.index_select(1, bottom) - sums.index_select(1, top)
    boxes = rows.index_select(2, right) - rows.index_select(2, left)
    pixels = (bottom - top)[:, None] * (right - left)
    return (boxes - gray) / (pixels - 1)


def stretch(size: int, half: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First pixel and end of the surroundings of each of `size` pixels in a row."""
    pixel = torch.arange(size, device=device)
    return (pixel - half + 1).clamp_min(0), (pixel + half + 1).clamp_max(size)


def peaks(maps: Tensor) -> Tensor:
    """Row and column of the largest value of each map `[B, H, W]`: `[B, 2]`."""
    flat = maps.flatten(1).argmax(dim=1)
    return torch.stack([flat // maps.shape[2], flat % maps.shape[2]], dim=1)


def shares(maps: Tensor) -> Tensor:
    """Maps `[B, H, W]` over their sum; uniform where there is nothing, or no number, to share."""
    total = maps.sum(dim=(1, 2), keepdim=True)
    uniform = 1 / (maps.shape[1] * maps.shape[2])
    return torch.where(total.isfinite() & (total > 0), maps / total, uniform)


def scaled(maps: Tensor) -> Tensor:
    """Maps `[B, H, W]` over their largest value; a map of zeros stays one."""
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def blurred(maps: Tensor, kernel: int, sigma: float) -> Tensor:
    """Maps `[B, H, W]` under a Gaussian of `kernel` pixels a side, mirrored at the borders."""
    with torch.autocast(maps.device.type, enabled=False):
        smooth: Tensor = tvf.gaussian_blur_image(maps[:, None], [kernel] * 2, [sigma] * 2)
        return smooth[:, 0]


def resized(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps `[B, h, w]` at another size, bilinear, averaged where they shrink."""
    size = (height, width)
    return F.interpolate(maps[:, None], size, mode="bilinear", antialias=True)[:, 0]


def to_gray(images: Tensor) -> Tensor:
    """Brightness `[B, H, W]` in float32: the luma of RGB, the mean of any other channels."""
    images = images.float()
    if images.shape[1] != len(LUMA):
        return images.mean(dim=1)
    red, green, blue = (images[:, channel] * weight for channel, weight in enumerate(LUMA))
    return red + green + blue


def last_stage(model: Any, method: str) -> int:
    """The tap of the last stage of a network.

    Raises:
        UsageError: it is none of `build_model`, or timm names no stages of it.
    """
    if not getattr(model, "stages", None):
        raise UsageError(
            f"{method} looks at a feature map: pass model=build_model(...) with a network whose"
            " stages timm names, say resnet18"
        )
    return len(model.stages)


@contextmanager
def looking(model: nn.Module) -> Iterator[None]:
    """A network that is looked at, not trained: nothing random in it, and no buffer moves.

    Batch norm stays in the mode that it is in: in train mode it uses the batch's statistics.
    """
    modes = [(m, m.training) for m in model.modules() if not isinstance(m, _BatchNorm)]
    try:
        for module, _ in modes:
            module.training = False
        with frozen_statistics(model):
            yield
    finally:
        for module, training in modes:
            module.training = training
