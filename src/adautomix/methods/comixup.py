"""Co-Mixup: m images become m mixes at once, salient and different from each other.

Paper: Kim, Choo, Jeong, Song, "Co-Mixup: Saliency Guided Joint Mixup with Supermodular
Diversity", ICLR 2021, arXiv 2102.03065.
Computes: for each part of m images of the batch, on n × n blocks, N = n²,

    saliency  u_k(i), sums to 1 over the blocks of image k                        [P, m, N]
    labels    z_o(i), the image that mix o shows in block i; sweeps over the mixes o minimize
              Σ_i -u_z(i) - η/N log α_z + β/N Σ_{i ~ j} [z(i) ≠ z(j)] + 2γ/N Σ_i c_z [c_z > τ N],
              α ~ Dirichlet(a), c = ((1 - ω) I + ω A) times the blocks that the other mixes show of
              each image; A holds the L1 distances of the most salient windows and sums to m
    halves    from the second sweep on, a block may also show two of the (at most three) images
              that its mix shows most, in equal parts: at their mean cost minus 5e-4, at distance
              1/4 from either and 1 from the others
    twins     before the last sweep, of mixes that show the same images, all but the last pay γ/N
              for the first of these, and all but the first pay it for the second
    loss      CE(mixes) + w CE(images); labels [B, K] follow the fraction of blocks

Requires: the gradient of the loss with respect to the images.
Cost: 8F per step with the clean loss, 5F without it: 2F for the gradient, none with respect to
weights, and 3F each for the mixes and the images. The labels take about 50 small tensor operations
for each of the 4 · 20 updates, for all parts at once, whatever the batch size is.
Settings:
- alpha: 2 in the authors' CIFAR-100 command and in openmixup.
- part: 20 in the authors' CIFAR-100 command (`m_part`).
- blocks: 4 in the authors' CIFAR-100 command (`m_block_num`).
- beta: 0.32 in the authors' CIFAR-100 command; 0.16 to 0.48 works, they say.
- gamma: 1 in the authors' CIFAR-100 command.
- threshold: 0.83 in the authors' CIFAR-100 command (`m_thres`).
- eta: 0.05 in the authors' CIFAR-100 command.
- omega: 0.001 in the authors' CIFAR-100 command.
- window: 8, as in the authors' code.
- resolve: on, as in the authors' code.
- sweeps: 4, as in the authors' code (`m_niter`).
- clean_weight: 1 in the authors' CIFAR-100 command (`clean_lam`).
Deviations:
- The labels of one mix given the others are found by mean-field annealing instead of alpha-beta
  swaps of the graph-cut library. They are within 0.002 of the optimum on average and 0.05 at worst,
  in units of one image's saliency, of which a mix shows about 1.7 (see `mixing/solvers.py`).
- The images of a part are drawn at random. The authors take them in the order of a shuffled batch,
  which is the same unless batches are ordered.
- All sweeps run. The authors' code stops after a sweep that changes next to nothing.
- The clean loss is a pass of its own, so that mixing stays apart from training. The authors take
  the saliency from its gradient (6F per step).
- Losses are cross-entropies, as in the authors' ImageNet code. Their CIFAR code uses the binary
  cross-entropy of the softmax, with a clean loss scaled to match.
Evidence: 80.01 / 80.87 / 81.17 % top-1 accuracy with ResNet-18 on CIFAR-100 after 200 / 400 / 800
epochs (openmixup benchmark, run with the authors' code; median of the last 10 epochs).
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adautomix.device import run_eagerly
from adautomix.errors import UsageError
from adautomix.methods.base import FeatureDict, Method, MethodSettings, MixInputs
from adautomix.methods.base_learned import View, view_logits
from adautomix.methods.facts import Paper, Requirement
from adautomix.methods.puzzlemix import cell_sums, mix_blocks
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.ops import Mixed, cells_to_pixels, weighted_sum
from adautomix.mixing.params import LOG_SPACE_BELOW, MixParams, Shape, draw_log_gamma
from adautomix.mixing.saliency import gradient_saliency, peak_positions
from adautomix.mixing.solvers import Chessboard, anneal_labels, chessboard

ANNEALING = 6  # number of temperatures
FORBIDDEN = 1e3  # cost of a label that must not be used
HALF_BONUS = 5e-4
HALF_DISTANCE = 0.25
PAIRS = ((0, 1), (0, 2), (1, 2))  # among the three images that a mix shows most


@dataclass(frozen=True)
class CoMixupParams(MixParams):
    """The parts that the batch is divided into, m images each.

    Attributes:
        perm: rows of the batch in the part of each mix, int64 `[B, m]`; repeated if it has fewer.
        prior: their α, float32 `[B, m]`; 0 for repetitions.
        start: initial labels of the solver for all mixes of the part, uint8 `[B, m, n²]`.
        first: row of the whole batch that row 0 of these tensors belongs to.
    """

    perm: Tensor
    prior: Tensor
    start: Tensor
    first: int = 0

    def rows(self, index: slice) -> Self:
        """Return the parameters of some of the mixes, with `first` updated."""
        begin, _, _ = index.indices(len(self.perm))
        return replace(super().rows(index), first=self.first + begin)


class CoMixupSettings(MethodSettings):
    """Settings of Co-Mixup; the defaults are those of CIFAR-100."""

    alpha: float = Field(
        2.0, gt=0, description="α ~ Dirichlet(alpha), prior amount of each image in a mix"
    )
    part: int = Field(20, ge=1, le=255, description="m, number of images mixed with each other")
    blocks: int = Field(4, ge=1, le=16, description="n, blocks per side")
    beta: float = Field(0.32, ge=0, description="β, smoothness of the labels")
    gamma: float = Field(
        1.0, ge=0, description="γ, penalty on images that other mixes already show"
    )
    threshold: float = Field(
        0.83, ge=0, description="τ, overlap with other mixes that is free, in images"
    )
    eta: float = Field(0.05, ge=0, description="η, weight of the prior α")
    omega: float = Field(
        0.001, ge=0, le=1, description="ω, weight of saliency distances in the penalty"
    )
    window: int = Field(8, ge=1, description="pixels per side of the most salient window")
    resolve: bool = Field(True, description="separate mixes that show the same images")
    sweeps: int = Field(4, ge=1, description="solver sweeps over the mixes of a part")
    clean_weight: float = Field(1.0, ge=0, description="w, weight of the clean images' loss")


class Problem(NamedTuple):
    """The joint labeling of P parts with m images and m mixes each, on N blocks.

    Attributes:
        unary: cost of showing image k in each block, `[P, m, N]`.
        likeness: how much showing image k counts as showing image l, `[P, m, m]`.
        present: which images, and mixes, are not repetitions, bool `[P, m]`.
    """

    unary: Tensor
    likeness: Tensor
    present: Tensor


class Labels(NamedTuple):
    """The L labels that the mixes of a part may use: its images, and pairs of three of them.

    Attributes:
        shows: fraction of each image in a block with that label, `[P, m, L, m]`.
        penalty: additional cost of a label, `[P, m, L]`.
        distance: distance between labels, `[P, m, L, L]`.
    """

    shows: Tensor
    penalty: Tensor
    distance: Tensor


def draw_comixup(
    batch: int, part: int, blocks: int, alpha: float, generator: torch.Generator
) -> CoMixupParams:
    """Draw a random division of the batch, and a Dirichlet prior and initial labels per part."""
    size = min(part, batch)
    parts = math.ceil(batch / size)
    rows = torch.arange(parts * size)
    present = rows < batch
    # The last part is filled up with repetitions of its own images.
    rows = torch.where(present, rows, rows - rows % size)
    members = torch.randperm(batch, generator=generator)[rows].view(parts, size)
    present = present.view(parts, size)
    prior = draw_dirichlet(present, alpha, generator)
    images = present.sum(dim=1)[:, None, None]
    start = (torch.rand(parts, size, blocks**2, generator=generator) * images).to(torch.uint8)
    part_of_mix = torch.arange(batch) // size
    return CoMixupParams(members[part_of_mix], prior[part_of_mix], start[part_of_mix])


def draw_dirichlet(present: Tensor, alpha: float, generator: torch.Generator) -> Tensor:
    """Draw from Dirichlet(alpha) over the present entries of each row; others are 0.

    Args:
        present: bool `[P, m]`; each row has a present entry.
        alpha: above 0.
        generator: a CPU generator.

    Returns:
        Float32 `[P, m]`; present entries are positive and sum to 1.
    """
    if alpha < LOG_SPACE_BELOW:
        log_gamma = draw_log_gamma(present.shape, alpha, generator)
        prior = log_gamma.masked_fill(~present, -torch.inf).softmax(dim=1).float()
    else:
        concentration = torch.full(present.shape, alpha, dtype=torch.float64)
        gamma = torch._standard_gamma(concentration, generator=generator) * present
        prior = (gamma / gamma.sum(dim=1, keepdim=True)).float()
    return prior.clamp_min(torch.finfo(prior.dtype).tiny) * present


def window_distances(peak: Tensor) -> Tensor:
    """L1 distances between the peaks `[P, m, 2]` of the images of a part, float32 `[P, m, m]`."""
    return (peak[:, :, None] - peak[:, None]).abs().sum(dim=3).float()


def compatibility(peak: Tensor, present: Tensor, omega: float) -> Tensor:
    """Compute `(1 - ω) I + ω A`: how much showing one image counts as showing another.

    Args:
        peak: position of the most salient window of each image, `[P, m, 2]`.
        present: which images are not repetitions, bool `[P, m]`.
        omega: ω.

    Returns:
        `[P, m, m]`.
    """
    both = present[:, :, None] & present[:, None]
    distance = window_distances(peak) * both
    images = present.sum(dim=1)[:, None, None]
    distance = distance * images / distance.sum(dim=(1, 2), keepdim=True).clamp_min(1)
    return (1 - omega) * torch.eye(peak.shape[1], device=peak.device) + omega * distance


def plain_labels(problem: Problem) -> Labels:
    """Return one label per image, all at distance 1 from each other."""
    parts, images, _ = problem.unary.shape
    eye = torch.eye(images, device=problem.unary.device).expand(parts, images, -1, -1)
    penalty = FORBIDDEN * (~problem.present[:, None]).float()
    return Labels(eye, penalty.expand(-1, images, -1), 1 - eye)


def labels_with_halves(problem: Problem, counts: Tensor) -> Labels:
    """Return one label per image, and one per pair among the three that a mix shows most.

    Args:
        problem: the parts.
        counts: number of blocks that each mix shows of each image, `[P, m, m]`.
    """
    plain = plain_labels(problem)
    images = counts.shape[2]
    most, which = counts.topk(min(3, images), dim=2)
    pairs = [pair for pair in PAIRS if pair[1] < images]
    if not pairs:
        return plain
    chosen = F.one_hot(which, images).float()
    halves = torch.stack([(chosen[:, :, a] + chosen[:, :, b]) / 2 for a, b in pairs], dim=2)
    missing = torch.stack([most[:, :, b] == 0 for _, b in pairs], dim=2)
    penalty = torch.cat([plain.penalty, FORBIDDEN * missing - HALF_BONUS], dim=2)
    across = 1 - 2 * (1 - HALF_DISTANCE) * halves
    between = 1 - torch.eye(len(pairs), device=counts.device).expand(*counts.shape[:2], -1, -1)
    upper = torch.cat([plain.distance, across.mT], dim=3)
    lower = torch.cat([across, between], dim=3)
    return Labels(
        torch.cat([plain.shows, halves], dim=2), penalty, torch.cat([upper, lower], dim=2)
    )


def twin_penalty(counts: Tensor) -> Tensor:
    """Mark the image that a mix should drop because another mix shows the same images.

    Args:
        counts: number of blocks that each mix shows of each image, `[P, m, m]`.

    Returns:
        1 at those images and 0 elsewhere, float32 `[P, m, m]`.
    """
    shown = counts > 0
    same = (shown[:, :, None] == shown[:, None]).all(dim=3) & (shown.sum(dim=2) > 1)[:, None]
    later = same.triu(1).any(dim=2)
    earlier = same.triu(1).any(dim=1)
    order = shown.cumsum(dim=2) * shown
    return ((order == 1) & later[:, :, None] | (order == 2) & earlier[:, :, None]).float()


@run_eagerly  # compiling it would unroll 80 updates, which takes minutes
@torch.no_grad()
def label_parts(problem: Problem, start: Tensor, settings: CoMixupSettings) -> Tensor:
    """Solve the joint labeling approximately.

    Args:
        problem: the parts.
        start: initial labels, `[P, m, N]`.
        settings: coefficients and number of sweeps.

    Returns:
        Fraction of each image in each block of each mix, `[P, m, N, m]`; sums to 1 over images.
    """
    images, cells = problem.unary.shape[1:]
    shown = F.one_hot(start.long(), images).float() * problem.present[:, :, None, None]
    grid = chessboard(math.isqrt(cells), start.device)
    twins = torch.zeros_like(shown[:, :, 0])
    for sweep in range(settings.sweeps):
        counts = shown.sum(dim=2)
        labels = labels_with_halves(problem, counts) if sweep else plain_labels(problem)
        if sweep and sweep == settings.sweeps - 1 and settings.resolve:
            twins = twin_penalty(counts) * (settings.gamma / cells)
        shown = _sweep(problem, labels, shown, twins, grid, settings)
    return shown


def _sweep(
    problem: Problem,
    labels: Labels,
    shown: Tensor,
    twins: Tensor,
    grid: Chessboard,
    settings: CoMixupSettings,
) -> Tensor:
    """Relabel the mixes of every part one after the other, given all other mixes."""
    cells = shown.shape[2]
    counts = shown.sum(dim=2)
    total = counts.sum(dim=1)
    mixes = list(shown.unbind(dim=1))
    base = labels.shows @ problem.unary[:, None] + labels.penalty[:, :, :, None]
    extra = (labels.shows @ twins[:, :, :, None]).squeeze(3)
    for mix in range(len(mixes)):
        others = total - counts[:, mix]
        overlap = (others[:, None] @ problem.likeness).squeeze(1)
        crowding = overlap * (overlap > settings.threshold * cells) * (2 * settings.gamma / cells)
        cost = extra[:, mix] + (labels.shows[:, mix] @ crowding[:, :, None]).squeeze(2)
        chosen = anneal_labels(
            base[:, mix] + cost[:, :, None],
            labels.distance[:, mix],
            grid,
            settings.beta / cells,
            ANNEALING,
        )
        mixes[mix] = _shown_fractions(labels.shows[:, mix], chosen, problem.present[:, mix])
        total = others + mixes[mix].sum(dim=1)
    return torch.stack(mixes, dim=1)


def _shown_fractions(shows: Tensor, chosen: Tensor, present: Tensor) -> Tensor:
    """Fraction of each image in each block, `[P, N, m]`, for labels `[P, N]`; 0 for repetitions."""
    selected = shows.gather(1, chosen[:, :, None].expand(-1, -1, shows.shape[2]))
    return selected * present[:, None, None]


def one_row_per_part(rows: Tensor, params: CoMixupParams) -> Tensor:
    """Reduce values that all mixes of a part share to one row per part that these mixes touch."""
    size = params.perm.shape[1]
    return torch.cat([rows[:1], rows[size - params.first % size :: size]])


class CoMixup(Method[CoMixupSettings, CoMixupParams]):
    """Co-Mixup (Kim et al., ICLR 2021)."""

    name = "comixup"
    summary = "mixes of a part of the batch, chosen jointly: salient, smooth and diverse"
    paper = Paper(
        authors="Kim, Choo, Jeong, Song",
        title="Co-Mixup: Saliency Guided Joint Mixup with Supermodular Diversity",
        venue="ICLR",
        year=2021,
        arxiv="2102.03065",
    )
    requires = frozenset({Requirement.INPUT_GRADIENT})
    cost = 8.0
    Settings = CoMixupSettings

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> CoMixupParams:
        """Draw the parts of the batch, the prior of each image, and the initial labels.

        Raises:
            UsageError: the images cannot be divided into that many blocks.
        """
        batch, _, height, width = shape
        s = self.settings
        if height % s.blocks or width % s.blocks:
            raise UsageError(
                f"comixup.blocks = {s.blocks}: {height} x {width} pixels cannot be cut into as many"
                " blocks per side; use a divisor of both"
            )
        return draw_comixup(batch, s.part, s.blocks, s.alpha, generator)

    def extract_features(
        self, images: Tensor, targets: Tensor, student: Any, teacher: Any, params: CoMixupParams
    ) -> FeatureDict:
        """Return the saliency of each block, and the position of the most salient window."""
        saliency = gradient_saliency(student, images, targets)
        window = min(self.settings.window, *saliency.shape[1:])
        means = F.avg_pool2d(saliency[:, None], window, stride=1)[:, 0]
        return {
            "saliency": cell_sums(saliency, self.settings.blocks),
            "peak": peak_positions(means),
        }

    def mix(
        self, images: Tensor, targets: Tensor, params: CoMixupParams, **features: Tensor
    ) -> Mixed:
        """Label all parts and assemble the blocks; labels follow the fraction of blocks."""
        shown = self.solve(params, **features)
        cells = shown.mT.unflatten(2, (self.settings.blocks, -1))
        mixed = self.assemble(images, targets, params, shown)
        return replace(mixed, mask_source=cells_to_pixels(cells, *images.shape[2:]))

    def solve(self, params: CoMixupParams, saliency: Tensor, peak: Tensor) -> Tensor:
        """Return the fraction of each image of its part in each block of each mix.

        Args:
            params: parameters of M mixes.
            saliency: saliency of each block, `[B, n, n]`.
            peak: position of the most salient window, `[B, 2]`.

        Returns:
            `[M, n², m]`.
        """
        members, prior = (one_row_per_part(rows, params) for rows in (params.perm, params.prior))
        s, cells = self.settings, self.settings.blocks**2
        present = prior > 0
        with torch.autocast(saliency.device.type, enabled=False):
            unary = -saliency[members].flatten(2) - s.eta / cells * (prior + 1e-8).log()[:, :, None]
            likeness = compatibility(peak[members], present, s.omega)
            start = one_row_per_part(params.start, params)
            parts = label_parts(Problem(unary, likeness, present), start, s)
        begin = params.first % params.perm.shape[1]
        mixes: Tensor = parts.flatten(0, 1)[begin : begin + len(params.perm)]
        return mixes

    def assemble(
        self, images: Tensor, targets: Tensor, params: CoMixupParams, shown: Tensor
    ) -> Mixed:
        """Return the mixes, without masks, which would be m maps per mix."""
        cells, size = shown.shape[1:]
        # No block shows more than two images.
        weights, which = shown.topk(min(2, size), dim=2)
        rows = params.perm.gather(1, which.flatten(1)).view_as(which)
        blocks = rows * cells + torch.arange(cells, device=rows.device)[:, None]
        lam = shown.mean(dim=1)
        labels = weighted_sum(targets, params.perm, lam[:, :, None])
        return Mixed(mix_blocks(images, blocks, weights), labels, lam, params.perm)

    def compute_loss(
        self, sources: MixInputs, student: Any, teacher: Any, params: CoMixupParams
    ) -> dict[str, Tensor]:
        """Compute the cross-entropy of the mixes, plus that of the clean images."""
        images, targets, weight = sources.images, sources.targets, self.settings.clean_weight
        # The solver has no gradient; mixes are constants.
        shown = self.solve(params, **sources.features)
        mixed = self.assemble(images, targets, params, shown)
        views = [View("mixed", 1.0, "clean", mixed.images, mixed.targets)]
        if weight:
            own = sources.own
            views = [View("clean", weight, "clean", images[own], targets[own]), *views]
        # One forward pass with gradient per view.
        outputs = view_logits(student, views)
        losses = [
            self.cross_entropy(logits, view.targets)
            for logits, view in zip(outputs, views, strict=True)
        ]
        weighted = [view.weight * loss for view, loss in zip(views, losses, strict=True)]
        return {
            "loss": torch.stack(weighted).sum(),
            **{view.name: loss.detach() for view, loss in zip(views, losses, strict=True)},
            "mixture_accuracy": mixture_accuracy(outputs[-1], mixed.targets),
        }
