"""FMix: a mask of smooth random blobs decides which of two images shows.

Paper: Harris, Marcu, Painter, Niranjan, Prügel-Bennett & Hare, "FMix: Enhancing Mixed Sample Data
Augmentation", 2020, arXiv 2002.12047.
Computes: λ ~ Beta(a, a); complex Gaussian noise in frequency space, damped by
1 / max(f, 1 / max(H, W))^δ with f in cycles a pixel; its inverse transform g; the image shows in
the ⌈λHW⌉ or ⌊λHW⌋ (a fair coin) pixels where g is highest, the partner x[π] elsewhere.
ỹ = λ y + (1 - λ) y[π] with the drawn λ, less than a pixel from the share.
Needs: nothing. Cost: 3F a step, like no mixing; the mask is made on the images' device.
Defaults: a = 0.2, δ = 3, one mask a batch: the published CIFAR rows. The paper has a = 1.
Deviations: `spectrum: reference`, the default, is what the authors' code does and all published
numbers are from. It takes rows 0 and 1 of the damped noise for its real and imaginary part, so
that masks have wavelengths of any length down the image and none but W and ∞ across it.
`spectrum: isotropic` is the paper's formula. A draw holds a seed a mix and the noise is a hash of
it, so that no noise has to travel to the device; a device's own rounding of cosines can flip a
pixel of equal height. Softened edges and the single-label reformulation are left out; the paper's
CIFAR runs have neither.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from adautomix.methods.base import InputMixing, MethodSettings
from adautomix.methods.facts import Paper
from adautomix.mixing.ops import Mixed, mix_by_masks
from adautomix.mixing.params import PairParams, Shape, draw_lam, draw_partners

Spectrum = Literal["reference", "isotropic"]
BITS = 0xFFFFFFFF


@dataclass(frozen=True)
class FMixParams(PairParams):
    """Parameters of FMix.

    Attributes:
        pixels: number of pixels that the first image keeps, int64 `[B]`.
        seed: seed of the mask's noise, int64 `[B]`.
        shared: all masks of the batch are the same.
    """

    pixels: Tensor
    seed: Tensor
    shared: bool = False


class FMixSettings(MethodSettings):
    """Settings of FMix."""

    alpha: float = Field(0.2, gt=0, description="λ ~ Beta(alpha, alpha)")
    decay: float = Field(3.0, ge=0, description="δ: high frequencies are damped by 1/f^δ")
    spectrum: Spectrum = Field(
        "reference", description="that of the authors' code or the paper's isotropic one"
    )
    per_sample: bool = Field(False, description="one mask a mix instead of one a batch")


def draw_fmix(
    batch: int,
    height: int,
    width: int,
    alpha: float,
    generator: torch.Generator,
    *,
    per_sample: bool = False,
) -> FMixParams:
    """A partner for each image, the shares of both, and the mask's seed and size."""
    perm = draw_partners(batch, generator)
    lam = draw_lam(batch, alpha, generator, per_sample=per_sample)
    rows = batch if per_sample else 1
    exact = lam[:, 0].double() * height * width
    up = (torch.rand(rows, generator=generator) < 0.5).expand(batch)
    pixels = torch.where(up, exact.ceil(), exact.floor()).long()
    seed = torch.randint(BITS + 1, (rows,), generator=generator).expand(batch).contiguous()
    return FMixParams(perm, lam, pixels, seed, shared=not per_sample)


def scramble(numbers: Tensor) -> Tensor:
    """A hash of 32-bit numbers, held as int64 so that the products do not overflow."""
    for _ in range(2):
        numbers = (((numbers >> 16) ^ numbers) * 0x45D9F3B) & BITS
    return (numbers >> 16) ^ numbers


def noise_of(seed: Tensor, count: int) -> Tensor:
    """Pairs of independent standard normal numbers, `[M, count, 2]`: a function of seeds `[M]`.

    Box and Muller's transform of hashed counters.
    """
    counter = torch.arange(2 * count, device=seed.device) * 0x9E3779B9
    hashed = scramble((seed[:, None] + counter) & BITS)
    uniform = ((hashed >> 8).float() + 0.5) / 2**24  # in (0, 1), neither end
    first, second = uniform.unflatten(1, (2, count)).unbind(dim=1)
    radius, angle = (-2 * first.log()).sqrt(), 2 * torch.pi * second
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2)


def damping(down: Tensor, across: Tensor, decay: float, size: int) -> Tensor:
    """The factor of each frequency, in cycles a pixel, at most that of a wave of `size` pixels."""
    frequency = torch.hypot(down[:, None], across)
    factor: Tensor = frequency.clamp_min(1 / size) ** -decay
    return factor


def random_waves(seed: Tensor, height: int, width: int, decay: float, spectrum: Spectrum) -> Tensor:
    """Images of low frequencies, `[M, H, W]`, a function of seeds `[M]`."""
    size, device = max(height, width), seed.device
    across = torch.fft.rfftfreq(width, device=device)
    if spectrum == "isotropic":
        down = torch.fft.fftfreq(height, device=device)
        noise = noise_of(seed, height * len(across)).unflatten(1, (height, -1))
        waves = noise * damping(down, across, decay, size)[:, :, None]
    else:
        down = torch.arange(2, device=device) / height
        noise = noise_of(seed, len(across) * 2).unflatten(1, (-1, 2))
        waves = noise * damping(down, across, decay, size).T[:, None, :]
    # One direction after the other: a transform of both expects a symmetry that noise lacks.
    columns = torch.fft.ifft(torch.view_as_complex(waves), n=height, dim=1)
    images: Tensor = torch.fft.irfft(columns, n=width, dim=2)
    return images


def highest(values: Tensor, count: Tensor) -> Tensor:
    """1 at the `count[m]` highest values of image m, 0 elsewhere: float32 `[M, H, W]`."""
    rank = values.flatten(1).argsort(dim=1, descending=True).argsort(dim=1)
    return (rank < count[:, None]).float().view_as(values)


class FMix(InputMixing[FMixSettings, FMixParams]):
    """FMix (Harris et al., 2020)."""

    name = "fmix"
    summary = "two images, divided by smooth random blobs"
    paper = Paper(
        authors="Harris, Marcu, Painter, Niranjan, Prügel-Bennett, Hare",
        title="FMix: Enhancing Mixed Sample Data Augmentation",
        venue="arXiv",
        year=2020,
        arxiv="2002.12047",
    )
    Settings = FMixSettings

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> FMixParams:
        """A partner for each image, the shares of both, and the mask's seed and size."""
        batch, _, height, width = shape
        s = self.settings
        return draw_fmix(batch, height, width, s.alpha, generator, per_sample=s.per_sample)

    def mix(self, images: Tensor, targets: Tensor, params: FMixParams, **features: Tensor) -> Mixed:
        """The image where the waves are highest, the partner elsewhere."""
        rows = slice(1) if params.shared else slice(None)
        s, (height, width) = self.settings, images.shape[2:]
        waves = random_waves(params.seed[rows], height, width, s.decay, s.spectrum)
        own = highest(waves, params.pixels[rows])
        masks = torch.stack([own, 1 - own], dim=1).expand(len(params.perm), -1, -1, -1)
        return mix_by_masks(images, targets, params.perm, params.lam, masks)
