"""The mixed batch, and pure functions that compute one from parameters.

Mixing is written once for N images; methods that mix two images are the case N = 2.
"""

import dataclasses
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from adautomix.mixing.params import MixParams


class MaskSource(Protocol):
    """Weight of each source at each pixel, `[B, N, H, W]`: a tensor, or something that makes one.

    A training step rarely reads the masks, so methods may delay computing them.
    """

    def float(self) -> Tensor:
        """Return the weights in float32."""
        ...


@dataclasses.dataclass(frozen=True)
class Mixed:
    """A mixed batch, and a record of what is in it.

    Attributes:
        images: the mixes, `[B, C, H, W]`.
        targets: soft labels, float32 `[B, K]`; rows sum to 1 if those of the input do.
        lam: weight of each source in the label, float32 `[B, N]`.
        perm: row of the batch that each source comes from, int64 `[B, N]`.
        mask_source: what `masks` are computed from when they are read.
        params: the random parameters, where a function of `adautomix.mix` made the batch; pass
            them to the same function to mix in the same way again.
    """

    images: Tensor
    targets: Tensor
    lam: Tensor
    perm: Tensor
    mask_source: MaskSource | None = None
    params: MixParams | None = None

    @property
    def masks(self) -> Tensor | None:
        """Weight of each source at each pixel, float32 `[B, N, H, W]`; None if it is `lam`.

        Computed at each access.
        """
        return None if self.mask_source is None else self.mask_source.float()

    def rows(self, index: slice | Tensor) -> Self:
        """Return some of the mixes, selected by a slice, by indices or by a boolean mask."""
        masks = self.masks
        return dataclasses.replace(
            self,
            images=self.images[index],
            targets=self.targets[index],
            lam=self.lam[index],
            perm=self.perm[index],
            mask_source=None if masks is None else masks[index],
            params=None,
        )


def soft_targets(labels: Tensor, num_classes: int) -> Tensor:
    """Convert class indices `[B]` to one-hot rows; soft labels `[B, K]` pass through.

    Returns:
        Float32 `[B, K]`.
    """
    if labels.ndim == 2:
        return labels.float()
    return F.one_hot(labels.long(), num_classes).float()


def weighted_sum(values: Tensor, perm: Tensor, weights: Tensor) -> Tensor:
    """Compute `Σ_n weights[:, n] · values[perm[:, n]]`, the N-way mix of images or labels.

    Args:
        values: one row per image, `[B, ...]`.
        perm: rows to mix, int64 `[M, N]`.
        weights: `[M, N, ...]`, broadcast against the rows of `values`.

    Returns:
        `[M, ...]`.
    """
    if weights.numel() == perm.numel():
        # One weight per source: a bag of rows, summed in a single pass without gathered copies.
        # A row must be contiguous, so channels go last here if they do in memory.
        channels = 1 if values.is_contiguous() else -1
        rows = values.movedim(1, channels)
        bags = F.embedding_bag(
            perm, rows.flatten(1), per_sample_weights=weights.flatten(1), mode="sum"
        )
        return bags.view(-1, *rows.shape[1:]).movedim(channels, 1)
    total = torch.mul(weights[:, 0], values[perm[:, 0]])
    for n in range(1, perm.shape[1]):
        total.addcmul_(weights[:, n], values[perm[:, n]])
    return total


def mix_by_lam(images: Tensor, targets: Tensor, perm: Tensor, lam: Tensor) -> Mixed:
    """Mix N images as Mixup does: `lam[b, n]` weighs source n at every pixel and in the label.

    Args:
        images: `[B, C, H, W]`.
        targets: soft labels, `[B, K]`.
        perm: rows to mix, int64 `[M, N]`.
        lam: their weights, `[M, N]`.
    """
    weights = lam.to(images.dtype)[:, :, None, None, None]
    return Mixed(
        images=weighted_sum(images, perm, weights),
        targets=weighted_sum(targets, perm, lam[:, :, None]),
        lam=lam,
        perm=perm,
    )


def mix_by_masks(
    images: Tensor, targets: Tensor, perm: Tensor, lam: Tensor, masks: Tensor
) -> Mixed:
    """Mix N images by masks: source n has weight `masks[b, n]` per pixel, `lam[b, n]` in the label.

    Args:
        images: `[B, C, H, W]`.
        targets: soft labels, `[B, K]`.
        perm: rows to mix, int64 `[M, N]`.
        lam: weights in the label, `[M, N]`.
        masks: weights of the pixels, `[M, N, H, W]`.
    """
    weights = masks.to(images.dtype)[:, :, None]
    return Mixed(
        images=weighted_sum(images, perm, weights),
        targets=weighted_sum(targets, perm, lam[:, :, None]),
        lam=lam,
        perm=perm,
        mask_source=masks,
    )


def cells_to_pixels(cells: Tensor, height: int, width: int) -> Tensor:
    """Upsample a grid of cells `[..., h, w]` to `[..., H, W]`: each pixel gets its cell's value."""
    rows, columns = (
        torch.arange(size, device=cells.device) * count // size
        for size, count in ((height, cells.shape[-2]), (width, cells.shape[-1]))
    )
    return cells.index_select(-2, rows).index_select(-1, columns)
