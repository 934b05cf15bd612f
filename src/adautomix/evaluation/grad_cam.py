"""Grad-CAM for any timm network: where in an image a network sees a class.

Source: Selvaraju et al., *Grad-CAM*, ICCV 2017, arXiv 1610.02391. With A the output of a late layer
as a map of C channels and z the logit of the class, for each image:

    map = relu(Σ_c w_c A_c),   w_c = mean over positions of ∂z / ∂A_c

captum computes it for maps `[B, C, h, w]`. Layers of transformers put out tokens, or channels
last; here such an output passes through a module of its own in captum's shape and back again.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.evaluation.suite import NotApplicableError
from adautomix.evaluation.target import PixelNetwork
from adautomix.models import evaluating

REMEDY = "name a module of the network, say --maps.layer stages.2"
SMALLEST = 2  # pixels a side: a map of a single pixel says nothing


@dataclass(frozen=True)
class Layout:
    """How the output of a layer lies over the image.

    Attributes:
        kind: "first" for `[B, C, h, w]`, "last" for `[B, h, w, C]`, "tokens" for
            `[B, prefix + h·w, C]`, row by row.
        prefix: tokens ahead of those of the image.
    """

    kind: Literal["first", "last", "tokens"]
    prefix: int = 0

    def to_map(self, output: Tensor) -> Tensor:
        """The output as a map `[B, C, h, w]`."""
        if self.kind == "first":
            return output
        if self.kind == "last":
            return output.permute(0, 3, 1, 2)
        tokens = output[:, self.prefix :].transpose(1, 2)
        maps: Tensor = tokens.unflatten(2, (math.isqrt(tokens.shape[2]), -1))
        return maps

    def from_map(self, grid: Tensor, output: Tensor) -> Tensor:
        """The output with a map in the place of its own; the prefix stays."""
        if self.kind == "first":
            return grid
        if self.kind == "last":
            return grid.permute(0, 2, 3, 1)
        return torch.cat([output[:, : self.prefix], grid.flatten(2).transpose(1, 2)], dim=1)


@dataclass(frozen=True)
class MappedLayer:
    """A layer whose output is mapped.

    Attributes:
        path: in the timm network.
        module: the layer.
        layout: of its output.
        side: height of its map, in positions.
    """

    path: str
    module: nn.Module
    layout: Layout
    side: int

    @contextmanager
    def exposed(self) -> Iterator[nn.Module]:
        """Within it the layer's output passes through the given module as `[B, C, h, w]`."""
        passage = nn.Identity()

        def through(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            grid: Tensor = passage(self.layout.to_map(output).detach())
            return self.layout.from_map(grid, output)

        handle = self.module.register_forward_hook(through)
        try:
            yield passage
        finally:
            handle.remove()


def grad_cam(network: PixelNetwork, layer: MappedLayer, pixels: Tensor, classes: Tensor) -> Tensor:
    """The map of one class in each image, at least 0, bilinearly enlarged to the image.

    Args:
        network: takes the pixels; computed in evaluation mode, image by image independent.
        layer: see `find_layer`.
        pixels: `[B, 3, H, W]` in [0, 1].
        classes: int64 `[B]`.

    Returns:
        Float32 `[B, H, W]`, in the unit of logits, not normalized.
    """
    attribution = load_captum()
    with held_fixed(network), layer.exposed() as passage:
        maps = attribution(network, passage).attribute(pixels, classes, relu_attributions=True)
    large = F.interpolate(maps.detach(), pixels.shape[2:], mode="bilinear", align_corners=False)
    return large[:, 0]


def load_captum() -> Any:
    """Captum's `LayerGradCam`.

    Raises:
        NotApplicableError: captum is not installed.
    """
    try:
        from captum.attr import LayerGradCam
    except ImportError:
        raise NotApplicableError(
            "maps needs captum, which is not installed: pip install 'adautomix[maps]'"
        ) from None
    return LayerGradCam


@contextmanager
def held_fixed(network: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradient to any weight, so that none is computed before the layer."""
    weights = [weight for weight in network.parameters() if weight.requires_grad]
    try:
        for weight in weights:
            weight.requires_grad_(False)
        with evaluating(network):
            yield
    finally:
        for weight in weights:
            weight.requires_grad_(True)


def find_layer(network: PixelNetwork, pixels: Tensor, path: str | None = None) -> MappedLayer:
    """The layer to map: the one named, or the last stage of the network that still has a map.

    Where that stage is a single block of a transformer it is the norm before its attention
    (`norm1`): what the other tokens are when the block has passed counts for nothing where a class
    token alone is read.

    Args:
        network: with any timm network inside.
        pixels: a few images to try it on, `[B, 3, H, W]`.
        path: of a module in the timm network, such as "layer3"; None: the choice is made here.

    Raises:
        UsageError: no such module, or its output is no map.
        NotApplicableError: there is nothing to choose; the remedy is `maps.layer`.
    """
    layer = named_layer(network, pixels, path) if path else last_stage(network, pixels)
    if not has_gradient(network, layer, pixels):
        problem = f"no logit depends on the map of {layer.path}: {REMEDY}, ahead of it"
        raise UsageError(problem) if path else NotApplicableError(problem)
    return layer


def named_layer(network: PixelNetwork, pixels: Tensor, path: str) -> MappedLayer:
    """The layer that the user named.

    Raises:
        UsageError: there is none, or its output is no map.
    """
    module = submodule(network.backbone, path)
    if module is None:
        names = ", ".join(name for name, _ in network.backbone.named_children())
        raise UsageError(f"maps.layer = {path!r}: no such module; the network has {names}")
    output = output_of(network, module, pixels)
    layout = layout_of(output, prefix_of(network))
    if layout is None:
        raise UsageError(f"maps.layer = {path!r}: its output is no map over the image: {REMEDY}")
    return MappedLayer(path, module, layout, layout.to_map(output).shape[2])


def last_stage(network: PixelNetwork, pixels: Tensor) -> MappedLayer:
    """The last stage with a map of some pixels, if what timm says of it holds.

    Raises:
        NotApplicableError: timm says nothing of the kind.
    """
    for path, expected in reversed(timm_stages(network, pixels)):
        side = expected.shape[2]
        if side < SMALLEST:
            continue
        module = submodule(network.backbone, path)
        output = None if module is None else output_of(network, module, pixels)
        layout = layout_of(output, prefix_of(network))
        if module is None or output is None or layout is None:
            break
        if not is_map(layout.to_map(output), expected):
            break
        norm = getattr(module, "norm1", None)
        if norm is None:
            return MappedLayer(path, module, layout, side)
        return MappedLayer(f"{path}.norm1", norm, layout, side)
    kind = type(network.backbone).__name__
    raise NotApplicableError(f"maps finds no layer of {kind} whose output is a map: {REMEDY}")


def timm_stages(network: PixelNetwork, pixels: Tensor) -> list[tuple[str, Tensor]]:
    """Path and map `[B, C, h, w]` of every stage that timm tells of, the first one first."""
    backbone: Any = network.backbone
    if not hasattr(backbone, "forward_intermediates"):
        return []
    with evaluating(network):
        maps = backbone.forward_intermediates(network.normalize(pixels), intermediates_only=True)
    return list(zip([stage["module"] for stage in backbone.feature_info], maps, strict=False))


def is_map(found: Tensor, expected: Tensor) -> bool:
    """Whether a layer's map is the one that timm says it is."""
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-4)


def submodule(network: nn.Module, path: str) -> nn.Module | None:
    """A module by its path, if there is one."""
    try:
        return network.get_submodule(path)
    except AttributeError:
        return None


def prefix_of(network: PixelNetwork) -> int:
    """How many tokens a transformer puts ahead of those of the image; 0 elsewhere."""
    return int(getattr(network.backbone, "num_prefix_tokens", 0) or 0)


def output_of(network: PixelNetwork, module: nn.Module, pixels: Tensor) -> Any:
    """What a module puts out in a forward; None where it is not called exactly once."""
    found: list[Any] = []
    handle = module.register_forward_hook(lambda _, inputs, output: found.append(output))
    try:
        with evaluating(network):
            network(pixels)
    finally:
        handle.remove()
    return found[0] if len(found) == 1 else None


def layout_of(output: Any, prefix: int) -> Layout | None:
    """How the output for square images lies over them; None where it does not.

    Args:
        output: of a layer.
        prefix: tokens that the network puts ahead of those of the image, in some of its layers.
    """
    if not isinstance(output, Tensor):
        return None
    shape = output.shape
    if len(shape) == 4 and shape[2] == shape[3]:
        return Layout("first")
    if len(shape) == 4 and shape[1] == shape[2]:
        return Layout("last")
    if len(shape) == 3:
        for ahead in (prefix, 0):
            count = shape[1] - ahead
            if count > 0 and math.isqrt(count) ** 2 == count:
                return Layout("tokens", ahead)
    return None


def has_gradient(network: PixelNetwork, layer: MappedLayer, pixels: Tensor) -> bool:
    """Whether the logits depend on the map of a layer at all."""
    grids: list[Tensor] = []
    with held_fixed(network), layer.exposed() as passage, torch.enable_grad():
        passage.register_forward_pre_hook(
            lambda _, inputs: grids.append(inputs[0].requires_grad_())
        )
        logits = network(pixels)
        if not logits.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(logits.square().sum(), grids, allow_unused=True)
    return gradient is not None and bool(gradient.any())
