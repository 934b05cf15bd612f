"""Mixing methods that need only images and labels, as functions for any training loop.

    mixed = adautomix.mix.cutmix(images, labels, num_classes=100, alpha=1.0)
    loss = torch.nn.functional.cross_entropy(model(mixed.images), mixed.targets)

Methods that look inside a network are created with `adautomix.create_method`.
"""

import dataclasses
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from adautomix.device import run_eagerly
from adautomix.errors import UsageError
from adautomix.inputs import check_batch
from adautomix.methods.base import InputMixing, MethodSettings
from adautomix.methods.cutmix import CutMix, CutMixParams
from adautomix.methods.cutout import Cutout, CutoutParams
from adautomix.methods.fmix import FMix, FMixParams, Spectrum
from adautomix.methods.fracmix import FracMix, FracMixParams
from adautomix.methods.gridmix import CellsParams, GridMix, LatticeParams
from adautomix.methods.mixture import Mixture, MixtureParams
from adautomix.methods.mixup import Mixup, MixupParams
from adautomix.methods.mixup_cutmix import MixupCutMix, MixupCutMixParams
from adautomix.methods.resizemix import ResizeMix, ResizeMixParams
from adautomix.methods.saliencymix import SaliencyMix, SaliencyMixParams
from adautomix.methods.smoothmix import Pattern, SmoothMix, SmoothMixParams
from adautomix.mixing.ops import Mixed, soft_targets
from adautomix.mixing.params import MixParams
from adautomix.validation import one_line_errors, setting_names

S = TypeVar("S", bound=MethodSettings)

__all__ = [
    "cutmix",
    "cutout",
    "fmix",
    "fracmix",
    "gridmix",
    "mixture",
    "mixup",
    "mixup_cutmix",
    "resizemix",
    "saliencymix",
    "smoothmix",
]


def mixup(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    alpha: float = 1.0,
    per_sample: bool = False,
    generator: torch.Generator | None = None,
    params: MixupParams | None = None,
) -> Mixed:
    """Mix pairs of images and their labels linearly.

    `λ ~ Beta(alpha, alpha)`, `images = λ x + (1 - λ) x[π]`, and the same for the labels, with a
    random permutation π of the batch.

    Args:
        images: normalized, float `[B, C, H, W]`, on any device.
        labels: class indices, integer `[B]`, or soft labels, float `[B, K]`.
        num_classes: number of classes, K.
        alpha: concentration of the Beta distribution, above 0; a larger value mixes more evenly.
        per_sample: draw one λ per sample instead of one per batch.
        generator: CPU generator of the random numbers; default: PyTorch's global one.
        params: parameters of an earlier call, `mixed.params`, to mix in the same way again;
            nothing is drawn then.

    Returns:
        The mixed images `[B, C, H, W]`, their soft labels `[B, K]`, and what is in them (`lam`,
        `perm`, `masks`, `params`). The inputs are not changed.

    Raises:
        UsageError: a setting is out of range, or an input has the wrong shape, type or values.

    Source:
        Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018, arXiv 1710.09412.

    Example:
        >>> images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
        >>> mixed = mixup(images, labels, num_classes=3, alpha=0.2)
        >>> mixed.images.shape, mixed.targets.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 3]))
        >>> again = mixup(images, labels, num_classes=3, params=mixed.params)
        >>> torch.equal(again.images, mixed.images)
        True
    """
    settings = _settings(Mixup, alpha=alpha, per_sample=per_sample)
    return _mix(Mixup, settings, images, labels, num_classes, generator, params)


def cutmix(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    alpha: float = 1.0,
    per_sample: bool = False,
    generator: torch.Generator | None = None,
    params: CutMixParams | None = None,
) -> Mixed:
    """Paste a random box of one image into another; labels follow the area.

    `λ₀ ~ Beta(alpha, alpha)`; the box has sides `⌊H √(1-λ₀)⌋` and `⌊W √(1-λ₀)⌋` around a uniform
    center and is clipped to the image. λ is the fraction of pixels left outside it.

    Args:
        images: normalized, float `[B, C, H, W]`, on any device.
        labels: class indices, integer `[B]`, or soft labels, float `[B, K]`.
        num_classes: number of classes, K.
        alpha: concentration of the Beta distribution, above 0; small values give boxes that are
            nearly empty or nearly full.
        per_sample: draw one box per sample instead of one per batch.
        generator: CPU generator of the random numbers; default: PyTorch's global one.
        params: parameters of an earlier call, `mixed.params`, to mix in the same way again;
            nothing is drawn then.

    Returns:
        The mixed images `[B, C, H, W]`, their soft labels `[B, K]`, and what is in them (`lam`,
        `perm`, `masks`, `params`). The inputs are not changed.

    Raises:
        UsageError: a setting is out of range, or an input has the wrong shape, type or values.

    Source:
        Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable
        Features", ICCV 2019, arXiv 1905.04899.

    Example:
        >>> images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
        >>> mixed = cutmix(images, labels, num_classes=3, alpha=1.0)
        >>> mixed.images.shape, mixed.targets.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 3]))
        >>> torch.allclose(mixed.masks.mean(dim=(2, 3)), mixed.lam)
        True
    """
    settings = _settings(CutMix, alpha=alpha, per_sample=per_sample)
    return _mix(CutMix, settings, images, labels, num_classes, generator, params)


def mixup_cutmix(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    mixup_alpha: float = 0.8,
    cutmix_alpha: float = 1.0,
    prob: float = 1.0,
    switch_prob: float = 0.5,
    odd_boxes: bool = True,
    per_sample: bool = False,
    generator: torch.Generator | None = None,
    params: MixupCutMixParams | None = None,
) -> Mixed:
    """Mix by Mixup or by CutMix, drawn at random, as recipes for vision transformers do.

    With probability `switch_prob` CutMix with `λ₀ ~ Beta(cutmix_alpha, cutmix_alpha)`, else Mixup
    with `λ ~ Beta(mixup_alpha, mixup_alpha)`; with probability `1 - prob` neither.

    Args:
        images: normalized, float `[B, C, H, W]`, on any device.
        labels: class indices, integer `[B]`, or soft labels, float `[B, K]`.
        num_classes: number of classes, K.
        mixup_alpha: concentration of the Beta distribution of Mixup, above 0.
        cutmix_alpha: concentration of the Beta distribution of CutMix, above 0.
        prob: probability that anything is mixed, 0 to 1.
        switch_prob: probability of CutMix rather than Mixup, 0 to 1.
        odd_boxes: keep odd sides of a box; off: make them one pixel smaller, as timm 0.4.12 did.
        per_sample: draw everything per sample instead of once per batch.
        generator: CPU generator of the random numbers; default: PyTorch's global one.
        params: parameters of an earlier call, `mixed.params`, to mix in the same way again;
            nothing is drawn then.

    Returns:
        The mixed images `[B, C, H, W]`, their soft labels `[B, K]`, and what is in them (`lam`,
        `perm`, `masks`, `params`). The inputs are not changed.

    Raises:
        UsageError: a setting is out of range, or an input has the wrong shape, type or values.

    Source:
        timm.data.Mixup; Touvron et al., "Training data-efficient image transformers &
        distillation through attention", ICML 2021, arXiv 2012.12877.

    Example:
        >>> images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
        >>> mixed = mixup_cutmix(images, labels, num_classes=3)
        >>> mixed.images.shape, mixed.targets.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 3]))
    """
    settings = _settings(
        MixupCutMix,
        mixup_alpha=mixup_alpha,
        cutmix_alpha=cutmix_alpha,
        prob=prob,
        switch_prob=switch_prob,
        odd_boxes=odd_boxes,
        per_sample=per_sample,
    )
    return _mix(MixupCutMix, settings, images, labels, num_classes, generator, params)


def mixture(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    mix: tuple[str, ...] = ("mixup", "cutmix", "resizemix"),
    weights: tuple[float, ...] | None = None,
    options: dict[str, dict[str, Any]] | None = None,
    per_sample: bool = False,
    generator: torch.Generator | None = None,
    params: MixtureParams | None = None,
) -> Mixed:
    """Mix by one of several methods, drawn at random.

    Args:
        images: normalized, float `[B, C, H, W]`, on any device.
        labels: class indices, integer `[B]`, or soft labels, float `[B, K]`.
        num_classes: number of classes, K.
        mix: names of the methods, each of which has a function in this module.
        weights: how often each method is drawn, in any unit; None: all alike.
        options: settings of the methods by name, such as `{"cutmix": {"alpha": 0.2}}`; None: their
            defaults.
        per_sample: draw a method per sample instead of one per batch; every method then mixes the
            whole batch.
        generator: CPU generator of the random numbers; default: PyTorch's global one.
        params: parameters of an earlier call, `mixed.params`, to mix in the same way again;
            nothing is drawn then.

    Returns:
        The mixed images `[B, C, H, W]`, their soft labels `[B, K]`, and what is in them (`lam`,
        `perm`, `masks`, `params`). The inputs are not changed.

    Raises:
        UsageError: a setting is out of range, or an input has the wrong shape, type or values.

    Source:
        None; openmixup and timm choose between methods in this way.

    Example:
        >>> images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
        >>> mixed = mixture(images, labels, num_classes=3, mix=("mixup", "cutmix"), weights=(1, 3))
        >>> mixed.images.shape, mixed.targets.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 3]))
    """
    settings = _settings(Mixture, mix=mix, weights=weights, options=options, per_sample=per_sample)
    return _mix(Mixture, settings, images, labels, num_classes, generator, params)


def cutout(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    size: int = 8,
    holes: int = 1,
    generator: torch.Generator | None = None,
    params: CutoutParams | None = None,
) -> Mixed:
    """Cover random squares of each image with zeros; labels stay.

    Each image gets `holes` squares around uniform pixels, clipped to the image. In normalized
    images zero is the mean color.

    Args:
        images: normalized, float `[B, C, H, W]`, on any device.
        labels: class indices, integer `[B]`, or soft labels, float `[B, K]`.
        num_classes: number of classes, K.
        size: side of a square in pixels, at least 0.
        holes: squares per image, at least 1.
        generator: CPU generator of the random numbers; default: PyTorch's global one.
        params: parameters of an earlier call, `mixed.params`, to mix in the same way again;
            nothing is drawn then.

    Returns:
        The mixed images `[B, C, H, W]`, their soft labels `[B, K]`, and what is in them (`lam`,
        `perm`, `masks`, `params`). The inputs are not changed.

    Raises:
        UsageError: a setting is out of range, or an input has the wrong shape, type or values.

    Source:
        DeVries and Taylor, "Improved Regularization of Convolutional Neural Networks with
        Cutout", 2017, arXiv 1708.04552.

    Example:
        >>> images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
        >>> mixed = cutout(images, labels, num_classes=3, size=4)
        >>> mixed.images.shape, mixed.targets.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 3]))
    """
    settings = _settings(Cutout, size=size, holes=holes)
    return _mix(Cutout, settings, images, labels, num_classes, generator, params)


def fmix(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    alpha: float = 0.2,
    decay: float = 3.0,
    spectrum: Spectrum = "reference",
    per_sample: bool = False,
    generator: torch.Generator | None = None,
    params: FMixParams | None = None,
) -> Mixed:
    """Mix pairs of images under a binary mask of smooth random shapes.

    `λ ~ Beta(alpha, alpha)`; low-frequency noise is thresholded so that a fraction λ of the pixels
    shows the first image.

    Args:
        images: normalized, float `[B, C, H, W]`, on any device.
        labels: class indices, integer `[B]`, or soft labels, float `[B, K]`.
        num_classes: number of classes, K.
        alpha: concentration of the Beta distribution, above 0.
        decay: δ, how strongly high frequencies are damped; a larger value gives smoother shapes.
        spectrum: "reference", the noise of the authors' code, or "isotropic", the paper's formula.
        per_sample: draw one mask per sample instead of one per batch.
        generator: CPU generator of the random numbers; default: PyTorch's global one.
        params: parameters of an earlier call, `mixed.params`, to mix in the same way again;
            nothing is drawn then.

    Returns:
        The mixed images `[B, C, H, W]`, their soft labels `[B, K]`, and what is in them (`lam`,
        `perm`, `masks`, `params`). The inputs are not changed.

    Raises:
        UsageError: a setting is out of range, or an input has the wrong shape, type or values.

    Source:
        Harris et al., "FMix: Enhancing Mixed Sample Data Augmentation", 2020, arXiv 2002.12047.

    Example:
        >>> images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
        >>> mixed = fmix(images, labels, num_classes=3)
        >>> mixed.images.shape, mixed.targets.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 3]))
    """
    settings = _settings(FMix, alpha=alpha, decay=decay, spectrum=spectrum, per_sample=per_sample)
    return _mix(FMix, settings, images, labels, num_classes, generator, params)


def fracmix(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    switch: float = 0.25,
    others: tuple[str, ...] = ("mixup", "cutmix", "resizemix"),
    fractal_weight: float = 0.2,
    max_angle: float = 30.0,
    threshold_min: float = 0.5,
    threshold_max: float = 1.0,
    tries: int = 8,
    generator: torch.Generator | None = None,
    params: FracMixParams | None = None,
) -> Mixed:
    """Blend enlarged salient patches and fractals into each image, or mix by another method.

    With probability `switch` each image is blended with its own salient patches, enlarged, rotated
    and mixed with a fractal, and keeps its label; otherwise one of `others` mixes the batch.

    Args:
        images: normalized, float `[B, C, H, W]`, on any device.
        labels: class indices, integer `[B]`, or soft labels, float `[B, K]`.
        num_classes: number of classes, K.
        switch: probability of blending images with themselves, 0 to 1.
        others: names of the methods of the other batches, equally likely.
        fractal_weight: weight of the fractal at salient pixels, 0 to 1.
        max_angle: largest rotation of a patch in degrees, 0 to 180.
        threshold_min: smallest t, 0 to 1; at least 1 - t of a patch must be salient.
        threshold_max: largest t, 0 to 1.
        tries: places that are tried per patch, at least 1.
        generator: CPU generator of the random numbers; default: PyTorch's global one.
        params: parameters of an earlier call, `mixed.params`, to mix in the same way again;
            nothing is drawn then.

    Returns:
        The mixed images `[B, C, H, W]`, their soft labels `[B, K]`, and what is in them (`lam`,
        `perm`, `masks`, `params`). The inputs are not changed.

    Raises:
        UsageError: a setting is out of range, or an input has the wrong shape, type or values.

    Source:
        Islam et al., "S²-FracMix: Label-Preserving Self-Saliency Mixup Augmentation", ECCV 2026,
        arXiv 2606.25784.

    Example:
        >>> images, labels = torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 1])
        >>> mixed = fracmix(images, labels, num_classes=3, switch=1.0)
        >>> mixed.images.shape, mixed.targets.shape
        (torch.Size([4, 3, 16, 16]), torch.Size([4, 3]))
    """
    settings = _settings(
        FracMix,
        switch=switch,
        others=others,
        fractal_weight=fractal_weight,
        max_angle=max_angle,
        threshold_min=threshold_min,
        threshold_max=threshold_max,
        tries=tries,
    )
    return _mix(FracMix, settings, images, labels, num_classes, generator, params)


def gridmix(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    pattern: Literal["lattice", "cells"] = "lattice",
    alpha: float = 0.2,
    holes_min: int = 2,
    holes_max: int = 6,
    area_min: float = 0.5,
    area_max: float = 1.0,
    aspect_min: float = 0.5,
    aspect_max: float = 2.0,
    cells: int = 4,
    per_sample: bool = False,
    generator: torch.Generator | None = None,
    params: LatticeParams | CellsParams | None = None,
) -> Mixed:
    """Mix pairs of images under a lattice of rectangles, or cell by cell.

    "lattice" places rectangles of the second image in a regular grid (GridMixup); "cells" divides
    the image into `cells` × `cells` and draws which cells show the second image. Labels follow
    the area.

    Args:
        images: normalized, float `[B, C, H, W]`, on any device.
        labels: class indices, integer `[B]`, or soft labels, float `[B, K]`.
        num_classes: number of classes, K.
        pattern: "lattice" or "cells".
        alpha: concentration of the Beta distribution of λ₀, above 0.
        holes_min: lattice: fewest cells per row.
        holes_max: lattice: most cells per row.
        area_min: lattice: smallest fraction of the image that the grid covers, above 0 and up to 1.
        area_max: lattice: largest such fraction, above 0 and up to 1.
        aspect_min: lattice: smallest ratio of height to width.
        aspect_max: lattice: largest ratio of height to width.
        cells: cells: cells per side.
        per_sample: draw one grid per sample instead of one per batch.
        generator: CPU generator of the random numbers; default: PyTorch's global one.
        params: parameters of an earlier call, `mixed.params`, to mix in the same way again;
            nothing is drawn then.

    Returns:
        The mixed images `[B, C, H, W]`, their soft labels `[B, K]`, and what is in them (`lam`,
        `perm`, `masks`, `params`). The inputs are not changed.

    Raises:
        UsageError: a setting is out of range, or an input has the wrong shape, type or values.

    Source:
        GridMixup (I. Dobrynin, github.com/IlyaDobrynin/GridMixup); Baek, Bang and Shim, "GridMix:
        Strong regularization through local context mapping", Pattern Recognition 2021.

    Example:
        >>> images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
        >>> mixed = gridmix(images, labels, num_classes=3)
        >>> mixed.images.shape, mixed.targets.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 3]))
    """
    settings = _settings(
        GridMix,
        pattern=pattern,
        alpha=alpha,
        holes_min=holes_min,
        holes_max=holes_max,
        area_min=area_min,
        area_max=area_max,
        aspect_min=aspect_min,
        aspect_max=aspect_max,
        cells=cells,
        per_sample=per_sample,
    )
    return _mix(GridMix, settings, images, labels, num_classes, generator, params)


def resizemix(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    scale_min: float = 0.1,
    scale_max: float = 0.8,
    per_sample: bool = False,
    generator: torch.Generator | None = None,
    params: ResizeMixParams | None = None,
) -> Mixed:
    """Shrink one image and paste it into another; labels follow the area.

    `τ ~ U(scale_min, scale_max)` is the side of the pasted image as a fraction of the full side.

    Args:
        images: normalized, float `[B, C, H, W]`, on any device.
        labels: class indices, integer `[B]`, or soft labels, float `[B, K]`.
        num_classes: number of classes, K.
        scale_min: smallest side of the pasted image as a fraction, above 0 and up to 1.
        scale_max: largest side of the pasted image as a fraction, above 0 and up to 1.
        per_sample: draw one size per sample instead of one per batch.
        generator: CPU generator of the random numbers; default: PyTorch's global one.
        params: parameters of an earlier call, `mixed.params`, to mix in the same way again;
            nothing is drawn then.

    Returns:
        The mixed images `[B, C, H, W]`, their soft labels `[B, K]`, and what is in them (`lam`,
        `perm`, `masks`, `params`). The inputs are not changed.

    Raises:
        UsageError: a setting is out of range, or an input has the wrong shape, type or values.

    Source:
        Qin et al., "ResizeMix: Mixing Data with Preserved Object Information and True Labels",
        2020, arXiv 2012.11101.

    Example:
        >>> images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
        >>> mixed = resizemix(images, labels, num_classes=3)
        >>> mixed.images.shape, mixed.targets.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 3]))
    """
    settings = _settings(ResizeMix, scale_min=scale_min, scale_max=scale_max, per_sample=per_sample)
    return _mix(ResizeMix, settings, images, labels, num_classes, generator, params)


def smoothmix(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    pattern: Pattern = "circle",
    ramp: float = 0.2,
    per_sample: bool = False,
    generator: torch.Generator | None = None,
    params: SmoothMixParams | None = None,
) -> Mixed:
    """Blend pairs of images under a mask with a soft edge; labels follow the mask.

    The mask is a Gaussian circle or a square with a linear ramp, of random size and place.

    Args:
        images: normalized, float `[B, C, H, W]`, on any device.
        labels: class indices, integer `[B]`, or soft labels, float `[B, K]`.
        num_classes: number of classes, K.
        pattern: "circle" or "square".
        ramp: square: fraction of the half-side over which the mask rises, above 0 and up to 1.
        per_sample: draw one mask per sample instead of one per batch.
        generator: CPU generator of the random numbers; default: PyTorch's global one.
        params: parameters of an earlier call, `mixed.params`, to mix in the same way again;
            nothing is drawn then.

    Returns:
        The mixed images `[B, C, H, W]`, their soft labels `[B, K]`, and what is in them (`lam`,
        `perm`, `masks`, `params`). The inputs are not changed.

    Raises:
        UsageError: a setting is out of range, or an input has the wrong shape, type or values.

    Source:
        Lee et al., "SmoothMix: a Simple Yet Effective Data Augmentation to Train Robust
        Classifiers", CVPR Workshops 2020.

    Example:
        >>> images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
        >>> mixed = smoothmix(images, labels, num_classes=3)
        >>> mixed.images.shape, mixed.targets.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 3]))
    """
    settings = _settings(SmoothMix, pattern=pattern, ramp=ramp, per_sample=per_sample)
    return _mix(SmoothMix, settings, images, labels, num_classes, generator, params)


def saliencymix(
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    *,
    alpha: float = 1.0,
    prob: float = 1.0,
    per_sample: bool = False,
    detector: Literal["fine_grained", "spectral_residual"] = "fine_grained",
    saliency: Literal["paper", "released"] = "paper",
    generator: torch.Generator | None = None,
    params: SaliencyMixParams | None = None,
) -> Mixed:
    """Paste the most salient box of one image into another; labels follow the area.

    As CutMix, but the box lies around the peak of the saliency map of the image it is taken from.
    The map is computed from the pixels, without a network.

    Args:
        images: normalized, float `[B, C, H, W]`, on any device.
        labels: class indices, integer `[B]`, or soft labels, float `[B, K]`.
        num_classes: number of classes, K.
        alpha: concentration of the Beta distribution of λ₀, above 0.
        prob: probability that a batch is mixed at all, 0 to 1.
        per_sample: draw one size of box per sample instead of one per batch.
        detector: "fine_grained", as in the paper, or "spectral_residual", which is cheaper and
            noisier.
        saliency: "paper", the peak of each image's map, or "released", what the authors' code
            computes: an almost random place, the same for the whole batch.
        generator: CPU generator of the random numbers; default: PyTorch's global one.
        params: parameters of an earlier call, `mixed.params`, to mix in the same way again;
            nothing is drawn then.

    Returns:
        The mixed images `[B, C, H, W]`, their soft labels `[B, K]`, and what is in them (`lam`,
        `perm`, `masks`, `params`). The inputs are not changed.

    Raises:
        UsageError: a setting is out of range, or an input has the wrong shape, type or values.

    Source:
        Uddin et al., "SaliencyMix: A Saliency Guided Data Augmentation Strategy for Better
        Regularization", ICLR 2021, arXiv 2006.01791.

    Example:
        >>> images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 1])
        >>> mixed = saliencymix(images, labels, num_classes=3)
        >>> mixed.images.shape, mixed.targets.shape
        (torch.Size([4, 3, 8, 8]), torch.Size([4, 3]))
    """
    settings = _settings(
        SaliencyMix,
        alpha=alpha,
        prob=prob,
        per_sample=per_sample,
        detector=detector,
        saliency=saliency,
    )
    return _mix(SaliencyMix, settings, images, labels, num_classes, generator, params)


# These two read values on the host or draw from a generator, which `torch.compile` would break into
# many graphs. They stay out of its graphs, so that the mix itself is one.
@run_eagerly
def _settings(method: type[InputMixing[S, Any]], **values: Any) -> S:
    """Checked settings of a method.

    Raises:
        UsageError: a value is out of range.
    """
    with one_line_errors(method.name, lambda: setting_names(f"{method.name}.", method.Settings)):
        return method.Settings(**values)  # type: ignore[return-value]


def _mix(
    method: type[InputMixing[S, Any]],
    settings: S,
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    generator: torch.Generator | None,
    params: MixParams | None,
) -> Mixed:
    """Check the inputs, draw parameters unless they are given, and apply them."""
    mixer, used = _prepare(method, settings, images, labels, num_classes, generator, params)
    mixed = mixer.mix(images, soft_targets(labels, num_classes), used)
    return dataclasses.replace(mixed, params=used)


@run_eagerly
def _prepare(
    method: type[InputMixing[S, Any]],
    settings: S,
    images: Tensor,
    labels: Tensor,
    num_classes: int,
    generator: torch.Generator | None,
    params: MixParams | None,
) -> tuple[InputMixing[S, Any], MixParams]:
    """Check the inputs, create the method, and draw parameters unless they are given."""
    check_batch(images, labels, num_classes)
    mixer = method(settings, num_classes=num_classes)
    if len(images) < mixer.min_batch:
        raise UsageError(
            f"images has {len(images)} rows: {method.name} needs a batch of at least "
            f"{mixer.min_batch}"
        )
    if params is None:
        params = mixer.make_params(images.shape, generator or torch.default_generator, 0)
        params = params.to(images.device)
    return mixer, params
