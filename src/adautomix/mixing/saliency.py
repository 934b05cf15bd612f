"""Saliency maps, computed for a whole batch on the device of the images.

All maps are `[B, H, W]`, float32 and non-negative:

    spectral_residual  |F⁻¹(exp(log A - box₃(log A) + iP))|, where A and P are amplitude and phase
                       of the Fourier transform of the gray image; two FFTs
                       (Hou and Zhang, "Saliency Detection: A Spectral Residual Approach",
                       CVPR 2007)
    fine_grained       how much brighter and how much darker a pixel is than its surroundings,
                       summed over six sizes of surroundings; box means from one integral image
                       (Montabone and Soto, Image and Vision Computing 2010, as in OpenCV)
    gradient_saliency  sqrt(mean_c (dCE/dx)²), one forward and one backward pass of the network
                       (Simonyan et al., 2013, arXiv 1312.6034)

None of them waits for the device. None depends on the scale or the offset of the pixels (but
`fine_grained_of_bytes`, which reproduces an error), so normalized images can be used as they are.
All are computed in float32, whatever the dtype of the
images and the precision of the network.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adautomix.errors import UsageError
from adautomix.models import frozen_running_stats

LUMA = (0.299, 0.587, 0.114)
# Half widths of the surroundings of `fine_grained`, in pixels.
SURROUNDINGS = (12, 24, 48, 28, 56, 112)


def gradient_saliency(student: Any, images: Tensor, targets: Tensor, head: str = "clean") -> Tensor:
    """Compute `sqrt(mean_c (dCE/dx)²)` of each image, normalized to sum 1 and not smoothed.

    Runs a forward pass and a backward pass through activations only, the cost of two forward
    passes. No parameter receives a gradient, no buffer changes, and the result is not attached to
    a graph. Batch norm stays in the student's mode; dropout and stochastic depth are off. Works
    inside `torch.no_grad` and under autocast.

    Args:
        student: called as `student(images, head=head)`, returns logits `[B, K]`.
        images: normalized, `[B, C, H, W]`.
        targets: soft labels, `[B, K]`.
        head: the head whose cross-entropy is differentiated.

    Returns:
        Float32 `[B, H, W]`; each map sums to 1 and is uniform where the gradient is 0.
    """
    with torch.enable_grad(), probing(student):
        inputs = images.detach().requires_grad_()
        weights = {name: weight.detach() for name, weight in student.named_parameters()}
        # A view, because module hooks such as those that count operations reject a leaf tensor.
        view = inputs.view_as(inputs)
        logits = torch.func.functional_call(student, weights, (view,), {"head": head})
        # The sum, so that the gradient of an image does not depend on the batch size.
        loss = F.cross_entropy(logits.float(), targets, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, inputs)
    return normalize_sum(gradient.float().square().mean(dim=1).sqrt())


def spectral_residual(images: Tensor, size: int) -> Tensor:
    """Compute the spectral residual: the part of the spectrum its neighborhood does not predict.

    Args:
        images: `[B, C, H, W]`; resized to `size` × `size` first if a side is larger.
        size: pixels per side; a larger size counts finer details.

    Returns:
        Float32 `[B, H, W]`, or `[B, size, size]` for resized images; neither smoothed nor scaled.
    """
    gray = to_gray(images)
    if max(gray.shape[1:]) > size:
        gray = resize(gray, size, size)
    spectrum = torch.fft.fft2(gray)
    amplitude = (spectrum.real.square() + spectrum.imag.square() + 1e-10).sqrt()
    log = amplitude.log()
    local = F.avg_pool2d(F.pad(log[:, None], (1, 1, 1, 1), mode="replicate"), 3, stride=1)[:, 0]
    residual: Tensor = torch.fft.ifft2(spectrum * ((log - local).exp() / amplitude))
    return residual.abs()


def fine_grained(images: Tensor) -> Tensor:
    """Compute the contrast of each pixel with its surroundings, brighter and darker alike.

    Args:
        images: `[B, C, H, W]`.

    Returns:
        Float32 `[B, H, W]`.
    """
    gray = _twice_blurred(to_gray(images))
    brighter, darker = torch.zeros_like(gray), torch.zeros_like(gray)
    for contrast in _contrasts(gray, gray):
        brighter += contrast.relu()
        darker += (-contrast).relu()
    return normalize_max(brighter) + normalize_max(darker)


def fine_grained_of_bytes(images: Tensor) -> Tensor:
    """Compute the map that OpenCV's fine-grained saliency returns for float images.

    OpenCV takes images of bytes. For a float image it reads pixel x of a row from byte x of that
    row's floats, compares it with the mean brightness of the surroundings, and truncates to bytes,
    modulo 256, at each scale and at the end. Most of these bytes are the low bits of a float, so
    the map is noise. Channels are weighed in the order BGR, in which OpenCV stores them.

    Args:
        images: normalized, `[B, C, H, W]`.

    Returns:
        Float32 `[B, H, W]`, integers from 0 to 255.
    """
    gray = _twice_blurred(to_gray(images.flip(1))).contiguous()
    read = gray.view(torch.uint8)[:, :, : gray.shape[2]].float()
    brighter, darker = torch.zeros_like(gray), torch.zeros_like(gray)
    for contrast in _contrasts(read, gray):
        brighter += contrast.relu().floor() % 256
        darker += (-contrast).relu().floor() % 256
    on, off = ((255 * normalize_max(part)).floor() for part in (brighter, darker))
    return (on + off) % 256


def _twice_blurred(gray: Tensor) -> Tensor:
    """Blur `[B, H, W]` by two passes with the weights (1, 2, 1) / 4, which this σ gives."""
    return gaussian_blur(gaussian_blur(gray, 3, 0.8493218), 3, 0.8493218)


def _contrasts(pixels: Tensor, gray: Tensor) -> Iterator[Tensor]:
    """Yield the difference between pixels and their surroundings, for each size of these.

    Args:
        pixels: values of the pixels, `[B, H, W]`.
        gray: values that the surroundings are averaged over, `[B, H, W]`.
    """
    sums = F.pad(gray.cumsum(dim=1).cumsum(dim=2), (1, 0, 1, 0))
    for half in SURROUNDINGS:
        yield pixels - _surrounding_mean(pixels, sums, half)


def _surrounding_mean(pixels: Tensor, sums: Tensor, half: int) -> Tensor:
    """Mean over a square of side `2 half` around each pixel, without the pixel, clipped.

    Args:
        pixels: values of the pixels, `[B, H, W]`.
        sums: integral image of the values that are averaged, `[B, H + 1, W + 1]`.
        half: pixels; the square reaches one less up and left, as in OpenCV.
    """
    (top, bottom), (left, right) = (
        _surrounding_interval(side, half, sums.device) for side in pixels.shape[1:]
    )
    rows = sums.index_select(1, bottom) - sums.index_select(1, top)
    boxes = rows.index_select(2, right) - rows.index_select(2, left)
    count = (bottom - top)[:, None] * (right - left)
    return (boxes - pixels) / (count - 1)


def _surrounding_interval(size: int, half: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """First pixel and exclusive end of the surroundings of each of `size` pixels in a row."""
    pixel = torch.arange(size, device=device)
    return (pixel - half + 1).clamp_min(0), (pixel + half + 1).clamp_max(size)


def peak_positions(maps: Tensor) -> Tensor:
    """Row and column of the largest value of each map `[B, H, W]`, int64 `[B, 2]`."""
    flat = maps.flatten(1).argmax(dim=1)
    return torch.stack([flat // maps.shape[2], flat % maps.shape[2]], dim=1)


def normalize_sum(maps: Tensor) -> Tensor:
    """Divide maps `[B, H, W]` by their sums; a map whose sum is 0 or not finite becomes uniform."""
    total = maps.sum(dim=(1, 2), keepdim=True)
    uniform = 1 / (maps.shape[1] * maps.shape[2])
    return torch.where(total.isfinite() & (total > 0), maps / total, uniform)


def normalize_max(maps: Tensor) -> Tensor:
    """Divide maps `[B, H, W]` by their largest value; a map of zeros stays zero."""
    return maps / maps.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(maps.dtype).tiny)


def gaussian_blur(maps: Tensor, kernel_size: int, sigma: float) -> Tensor:
    """Blur maps `[B, H, W]` with a Gaussian kernel, mirrored at the borders."""
    # Imported here because it takes seconds, which help texts and most methods need not wait for.
    from torchvision.transforms.v2 import functional as tvf

    with torch.autocast(maps.device.type, enabled=False):
        smooth: Tensor = tvf.gaussian_blur_image(maps[:, None], [kernel_size] * 2, [sigma] * 2)
        return smooth[:, 0]


def resize(maps: Tensor, height: int, width: int) -> Tensor:
    """Resize maps `[B, h, w]` bilinearly, with antialiasing where they shrink."""
    size = (height, width)
    return F.interpolate(maps[:, None], size, mode="bilinear", antialias=True)[:, 0]


def to_gray(images: Tensor) -> Tensor:
    """Convert images to brightness `[B, H, W]` in float32: luma of RGB, else the channel mean."""
    images = images.float()
    if images.shape[1] != len(LUMA):
        return images.mean(dim=1)
    red, green, blue = (images[:, channel] * weight for channel, weight in enumerate(LUMA))
    return red + green + blue


def last_stage(model: Any, method: str) -> int:
    """Return the number of the last stage of a network.

    Raises:
        UsageError: the network was not made by `build_model`, or timm does not name its stages.
    """
    if not getattr(model, "stages", None):
        raise UsageError(
            f"{method} looks at a feature map: pass model=build_model(...) with a network whose"
            " stages timm names, say resnet18"
        )
    return len(model.stages)


@contextmanager
def probing(model: nn.Module) -> Iterator[None]:
    """Context in which forward passes are deterministic and change no buffer.

    Dropout and stochastic depth are off. Batch norm stays in its mode: in training mode it uses
    the statistics of the batch.
    """
    modes = [(m, m.training) for m in model.modules() if not isinstance(m, _BatchNorm)]
    try:
        for module, _ in modes:
            module.training = False
        with frozen_running_stats(model):
            yield
    finally:
        for module, training in modes:
            module.training = training
