"""How the output of a module becomes a feature map `[B, C, h, w]`."""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.models.known import is_torchvision

Layout = Literal["NCHW", "NHWC", "NLC"]
"""Order of dimensions: channels first, channels last, or tokens in row order."""

Size = tuple[int, int]


@dataclass(frozen=True)
class TapLayout:
    """The layout of the output of one module.

    Attributes:
        layout: order of the dimensions.
        prefix_tokens: number of tokens before the patches (class, distillation, registers); only
            for the layout "NLC".
    """

    layout: Layout
    prefix_tokens: int = 0

    def to_feature_map(self, output: Tensor, image_size: Size) -> Tensor:
        """Return the output as `[B, C, h, w]`; a view of it.

        Args:
            output: what the module returned.
            image_size: height and width of the images, which give the patches their aspect ratio.

        Raises:
            UsageError: the number of tokens fits no grid of square patches.
        """
        if self.layout == "NCHW":
            return output
        if self.layout == "NHWC":
            return output.permute(0, 3, 1, 2)
        patches = output[:, self.prefix_tokens :]
        grid = token_grid(patches.shape[1], image_size)
        feature_map: Tensor = patches.transpose(1, 2).unflatten(2, grid)
        return feature_map


def token_grid(count: int, image_size: Size) -> Size:
    """Rows and columns of square patches that cover an image.

    Raises:
        UsageError: no grid of square patches has this many.
    """
    height, width = image_size
    rows = round(sqrt(count * height / width))
    if rows < 1 or count % rows or abs(rows * width - count // rows * height) >= max(image_size):
        raise UsageError(
            f"{count} tokens cover no image of {height} x {width} pixels with square patches: "
            "choose another tap, or state the number of tokens before the patches, "
            "wrap_model(model, prefix_tokens=...)"
        )
    return rows, count // rows


def find_layout(
    network: nn.Module,
    path: str,
    run: Callable[[Size], Tensor],
    image_size: int,
    layout: Layout | None = None,
    prefix_tokens: int | None = None,
) -> TapLayout:
    """Find out how the output of a module is laid out.

    What the caller or the network's family states comes first. For any other network the output is
    computed for two image sizes: the dimension that grows with the height of the images is that of
    the rows.

    Args:
        network: the network that contains the module.
        path: name of the module.
        run: returns the output of the module for one image of a height and a width.
        image_size: height and width of the training images.
        layout: the layout, if the caller knows it.
        prefix_tokens: number of tokens before the patches, if the caller knows it.

    Raises:
        UsageError: the output is not a feature map, or its layout remains unknown.
    """
    output = run((image_size, image_size))
    require_tensor(output, path)
    layout = layout or known_layout(network, path, output)
    if layout in ("NCHW", "NHWC") and output.ndim == 4:
        return TapLayout(layout)
    if layout == "NLC" and output.ndim == 3:
        if prefix_tokens is None:
            prefix_tokens = known_prefix_tokens(network, path, output, image_size)
        if prefix_tokens is not None:
            return TapLayout("NLC", prefix_tokens)
    elif layout is not None:
        raise UsageError(
            f"the output of {path} has shape {list(output.shape)}, which does not have the layout "
            f"{layout!r}"
        )
    return measure_layout(path, output, run, image_size)


def require_tensor(output: Any, path: str) -> None:
    """Check that a module returned one tensor with the dimensions of a feature map.

    Raises:
        UsageError: it did not.
    """
    if not isinstance(output, Tensor):
        raise UsageError(
            f"the output of {path} is a {type(output).__name__}: name a module that returns one "
            "feature map, wrap_model(model, tap=...)"
        )
    if output.ndim not in (3, 4):
        raise UsageError(
            f"the output of {path} has shape {list(output.shape)}, which is not a feature map: "
            "name another module, wrap_model(model, tap=...)"
        )


def known_layout(network: nn.Module, path: str, output: Tensor) -> Layout | None:
    """The layout that the family of a network states, or None."""
    if output.ndim == 3 and known_patch_size(network, path) is not None:
        return "NLC"
    if output.ndim == 4:
        stated = getattr(network, "output_fmt", None)  # timm
        if stated in ("NCHW", "NHWC"):
            return "NCHW" if stated == "NCHW" else "NHWC"
        if is_torchvision(network, "SwinTransformer"):
            return "NHWC"
        if is_torchvision(network, "ResNet") or is_torchvision(network, "ConvNeXt"):
            return "NCHW"
        channels = stage_facts(network, path).get("num_chs")
        places = [axis for axis in (1, 3) if output.shape[axis] == channels]
        if len(places) == 1:
            return "NCHW" if places == [1] else "NHWC"
    return None


def stage_facts(network: nn.Module, path: str) -> dict[str, Any]:
    """What a timm network states of a stage: "num_chs", and "reduction" in pixels per row."""
    info = getattr(network, "feature_info", None)
    stages = info if isinstance(info, list) else []
    return next((dict(stage) for stage in stages if stage["module"] == path), {})


def known_patch_size(network: nn.Module, path: str) -> int | None:
    """Height and width in pixels of what a token of a stage stands for, or None."""
    if is_torchvision(network, "VisionTransformer"):
        return int(network.patch_size)  # type: ignore[arg-type]
    size = stage_facts(network, path).get("reduction")
    return None if size is None else int(size)


def known_prefix_tokens(
    network: nn.Module, path: str, output: Tensor, image_size: int
) -> int | None:
    """Number of tokens before the patches, from the size of the patches; None if it is unknown."""
    patch_size = known_patch_size(network, path)
    if patch_size is None:
        return None
    rows = -(-image_size // patch_size)
    prefix_tokens = output.shape[1] - rows * rows
    return prefix_tokens if prefix_tokens >= 0 else None


def measure_layout(
    path: str, output: Tensor, run: Callable[[Size], Tensor], image_size: int
) -> TapLayout:
    """Find the layout by comparing the output for an image with that for one twice as high.

    Raises:
        UsageError: the network only accepts images of one size, or no single dimension grew.
    """
    first = list(output.shape)
    try:
        second = list(run((2 * image_size, image_size)).shape)
    except Exception:  # whatever a network raises at an image size that it does not support
        second = first
    grown = [axis for axis in range(len(first)) if second[axis] != first[axis]]
    if len(first) == 4 and grown in ([1], [2]):
        return TapLayout("NHWC" if grown == [1] else "NCHW")
    prefix_tokens = 2 * first[1] - second[1]
    if len(first) == 3 and grown == [1] and prefix_tokens >= 0:
        return TapLayout("NLC", prefix_tokens)
    remedy = "layout='NCHW' or 'NHWC'" if len(first) == 4 else "layout='NLC', prefix_tokens=..."
    raise UsageError(
        f"the output of {path} has shape {first}, whose layout is ambiguous: state it, "
        f"wrap_model(model, {remedy})"
    )
