"""Any timm backbone behind one small wrapper: named heads, pooled features, feature-map taps.

A `Classifier` is a timm network without its own classifier, plus one linear head a name: "clean"
learns from clean images, "mixed" from mixed ones. `build_model` makes one, with a stem for small
images and a width factor where the family has them. Initial weights of the backbone are timm's
(ResNet: the last batch norm of every block starts at zero; `options={"zero_init_last": False}`
turns that off). The heads start as N(0, 0.01) with zero bias on every backbone, as the authors'
do: timm's own rule differs from family to family, and a run should not depend on that.
"""

from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.models.modes import evaluating
from adautomix.models.spec import ModelSpec
from adautomix.models.transformer import ViTBlocks, is_plain_vit


@dataclass(frozen=True)
class Features:
    """What one forward of the backbone gives.

    Attributes:
        pooled: `[B, D]`, the pooled last feature, which the linear heads see.
        tap: `[B, C, h, w]`, the feature map of the stage asked for (None if none was).
    """

    pooled: Tensor
    tap: Tensor | None


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
            images: `[B, 3, H, W]`, normalized.
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
        """Logits `[B, K]` of one head for normalized images `[B, 3, H, W]`."""
        return self.logits(self.features(images).pooled, head)

    def blocks(self) -> "ViTBlocks":
        """The network taken apart at its blocks, to read its attention or to change its tokens.

        Raises:
            UsageError: it is no plain vision transformer.
        """
        if not self.is_plain_vit:
            raise UsageError(
                f"model {self.spec.name} has no attention of all patches to all: use a plain vision"
                " transformer (ViT or DeiT families), say deit_small_patch16_224"
            )
        return ViTBlocks(self.backbone)

    @property
    def is_plain_vit(self) -> bool:
        """Whether it can be taken apart at its blocks."""
        return is_plain_vit(self.backbone)

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
