"""Grad-CAM for any timm model: where in an image a network sees evidence for a class.

Source: Selvaraju et al., *Grad-CAM*, ICCV 2017, arXiv 1610.02391. With A the output of a late layer
as a feature map of C channels, and z the logit of the class, for each image:

    map = relu(Σ_c w_c A_c),   w_c = mean over positions of ∂z / ∂A_c

captum computes this for feature maps `[B, C, h, w]`. Some layers put channels last or, in
transformers, put out tokens; their output is passed through an extra module in captum's layout and
converted back.
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

REMEDY = "name a module of the network, for example --maps.layer stages.2"
MIN_SIDE = 2
"""Height of the smallest useful map, in positions: a map of a single pixel shows nothing."""


@dataclass(frozen=True)
class Layout:
    """How the output of a layer corresponds to positions in the image.

    Attributes:
        kind: "first" for `[B, C, h, w]`, "last" for `[B, h, w, C]`, "tokens" for
            `[B, prefix + h·w, C]`, row by row.
        prefix: number of tokens before those of the image.
    """

    kind: Literal["first", "last", "tokens"]
    prefix: int = 0

    def to_map(self, output: Tensor) -> Tensor:
        """Return the output as a feature map `[B, C, h, w]`."""
        if self.kind == "first":
            return output
        if self.kind == "last":
            return output.permute(0, 3, 1, 2)
        tokens = output[:, self.prefix :].transpose(1, 2)
        maps: Tensor = tokens.unflatten(2, (math.isqrt(tokens.shape[2]), -1))
        return maps

    def from_map(self, feature_map: Tensor, output: Tensor) -> Tensor:
        """Return the output with its feature map replaced; prefix tokens are kept."""
        if self.kind == "first":
            return feature_map
        if self.kind == "last":
            return feature_map.permute(0, 2, 3, 1)
        tokens = feature_map.flatten(2).transpose(1, 2)
        return torch.cat([output[:, : self.prefix], tokens], dim=1)


@dataclass(frozen=True)
class MappedLayer:
    """A layer that Grad-CAM is applied to.

    Attributes:
        path: path of the module in the timm model.
        module: the layer.
        layout: layout of its output.
        side: height of its feature map, in positions.
    """

    path: str
    module: nn.Module
    layout: Layout
    side: int

    @contextmanager
    def exposed(self) -> Iterator[nn.Module]:
        """Route the layer's output, as `[B, C, h, w]`, through the module that is yielded."""
        passage = nn.Identity()

        def reroute(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            feature_map: Tensor = passage(self.layout.to_map(output).detach())
            return self.layout.from_map(feature_map, output)

        handle = self.module.register_forward_hook(reroute)
        try:
            yield passage
        finally:
            handle.remove()


def grad_cam(network: PixelNetwork, layer: MappedLayer, pixels: Tensor, classes: Tensor) -> Tensor:
    """Return the Grad-CAM map of one class per image, enlarged bilinearly to the image size.

    Args:
        network: takes the pixels; it is run in evaluation mode, so images do not affect each
            other.
        layer: see `find_layer`.
        pixels: `[B, 3, H, W]` in [0, 1].
        classes: int64 `[B]`.

    Returns:
        Float32 `[B, H, W]`, at least 0, in units of logits, not normalized.
    """
    attribution = load_captum()
    with frozen_weights(network), layer.exposed() as passage:
        maps = attribution(network, passage).attribute(pixels, classes, relu_attributions=True)
    large = F.interpolate(maps.detach(), pixels.shape[2:], mode="bilinear", align_corners=False)
    return large[:, 0]


def load_captum() -> Any:
    """Return captum's `LayerGradCam`.

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
def frozen_weights(network: nn.Module) -> Iterator[None]:
    """Use evaluation mode and no weight gradients, so that nothing below the layer is computed."""
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
    """Return the layer to map: the given one, or the last stage whose map has several positions.

    If that stage is a single transformer block, the layer is the norm before its attention
    (`norm1`): where the logits only depend on a class token, what the block does to the other
    tokens after its attention has no effect.

    Args:
        network: contains any timm model.
        pixels: a few images to try the layer on, `[B, 3, H, W]`.
        path: path of a module in the timm model, such as "layer3"; None chooses one.

    Raises:
        UsageError: there is no such module, or its output is not a feature map.
        NotApplicableError: no layer could be chosen; the user can name one with `maps.layer`.
    """
    layer = named_layer(network, pixels, path) if path else last_stage(network, pixels)
    if not has_gradient(network, layer, pixels):
        problem = f"no logit depends on the map of {layer.path}: {REMEDY}, before that layer"
        raise UsageError(problem) if path else NotApplicableError(problem)
    return layer


def named_layer(network: PixelNetwork, pixels: Tensor, path: str) -> MappedLayer:
    """Return the layer at a path that the user gave.

    Raises:
        UsageError: there is no such module, or its output is not a feature map.
    """
    module = find_module(network.backbone, path)
    if module is None:
        names = ", ".join(name for name, _ in network.backbone.named_children())
        raise UsageError(f"maps.layer = {path!r}: no such module; the network has {names}")
    output = output_of(network, module, pixels)
    layout = find_layout(output, prefix_tokens(network))
    if layout is None:
        raise UsageError(f"maps.layer = {path!r}: its output is not a feature map: {REMEDY}")
    return MappedLayer(path, module, layout, layout.to_map(output).shape[2])


def last_stage(network: PixelNetwork, pixels: Tensor) -> MappedLayer:
    """Return the last stage whose map has several positions.

    Raises:
        NotApplicableError: timm does not describe the stages, or its description is wrong.
    """
    for path, expected in reversed(timm_stages(network, pixels)):
        side = expected.shape[2]
        if side < MIN_SIDE:
            continue
        module = find_module(network.backbone, path)
        output = None if module is None else output_of(network, module, pixels)
        layout = find_layout(output, prefix_tokens(network))
        if module is None or output is None or layout is None:
            break
        if not is_close(layout.to_map(output), expected):
            break
        norm = getattr(module, "norm1", None)
        if norm is None:
            return MappedLayer(path, module, layout, side)
        return MappedLayer(f"{path}.norm1", norm, layout, side)
    kind = type(network.backbone).__name__
    raise NotApplicableError(f"maps finds no layer of {kind} whose output is a map: {REMEDY}")


def timm_stages(network: PixelNetwork, pixels: Tensor) -> list[tuple[str, Tensor]]:
    """Return the path and feature map `[B, C, h, w]` of every stage that timm describes."""
    backbone: Any = network.backbone
    if not hasattr(backbone, "forward_intermediates"):
        return []
    with evaluating(network):
        maps = backbone.forward_intermediates(network.normalize(pixels), intermediates_only=True)
    return list(zip([stage["module"] for stage in backbone.feature_info], maps, strict=False))


def is_close(feature_map: Tensor, expected: Tensor) -> bool:
    """Return whether a layer's map equals the one that timm returns for its stage."""
    return feature_map.shape == expected.shape and torch.allclose(
        feature_map, expected, rtol=1e-4, atol=1e-4
    )


def find_module(network: nn.Module, path: str) -> nn.Module | None:
    """Return a submodule by its path, or None if there is none."""
    try:
        return network.get_submodule(path)
    except AttributeError:
        return None


def prefix_tokens(network: PixelNetwork) -> int:
    """Return how many tokens a transformer puts before those of the image; 0 for other models."""
    return int(getattr(network.backbone, "num_prefix_tokens", 0) or 0)


def output_of(network: PixelNetwork, module: nn.Module, pixels: Tensor) -> Any:
    """Return a module's output in a forward pass; None if it is not called exactly once."""
    outputs: list[Any] = []
    handle = module.register_forward_hook(lambda _, inputs, output: outputs.append(output))
    try:
        with evaluating(network):
            network(pixels)
    finally:
        handle.remove()
    return outputs[0] if len(outputs) == 1 else None


def find_layout(output: Any, prefix: int) -> Layout | None:
    """Return the layout of a layer's output for square images, or None if it is not a map.

    Args:
        output: output of a layer.
        prefix: number of tokens that the network puts before those of the image in some layers.
    """
    if not isinstance(output, Tensor):
        return None
    shape = output.shape
    if len(shape) == 4 and shape[2] == shape[3]:
        return Layout("first")
    if len(shape) == 4 and shape[1] == shape[2]:
        return Layout("last")
    if len(shape) == 3:
        for skipped in (prefix, 0):
            count = shape[1] - skipped
            if count > 0 and math.isqrt(count) ** 2 == count:
                return Layout("tokens", skipped)
    return None


def has_gradient(network: PixelNetwork, layer: MappedLayer, pixels: Tensor) -> bool:
    """Return whether the logits depend on the feature map of a layer."""
    maps: list[Tensor] = []
    with frozen_weights(network), layer.exposed() as passage, torch.enable_grad():
        passage.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0].requires_grad_()))
        logits = network(pixels)
        if not logits.requires_grad:
            return False
        (gradient,) = torch.autograd.grad(logits.square().sum(), maps, allow_unused=True)
    return gradient is not None and bool(gradient.any())
