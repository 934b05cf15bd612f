"""PuzzleMix: blocks of two images, chosen so that little saliency is lost and seams are smooth.

Paper: Kim, Choo, Song, "Puzzle Mix: Exploiting Saliency and Local Statistics for Optimal Mixup",
ICML 2020, arXiv 2009.06962.
Computes: on n × n blocks, with n drawn from 2, 4, 8, 16 and λ ~ Beta(a, a), both for the batch,

    saliency  u, sums to 1 over the blocks of an image                             [M, 2, n, n]
    mask      z in {0, 1/2, 1}, weight of image A; argmin of                        [M, n, n]
              Σ_i z_i u_B(i) + (1 - z_i) u_A(i) - η/n² log Binom(z_i; λ)
              + β/16n Σ_{i ~ j} (z_i - z_j)² + γ |step of brightness across the seam of i and j|
    transport blocks of each image change places within it: more of its saliency where it is
              visible, minus the squared distance                                   [M, 2, t, t]
    mix       z ⊙ T_A(x_A) + (1 - z) ⊙ T_B(x_B)                                     [M, C, H, W]
    label     λ y_A + (1 - λ) y_B, where λ is the mean of z of each mix             [M, K]

Requires: the gradient of the loss with respect to the images, of the student in evaluation mode.
Cost: 5F per step, of which 2F are the gradient, and the two solvers, which take 4n iterations of 11
small tensor operations and 8 rounds of 8, 400 operations on average over n.
Settings:
- alpha: 1 in the authors' CIFAR-100 command and in openmixup.
- per_sample: off, as in the authors' code.
- beta: 1.2 in the authors' CIFAR-100 command. They use 1.5 on ImageNet.
- gamma: 0.5 in the authors' CIFAR-100 command.
- eta: 0.2 in the authors' CIFAR-100 command.
- labels: 3 in the authors' CIFAR-100 command.
- seam: 4 in the authors' CIFAR-100 command (`neigh_size`).
- transport: on in the authors' CIFAR-100 command.
- transport_cost: 0.8 in the authors' CIFAR-100 command (`t_eps`).
- transport_block: 4 in the authors' CIFAR-100 command (`t_size`).
- pixel_std: 0.25 is a choice of this implementation, close to CIFAR's channels.
- iterations: 4 per block of a side is a choice of this implementation.
Deviations:
- The mask is found by total variation denoising instead of alpha-beta swaps of the graph-cut
  library, which is not an exact solver of three labels either. With 2 to 8 blocks per side it is
  within 0.001 of the optimum on average, with 16 within 0.003 (see `mixing/solvers.py`).
- The transport is found by swaps, so that it is always a permutation. Only visible saliency
  counts: a block that moves to where its image has no weight travels for free. This is what the
  authors' rounds amount to, in which a block that loses its place is dropped. Over 99 % of the
  visible blocks are the same, and the rest gain no less. Few blocks move at all: under 2 % where
  saliency is in a few peaks, and none where it is noise.
- One standard deviation, `pixel_std`, replaces those of all channels in the seams, because a method
  sees only normalized images.
- λ is kept 1e-4 away from 0 and 1 in the prior, instead of adding 1e-8 to the binomial.
- Seams are averaged over the largest divisor of a block up to `seam` pixels, and blocks are
  transported on at most 16 per side, so that any image size that 2 divides works.
- The loss is the cross-entropy of the soft label, as in openmixup, not the binary cross-entropy of
  the softmax. The authors' clean loss and adversarial noise, off in their main rows, are left out.
Evidence: 79.96 / 80.82 / 81.13 % top-1 accuracy with ResNet-18 on CIFAR-100 after 200 / 400 / 800
epochs (openmixup benchmark; median of the last 10 epochs).
"""

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adautomix.errors import UsageError
from adautomix.methods.base import FeatureDict, Method, MethodSettings
from adautomix.methods.facts import Paper, Requirement
from adautomix.mixing.ops import Mixed, cells_to_pixels, weighted_sum
from adautomix.mixing.params import PairParams, Shape, draw_lam, draw_partners
from adautomix.mixing.saliency import gradient_saliency
from adautomix.mixing.solvers import cut_levels, swap_places
from adautomix.models import evaluating

BLOCKS = (2, 4, 8, 16)  # blocks per side
SWAP_ROUNDS = 8  # rounds of the transport solver
LAM_EPS = 1e-4  # distance of λ from 0 and 1 in the prior


@dataclass(frozen=True)
class PuzzleMixParams(PairParams):
    """Parameters of PuzzleMix; `lam` is the prior of the mask, not yet the weight in the label.

    Attributes:
        blocks: blocks per side, the same for all mixes.
    """

    blocks: int


class PuzzleMixSettings(MethodSettings):
    """Settings of PuzzleMix; the defaults are those of CIFAR-100."""

    alpha: float = Field(1.0, gt=0, description="λ ~ Beta(alpha, alpha)")
    per_sample: bool = Field(False, description="draw one λ per mix instead of one per batch")
    beta: float = Field(1.2, ge=0, description="β, smoothness of the mask")
    gamma: float = Field(0.5, ge=0, le=1, description="γ, smoothness of the image at seams")
    eta: float = Field(0.2, ge=0, description="η, weight of the prior λ")
    labels: int = Field(3, ge=2, le=4, description="number of mask values; 3 gives 0, 1/2 and 1")
    seam: int = Field(4, ge=1, description="pixels that are averaged at seams")
    transport: bool = Field(True, description="move blocks within each image")
    transport_cost: float = Field(
        0.8, ge=0, description="cost per squared distance of a moved block"
    )
    transport_block: int = Field(4, ge=1, description="pixels per side of a moved block")
    pixel_std: float = Field(
        0.25, gt=0, description="standard deviation of pixels in [0, 1] that images are scaled by"
    )
    iterations: int = Field(
        4, ge=1, description="iterations of the mask solver per block of a side (at least 4 blocks)"
    )


def draw_puzzlemix(
    batch: int,
    height: int,
    width: int,
    alpha: float,
    generator: torch.Generator,
    *,
    per_sample: bool = False,
) -> PuzzleMixParams:
    """Draw a partner for each image, λ, and the number of blocks per side.

    Raises:
        UsageError: a side of the image is odd.
    """
    sides = [n for n in BLOCKS if height % n == 0 and width % n == 0]
    if not sides:
        raise UsageError(
            f"puzzlemix cuts images in halves: {height} x {width} pixels are odd, use an even size"
        )
    blocks = sides[int(torch.randint(len(sides), (), generator=generator))]
    lam = draw_lam(batch, alpha, generator, per_sample=per_sample)
    return PuzzleMixParams(draw_partners(batch, generator), lam, blocks)


def cut_blocks(images: Tensor, count: int) -> Tensor:
    """Cut images into `count` × `count` blocks, row by row: `[B count², C, H/count, W/count]`."""
    blocks: Tensor = images.unflatten(2, (count, -1)).unflatten(4, (count, -1))
    return blocks.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)


def join_blocks(blocks: Tensor, count: int, like: Tensor) -> Tensor:
    """Join the blocks of `cut_blocks` to images, in the memory format of the images `like`."""
    images = torch.empty_like(like[: len(blocks) // count**2])
    pieces = images.unflatten(2, (count, -1)).unflatten(4, (count, -1))
    pieces.copy_(blocks.unflatten(0, (-1, count, count)).permute(0, 3, 1, 4, 2, 5))
    return images


def mix_blocks(images: Tensor, blocks: Tensor, weights: Tensor) -> Tensor:
    """Assemble images whose blocks are weighted sums of blocks of the batch.

    Args:
        images: `[B, C, H, W]`.
        blocks: indices of S blocks per position, in the order of `cut_blocks`, int64 `[M, t², S]`.
        weights: their weights, `[M, t², S]`.

    Returns:
        `[M, C, H, W]`.
    """
    count = math.isqrt(blocks.shape[1])
    per_block = weights.flatten(0, 1)[:, :, None, None, None].to(images.dtype)
    mixed = weighted_sum(cut_blocks(images, count), blocks.flatten(0, 1), per_block)
    return join_blocks(mixed, count, images)


def cell_sums(maps: Tensor, count: int) -> Tensor:
    """Sum maps `[B, H, W]` over `count` × `count` blocks: `[B, count, count]`."""
    blocks: Tensor = maps.unflatten(1, (count, -1)).unflatten(3, (count, -1))
    return blocks.sum(dim=(2, 4))


def pieces_per_block(height: int, width: int, blocks: int, size: int) -> int:
    """Number of pieces of about `size` pixels per side of a block, at most 16 per image side."""
    block = math.gcd(height // blocks, width // blocks)
    wanted = max(1, min(block // size, BLOCKS[-1] // blocks))
    return max(pieces for pieces in range(1, wanted + 1) if block % pieces == 0)


def seam_costs(images: Tensor, perm: Tensor, blocks: int, size: int) -> Tensor:
    """Mean absolute difference across the seams of neighboring blocks, for all choices of sources.

    Args:
        images: `[B, C, H, W]`.
        perm: rows of both sources, int64 `[M, 2]`.
        blocks: blocks per side.
        size: pixels to average, rounded down to a divisor of the block's side.

    Returns:
        `[M, 2, 2, 2, blocks, blocks]`, indexed by direction (block below, block on the right),
        source of the block, source of that neighbor, row and column. 0 in the last row or column,
        where there is no neighbor.
    """
    block = images.shape[2] // blocks, images.shape[3] // blocks
    pooled = F.avg_pool2d(images.float(), [math.gcd(size, side) for side in block])
    below = F.pad(_row_differences(pooled, perm, blocks), (0, 0, 0, 1))
    right = F.pad(_row_differences(pooled.mT, perm, blocks), (0, 0, 0, 1))
    return torch.stack([below, right.mT], dim=1)


def _row_differences(pooled: Tensor, perm: Tensor, blocks: int) -> Tensor:
    """Difference between a block's last row and the first row of the block below it.

    Returns:
        `[M, 2, 2, n - 1, n]`, indexed by source of the block, source of the block below, row and
        column.
    """
    rows = pooled.unflatten(2, (blocks, -1))
    last, first = rows[:, :, :-1, -1], rows[:, :, 1:, 0]
    differences: Tensor = last[perm][:, :, None] - first[perm][:, None]
    differences = differences.abs_().mean(dim=3).unflatten(4, (blocks, -1))
    return differences.mean(dim=5)


def mask_energy(
    saliency: Tensor, seams: Tensor, lam: Tensor, beta: float, eta: float, levels: int
) -> tuple[Tensor, Tensor]:
    """Compute slopes and weights of the energy of a mask, as `cut_levels` takes them.

    The four costs of a seam split exactly into what each block adds by its own source and what two
    blocks with different sources add.

    Args:
        saliency: saliency of both sources, `[M, 2, n, n]`.
        seams: scaled costs of `seam_costs`, `[M, 2, 2, 2, n, n]`.
        lam: prior weight of the first source, `[M]`.
        beta: cost of two neighbors with different sources.
        eta: weight of the prior.
        levels: mask values are 0, 1/levels, …, 1.

    Returns:
        Slopes `[M, levels, n, n]` and weights `[M, 2, n, n]`.
    """
    cells = saliency.shape[2]
    costs = saliency.flip(1) + seams.mean(dim=3).sum(dim=1)
    costs = costs + seams[:, 0].mean(dim=1).roll(1, 2) + seams[:, 1].mean(dim=1).roll(1, 3)
    steps = torch.arange(levels, device=lam.device)
    odds = ((levels - steps) / (steps + 1)).log() + lam.logit(eps=LAM_EPS)[:, None]
    slopes = (costs[:, :1] - costs[:, 1:]) / levels - (eta / cells**2) * odds[:, :, None, None]
    mixed = seams[:, :, 0, 1] + seams[:, :, 1, 0] - seams[:, :, 0, 0] - seams[:, :, 1, 1]
    inside = torch.arange(cells, device=lam.device) < cells - 1
    paired = torch.stack([inside[:, None].expand(cells, cells), inside.expand(cells, cells)])
    return slopes, beta * paired + mixed / 2


def squared_distances(count: int, device: torch.device) -> Tensor:
    """Squared distances between cells of a square grid with sides of 1, `[count², count²]`."""
    line = torch.linspace(0, 1, count, device=device)
    points = torch.cartesian_prod(line, line)
    return (points[:, None] - points).square().sum(dim=2)


def transport(saliency: Tensor, weights: Tensor, cost: float) -> Tensor:
    """Choose which block of each source is shown at each position.

    Args:
        saliency: saliency of the blocks, `[M, 2, t, t]`.
        weights: weight of each source at each position, `[M, 2, t, t]`.
        cost: cost of a move across a whole side.

    Returns:
        Int64 `[M, 2, t²]`.
    """
    mixes, sources, count = saliency.shape[:3]
    gain = saliency.flatten(2)[:, :, :, None]
    visible = (weights > 0).flatten(2)[:, :, None]
    costs = visible * (cost * squared_distances(count, saliency.device) - gain)
    places = swap_places(costs.flatten(0, 1), SWAP_ROUNDS)
    return places.argsort(dim=1).view(mixes, sources, count**2)


class PuzzleMix(Method[PuzzleMixSettings, PuzzleMixParams]):
    """PuzzleMix (Kim et al., ICML 2020)."""

    name = "puzzlemix"
    summary = "blocks of two images that keep their salient parts, moved and cut at smooth seams"
    paper = Paper(
        authors="Kim, Choo, Song",
        title="Puzzle Mix: Exploiting Saliency and Local Statistics for Optimal Mixup",
        venue="ICML",
        year=2020,
        arxiv="2009.06962",
    )
    requires = frozenset({Requirement.INPUT_GRADIENT})
    cost = 5.0
    Settings = PuzzleMixSettings

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> PuzzleMixParams:
        """Draw a partner for each image, λ, and the number of blocks per side."""
        batch, _, height, width = shape
        s = self.settings
        return draw_puzzlemix(batch, height, width, s.alpha, generator, per_sample=s.per_sample)

    def extract_features(
        self, images: Tensor, targets: Tensor, student: Any, teacher: Any, params: PuzzleMixParams
    ) -> FeatureDict:
        """Return the saliency of each block that can be moved, `[B, t, t]`."""
        cells = params.blocks * self.pieces(images, params)
        with evaluating(student):
            maps = gradient_saliency(student, images, targets)
        return {"saliency": cell_sums(maps, cells)}

    def mix(
        self, images: Tensor, targets: Tensor, params: PuzzleMixParams, **features: Tensor
    ) -> Mixed:
        """Solve for the mask, move the blocks and assemble them; labels are the means of masks."""
        saliency = features["saliency"][params.perm]
        mask = cells_to_pixels(self.mask(images, saliency, params), *saliency.shape[2:])
        weights = torch.stack([mask, 1 - mask], dim=1)
        blocks = self._shown_blocks(saliency, weights)
        blocks = blocks + params.perm[:, :, None] * blocks.shape[2]
        lam = weights.mean(dim=(2, 3))
        return Mixed(
            images=mix_blocks(images, blocks.mT.contiguous(), weights.flatten(2).mT),
            targets=weighted_sum(targets, params.perm, lam[:, :, None]),
            lam=lam,
            perm=params.perm,
            mask_source=cells_to_pixels(weights, *images.shape[2:]),
        )

    def mask(self, images: Tensor, saliency: Tensor, params: PuzzleMixParams) -> Tensor:
        """Solve for the weight of the first image in each block.

        Args:
            images: `[B, C, H, W]`.
            saliency: saliency of both sources, `[M, 2, t, t]`, where t is a multiple of n.
            params: parameters of M mixes with n blocks per side.

        Returns:
            `[M, n, n]`, 0 to 1.
        """
        s, levels = self.settings, self.settings.labels - 1
        beta = s.beta / (16 * params.blocks)
        saliency = cell_sums(saliency.flatten(0, 1), params.blocks).unflatten(0, (-1, 2))
        seams = seam_costs(images, params.perm, params.blocks, s.seam)
        seams = seams * (beta * s.gamma * s.pixel_std)
        slopes, weights = mask_energy(saliency, seams, params.lam[:, 0], beta, s.eta, levels)
        level = cut_levels(slopes, weights, s.iterations * max(params.blocks, 4))
        return level / float(levels)

    def _shown_blocks(self, saliency: Tensor, weights: Tensor) -> Tensor:
        """Index of the block that each source shows at each position, int64 `[M, 2, t²]`."""
        if self.settings.transport:
            return transport(saliency, weights, self.settings.transport_cost)
        places = torch.arange(weights[0, 0].numel(), device=weights.device)
        return places.expand(*weights.shape[:2], -1)

    def pieces(self, images: Tensor, params: PuzzleMixParams) -> int:
        """Number of pieces per side of a block that can be moved separately."""
        if not self.settings.transport:
            return 1
        size = self.settings.transport_block
        return pieces_per_block(images.shape[2], images.shape[3], params.blocks, size)
