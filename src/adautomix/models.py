"""Any timm backbone behind one small wrapper: named heads, pooled features, feature-map taps.

A `Classifier` is a timm network without its own classifier, plus one linear head a name: "clean"
learns from clean images, "mixed" from mixed ones. `build_model` makes one, with a stem for small
images and a width factor where the family has them. Initial weights of the backbone are timm's
(ResNet: the last batch norm of every block starts at zero; `options={"zero_init_last": False}`
turns that off). The heads start as N(0, 0.01) with zero bias on every backbone, as the authors'
do: timm's own rule differs from family to family, and a run should not depend on that.
"""

import difflib
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adautomix.errors import RunError, UsageError

Stem = Literal["standard", "cifar"]
Queries = Literal["class", "patches"]
HEADS = ("clean", "mixed")


@dataclass(frozen=True)
class Features:
    """What one forward of the backbone gives.

    Attributes:
        pooled: `[B, D]`, the pooled last feature, which the linear heads see.
        tap: `[B, C, h, w]`, the feature map of the stage asked for (None if none was).
    """

    pooled: Tensor
    tap: Tensor | None


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build a network again: `build_model(**dataclasses.asdict(spec))`.

    The fields are the arguments of `build_model`; all are plain values that JSON can hold.
    """

    name: str
    num_classes: int
    stem: Stem = "standard"
    width: float = 1.0
    image_size: int = 224
    drop_path: float = 0.0
    heads: tuple[str, ...] = HEADS
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TimmPlan:
    """A spec in timm's terms: what to create, and which of its modules to replace afterwards.

    Attributes:
        arguments: keyword arguments of `timm.create_model`, without the number of classes.
        replaced: for the path of each module to replace, the keyword arguments of the
            `nn.Conv2d` that takes its place; None for `nn.Identity`.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    replaced: dict[str, dict[str, Any] | None] = field(default_factory=dict)


class Classifier(nn.Module):
    """A timm backbone with one linear head a name; made by `build_model`."""

    backbone: Any  # a timm network: an nn.Module with forward_features, forward_head, …

    def __init__(self, backbone: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.spec = spec
        self.num_classes = spec.num_classes
        self.heads = nn.ModuleDict({name: self._new_head() for name in spec.heads})
        # Some families list their stem as feature 0; taps count stages from 1 either way.
        stages = getattr(backbone, "feature_info", [])
        has_stem = bool(stages) and stages[0]["module"] in ("act1", "stem")
        self._reductions = [stage["reduction"] for stage in stages[has_stem:]]
        # Paths of the modules that put out the taps, tap 1 first.
        self.stages = [f"backbone.{stage['module']}" for stage in stages[has_stem:]]
        self._tap_to_index = 0 if has_stem else -1

    def _new_head(self) -> nn.Linear:
        head = nn.Linear(self.backbone.head_hidden_size, self.num_classes)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
        return head

    def features(self, images: Tensor, tap: int | None = None) -> Features:
        """Pooled features and, if asked, one stage's feature map, from one forward.

        Args:
            images: `[B, 3, H, W]`, normalised.
            tap: a stage of a staged network or a block of a plain transformer, from 1.

        Raises:
            UsageError: the network has no such stage.
        """
        if tap is None:
            last, feature_map = self.backbone.forward_features(images), None
        else:
            self._check_tap(tap)
            last, (feature_map,) = self.backbone.forward_intermediates(
                images, indices=[tap + self._tap_to_index]
            )
        return Features(self.backbone.forward_head(last, pre_logits=True), feature_map)

    def feature_map(self, images: Tensor, tap: int) -> Tensor:
        """The tap of `features` alone, `[B, C, h, w]`; nothing behind it is computed.

        Raises:
            UsageError: the network has no such stage.
        """
        self._check_tap(tap)
        (feature_map,) = self.backbone.forward_intermediates(
            images, indices=[tap + self._tap_to_index], stop_early=True, intermediates_only=True
        )
        return cast(Tensor, feature_map)

    def logits(self, pooled: Tensor, head: str = "clean") -> Tensor:
        """Logits `[B, K]` of one head for pooled features `[B, D]`."""
        if head not in self.heads:
            raise UsageError(f"head {head!r}: the network has {', '.join(self.heads)}")
        logits: Tensor = self.heads[head](pooled)
        return logits

    def forward(self, images: Tensor, head: str = "clean") -> Tensor:
        """Logits `[B, K]` of one head for normalised images `[B, 3, H, W]`."""
        return self.logits(self.features(images).pooled, head)

    def blocks(self) -> "Blocks":
        """The network taken apart at its blocks, to read its attention or to change its tokens.

        Raises:
            UsageError: it is no plain vision transformer.
        """
        if not self.plain_transformer:
            raise UsageError(
                f"model {self.spec.name} has no attention of all patches to all: use a plain vision"
                " transformer (ViT or DeiT families), say deit_small_patch16_224"
            )
        return Blocks(self.backbone)

    @property
    def plain_transformer(self) -> bool:
        """Whether it can be taken apart at its blocks."""
        return _is_plain_transformer(self.backbone)

    def default_tap(self) -> int:
        """The last stage but one (third of four); for a plain transformer the middle block."""
        self._check_tap(1)
        depth = len(self._reductions)
        plain = len(set(self._reductions)) == 1
        return max(1, depth // 2 if plain else depth - 1)

    def tap_shape(self, tap: int) -> tuple[int, int, int]:
        """(C, h, w) of a tap for images of `spec.image_size`; leaves no trace in the network."""
        parameter = next(self.parameters())
        images = parameter.new_zeros(1, 3, self.spec.image_size, self.spec.image_size)
        with evaluating(self):
            feature_map = self.feature_map(images, tap)
        _, channels, height, width = feature_map.shape
        return channels, height, width

    def _check_tap(self, tap: int) -> None:
        depth = len(self._reductions)
        if not (depth and hasattr(self.backbone, "forward_intermediates")):
            raise UsageError(f"model {self.spec.name}: timm gives no feature maps of its stages")
        if not 1 <= tap <= depth:
            raise UsageError(f"tap {tap}: {self.spec.name} has stages 1 to {depth}")


class Blocks:
    """A plain vision transformer, entered and left at the input of any of its blocks.

    `leave(enter(images, b), b)` is one forward, whatever the block b, counted from 1; what lies
    between is the caller's to read or to change.

    Attributes:
        depth: how many blocks there are.
        patch: height and width of a patch in pixels.
        prefix: tokens ahead of the patches: class, distillation, registers.
        width: D, channels of a token.
        by_class: whether the network is pooled by its class token, which is token 0.
    """

    def __init__(self, backbone: Any) -> None:
        self._backbone = backbone
        self.depth: int = len(backbone.blocks)
        self.patch: tuple[int, int] = backbone.patch_embed.patch_size
        self.prefix: int = backbone.num_prefix_tokens
        self.width: int = backbone.embed_dim
        self.by_class: bool = backbone.global_pool == "token"

    def enter(self, images: Tensor, block: int) -> Tensor:
        """What goes into a block: tokens `[B, prefix + P, D]`, the patches row by row."""
        net = self._backbone
        tokens = net.norm_pre(net.patch_drop(net._pos_embed(net.patch_embed(images))))
        for layer in net.blocks[: block - 1]:
            tokens = layer(tokens)
        return cast(Tensor, tokens)

    def leave(self, tokens: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """The rest of the forward: pooled features `[B, D]`, normalised patches `[B, P, D]`."""
        net = self._backbone
        for layer in net.blocks[block - 1 :]:
            tokens = layer(tokens)
        last = net.norm(tokens)
        return net.forward_head(last, pre_logits=True), net.fc_norm(last[:, self.prefix :])

    def attention(self, tokens: Tensor, block: int, queries: Queries = "class") -> Tensor:
        """How much each patch is attended to in a block that these tokens go into.

        A row of softmax weights, of which those of the patches are given; they sum to 1 less what
        the tokens ahead of them take. It is the row of the class token or, where the network is
        not pooled by one, as for `queries="patches"`, the mean over the rows of all patches.

        timm's fused kernel keeps no weights. Queries and keys are therefore projected again from
        the block's own input, which is exact, costs one key projection (a twelfth of a block),
        and unlike a hook changes no module, so that it can be compiled and captured.

        Returns:
            Float32 `[B, heads, P]`, without gradient.
        """
        layer = self._backbone.blocks[block - 1]
        with torch.no_grad():
            normed = layer.norm1(tokens)
            by_class = queries == "class" and self.by_class
            asking = normed[:, :1] if by_class else normed[:, self.prefix :]
            query = layer.attn.q_norm(_project(layer.attn, asking, 0))
            key = layer.attn.k_norm(_project(layer.attn, normed, 1))
            with torch.autocast(tokens.device.type, enabled=False):
                scores = (query.float() * layer.attn.scale) @ key.float().transpose(2, 3)
                weights: Tensor = scores.softmax(dim=-1).mean(dim=2)
            return weights[:, :, self.prefix :]


def _project(attention: Any, tokens: Tensor, part: int) -> Tensor:
    """Queries (part 0) or keys (part 1) of all heads, `[B, heads, T, D / heads]`."""
    size = attention.num_heads * attention.head_dim
    rows = slice(part * size, (part + 1) * size)
    bias = None if attention.qkv.bias is None else attention.qkv.bias[rows]
    projected: Tensor = nn.functional.linear(tokens, attention.qkv.weight[rows], bias)
    heads: Tensor = projected.unflatten(2, (attention.num_heads, -1))
    return heads.transpose(1, 2)


def _is_plain_transformer(backbone: nn.Module) -> bool:
    """Whether the tokens are all patches of the image, in order, and all attend to all."""
    from timm.layers.attention import Attention
    from timm.layers.patch_embed import PatchEmbed
    from timm.models.vision_transformer import Block, VisionTransformer

    return (
        isinstance(backbone, VisionTransformer)
        and type(backbone.patch_embed) is PatchEmbed
        and isinstance(backbone.patch_drop, nn.Identity)
        and all(type(block) is Block and type(block.attn) is Attention for block in backbone.blocks)
    )


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients; every module gets its own mode back afterwards."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def has_batch_norm(model: nn.Module) -> bool:
    """Whether images of one batch see each other in this network."""
    return any(isinstance(module, _BatchNorm) for module in model.modules())


def keeps_statistics(model: nn.Module) -> bool:
    """Whether a forward in the present mode moves batch-norm statistics."""
    return any(
        isinstance(module, _BatchNorm) and module.training and module.track_running_stats
        for module in model.modules()
    )


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Within it a train-mode forward uses batch statistics but moves no batch-norm buffer."""
    tracking = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    try:
        for module in tracking:
            module.track_running_stats = False
        yield
    finally:
        for module in tracking:
            module.track_running_stats = True


def build_model(
    name: str,
    num_classes: int,
    *,
    stem: Stem = "standard",
    width: float = 1.0,
    pretrained: bool = False,
    image_size: int = 224,
    drop_path: float = 0.0,
    heads: Sequence[str] = HEADS,
    options: Mapping[str, Any] | None = None,
    generator_seed: int | None = None,
) -> Classifier:
    """A timm network with linear heads, on the CPU, in train mode.

    Args:
        name: a timm architecture, with or without a weights tag ("resnet18.a1_in1k").
        num_classes: K, outputs of every head.
        stem: "cifar" puts one 3×3 stride-1 convolution in the place of the stem and its
            max-pool, for images of 32 to 64 pixels (ResNet and ConvNeXt families).
        width: factor on every channel count, rounded to multiples of 8 (and of what the
            attention heads need); ResNet, ConvNeXt, Swin and ViT families.
        pretrained: start from timm's published weights; needs them cached or a network.
        image_size: pixels a side; networks of a fixed input size are built for it.
        drop_path: rate of stochastic depth, 0 to 1.
        heads: names of the linear heads.
        options: further arguments of `timm.create_model`.
        generator_seed: draw the weights from this seed and leave torch's own random state
            alone; None draws from torch's.

    Raises:
        UsageError: unknown name, or arguments the network cannot take.
        RunError: the pretrained weights could not be had.
    """
    spec = ModelSpec(
        name, num_classes, stem, width, image_size, drop_path, tuple(heads), dict(options or {})
    )
    _check(spec, pretrained)
    plan = timm_plan(spec)
    with nullcontext() if generator_seed is None else _seeded(generator_seed):
        backbone = _create(spec, plan.arguments, pretrained)
        _replace(backbone, plan.replaced)
        spare_narrow_shortcuts(backbone)
        return Classifier(backbone, spec)


class SkippingConv2d(nn.Conv2d):
    """A 1×1 convolution with a stride, which leaves out pixels first: the same numbers.

    On CPUs with AVX-512 the backward of such a convolution with fewer than 16 input channels writes
    beyond its memory when the batch is odd (oneDNN as of PyTorch 2.14): the process crashes.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[B, C, H, W]` to `[B, C', H / stride, W / stride]`."""
        down, across = self.stride
        return F.conv2d(input[:, :, ::down, ::across], self.weight, self.bias)


def spare_narrow_shortcuts(backbone: nn.Module) -> None:
    """Make the strided 1×1 convolutions of few channels safe on the CPU; see `SkippingConv2d`."""
    for module in backbone.modules():
        if type(module) is nn.Conv2d and module.in_channels < 16 and module.groups == 1:
            plain = module.kernel_size == (1, 1) and module.padding == (0, 0)
            if plain and module.stride != (1, 1):
                module.__class__ = SkippingConv2d


def suited_stem(name: str, image_size: int) -> Stem:
    """The stem for images of this size: "cifar" up to 64 pixels a side, where the family has it."""
    if image_size > 64:
        return "standard"
    try:
        timm_plan(ModelSpec(name, num_classes=1, stem="cifar", image_size=image_size))
    except UsageError:
        return "standard"
    return "cifar"


def timm_plan(spec: ModelSpec) -> TimmPlan:
    """What makes the spec's backbone with timm alone.

    Raises:
        UsageError: the family has no such stem or width.
    """
    import timm

    arguments = dict(spec.options)
    if spec.drop_path:
        arguments["drop_path_rate"] = spec.drop_path
    card = timm.get_pretrained_cfg(spec.name)
    if card is not None and card.fixed_input_size:
        arguments["img_size"] = spec.image_size
    if spec.stem == "standard" and spec.width == 1:
        return TimmPlan(arguments)
    with torch.device("meta"):
        original = _create(spec, arguments)
    changes = _family_plan(spec.name, original)(original, spec)
    return TimmPlan(arguments | changes.arguments, changes.replaced)


def _check(spec: ModelSpec, pretrained: bool) -> None:
    import timm

    if not timm.is_model(spec.name):
        near = difflib.get_close_matches(spec.name, timm.list_models(), n=3, cutoff=0.4)
        hint = f"nearest: {', '.join(near)}" if near else "timm.list_models() names them all"
        raise UsageError(f"model {spec.name!r} is not in timm; {hint}")
    _, _, tag = spec.name.partition(".")
    if tag and not timm.models.is_model_pretrained(spec.name):
        raise UsageError(f"model {spec.name!r}: timm has no weights tagged {tag!r}")
    if spec.stem not in get_args(Stem):
        raise UsageError(f"stem {spec.stem!r}: use one of {', '.join(get_args(Stem))}")
    if spec.width <= 0 or spec.num_classes < 1 or not spec.heads:
        raise UsageError(
            f"model {spec.name}: width must be above 0, and classes and heads at least one"
        )
    if pretrained and (spec.stem != "standard" or spec.width != 1):
        raise UsageError("pretrained weights fit only stem: standard and width: 1")


def _create(spec: ModelSpec, arguments: dict[str, Any], pretrained: bool = False) -> Any:
    """The timm network without its classifier; timm's many errors become one line."""
    import timm

    try:
        return timm.create_model(spec.name, pretrained=pretrained, num_classes=0, **arguments)
    except Exception as error:  # timm, torch, the hub and its cache raise all kinds
        reason = textwrap.shorten(str(error) or type(error).__name__, 200)
        if pretrained and not isinstance(error, TypeError):
            raise RunError(
                f"no pretrained weights for {spec.name} ({reason}): go online once to cache them,"
                " or train from scratch with pretrained: false"
            ) from error
        raise UsageError(f"model {spec.name} with {arguments}: {reason}") from error


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """The CPU's random numbers from a seed, and its former state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _replace(backbone: nn.Module, replaced: dict[str, dict[str, Any] | None]) -> None:
    """Put the plan's modules into the backbone, initialised by the family's own rule."""
    for path, arguments in replaced.items():
        backbone.set_submodule(path, nn.Conv2d(**arguments) if arguments else nn.Identity())
        if arguments:
            _initialise_stem(backbone.get_submodule(path))


def _initialise_stem(conv: Any) -> None:
    """Timm's rules: ResNet's convolutions, which have no bias, by fan-out; ConvNeXt's by 0.02."""
    if conv.bias is None:
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    else:
        nn.init.trunc_normal_(conv.weight, std=0.02)
        nn.init.zeros_(conv.bias)


# What a stem or width means in each family. A plan reads the channel counts of the original
# network (built without storage), so that it holds for every variant that timm has.

_FamilyPlan = Callable[[Any, ModelSpec], TimmPlan]


def _family_plan(name: str, original: nn.Module) -> _FamilyPlan:
    from timm.models.convnext import ConvNeXt
    from timm.models.resnet import ResNet
    from timm.models.swin_transformer import SwinTransformer
    from timm.models.swin_transformer_v2 import SwinTransformerV2
    from timm.models.vision_transformer import VisionTransformer

    families: dict[type, _FamilyPlan] = {
        ResNet: _resnet_plan,
        ConvNeXt: _convnext_plan,
        SwinTransformer: _swin_plan,
        SwinTransformerV2: _swin_plan,
        VisionTransformer: _vit_plan,
    }
    for family, plan in families.items():
        if isinstance(original, family):
            return plan
    raise UsageError(
        f"model {name}: a width factor is for the ResNet, ConvNeXt, Swin and ViT families,"
        " stem: cifar for ResNet and ConvNeXt"
    )


def _resnet_plan(original: Any, spec: ModelSpec) -> TimmPlan:
    arguments: dict[str, Any] = {}
    replaced: dict[str, dict[str, Any] | None] = {}
    inplanes = original.bn1.num_features
    if spec.width != 1:
        inplanes = _scaled(inplanes, spec.width)
        arguments = {"channels": _resnet_channels(original, spec), "stem_width": inplanes // 2}
        if isinstance(original.conv1, nn.Conv2d):
            # timm scales only its deep stems (to twice stem_width): ask for one, for the sake
            # of what follows it, and put the single convolution back.
            arguments["stem_type"] = "deep"
            replaced["conv1"] = _conv(inplanes, kernel_size=7, stride=2, bias=False)
    if spec.stem == "cifar":
        replaced |= {"conv1": _conv(inplanes, bias=False), "maxpool": None}
    return TimmPlan(arguments, replaced)


def _resnet_channels(original: Any, spec: ModelSpec) -> tuple[int, ...]:
    """Scaled planes of the stages (their outputs before a bottleneck's expansion)."""
    blocks = [getattr(original, stage["module"])[0] for stage in original.feature_info[1:]]
    outputs = [stage["num_chs"] for stage in original.feature_info[1:]]
    planes = [count // block.expansion for count, block in zip(outputs, blocks, strict=True)]
    channels = tuple(_scaled(count, spec.width) for count in planes)
    # timm rounds the channels of a ResNeXt group down: they must not come to none.
    conv = blocks[0].conv2
    groups = getattr(conv, "groups", 1)
    if groups > 1 and conv.out_channels * channels[0] < groups * planes[0]:
        raise UsageError(f"width {spec.width}: too narrow for the {groups} groups of {spec.name}")
    return channels


def _convnext_plan(original: Any, spec: ModelSpec) -> TimmPlan:
    dims = tuple(_scaled(stage["num_chs"], spec.width) for stage in original.feature_info)
    arguments: dict[str, Any] = {"dims": dims}
    if spec.stem == "standard":
        return TimmPlan(arguments)
    stem = _conv(dims[0], bias=original.stem[0].bias is not None)
    return TimmPlan(arguments | {"stem_type": "patch", "patch_size": 1}, {"stem.0": stem})


def _swin_plan(original: Any, spec: ModelSpec) -> TimmPlan:
    heads = [stage.blocks[0].attn.num_heads for stage in original.layers]
    # Stage s has embed_dim·2^s channels, which its heads must divide.
    needed = [count // math.gcd(count, 2**stage) for stage, count in enumerate(heads)]
    return _transformer_plan(original, spec, math.lcm(*needed))


def _vit_plan(original: Any, spec: ModelSpec) -> TimmPlan:
    return _transformer_plan(original, spec, original.blocks[0].attn.num_heads)


def _transformer_plan(original: Any, spec: ModelSpec, heads: int) -> TimmPlan:
    if spec.stem == "cifar":
        raise UsageError(
            f"model {spec.name} has patches, not a stem: stem: cifar is for the ResNet and"
            " ConvNeXt families; for small images set options: {patch_size: 4} or the like"
        )
    return TimmPlan({"embed_dim": _scaled(original.embed_dim, spec.width, math.lcm(8, heads))})


def _scaled(channels: int, width: float, multiple: int = 8) -> int:
    """The nearest multiple to channels × width, at least one multiple."""
    return max(1, round(channels * width / multiple)) * multiple


def _conv(
    channels: int, kernel_size: int = 3, stride: int = 1, bias: bool = True
) -> dict[str, Any]:
    """A first convolution: arguments of `nn.Conv2d`, padded to keep size / stride."""
    return {
        "in_channels": 3,
        "out_channels": channels,
        "kernel_size": kernel_size,
        "stride": stride,
        "padding": kernel_size // 2,
        "bias": bias,
    }
