"""The mixed batch, and the pure functions that make one from parameters.

N-way mixing is written once; methods that mix two images are the case N = 2.
"""

import dataclasses
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor


class MaskSource(Protocol):
    """Weight of each source at each pixel, `[B, N, H, W]`: a tensor, or what can make one."""

    def float(self) -> Tensor:
        """The weights in float32."""
        ...


@dataclasses.dataclass(frozen=True)
class Mixed:
    """A mixed batch and the ledger of what is in it.

    Attributes:
        images: the mixes, `[B, C, H, W]`.
        targets: soft labels, `[B, K]`; each row sums to 1 where the rows of the input do.
        lam: weight of each source in the label, `[B, N]`.
        perm: row of the batch that each source is, `[B, N]`.
        shown: what `masks` are made of once somebody asks; a training step mostly does not.
    """

    images: Tensor
    targets: Tensor
    lam: Tensor
    perm: Tensor
    mask_source: MaskSource | None = None

    @property
    def masks(self) -> Tensor | None:
        """Weight of each source at each pixel, float32 `[B, N, H, W]`; None where it is `lam`.

        Made anew at each call.
        """
        return None if self.mask_source is None else self.mask_source.float()

    def rows(self, some: slice | Tensor) -> Self:
        """Some of the mixes: a slice, indices, or true for each that is kept."""
        tensors = {name: value[some] for name, value in vars(self).items() if name != "mask_source"}
        masks = self.masks
        return dataclasses.replace(
            self, **tensors, mask_source=None if masks is None else masks[some]
        )


def soft_targets(labels: Tensor, num_classes: int) -> Tensor:
    """Class indices `[B]` as one-hot rows; soft labels `[B, K]` pass through. Float32 `[B, K]`."""
    if labels.ndim == 2:
        return labels.float()
    return F.one_hot(labels.long(), num_classes).float()


def weighted_sum(values: Tensor, perm: Tensor, weights: Tensor) -> Tensor:
    """`Σ_n weights[:, n] · values[perm[:, n]]`: the N-way mix, of images and of labels alike.

    Args:
        values: one row an image, `[B, ...]`.
        perm: `[B, N]`.
        weights: `[B, N, ...]`, broadcast against the rows of `values`.
    """
    if weights.numel() == perm.numel():
        # One weight a source: a bag of rows, summed in a single pass without gathered copies.
        # A row is to lie in one piece, so channels go last here where they do in memory.
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
    """N-image Mixup: source n weighs `lam[b, n]` at every pixel and in the label."""
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
    """Source n weighs `masks[b, n]` at each pixel and `lam[b, n]` in the label."""
    weights = masks.to(images.dtype)[:, :, None]
    return Mixed(
        images=weighted_sum(images, perm, weights),
        targets=weighted_sum(targets, perm, lam[:, :, None]),
        lam=lam,
        perm=perm,
        mask_source=masks,
    )


def cells_to_pixels(cells: Tensor, height: int, width: int) -> Tensor:
    """Cells `[..., h, w]` laid over an image: each pixel `[..., H, W]` is the cell it lies in."""
    rows, columns = (
        torch.arange(size, device=cells.device) * count // size
        for size, count in ((height, cells.shape[-2]), (width, cells.shape[-1]))
    )
    return cells.index_select(-2, rows).index_select(-1, columns)
