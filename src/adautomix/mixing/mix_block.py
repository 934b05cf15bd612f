"""The mix block of AutoMix and SAMix: a mask from the feature maps of two images.

A block turns the teacher's feature maps of two images, `z_a` and `z_b` `[C, h, w]`, into a mask of
the second: its value at a position of a is a sigmoid of what attention from there gathers in b.

    P = softmax_rows(qᵀ k / √d)   [hw, hw]   a row is a position of a, a column one of b
    m = σ(up(P v))                [H, W]     v is read from b;  M_a = 1 - m,  M_b = m

How q, k and v come from the maps, and where λ enters, is what the two methods differ in.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adautomix.distributed import AllReduceSum, world
from adautomix.mixing.generator import Upsampling


class MixBlock(nn.Module, ABC):
    """Masks for mixes of two images from the feature maps of those images.

    Args:
        upsampling: how the h×w maps become H×W masks.
    """

    def __init__(self, upsampling: Upsampling) -> None:
        super().__init__()
        self.upsampling = upsampling

    @abstractmethod
    def project(self, features: Tensor, perm: Tensor, lam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Query of the first image and key of the second, `[M, d, hw]`, and its value `[M, 1, hw]`.

        Args and shapes as in `forward`.
        """

    def forward(self, features: Tensor, perm: Tensor, lam: Tensor, size: Sequence[int]) -> Tensor:
        """Masks of both images, which sum to 1 at every pixel.

        Args:
            features: one map an image, `[B, C, h, w]`.
            perm: which image is the first and which the second of a mix, `[M, 2]`.
            lam: their shares, `[M, 2]`.
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


def initialized(conv: nn.Conv2d) -> nn.Conv2d:
    """Weights N(0, 0.01) and no bias, as released: all masks start at about 1/2."""
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


def picked(maps: Tensor, rows: Tensor) -> Tensor:
    """The maps `[B, C, h, w]` of some images, flat: `[M, C, hw]`.

    A 1×1 convolution acts on each image alone, so B maps are convolved and then picked.
    """
    # index_select and not [rows]: the backward of that adds up in no fixed order.
    return maps.flatten(2).index_select(0, rows)


def mask_loss(
    masks: Tensor,
    lam: Tensor,
    margin: float,
    variance_weight: float = 0.0,
    *,
    split: bool = False,
) -> Tensor:
    """How far the masks' mean is from λ beyond a margin, less a reward of their variance.

    `max(|mean(M_a) - λ| - margin, 0) - variance_weight · var(M_a)`, where mean and variance are
    taken over all pixels of the whole batch and not image by image.

    Args:
        masks: `[M, 2, H, W]`.
        lam: `[M, 2]`; its mean counts where every mix has its own.
        margin: 0 to 1.
        variance_weight: 0 or more.
        split: these are a part of the batch, and other processes have the others.
    """
    first = masks[:, 0]
    means = torch.stack([first.mean(), lam[:, 0].mean()])
    mean, share = mean_of_processes(means, split=split)
    loss: Tensor = ((mean - share).abs() - margin).clamp_min(0)
    if variance_weight:
        variance = mean_of_processes((first - mean).square().mean(), split=split)
        loss = loss - variance_weight * variance
    return loss


def mean_of_processes(values: Tensor, *, split: bool) -> Tensor:
    """The mean over all processes of a tensor that each of them brings; differentiable.

    Only where they have split a batch: processes with batches of their own are left apart.
    """
    if world() == 1 or not split:
        return values
    total: Tensor = AllReduceSum.apply(values)
    return total / world()


def scale_to_lam(masks: Tensor, lam: Tensor) -> Tensor:
    """Masks `[M, 2, H, W]` scaled so that their means are λ `[M, 2]`.

    The mask whose mean is above its share shrinks by a factor, and the other gains what it loses:
    all stays between 0 and 1.
    """
    tiny = 1e-8
    first = masks[:, :1].clamp(tiny, 1 - tiny)
    mean, share = first.mean(dim=(2, 3), keepdim=True), lam[:, :1, None, None]
    fewer = first * (share / mean)
    more = 1 - (1 - first) * ((1 - share) / (1 - mean).clamp_min(tiny))
    scaled = torch.where(mean > share, fewer, more)
    return torch.cat([scaled, 1 - scaled], dim=1)
