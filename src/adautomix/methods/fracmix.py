"""S²-FracMix: enlarged salient patches and fractals are blended into the image itself.

Paper: Islam, Mahmood, Jin, Akhtar, "S²-FracMix: Label-Preserving Self-Saliency Mixup Augmentation",
ECCV 2026, arXiv 2606.25784.
Computes: for the batch, with probability `switch` the mix below, else one of `others`. S is the
blurred spectral residual of each image x, and its salient pixels are those with S above the mean of
the image. Patches of sides 1/2 and 1/4 of the image's are placed at random; the first of `tries`
with a fraction of salient pixels of at least 1 - t, t ~ U(0.5, 1), is accepted. Enlarged to the
size of the image, it becomes

    P   = m ⊙ ((1 - w) R(p) + w f) + (1 - m) ⊙ G(p)                  [B, C, H, W]
    mix = a x + (1 - a) mean of the accepted P,   a ~ U(0, 1);   label y  [B, K]

with p the patch, m its salient pixels, R a rotation by up to 30 degrees either way, G a Gaussian
blur, and f a fractal. An image without an accepted patch stays as it is. Fractals are attractors of
random iterated function systems of four maps, one per image and step, in a random color; nothing is
downloaded or stored.
Requires: only images and labels.
Cost: 3F per step, as plain training: two Fourier transforms, six resamplings and a fractal besides.
Settings:
- switch: 0.25: the paper draws one of four methods; that all are equally likely is assumed by this
  implementation.
- others: mixup, cutmix and resizemix, as in the paper, with their default settings.
- fractal_weight: 0.2, as in the paper.
- max_angle: 30 degrees, as in the paper.
- threshold_min: 0.5, as in the paper.
- threshold_max: 1, as in the paper.
- tries: 8 is a choice of this implementation.
Deviations: no code is public. What the text at hand leaves open was chosen here:
- The paper takes fractals from a bank of 400 images. Here each mix gets a new one.
- Which pixels are salient, how the map is blurred (7 × 7, σ = 3, as in GuidedMixup), how many
  places are tried, and that a patch is placed uniformly.
- A rotated patch shows what surrounds it in the image, mirrored at the border, not black corners.
- The standard deviation of the blur is 1/32 of the enlarged patch.
- A fractal ranges from the lowest to the highest value of each channel of its image, because a
  method does not know the normalization.
Evidence: none published for ResNet-18 on CIFAR-100 in the openmixup benchmark. The paper reports
82.74 % with ResNet-18 on CIFAR-100, 70.38 % on Tiny-ImageNet, and 78.54 % with ResNet-50 on
ImageNet.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Self

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.methods.base import InputMixing, MethodSettings
from adautomix.methods.facts import LabelRule, Paper
from adautomix.methods.mixture import Mixture, MixtureParams, MixtureSettings
from adautomix.mixing.fractals import draw_systems, render_fractals
from adautomix.mixing.ops import Mixed
from adautomix.mixing.params import MixParams, Shape
from adautomix.mixing.saliency import gaussian_blur, spectral_residual
from adautomix.validation import split_commas

PATCHES = (2, 4)  # the side of the image divided by that of a patch


@dataclass(frozen=True)
class SelfMixParams(MixParams):
    """Parameters of mixes of images with themselves and with fractals.

    Attributes:
        perm: row of each image, int64 `[B, 1]`.
        places: row and column of each try, as fractions of what fits, `[B, 2, tries, 2]`.
        threshold: t, `[B]`.
        angle: rotation of each patch in radians, `[B, 2]`.
        weight: a, weight of the unchanged image, `[B]`.
        systems: maps of the fractals, `[B, 4, 2, 3]`.
        color: brightness of the fractal in each channel, `[B, C]`.
    """

    perm: Tensor
    places: Tensor
    threshold: Tensor
    angle: Tensor
    weight: Tensor
    systems: Tensor
    color: Tensor


@dataclass(frozen=True)
class FracMixParams(MixParams):
    """Parameters of S²-FracMix.

    Attributes:
        own: parameters of the mix of images with themselves; None at steps of other methods.
        other: parameters of the other method; None at steps of this one.
    """

    own: SelfMixParams | None = None
    other: MixtureParams | None = None


class FracMixSettings(MethodSettings):
    """Settings of S²-FracMix."""

    switch: float = Field(
        0.25, ge=0, le=1, description="probability that a batch is mixed by this method"
    )
    others: Annotated[tuple[str, ...], BeforeValidator(split_commas)] = Field(
        ("mixup", "cutmix", "resizemix"),
        description="methods that mix the other batches, equally often",
    )
    fractal_weight: float = Field(
        0.2, ge=0, le=1, description="w, weight of the fractal at salient pixels"
    )
    max_angle: float = Field(
        30.0, ge=0, le=180, description="largest rotation of a patch, in degrees"
    )
    threshold_min: float = Field(
        0.5, ge=0, le=1, description="smallest t; at least 1 - t of a patch must be salient"
    )
    threshold_max: float = Field(1.0, ge=0, le=1, description="largest t")
    tries: int = Field(8, ge=1, description="places that are tried per patch")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.threshold_min > self.threshold_max:
            raise UsageError(
                f"fracmix.threshold_min = {self.threshold_min} is above threshold_max = "
                f"{self.threshold_max}: swap them"
            )
        if FracMix.name in self.others:
            raise UsageError("fracmix.others names fracmix: set fracmix.switch instead")
        MixtureSettings(mix=self.others)
        return self


def draw_self_mix(shape: Shape, s: FracMixSettings, generator: torch.Generator) -> SelfMixParams:
    """Draw where patches are tried, how they are changed, and the fractals."""
    batch, channels = shape[:2]
    spread = s.threshold_max - s.threshold_min
    angle = 2 * torch.rand(batch, len(PATCHES), generator=generator) - 1
    return SelfMixParams(
        perm=torch.arange(batch)[:, None],
        places=torch.rand(batch, len(PATCHES), s.tries, 2, generator=generator),
        threshold=s.threshold_min + spread * torch.rand(batch, generator=generator),
        angle=math.radians(s.max_angle) * angle,
        weight=torch.rand(batch, generator=generator),
        systems=draw_systems(batch, generator),
        color=torch.rand(batch, channels, generator=generator),
    )


def salient_pixels(images: Tensor) -> Tensor:
    """Return where the blurred spectral residual is above its mean, bool `[B, H, W]`."""
    maps = gaussian_blur(spectral_residual(images, max(images.shape[2:])), 7, 3.0)
    return maps > maps.mean(dim=(1, 2), keepdim=True)


def find_patches(
    salient: Tensor, places: Tensor, threshold: Tensor, divisor: int
) -> tuple[Tensor, Tensor]:
    """Find the first try whose patch has a fraction of salient pixels of at least 1 - t.

    Args:
        salient: bool `[M, H, W]`.
        places: row and column of each try, as fractions of what fits, `[M, tries, 2]`.
        threshold: t, `[M]`.
        divisor: the side of the image divided by that of a patch.

    Returns:
        Row and column of the patch, int64 `[M, 2]`, and whether it was accepted, bool `[M]`.
    """
    height, width = (max(1, side // divisor) for side in salient.shape[1:])
    room = places.new_tensor([salient.shape[1] - height + 1, salient.shape[2] - width + 1])
    corners = (places * room).long()
    sums = F.pad(salient.int().cumsum(dim=1).cumsum(dim=2), (1, 0, 1, 0))
    stride, flat = sums.shape[2], sums.flatten(1)

    def sums_at(down: int, right: int) -> Tensor:
        return flat.gather(1, (corners[..., 0] + down) * stride + corners[..., 1] + right)

    count = sums_at(height, width) - sums_at(0, width) - sums_at(height, 0) + sums_at(0, 0)
    accepted = count / (height * width) >= 1 - threshold[:, None]
    first = accepted.int().argmax(dim=1)
    return corners[torch.arange(len(corners), device=first.device), first], accepted.any(dim=1)


def enlarge(
    maps: Tensor, corner: Tensor, divisor: int, angle: Tensor | None = None, mode: str = "bilinear"
) -> Tensor:
    """Crop a patch of each map, rotate it around its center, and enlarge it to the whole size.

    Args:
        maps: float32 `[M, C, H, W]`.
        corner: row and column of the patches, int64 `[M, 2]`.
        divisor: the side of the image divided by that of a patch.
        angle: in radians, `[M]`; None does not rotate.
        mode: "bilinear" or "nearest".

    Returns:
        Float32 `[M, C, H, W]`.
    """
    height, width = maps.shape[2:]
    tall, wide = max(1, height // divisor), max(1, width // divisor)
    angle = torch.zeros(len(maps), device=maps.device) if angle is None else angle
    cos, sin = angle.cos(), angle.sin()
    # Rows of the affine map from the enlarged patch to the image, both with coordinates -1 to 1.
    x = [wide * cos / width, -tall * sin / width, (2 * corner[:, 1] + wide) / width - 1]
    y = [wide * sin / height, tall * cos / height, (2 * corner[:, 0] + tall) / height - 1]
    theta = torch.stack([torch.stack(x, dim=1), torch.stack(y, dim=1)], dim=1)
    grid = F.affine_grid(theta, list(maps.shape), align_corners=False)
    return F.grid_sample(maps, grid, mode=mode, padding_mode="reflection", align_corners=False)


def blur_images(images: Tensor) -> Tensor:
    """Blur images `[M, C, H, W]` with a standard deviation of 1/32 of the longer side."""
    sigma = max(images.shape[2:]) / 32
    kernel = 2 * math.ceil(2 * sigma) + 1
    kernel = min(kernel, 2 * min(images.shape[2:]) - 1)
    blurred: Tensor = gaussian_blur(images.flatten(0, 1), kernel, sigma)
    return blurred.view(images.shape)


def color_fractals(systems: Tensor, color: Tensor, images: Tensor) -> Tensor:
    """Render a fractal in the range of values of each image, `[M, C, H, W]`."""
    gray = render_fractals(systems, *images.shape[2:])[:, None] * color[:, :, None, None]
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    return low + (high - low) * gray


def mix_with_itself(images: Tensor, params: SelfMixParams, fractal_weight: float) -> Tensor:
    """Blend enlarged salient patches, with fractals, into the images they come from.

    Args:
        images: the M images that are mixed, float32 `[M, C, H, W]`.
        params: parameters of M mixes.
        fractal_weight: w.

    Returns:
        Float32 `[M, C, H, W]`.
    """
    salient = salient_pixels(images)
    fractals = color_fractals(params.systems, params.color, images)
    total = torch.zeros_like(images)
    count = images.new_zeros(len(images), 1, 1, 1)
    for number, divisor in enumerate(PATCHES):
        corner, found = find_patches(salient, params.places[:, number], params.threshold, divisor)
        patch = enlarge(images, corner, divisor)
        mask = enlarge(salient[:, None].float(), corner, divisor, mode="nearest")
        rotated = enlarge(images, corner, divisor, params.angle[:, number])
        changed = torch.lerp(blur_images(patch), rotated.lerp(fractals, fractal_weight), mask)
        accepted = found[:, None, None, None].float()
        total, count = total + accepted * changed, count + accepted
    # An image without an accepted patch keeps weight 1.
    weight = torch.where(count > 0, params.weight[:, None, None, None], 1.0)
    return weight * images + (1 - weight) * total / count.clamp_min(1)


class FracMix(InputMixing[FracMixSettings, FracMixParams]):
    """S²-FracMix (Islam et al., ECCV 2026)."""

    name = "fracmix"
    summary = "salient patches and fractals blended into the image itself; or another mix"
    paper = Paper(
        authors="Islam, Mahmood, Jin, Akhtar",
        title="S²-FracMix: Label-Preserving Self-Saliency Mixup Augmentation",
        venue="ECCV",
        year=2026,
        arxiv="2606.25784",
    )
    label_rule = LabelRule.SYNTHETIC
    label_note = "an image is blended with itself and a fractal; other steps label by pixels"
    Settings = FracMixSettings

    def build(self, model: nn.Module | None) -> None:
        """Create the other methods."""
        self.others = Mixture(
            MixtureSettings(mix=self.settings.others),
            num_classes=self.num_classes,
            seed=self.seed,
            label_smoothing=self.label_smoothing,
        )

    @property
    def min_batch(self) -> int:
        """The smallest batch that the other methods can mix."""
        return self.others.min_batch

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> FracMixParams:
        """Draw which method mixes the batch, and its parameters."""
        if float(torch.rand((), generator=generator)) < self.settings.switch:
            return FracMixParams(own=draw_self_mix(shape, self.settings, generator))
        return FracMixParams(other=self.others.make_params(shape, generator, step))

    def mix(
        self, images: Tensor, targets: Tensor, params: FracMixParams, **features: Tensor
    ) -> Mixed:
        """Return images blended with themselves, labels unchanged; or the other method's mixes."""
        if params.own is None:
            assert params.other is not None
            return self.others.mix(images, targets, params.other)
        own = params.own
        rows = own.perm[:, 0]
        # Resampling runs in float32, which autocast would change.
        with torch.autocast(images.device.type, enabled=False):
            mixed = mix_with_itself(images[rows].float(), own, self.settings.fractal_weight)
        lam = torch.ones_like(own.perm, dtype=torch.float32)
        return Mixed(mixed.to(images.dtype), targets[rows], lam, own.perm)
