"""The mix block of AutoMix and SAMix, which predicts masks from the feature maps of two images.

A block turns the teacher's feature maps of two images, `z_a` and `z_b` `[C, h, w]`, into the mask
of the second image. Its value at a position of a is the sigmoid of what attention from that
position gathers in b:

    P = softmax_rows(qᵀ k / √d)   [hw, hw]   rows are positions of a, columns positions of b
    m = σ(up(P v))                [H, W]     v is computed from b;  M_a = 1 - m,  M_b = m

The two methods differ in how q, k and v are computed from the maps and where λ enters.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adautomix.distributed import AllReduceSum, world_size
from adautomix.mixing.generator import Upsampling


class MixBlock(nn.Module, ABC):
    """Predict the masks of mixes of two images from the feature maps of those images.

    Args:
        upsampling: how h×w maps become H×W masks.
    """

    def __init__(self, upsampling: Upsampling) -> None:
        super().__init__()
        self.upsampling = upsampling

    @abstractmethod
    def project(self, features: Tensor, perm: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the query of the first image and the key and value of the second.

        Args:
            features: one feature map per image, `[B, C, h, w]`.
            perm: rows of the first and the second image, int64 `[M, 2]`.
            lam: their weights, `[M, 2]`.

        Returns:
            Query and key, both `[M, d, hw]`, and value, `[M, 1, hw]`.
        """

    def forward(self, features: Tensor, perm: Tensor, lam: Tensor, size: Sequence[int]) -> Tensor:
        """Predict masks of both images, which sum to 1 at every pixel.

        Args:
            features: one feature map per image, `[B, C, h, w]`.
            perm: rows of the first and the second image, int64 `[M, 2]`.
            lam: their weights, `[M, 2]`.
            size: (H, W) of the masks.

        Returns:
            Float32 `[M, 2, H, W]`.
        """
        projected = self.project(features, perm, lam)
        with torch.autocast(features.device.type, enabled=False):
            query, key, value = (part.float().mT for part in projected)
            maps = F.scaled_dot_product_attention(query, key, value)
            maps = maps.mT.unflatten(2, features.shape[2:])
            second = self._upsample(maps, size).sigmoid()
            return torch.cat([1 - second, second], dim=1)

    def _upsample(self, maps: Tensor, size: Sequence[int]) -> Tensor:
        align_corners = False if self.upsampling == "bilinear" else None
        large: Tensor = F.interpolate(
            maps, list(size), mode=self.upsampling, align_corners=align_corners
        )
        return large


def select_maps(maps: Tensor, rows: Tensor) -> Tensor:
    """Select rows of maps `[B, C, h, w]` and flatten them to `[M, C, hw]`.

    A 1×1 convolution acts on each image separately, so B maps are convolved before rows are
    selected.
    """
    # index_select instead of [rows], whose backward adds up in no fixed order.
    return maps.flatten(2).index_select(0, rows)


def mask_loss(
    masks: Tensor,
    lam: Tensor,
    margin: float,
    variance_weight: float = 0.0,
    *,
    split: bool = False,
) -> Tensor:
    """Penalize masks whose mean is far from λ, and reward their variance.

    `max(|mean(M_n) - λ_n| - margin, 0) - variance_weight · var(M_n)`, averaged over the N sources,
    where mean and variance are taken over all pixels of the whole batch, not per image.

    Args:
        masks: `[M, N, H, W]`.
        lam: weights of the images, `[M, N]`; their mean is used if mixes differ.
        margin: difference that costs nothing, 0 to 1.
        variance_weight: 0 or more.
        split: the masks are one part of a batch that is split over processes.

    Returns:
        A scalar.
    """
    # Two masks that sum to 1 have the same deviation and variance, so the first is enough.
    masks, lam = (part[:, :1] if part.shape[1] == 2 else part for part in (masks, lam))
    means = torch.stack([masks.mean(dim=(0, 2, 3)), lam.mean(dim=0)])
    mean, lam_mean = mean_over_processes(means, split=split)
    loss: Tensor = ((mean - lam_mean).abs() - margin).clamp_min(0).mean()
    if variance_weight:
        variance = (masks - mean[:, None, None]).square().mean()
        loss = loss - variance_weight * mean_over_processes(variance, split=split)
    return loss


def mean_over_processes(values: Tensor, *, split: bool) -> Tensor:
    """Average a tensor over all processes, differentiably, if they split a batch among them.

    If every process has its own batch, the tensor is returned unchanged.
    """
    if world_size() == 1 or not split:
        return values
    total: Tensor = AllReduceSum.apply(values)
    return total / world_size()


def scale_to_lam(masks: Tensor, lam: Tensor) -> Tensor:
    """Scale masks `[M, N, H, W]` so that their means are λ `[M, N]`.

    A mask whose mean exceeds its weight is multiplied by a factor. What it loses at a pixel goes to
    the other masks in proportion to what their means lack, so all values stay in [0, 1] and sum to
    1 at each pixel.
    """
    tiny = 1e-8
    # The masks sum to 1 exactly, so the weights must too: compute the last one from the others.
    lam = torch.cat([lam[:, :-1], 1 - lam[:, :-1].sum(dim=1, keepdim=True)], dim=1)
    mean = masks.mean(dim=(2, 3))
    factor = (lam / mean.clamp_min(tiny)).clamp_max(1)
    lacking = (lam - mean).clamp_min(0)
    gain = lacking / lacking.sum(dim=1, keepdim=True).clamp_min(tiny)
    shrunk = masks * factor[:, :, None, None]
    lost = (masks - shrunk).sum(dim=1, keepdim=True)
    return shrunk + gain[:, :, None, None] * lost
