"""Token merging: the most similar tokens of a transformer become one, their mean.

Tokens at even positions are matched with the most similar ones at odd positions; the given number
of best matches is merged (Bolya et al., "Token Merging: Your ViT But Faster", ICLR 2023, arXiv
2210.09461). The first token, the class token, is never merged into another.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Merged(NamedTuple):
    """Tokens after merging.

    Attributes:
        tokens: means of the merged tokens, `[B, T - count, D]`: the even ones that are left in
            order, then the odd ones.
        size: number of original tokens in each, `[B, T - count, 1]`.
        place: position of each of the T tokens among the merged ones, int64 `[B, T]`.
    """

    tokens: Tensor
    size: Tensor
    place: Tensor


def merge_tokens(tokens: Tensor, size: Tensor, keys: Tensor, count: int) -> Merged:
    """Merge the `count` most similar pairs of an even and an odd token.

    Args:
        tokens: `[B, T, D]`.
        size: number of original tokens in each, `[B, T, 1]`.
        keys: what similarity is measured by, as the cosine, `[B, T, d]`.
        count: number of pairs; at most (T - 1) // 2.
    """
    batch, total = tokens.shape[:2]
    unit = torch.nn.functional.normalize(keys.float(), dim=2)
    similarity = unit[:, ::2] @ unit[:, 1::2].mT
    similarity[:, 0] = -torch.inf  # the class token
    best, partner = similarity.max(dim=2)
    order = best.argsort(dim=1, descending=True, stable=True)
    merging, staying = order[:, :count], order[:, count:].sort(dim=1).values
    kept = total - total // 2 - count
    # Positions after merging: the even tokens that stay, then all odd ones.
    place = tokens.new_zeros(batch, total, dtype=torch.long)
    place[:, 1::2] = torch.arange(kept, kept + total // 2, device=tokens.device)
    place.scatter_(1, 2 * staying, torch.arange(kept, device=tokens.device).expand(batch, -1))
    target = partner.gather(1, merging)
    place.scatter_(1, 2 * merging, kept + target)
    # Sums by a product with 0 and 1, which adds in a fixed order on every device.
    belongs = torch.nn.functional.one_hot(place, total - count).to(tokens.dtype).mT
    merged_size = belongs @ size
    return Merged(belongs @ (tokens * size) / merged_size, merged_size, place)


def merging_schedule(total: int, blocks: int) -> list[int]:
    """Divide a number of merges among the blocks, more in earlier ones, as openmixup does.

    The counts fall linearly from 1.5 r to 0.5 r, rounded down, with the r whose sum is nearest to
    `total`; the first block gets what is missing or too much.

    Args:
        total: number of tokens to merge away.
        blocks: number of blocks, at least 1.
    """

    def falling(base: int) -> list[int]:
        first = int(1.5 * base)
        step = 2 * (base - first) / max(1, blocks - 1)
        return [int(first + step * block) for block in range(blocks)]

    schedules = [falling(base) for base in range(total + 1)]
    possible = [counts for counts in schedules if sum(counts[1:]) <= total]
    nearest = min(possible, key=lambda counts: abs(sum(counts) - total))
    return [total - sum(nearest[1:]), *nearest[1:]]
