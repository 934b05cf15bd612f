"""Look inside a network that the user already has, without changing it.

`wrap_model` gives any `nn.Module` the interface of `Classifier`: named heads, the pooled feature
and feature maps of stages. It reads them with forward hooks, so that the network runs exactly as
its owner calls it, also inside `DistributedDataParallel`.
"""

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from adautomix.errors import UsageError, one_line
from adautomix.models.classifier import Classifier, Features
from adautomix.models.heads import apply_head, head_sizes, new_head, own_head
from adautomix.models.known import (
    find_head,
    known_image_size,
    known_stages,
    require_module,
    suited_tap,
)
from adautomix.models.layout import Layout, Size, TapLayout, find_layout
from adautomix.models.modes import evaluating
from adautomix.models.parallel import SHARDED, find_ddp, is_compiled, is_sharded, unwrap
from adautomix.models.spec import ModelSpec
from adautomix.models.transformer import ViTBlocks, is_plain_vit

CLEAN = "clean"


class WrappedClassifier(nn.Module):
    """A user's network with the interface of `Classifier`; made by `wrap_model`.

    The user's own classification layer is the head "clean". Further heads are new linear layers on
    the same pooled feature; they are in `extra_heads`.

    Attributes:
        model: the user's network, the same object; not its DDP or compiled wrapper.
        spec: name, number of classes and image size, for messages and shapes.
        stages: paths of the modules whose outputs are the feature maps, first stage first.
        extra_heads: heads besides "clean".
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        head: str,
        stages: Sequence[str],
        default_tap: int,
        heads: Sequence[str],
        image_size: int,
        caller: nn.Module,
        layout: Layout | None = None,
        prefix_tokens: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.stages = [f"model.{path}" for path in stages]
        self._head, self._default_tap = head, default_tap
        linear = own_head(model, head)
        _, self.num_classes = head_sizes(linear)
        self.spec = ModelSpec(
            type(model).__name__, self.num_classes, image_size=image_size, heads=tuple(heads)
        )
        self.extra_heads = nn.ModuleDict(
            {name: new_head(linear) for name in heads if name != CLEAN}
        )
        self._caller = [caller]  # in a list: its own registration must not be repeated
        self._has_broadcast = False
        self._warned = False
        self._stated = (layout, prefix_tokens)
        self._layouts: dict[str, TapLayout] = {}

    @property
    def caller(self) -> nn.Module:
        """The module that its owner calls: the network, or the DDP or compiled module around it."""
        return self._caller[0]

    @property
    def heads(self) -> dict[str, nn.Module]:
        """All heads by name, the user's own among them."""
        return {CLEAN: own_head(self.model, self._head), **dict(self.extra_heads.items())}

    def forward(self, images: Tensor, head: str = CLEAN) -> Tensor:
        """Logits `[B, K]` of one head for normalized images `[B, 3, H, W]`."""
        if head == CLEAN:
            return cast(Tensor, self._call(images))
        return self.logits(self.features(images).pooled, head)

    def logits(self, pooled: Tensor, head: str = CLEAN) -> Tensor:
        """Logits `[B, K]` of one head for pooled features `[B, D]`."""
        if head not in self.heads:
            raise UsageError(f"head {head!r}: the network has {', '.join(self.heads)}")
        return apply_head(self.heads[head], pooled)

    def features(self, images: Tensor, tap: int | None = None) -> Features:
        """Pooled features and, if asked, the feature map of one stage, from one forward pass.

        Args:
            images: normalized, `[B, 3, H, W]`.
            tap: number of the stage, from 1.

        Raises:
            UsageError: the network has no such stage, or never calls its head.
        """
        layout = None if tap is None else self._layout(tap)
        with self._reading(tap), self._eagerly():
            _, seen = self._call(images)
        if "pooled" not in seen:
            raise UsageError(
                f"{self.spec.name} does not call its head {self._head!r} as a module: name the "
                "layer whose input is the pooled feature, wrap_model(model, head=...)"
            )
        if layout is None:
            return Features(seen["pooled"], None)
        return Features(seen["pooled"], layout.to_feature_map(seen["tap"], size_of(images)))

    def feature_map(self, images: Tensor, tap: int) -> Tensor:
        """The feature map of one stage, `[B, C, h, w]`; nothing behind it is computed.

        Raises:
            UsageError: the network has no such stage.
        """
        layout = self._layout(tap)
        with self._eagerly():
            output = self._output_of(self._stage(tap), images)
        return layout.to_feature_map(output, size_of(images))

    def blocks(self) -> ViTBlocks:
        """The network taken apart at its transformer blocks.

        Raises:
            UsageError: it is not one of timm's plain vision transformers.
        """
        if not self.is_plain_vit:
            raise UsageError(
                f"{self.spec.name} has no attention between all patches: use a plain vision "
                "transformer of timm (ViT or DeiT), for example deit_small_patch16_224"
            )
        return ViTBlocks(self.model)

    @property
    def is_plain_vit(self) -> bool:
        """Whether `blocks` can take the network apart."""
        return is_plain_vit(self.model)

    def default_tap(self) -> int:
        """Number of the stage that feeds a generator unless another is asked for."""
        self._stage(self._default_tap)
        return self._default_tap

    def tap_shape(self, tap: int) -> tuple[int, int, int]:
        """Channels, height and width of a feature map for images of `spec.image_size`."""
        size = self.spec.image_size
        with evaluating(self.model):
            feature_map = self.feature_map(self._test_image((size, size)), tap)
        _, channels, height, width = feature_map.shape
        return channels, height, width

    def check(self) -> None:
        """Run the network once and check that its head computes its output.

        Raises:
            UsageError: it does not, or the forward pass fails.
        """
        size = self.spec.image_size
        images = self._test_image((size, size))
        with evaluating(self.model), one_line_forward(self.spec.name, images):
            output = self.model(images)
            pooled = self.features(images).pooled
        if not computes(self.heads[CLEAN], pooled, output):
            raise UsageError(
                f"{self.spec.name} does not return the output of its head {self._head!r} as it is: "
                "name the layer that computes the logits, wrap_model(model, head=...), and let the "
                "network return them"
            )

    def begin_step(self) -> None:
        """Allow DDP to broadcast batch-norm buffers once more, in the next forward pass."""
        self._has_broadcast = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "WrappedClassifier":
        """Copy the network itself, without the DDP or compiled module around it."""
        model = copy.deepcopy(self.model, memo)
        layout, prefix_tokens = self._stated
        twin = WrappedClassifier(
            model,
            head=self._head,
            stages=[path.removeprefix("model.") for path in self.stages],
            default_tap=self._default_tap,
            heads=self.spec.heads,
            image_size=self.spec.image_size,
            caller=model,
            layout=layout,
            prefix_tokens=prefix_tokens,
        )
        twin.extra_heads = copy.deepcopy(self.extra_heads, memo)
        twin._layouts = dict(self._layouts)
        return twin

    def _call(self, images: Tensor) -> Any:
        """Run the network as its owner does: compiled, and through DDP to average gradients."""
        ddp = find_ddp(self.caller)
        if ddp is None:
            return self.caller(images)
        if not torch.is_grad_enabled():
            return self.model(images)
        # A second broadcast of the buffers would overwrite what the first pass's backward needs.
        broadcast = ddp.broadcast_buffers
        ddp.broadcast_buffers = broadcast and not self._has_broadcast
        try:
            return self.caller(images)
        finally:
            ddp.broadcast_buffers, self._has_broadcast = broadcast, True

    @contextmanager
    def _reading(self, tap: int | None) -> Iterator[None]:
        """Let the network also return its pooled feature and the output of a stage.

        DDP and FSDP prepare the backward pass from what the network returns, so that whatever a
        loss depends on must be among it.
        """
        seen: dict[str, Any] = {}

        def read_pooled(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen["pooled"] = inputs[0].flatten(1)

        def read_stage(module: nn.Module, inputs: Any, output: Any) -> None:
            seen["tap"] = output

        def return_seen(module: nn.Module, inputs: Any, output: Any) -> tuple[Any, dict[str, Any]]:
            return output, dict(seen)

        handles = [
            self.heads[CLEAN].register_forward_pre_hook(read_pooled),
            self.model.register_forward_hook(return_seen, prepend=True),
        ]
        if tap is not None:
            stage = self.get_submodule(self._stage(tap))
            handles.append(stage.register_forward_hook(read_stage))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextmanager
    def _eagerly(self) -> Iterator[None]:
        """Switch `torch.compile` off within it, because compiled code may ignore forward hooks."""
        if torch.compiler.is_compiling() or not is_compiled(self.caller):
            yield
            return
        if not self._warned and torch.is_grad_enabled():
            self._warned = True
            warnings.warn(
                f"the method looks inside {self.spec.name}, so these forward passes run without "
                "torch.compile",
                stacklevel=4,
            )
        with torch.compiler.set_stance("force_eager"):
            yield

    def _output_of(self, path: str, images: Tensor) -> Any:
        """The output of the module of that path; nothing behind it is computed.

        A network sharded by FSDP runs to its end, where it frees the gathered parameters.

        Raises:
            UsageError: the forward pass does not call the module.
        """
        outputs: list[Any] = []
        stops_early = not is_sharded(self.model)

        def stop(module: nn.Module, inputs: Any, output: Any) -> None:
            outputs.append(output)
            if stops_early:
                raise _StageReachedError

        handle = self.get_submodule(path).register_forward_hook(stop)
        try:
            self.model(images)
        except _StageReachedError:
            pass
        finally:
            handle.remove()
        if outputs:
            return outputs[0]
        raise UsageError(
            f"{self.spec.name} does not call {path} as a module: name another one whose output is "
            "a feature map, wrap_model(model, tap=...)"
        )

    def _layout(self, tap: int) -> TapLayout:
        """How the output of a stage is laid out; found out once."""
        path = self._stage(tap)
        if path not in self._layouts:

            def run(size: Size) -> Any:
                with evaluating(self.model), self._eagerly():
                    return self._output_of(path, self._test_image(size))

            layout, prefix_tokens = self._stated
            self._layouts[path] = find_layout(
                self.model,
                path.removeprefix("model."),
                run,
                self.spec.image_size,
                layout=layout,
                prefix_tokens=prefix_tokens,
            )
        return self._layouts[path]

    def _test_image(self, size: Size) -> Tensor:
        """One image with values from -1 to 1, on the device and of the dtype of the network."""
        like = next(self.model.parameters())
        values = torch.linspace(-1, 1, 3 * size[0] * size[1], device=like.device)
        return values.to(like.dtype).view(1, 3, *size)

    def _stage(self, tap: int) -> str:
        if not self.stages:
            raise UsageError(
                f"{self.spec.name}: name the module whose output feeds the generator, for example "
                "wrap_model(model, tap='layer3')"
            )
        if not 1 <= tap <= len(self.stages):
            raise UsageError(f"tap {tap}: {self.spec.name} has stages 1 to {len(self.stages)}")
        return self.stages[tap - 1]


class _StageReachedError(Exception):
    """Ends a forward pass whose remaining layers are not needed."""


def size_of(images: Tensor) -> Size:
    """Height and width of a batch of images."""
    return images.shape[-2], images.shape[-1]


def computes(head: nn.Module, pooled: Tensor, output: Any) -> bool:
    """Whether the output of a network is that of its head, up to rounding."""
    if not isinstance(output, Tensor) or pooled.shape[1] != head_sizes(cast(nn.Linear, head))[0]:
        return False
    with torch.no_grad():
        expected = apply_head(head, pooled)
    if output.shape != expected.shape or output.is_meta:
        return output.shape == expected.shape
    return torch.allclose(output.float(), expected.float(), rtol=1e-2, atol=1e-3, equal_nan=True)


@contextmanager
def one_line_forward(name: str, images: Tensor) -> Iterator[None]:
    """Turn whatever a first forward pass raises into one line.

    Raises:
        UsageError: the forward pass failed.
    """
    try:
        yield
    except UsageError:
        raise
    except Exception as error:  # networks, timm and PyTorch raise many types
        reason = one_line(error)
        raise UsageError(
            f"{name} fails on one image of shape {list(images.shape)} ({type(error).__name__}: "
            f"{reason}): state the size of the training images, wrap_model(model, image_size=...)"
        ) from error


def wrap_model(
    model: nn.Module,
    *,
    tap: str | None = None,
    head: str | None = None,
    heads: Sequence[str] = (CLEAN, "mixed"),
    image_size: int | None = None,
    layout: Layout | None = None,
    prefix_tokens: int | None = None,
) -> WrappedClassifier:
    """Let mixing methods look inside a network that you already have.

    Known are timm's networks and torchvision's ResNet, ConvNeXt, Swin and ViT families; for any
    other `nn.Module` name the two modules. The network itself is not changed. Its classification
    layer stays the head "clean"; a second head, "mixed", is a new linear layer in `extra_heads`,
    which `wrapped.parameters()` includes.

    A forward pass in evaluation mode checks that the network works as described. The layout of
    the feature map follows from the family of the network, or from the outputs for two image
    sizes.

    Args:
        model: the network, also inside DDP or `torch.compile`. Forward passes that read features
            run without `torch.compile`, with a warning.
        tap: name of the module whose output `[B, C, h, w]` (or `[B, h, w, C]`, or tokens
            `[B, T, C]`) feeds a mask generator, for example "layer3". Default: the last stage but
            one of a known family, the middle block of a plain vision transformer.
        head: name of the layer that computes the logits, for example "fc": an `nn.Linear` or a
            1×1 `nn.Conv2d`.
        heads: names of the heads that the method needs.
        image_size: height and width of the training images in pixels; default: the size that the
            network was built for or pretrained with, if timm or torchvision knows it, else 224.
        layout: "NCHW", "NHWC" or, for tokens in row order, "NLC"; only needed if it is ambiguous.
        prefix_tokens: number of tokens before the patches, such as a class token, for "NLC".

    Returns:
        A module with the interface that `create_method` expects.

    Raises:
        UsageError: a module of that name does not exist, the names cannot be guessed, or the
            network fails on images of this size.

    Example:
        >>> import torchvision
        >>> wrapped = wrap_model(torchvision.models.resnet18(num_classes=10), image_size=32)
        >>> wrapped.default_tap(), wrapped.stages[2]
        (3, 'model.layer3')
    """
    network = unwrap(model)
    if isinstance(network, WrappedClassifier | Classifier):
        raise UsageError("wrap_model: this network has the interface already; pass it as it is")
    if is_sharded(model):
        raise UsageError(SHARDED)
    stages = [tap] if tap else known_stages(network)
    for path in [*stages, *([head] if head else [])]:
        require_module(network, path)
    wrapped = WrappedClassifier(
        network,
        head=head or find_head(network),
        stages=stages,
        default_tap=1 if tap else suited_tap(network, stages),
        heads=heads,
        image_size=image_size or known_image_size(network),
        caller=model if find_ddp(model) or is_compiled(model) else network,
        layout=layout,
        prefix_tokens=prefix_tokens,
    )
    wrapped.check()
    return wrapped
