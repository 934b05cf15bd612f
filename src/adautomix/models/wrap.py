"""Look inside a network that the user already has, without changing it.

`wrap_model` gives any `nn.Module` the interface of `Classifier`: named heads, the pooled feature
and feature maps of stages. It reads them with forward hooks, so that the network runs exactly as
its owner calls it, also inside `DistributedDataParallel`.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from adautomix.errors import UsageError
from adautomix.models.classifier import Classifier, Features
from adautomix.models.modes import evaluating
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
    ) -> None:
        super().__init__()
        self.model = model
        self.stages = [f"model.{path}" for path in stages]
        self._head, self._default_tap = head, default_tap
        linear = own_head(model, head)
        self.num_classes = linear.out_features
        self.spec = ModelSpec(
            type(model).__name__, self.num_classes, image_size=image_size, heads=tuple(heads)
        )
        self.extra_heads = nn.ModuleDict(
            {name: new_head(linear) for name in heads if name != CLEAN}
        )
        self._caller = [caller]  # in a list: DDP's own registration must not be repeated
        self._has_broadcast = False

    @property
    def caller(self) -> nn.Module:
        """The module that its owner calls: the network, or the DDP module around it."""
        return self._caller[0]

    @property
    def heads(self) -> dict[str, nn.Module]:
        """All heads by name, the user's own among them."""
        return {CLEAN: own_head(self.model, self._head), **dict(self.extra_heads.items())}

    def forward(self, images: Tensor, head: str = CLEAN) -> Tensor:
        """Logits `[B, K]` of one head for normalized images `[B, 3, H, W]`."""
        if head == CLEAN:
            return self._call(images)
        return self.logits(self.features(images).pooled, head)

    def logits(self, pooled: Tensor, head: str = CLEAN) -> Tensor:
        """Logits `[B, K]` of one head for pooled features `[B, D]`."""
        if head not in self.heads:
            raise UsageError(f"head {head!r}: the network has {', '.join(self.heads)}")
        return cast(Tensor, self.heads[head](pooled))

    def features(self, images: Tensor, tap: int | None = None) -> Features:
        """Pooled features and, if asked, the feature map of one stage, from one forward pass.

        Args:
            images: normalized, `[B, 3, H, W]`.
            tap: number of the stage, from 1.

        Raises:
            UsageError: the network has no such stage, or never calls its head.
        """
        seen: dict[str, Tensor] = {}
        with self._reading(seen, tap):
            self._call(images)
        if "pooled" not in seen:
            raise UsageError(
                f"{self.spec.name} does not call its head {self._head!r} as a module: name the "
                "layer whose input is the pooled feature, wrap_model(model, head=...)"
            )
        return Features(seen["pooled"], seen.get("tap"))

    def feature_map(self, images: Tensor, tap: int) -> Tensor:
        """The feature map of one stage, `[B, C, h, w]`; nothing behind it is computed.

        Raises:
            UsageError: the network has no such stage.
        """
        path = self._stage(tap)
        found: list[Tensor] = []

        def stop(module: nn.Module, inputs: Any, output: Tensor) -> None:
            found.append(to_feature_map(output, path))
            raise _StageReachedError

        handle = self.get_submodule(path).register_forward_hook(stop)
        try:
            self.model(images)
        except _StageReachedError:
            pass
        finally:
            handle.remove()
        return found[0]

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
        images = next(self.parameters()).new_zeros(1, 3, size, size)
        with evaluating(self.model):
            feature_map = self.feature_map(images, tap)
        return tuple(feature_map.shape[1:])  # type: ignore[return-value]

    def begin_step(self) -> None:
        """Allow DDP to broadcast batch-norm buffers once more, in the next forward pass."""
        self._has_broadcast = False

    def __deepcopy__(self, memo: dict[int, Any]) -> "WrappedClassifier":
        """Copy the network itself, without the DDP or compiled module around it."""
        model = copy.deepcopy(self.model, memo)
        twin = WrappedClassifier(
            model,
            head=self._head,
            stages=[path.removeprefix("model.") for path in self.stages],
            default_tap=self._default_tap,
            heads=self.spec.heads,
            image_size=self.spec.image_size,
            caller=model,
        )
        twin.extra_heads = copy.deepcopy(self.extra_heads, memo)
        return twin

    def _call(self, images: Tensor) -> Tensor:
        """Run the network as its owner does: through DDP, so that gradients are averaged."""
        caller = self._caller[0]
        if not isinstance(caller, DistributedDataParallel) or not torch.is_grad_enabled():
            return cast(Tensor, self.model(images))
        # A second broadcast of the buffers would overwrite what the first pass's backward needs.
        broadcast = caller.broadcast_buffers
        caller.broadcast_buffers = broadcast and not self._has_broadcast
        try:
            return cast(Tensor, caller(images))
        finally:
            caller.broadcast_buffers, self._has_broadcast = broadcast, True

    @contextmanager
    def _reading(self, seen: dict[str, Tensor], tap: int | None) -> Iterator[None]:
        """Within it a forward pass writes the pooled feature and a stage's output to `seen`."""

        def read_pooled(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen["pooled"] = inputs[0].flatten(1)

        handles = [self.heads[CLEAN].register_forward_pre_hook(read_pooled)]
        if tap is not None:
            path = self._stage(tap)

            def read_stage(module: nn.Module, inputs: Any, output: Tensor) -> None:
                seen["tap"] = to_feature_map(output, path)

            handles.append(self.get_submodule(path).register_forward_hook(read_stage))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

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


def wrap_model(
    model: nn.Module,
    *,
    tap: str | None = None,
    head: str | None = None,
    heads: Sequence[str] = (CLEAN, "mixed"),
    image_size: int | None = None,
) -> WrappedClassifier:
    """Let mixing methods look inside a network that you already have.

    Known are timm's networks and torchvision's ResNet, ConvNeXt and Swin families; for any other
    `nn.Module` name the two modules. The network itself is not changed. Its classification layer
    stays the head "clean"; a second head, "mixed", is a new linear layer in `extra_heads`, which
    `wrapped.parameters()` includes.

    Args:
        model: the network, also inside DDP, FSDP or `torch.compile`.
        tap: name of the module whose output `[B, C, h, w]` (or `[B, h, w, C]`, or tokens
            `[B, T, C]`) feeds a mask generator, for example "layer3". Default: the last stage but
            one of a known family, the middle block of a plain vision transformer.
        head: name of the `nn.Linear` that computes the logits, for example "fc".
        heads: names of the heads that the method needs.
        image_size: height and width of the training images in pixels; default: that of the
            network's pretrained weights where timm knows it, else 224.

    Returns:
        A module with the interface that `create_method` expects.

    Raises:
        UsageError: a module of that name does not exist, or the names cannot be guessed.

    Example:
        >>> import torchvision
        >>> wrapped = wrap_model(torchvision.models.resnet18(num_classes=10), image_size=32)
        >>> wrapped.default_tap(), wrapped.stages[2]
        (3, 'model.layer3')
    """
    network = unwrap(model)
    if isinstance(network, WrappedClassifier | Classifier):
        raise UsageError("wrap_model: this network has the interface already; pass it as it is")
    stages = [tap] if tap else known_stages(network)
    for path in [*stages, *([head] if head else [])]:
        require_module(network, path)
    return WrappedClassifier(
        network,
        head=head or find_head(network),
        stages=stages,
        default_tap=1 if tap else suited_tap(network, stages),
        heads=heads,
        image_size=image_size or known_image_size(network),
        caller=model if isinstance(model, DistributedDataParallel) else network,
    )


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside DDP, FSDP, DataParallel and `torch.compile` wrappers."""
    while True:
        if hasattr(model, "_orig_mod"):  # torch.compile
            model = cast(nn.Module, model._orig_mod)
        elif is_parallel(model):
            model = cast(nn.Module, model.module)
        else:
            return model


def is_parallel(model: nn.Module) -> bool:
    """Whether a module only distributes another one."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    return isinstance(model, DistributedDataParallel | nn.DataParallel | FullyShardedDataParallel)


def known_stages(model: nn.Module) -> list[str]:
    """Paths of the stages of a network whose family is known; empty for others."""
    info = getattr(model, "feature_info", None)  # timm
    if isinstance(info, list) and info:
        has_stem = info[0]["module"] in ("act1", "stem")
        return [str(stage["module"]) for stage in info[has_stem:]]
    if all(hasattr(model, f"layer{k}") for k in range(1, 5)):  # torchvision's ResNet
        return [f"layer{k}" for k in range(1, 5)]
    family = type(model).__name__
    if family in ("ConvNeXt", "SwinTransformer"):  # torchvision: stem, stage, downsampling, stage …
        return [f"features.{k}" for k in (1, 3, 5, 7)]
    return []


def suited_tap(model: nn.Module, stages: Sequence[str]) -> int:
    """The last stage but one (third of four); the middle block of a plain vision transformer."""
    info = getattr(model, "feature_info", None)
    is_plain = isinstance(info, list) and len({stage["reduction"] for stage in info}) == 1
    return max(1, len(stages) // 2 if is_plain else len(stages) - 1)


def find_head(model: nn.Module) -> str:
    """Path of the linear layer that computes the logits.

    Raises:
        UsageError: it cannot be found.
    """
    candidates = [
        str(name) for name, module in model.named_modules() if isinstance(module, nn.Linear)
    ]
    get_classifier = getattr(model, "get_classifier", None)  # timm
    classifier = get_classifier() if get_classifier is not None else None
    for name in candidates:
        if model.get_submodule(name) is classifier:
            return name
    for name in ("fc", "head", "classifier"):
        inside = [path for path in candidates if path == name or path.startswith(f"{name}.")]
        if inside:
            return inside[-1]
    raise UsageError(
        f"{type(model).__name__}: cannot tell which layer computes the logits; name it, "
        "wrap_model(model, head='fc')"
    )


def own_head(model: nn.Module, path: str) -> nn.Linear:
    """The linear layer of that path.

    Raises:
        UsageError: the module is not an `nn.Linear`.
    """
    module = model.get_submodule(path)
    if not isinstance(module, nn.Linear):
        raise UsageError(
            f"head {path!r} of {type(model).__name__} is {type(module).__name__}: name the "
            "nn.Linear that computes the logits"
        )
    return module


def new_head(like: nn.Linear) -> nn.Linear:
    """A linear head with the shape and place of another; weights N(0, 0.01), bias 0."""
    head = nn.Linear(like.in_features, like.out_features)
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)
    return head.to(like.weight.device, like.weight.dtype)


def require_module(model: nn.Module, path: str) -> None:
    """Check that a network has a module of that name.

    Raises:
        UsageError: it has none; names its top-level modules.
    """
    try:
        model.get_submodule(path)
    except AttributeError:
        names = ", ".join(name for name, _ in model.named_children())
        raise UsageError(
            f"{type(model).__name__} has no module {path!r}: it has {names}, and their submodules"
        ) from None


def known_image_size(model: nn.Module) -> int:
    """Image size of the network's pretrained weights where timm knows it, else 224."""
    cfg = getattr(model, "pretrained_cfg", None)
    size = cfg.get("input_size") if isinstance(cfg, dict) else None
    return int(size[-1]) if size else 224


def to_feature_map(output: Tensor, path: str) -> Tensor:
    """The output of a stage as `[B, C, h, w]`.

    Feature maps that keep channels last (Swin) are recognized by their smaller two middle sides
    being equal; tokens ahead of a square number of patches are left out.

    Args:
        output: `[B, C, h, w]`, `[B, h, w, C]` or tokens `[B, T, C]`.
        path: the name of the stage, for the message.

    Raises:
        UsageError: it has another shape.
    """
    if output.ndim == 4:
        _, first, second, third = output.shape
        is_last = first == second != third
        return output.permute(0, 3, 1, 2) if is_last else output
    if output.ndim == 3:
        side = int(output.shape[1] ** 0.5)
        patches: Tensor = output[:, output.shape[1] - side * side :]
        feature_map: Tensor = patches.transpose(1, 2).unflatten(2, (side, side))
        return feature_map
    raise UsageError(f"the output of {path} has shape {list(output.shape)}: it is no feature map")
