"""Co-Mixup: m images become m mixes at once, salient and different from each other.

Paper: Kim, Choo, Jeong, Song, "Co-Mixup: Saliency Guided Joint Mixup with Supermodular
Diversity", ICLR 2021, arXiv 2102.03065.

Computes, for each part of m images of the batch, on n × n blocks, N = n²:

    saliency  u_k(i), sums to 1 over the blocks of image k                        [P, m, N]
    labels    z_o(i), the image that mix o shows in block i; sweeps over the mixes o minimize
              Σ_i -u_z(i) - η/N log α_z + β/N Σ_{i ~ j} [z(i) ≠ z(j)] + 2γ/N Σ_i c_z [c_z > τ N],
              α ~ Dirichlet(a), c = ((1 - ω) I + ω A) times the blocks that the other mixes show of
              each image, A the L1 distances of the most salient windows, m in sum
    halves    from the second sweep on a block may also show two of the (at most three) images
              that its mix shows most in equal parts: at their mean cost less 5e-4, 1/4 away from
              either and 1 away from the rest
    twins     before the last sweep, of mixes that show the same images all but the last pay γ/N
              for the first of these, all but the first for the second
    loss      CE(mixes) + w CE(images), labels by the share of the blocks

Needs: the gradient of the loss with respect to the images.
Cost: 8F a step with the clean loss, 5F without it: 2F for the gradient, none with respect to
weights, and 3F each for the mixes and the images. The labels take about 50 small tensor operations
for each of the 4 · 20 updates, of all parts at once; they are no bigger where the batch is.
Defaults: n = 4, m = 20, 4 sweeps, a = 2, β = 0.32, γ = 1, τ = 0.83, η = 0.05, ω = 0.001, w = 1: the
authors' for CIFAR-100 and Tiny-ImageNet.

Approximation: the labels of one mix given the others are found by mean-field annealing instead of
alpha-beta swaps of the graph-cut library: within 0.002 of the optimum on average and 0.05 at
worst, in shares of an image's saliency, of which a mix shows about 1.7 (see `solvers`).

Deviations from the paper or its code, and why:
- The images of a part are drawn at random; the authors take them in the order of a shuffled batch,
  which is the same but for batches that are in some order.
- All sweeps are run. The authors' code stops where one changes next to nothing.
- The clean loss is a pass of its own, so that mixing stays apart from training; the authors take
  the saliency from its gradient (6F).
- Cross-entropies in place of the binary cross-entropy of the softmax and of the clean loss scaled
  to match it, as in the authors' own ImageNet code.
"""

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adautomix.errors import UsageError
from adautomix.methods.base import FeatureDict, Method, MethodSettings, MixInputs
from adautomix.methods.base_learned import View, view_logits
from adautomix.methods.facts import Paper, Requirement
from adautomix.methods.puzzlemix import cell_sums, mix_blocks
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.ops import Mixed, cells_to_pixels, weighted_sum
from adautomix.mixing.params import MixParams, Shape
from adautomix.mixing.saliency import gradient_saliency, peaks
from adautomix.mixing.solvers import Chessboard, anneal_labels, chessboard

ANNEALING = 6  # temperatures
NEVER = 1e3  # cost of a label that cannot be had
HALF_BONUS = 5e-4
HALF_DISTANCE = 0.25
PAIRS = ((0, 1), (0, 2), (1, 2))  # of the images that a mix shows most


@dataclass(frozen=True)
class CoMixupParams(MixParams):
    """The parts that the batch falls into, m images each; mix `first + b` is row b.

    Attributes:
        perm: rows of the batch in the part of each mix, `[B, m]`; repeated where it has fewer.
        prior: their α, `[B, m]`; 0 for repetitions.
        start: the labels that the solver starts with, of all mixes of the part, uint8
            `[B, m, n²]`.
        first: row of the whole batch that the first row of these tensors is.
    """

    perm: Tensor
    prior: Tensor
    start: Tensor
    first: int = 0

    def rows(self, some: slice) -> Self:
        """The draw of some of the mixes, which knows which ones they are."""
        begin, _, _ = some.indices(len(self.perm))
        return replace(super().rows(some), first=self.first + begin)


class CoMixupSettings(MethodSettings):
    """Settings of Co-Mixup; the defaults are those of CIFAR-100."""

    alpha: float = Field(2.0, gt=0, description="α ~ Dirichlet(alpha), how much of each image")
    part: int = Field(20, ge=1, le=255, description="m, images that are mixed with each other")
    blocks: int = Field(4, ge=1, le=16, description="n, blocks a side")
    beta: float = Field(0.32, ge=0, description="β, smoothness of the labels")
    gamma: float = Field(1.0, ge=0, description="γ, penalty of images that others show")
    threshold: float = Field(0.83, ge=0, description="τ, images' worth of it that is free")
    eta: float = Field(0.05, ge=0, description="η, how much α says about the labels")
    omega: float = Field(0.001, ge=0, le=1, description="ω, share of distances in the penalty")
    window: int = Field(8, ge=1, description="pixels a side of the most salient window")
    resolve: bool = Field(True, description="tell mixes of the same images apart")
    sweeps: int = Field(4, ge=1, description="over the mixes of a part")
    clean_weight: float = Field(1.0, ge=0, description="w, weight of the unmixed images' loss")


class Problem(NamedTuple):
    """The joint labeling of P parts of m images and m mixes on N blocks.

    Attributes:
        unary: cost of image k at each block, `[P, m, N]`.
        likeness: how far what is shown of image k counts against image l, `[P, m, m]`.
        present: which of the images, and of the mixes, there are, bool `[P, m]`.
    """

    unary: Tensor
    likeness: Tensor
    present: Tensor


class Labels(NamedTuple):
    """The labels that the mixes of a part may use: its images, and pairs of three of them.

    Attributes:
        shows: what a block of that label shows, `[P, m, L, m]`.
        penalty: in addition, `[P, m, L]`.
        distance: of labels, `[P, m, L, L]`.
    """

    shows: Tensor
    penalty: Tensor
    distance: Tensor


def draw_comixup(
    batch: int, part: int, blocks: int, alpha: float, generator: torch.Generator
) -> CoMixupParams:
    """Random parts of the batch, a Dirichlet draw and random labels for each."""
    size = min(part, batch)
    parts = math.ceil(batch / size)
    places = torch.arange(parts * size)
    present = places < batch
    # Repetitions fill the last part: their own images once more.
    places = torch.where(present, places, places - places % size)
    members = torch.randperm(batch, generator=generator)[places].view(parts, size)
    concentration = torch.full((parts, size), alpha, dtype=torch.float64)
    gamma = torch._standard_gamma(concentration, generator=generator)
    present = present.view(parts, size)
    gamma = gamma * present
    prior = (gamma / gamma.sum(dim=1, keepdim=True)).float()
    prior = prior.clamp_min(torch.finfo(prior.dtype).tiny) * present
    images = present.sum(dim=1)[:, None, None]
    start = (torch.rand(parts, size, blocks**2, generator=generator) * images).to(torch.uint8)
    of_mix = torch.arange(batch) // size
    return CoMixupParams(members[of_mix], prior[of_mix], start[of_mix])


def window_distances(peak: Tensor) -> Tensor:
    """L1 distances between the peaks `[P, m, 2]` of the images of a part, `[P, m, m]`."""
    return (peak[:, :, None] - peak[:, None]).abs().sum(dim=3).float()


def compatibility(peak: Tensor, present: Tensor, omega: float) -> Tensor:
    """`(1 - ω) I + ω A`: by how much showing one image counts against another, `[P, m, m]`.

    Args:
        peak: place of the most salient window of each image, `[P, m, 2]`.
        present: which images there are, bool `[P, m]`.
        omega: ω.
    """
    both = present[:, :, None] & present[:, None]
    far = window_distances(peak) * both
    images = present.sum(dim=1)[:, None, None]
    far = far * images / far.sum(dim=(1, 2), keepdim=True).clamp_min(1)
    return (1 - omega) * torch.eye(peak.shape[1], device=peak.device) + omega * far


def plain_labels(problem: Problem) -> Labels:
    """One label an image, all equally far from each other."""
    parts, images, _ = problem.unary.shape
    eye = torch.eye(images, device=problem.unary.device).expand(parts, images, -1, -1)
    penalty = NEVER * (~problem.present[:, None]).float()
    return Labels(eye, penalty.expand(-1, images, -1), 1 - eye)


def labels_with_halves(problem: Problem, counts: Tensor) -> Labels:
    """One label an image, and one for each pair of the three that a mix shows most.

    Args:
        problem: the parts.
        counts: blocks that each mix shows of each image, `[P, m, m]`.
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
    penalty = torch.cat([plain.penalty, NEVER * missing - HALF_BONUS], dim=2)
    across = 1 - 2 * (1 - HALF_DISTANCE) * halves
    between = 1 - torch.eye(len(pairs), device=counts.device).expand(*counts.shape[:2], -1, -1)
    upper = torch.cat([plain.distance, across.mT], dim=3)
    lower = torch.cat([across, between], dim=3)
    return Labels(
        torch.cat([plain.shows, halves], dim=2), penalty, torch.cat([upper, lower], dim=2)
    )


def twin_penalty(counts: Tensor) -> Tensor:
    """1 for what a mix should do without, as another shows the same images, `[P, m, m]`.

    Args:
        counts: blocks that each mix shows of each image, `[P, m, m]`.
    """
    shown = counts > 0
    same = (shown[:, :, None] == shown[:, None]).all(dim=3) & (shown.sum(dim=2) > 1)[:, None]
    later = same.triu(1).any(dim=2)
    earlier = same.triu(1).any(dim=1)
    order = shown.cumsum(dim=2) * shown
    return ((order == 1) & later[:, :, None] | (order == 2) & earlier[:, :, None]).float()


@torch.compiler.disable  # type: ignore[untyped-decorator]  # 80 updates, unrolled: minutes
@torch.no_grad()
def label_parts(problem: Problem, start: Tensor, settings: CoMixupSettings) -> Tensor:
    """What each mix shows of each image in each block, `[P, m, N, m]`: sums to 1 over images.

    Args:
        problem: the parts.
        start: labels, `[P, m, N]`.
        settings: coefficients and sweeps.
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
    """Label the mixes of every part anew, one after the other."""
    cells = shown.shape[2]
    counts = shown.sum(dim=2)
    total = counts.sum(dim=1)
    mixes = list(shown.unbind(dim=1))
    base = labels.shows @ problem.unary[:, None] + labels.penalty[:, :, :, None]
    extra = (labels.shows @ twins[:, :, :, None]).squeeze(3)
    for mix in range(len(mixes)):
        others = total - counts[:, mix]
        met = (others[:, None] @ problem.likeness).squeeze(1)
        crowded = met * (met > settings.threshold * cells) * (2 * settings.gamma / cells)
        cost = extra[:, mix] + (labels.shows[:, mix] @ crowded[:, :, None]).squeeze(2)
        chosen = anneal_labels(
            base[:, mix] + cost[:, :, None],
            labels.distance[:, mix],
            grid,
            settings.beta / cells,
            ANNEALING,
        )
        mixes[mix] = _what_is_shown(labels.shows[:, mix], chosen, problem.present[:, mix])
        total = others + mixes[mix].sum(dim=1)
    return torch.stack(mixes, dim=1)


def _what_is_shown(shows: Tensor, chosen: Tensor, present: Tensor) -> Tensor:
    """Images in each block, `[P, N, m]`, of labels `[P, N]`; nothing where there is no mix."""
    picked = shows.gather(1, chosen[:, :, None].expand(-1, -1, shows.shape[2]))
    return picked * present[:, None, None]


def of_parts(rows: Tensor, params: CoMixupParams) -> Tensor:
    """Of values that all mixes of a part share, one row for each part that these mixes touch."""
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
        """The parts of the batch, how much of each image to show, and where to start.

        Raises:
            UsageError: the images cannot be cut into that many blocks.
        """
        batch, _, height, width = shape
        s = self.settings
        if height % s.blocks or width % s.blocks:
            raise UsageError(
                f"comixup.blocks = {s.blocks}: {height} x {width} pixels cannot be cut into as many"
                " blocks a side; use a divisor of both"
            )
        return draw_comixup(batch, s.part, s.blocks, s.alpha, generator)

    def extract_features(
        self, images: Tensor, targets: Tensor, student: Any, teacher: Any, params: CoMixupParams
    ) -> FeatureDict:
        """The saliency of each block, and the place of the most salient window."""
        saliency = gradient_saliency(student, images, targets)
        window = min(self.settings.window, *saliency.shape[1:])
        means = F.avg_pool2d(saliency[:, None], window, stride=1)[:, 0]
        return {"saliency": cell_sums(saliency, self.settings.blocks), "peak": peaks(means)}

    def mix(
        self, images: Tensor, targets: Tensor, params: CoMixupParams, **features: Tensor
    ) -> Mixed:
        """Label all parts, put the blocks together; labels by the share of the blocks."""
        shown = self.shown(params, **features)
        cells = shown.mT.unflatten(2, (self.settings.blocks, -1))
        mixed = self.composed(images, targets, params, shown)
        return replace(mixed, mask_source=cells_to_pixels(cells, *images.shape[2:]))

    def shown(self, params: CoMixupParams, saliency: Tensor, peak: Tensor) -> Tensor:
        """What each mix shows of each image of its part in each block, `[M, n², m]`."""
        members, prior = of_parts(params.perm, params), of_parts(params.prior, params)
        s, cells = self.settings, self.settings.blocks**2
        present = prior > 0
        with torch.autocast(saliency.device.type, enabled=False):
            unary = -saliency[members].flatten(2) - s.eta / cells * (prior + 1e-8).log()[:, :, None]
            likeness = compatibility(peak[members], present, s.omega)
            start = of_parts(params.start, params)
            parts = label_parts(Problem(unary, likeness, present), start, s)
        begin = params.first % params.perm.shape[1]
        mixes: Tensor = parts.flatten(0, 1)[begin : begin + len(params.perm)]
        return mixes

    def composed(
        self, images: Tensor, targets: Tensor, params: CoMixupParams, shown: Tensor
    ) -> Mixed:
        """The mixes, without a ledger of their pixels: that would be m maps for each."""
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
        """Cross-entropy of the mixes, and of the images themselves."""
        images, targets, weight = sources.images, sources.targets, self.settings.clean_weight
        shown = self.shown(params, **sources.features)
        mixed = self.composed(images, targets, params, shown)
        views = [View("mixed", 1.0, "clean", mixed.images, mixed.targets)]
        if weight:
            own = sources.own
            views = [View("clean", weight, "clean", images[own], targets[own]), *views]
        outputs = view_logits(student, views)
        losses = [
            self.cross_entropy(logits, view.targets)
            for logits, view in zip(outputs, views, strict=True)
        ]
        loss = torch.stack([v.weight * part for v, part in zip(views, losses, strict=True)]).sum()
        parts = {v.name: part.detach() for v, part in zip(views, losses, strict=True)}
        return {
            "loss": loss,
            **parts,
            "mixture_accuracy": mixture_accuracy(outputs[-1], mixed.targets),
        }
