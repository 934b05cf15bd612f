"""Any timm backbone with named heads, pooled features and the feature maps of its stages.

A `Classifier` is a timm network without its own classifier, plus one linear head per name: "clean"
learns from clean images, "mixed" from mixed ones. `build_model` creates it. Backbones start with
timm's initial weights (in a ResNet the last batch norm of every block starts at zero;
`options={"zero_init_last": False}` turns that off). The heads start as N(0, 0.01) with zero bias
on every backbone, as in the authors' code, because timm's own rule differs between families.
"""

from dataclasses import dataclass
from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.models.modes import evaluating
from adautomix.models.spec import ModelSpec, NetworkPart
from adautomix.models.transformer import ViTBlocks, is_plain_vit


@dataclass(frozen=True)
class Features:
    """The result of one forward pass through the backbone.

    Attributes:
        pooled: `[B, D]`, the pooled feature, the input of the linear heads.
        tap: `[B, C, h, w]`, the feature map of the requested stage; None if none was requested.
    """

    pooled: Tensor
    tap: Tensor | None


class Classifier(nn.Module):
    """A timm backbone with one linear head per name; created by `build_model`.

    Args:
        backbone: a timm network without classifier (`num_classes=0`).
        spec: the arguments that it was built with.

    Attributes:
        num_classes: K, number of outputs of every head.
        heads: the linear heads by name.
        stages: paths of the modules whose outputs are the feature maps, stage 1 first.
        origin: where its first weights come from, in one line; "" if they are random or published.
        frozen: the part that is not trained, see `freezing`; empty unless the settings name one.
    """

    backbone: Any  # a timm network: an nn.Module with forward_features, forward_head and so on

    def __init__(self, backbone: nn.Module, spec: ModelSpec) -> None:
        super().__init__()
        self.backbone = backbone
        self.spec = spec
        self.origin = ""
        self.frozen = NetworkPart()
        self.num_classes = spec.num_classes
        self.heads = nn.ModuleDict({name: self._new_head() for name in spec.heads})
        # Some families list their stem as feature 0. Taps number the stages from 1 in any case.
        stages = getattr(backbone, "feature_info", [])
        has_stem = bool(stages) and stages[0]["module"] in ("act1", "stem")
        self._reductions = [stage["reduction"] for stage in stages[has_stem:]]
        self.stages = [f"backbone.{stage['module']}" for stage in stages[has_stem:]]
        self._tap_to_index = 0 if has_stem else -1

    def _new_head(self) -> nn.Linear:
        head = nn.Linear(self.backbone.head_hidden_size, self.num_classes)
        nn.init.normal_(head.weight, std=0.01)
        nn.init.zeros_(head.bias)
        return head

    def features(self, images: Tensor, tap: int | None = None) -> Features:
        """Pooled features and, on request, the feature map of one stage, from one forward pass.

        Args:
            images: normalized, `[B, 3, H, W]`.
            tap: number of a stage, or of a block of a plain vision transformer, from 1; None for
                no feature map.

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
        """The feature map of one stage, `[B, C, h, w]`; later stages are not computed.

        Args:
            images: normalized, `[B, 3, H, W]`.
            tap: number of the stage or block, from 1.

        Raises:
            UsageError: the network has no such stage.
        """
        self._check_tap(tap)
        (feature_map,) = self.backbone.forward_intermediates(
            images, indices=[tap + self._tap_to_index], stop_early=True, intermediates_only=True
        )
        return cast(Tensor, feature_map)

    def merge_patches(self, feature_map: Tensor, tap: int) -> Tensor:
        """Pass the map of a stage through the patch merging behind it and a layer norm.

        This is what the released Swin recipes feed their generators. Their layer norm is never
        trained, so it has no weights here.

        Args:
            feature_map: the map of the stage, `[B, C, h, w]`.
            tap: number of the stage, from 1.

        Returns:
            `[B, 2C, h/2, w/2]`.

        Raises:
            UsageError: nothing merges patches behind that stage.
        """
        stages = getattr(self.backbone, "layers", ())
        merging = getattr(stages[tap], "downsample", None) if tap < len(stages) else None
        if not isinstance(merging, nn.Module) or isinstance(merging, nn.Identity):
            raise UsageError(
                f"model {self.spec.name} merges no patches behind stage {tap}: switch merged_tap "
                "off, or use a Swin network and a stage before the last"
            )
        merged: Tensor = merging(feature_map.movedim(1, -1))
        return F.layer_norm(merged, merged.shape[-1:]).movedim(-1, 1)

    def logits(self, pooled: Tensor, head: str = "clean") -> Tensor:
        """Logits `[B, K]` of one head for pooled features `[B, D]`.

        Raises:
            UsageError: the network has no such head.
        """
        if head not in self.heads:
            raise UsageError(f"head {head!r}: the network has {', '.join(self.heads)}")
        logits: Tensor = self.heads[head](pooled)
        return logits

    def forward(self, images: Tensor, head: str = "clean") -> Tensor:
        """Logits `[B, K]` of one head for normalized images `[B, 3, H, W]`."""
        return self.logits(self.features(images).pooled, head)

    def blocks(self) -> ViTBlocks:
        """The backbone as a sequence of transformer blocks, to read attention or change tokens.

        Raises:
            UsageError: the backbone is not a plain vision transformer.
        """
        if not self.is_plain_vit:
            raise UsageError(
                f"model {self.spec.name} has no attention between all patches: use a plain vision "
                "transformer (ViT or DeiT), for example deit_small_patch16_224"
            )
        return ViTBlocks(self.backbone)

    @property
    def is_plain_vit(self) -> bool:
        """Whether `blocks` supports the backbone."""
        return is_plain_vit(self.backbone)

    def default_tap(self) -> int:
        """The last stage but one (the third of four), or the middle block of a plain ViT."""
        self._check_tap(1)
        depth = len(self._reductions)
        is_isotropic = len(set(self._reductions)) == 1
        return max(1, depth // 2 if is_isotropic else depth - 1)

    def tap_shape(self, tap: int) -> tuple[int, int, int]:
        """Channels, height and width of a feature map for images of `spec.image_size`.

        It is measured with one forward pass, which changes neither modes nor statistics.

        Raises:
            UsageError: the network has no such stage.
        """
        parameter = next(self.parameters())
        images = parameter.new_zeros(1, 3, self.spec.image_size, self.spec.image_size)
        with evaluating(self):
            feature_map = self.feature_map(images, tap)
        _, channels, height, width = feature_map.shape
        return channels, height, width

    def _check_tap(self, tap: int) -> None:
        depth = len(self._reductions)
        if not (depth and hasattr(self.backbone, "forward_intermediates")):
            raise UsageError(
                f"model {self.spec.name}: timm does not provide the feature maps of its stages"
            )
        if not 1 <= tap <= depth:
            raise UsageError(f"tap {tap}: {self.spec.name} has stages 1 to {depth}")
