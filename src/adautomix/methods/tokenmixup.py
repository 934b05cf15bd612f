"""TokenMixup: inside the network, easy images take the more salient tokens of others.

Paper: Choi, Choi, Kim, "TokenMixup: Efficient Attention-guided Token-level Data Augmentation for
Transformers", NeurIPS 2022, arXiv 2210.07562.
Computes: (horizontal TokenMixup) at the input of block l + 1, on tokens `[B, T, D]`,

    easy     0.1 · CE(scorenet(tokens), y) <= τ, for each image
    saliency s [B, P]: attention of that block to the patches, averaged over heads
    pairing  for easy images i distinct partners j with the largest Σ_i Σ_p relu(s_jp - s_ip - ρ)
    mix      patch p of i is that of j where s_jp - s_ip > ρ; tokens ahead of the patches stay
    label    λ_i = Σ_kept s_i / (Σ_kept s_i + Σ_taken s_j) for i, the rest for j       [B, K]
    loss     CE(logits of the mixed tokens, mixed labels) + w CE(scorenet(tokens), y)

ScoreNet is a linear layer on the class token, or on the mean of the patches without a class token.
Requires: attention over patches (timm's ViT and DeiT).
Cost: 3.3F per step: 3F, and l/L F for L blocks, because the first l blocks run once without
gradient to see all images of the batch before any is mixed.
Settings:
- tau: 0.2 in the authors' CIFAR-100 recipe (CCT-7); 0.1 for ViT-B on ImageNet.
- rho: 0.005 in the authors' CIFAR-100 recipe; 0.01 for ViT-B on ImageNet.
- layer: none: two sevenths of the blocks, which gives the 2 of 7 of the authors' CIFAR-100 recipe
  and the 3 of 12 of ViT-B on ImageNet.
- scorenet_weight: 0.001 in the authors' CIFAR-100 recipe; 1 for ViT-B on ImageNet.
- stop_gradient: off in the authors' CIFAR-100 recipe; on for ViT-B on ImageNet.
Deviations:
- Without a class token, ScoreNet reads the mean of the patches, which the authors' package offers
  as average pooling. Their CCT recipe (`seq_pool`) has no class token, and there ScoreNet and the
  classifier pool tokens by a learned attention, one linear layer and a softmax over the tokens.
- Difficulty and saliency are computed in evaluation mode, without stochastic depth. The authors'
  code takes them from the training forward pass.
- The authors' recipes first mix images by Mixup and CutMix. Here images are clean.
- The vertical variant, in which an image attends to its own tokens of earlier blocks and no label
  changes, is left out.
- Where a batch is split over processes or accumulation steps, the first blocks also run on the
  partners.
- The pairing is approximate. The authors' code leaves the device for SciPy's exact assignment; here
  an auction with a fixed number of rounds is improved by exchanges of partners. It reached at least
  98 % of the best total in every case tried (2 to 512 images, P = 4 to 196, a quarter to all of
  them easy), mostly over 99 %. Partners are distinct.
- `mix` shows the same swap on the patches of the images, for inspection. The network is never
  trained on those.
Evidence: none published for ResNet-18, which has no attention. The authors report 83.56 % on
CIFAR-100 with CCT-7 and 82.37 % on ImageNet with ViT-B.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.methods.base import FeatureDict, MethodSettings, MixInputs
from adautomix.methods.base_attention import AttentionMethod, fraction_inside, patches_to_pixels
from adautomix.methods.facts import LabelRule, Paper
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.boxes import paste
from adautomix.mixing.ops import Mixed, weighted_sum
from adautomix.mixing.params import MixParams, Shape
from adautomix.models import Classifier, ViTBlocks, evaluating

DIFFICULTY = 0.1  # factor on the cross-entropy, so that τ is a small number
BIDS, EXCHANGES = 64, 24  # rounds of the auction and of the exchanges
RAISE = 0.05  # smallest raise of a bid, as a fraction of the bidders' mean best gain


@dataclass(frozen=True)
class TokenMixupParams(MixParams):
    """Parameters of TokenMixup; nothing is random, as partners are found by attention.

    Attributes:
        perm: row of each image, int64 `[B, 1]`.
    """

    perm: Tensor


class TokenMixupSettings(MethodSettings):
    """Settings of TokenMixup."""

    tau: float = Field(
        0.2, ge=0, description="τ, difficulty up to which images are mixed; larger mixes more"
    )
    rho: float = Field(0.005, ge=0, description="ρ, saliency gain above which a patch is swapped")
    layer: int | None = Field(
        None, ge=0, description="blocks before the mix; none: two sevenths of all blocks"
    )
    scorenet_weight: float = Field(0.001, ge=0, description="weight of ScoreNet's loss")
    stop_gradient: bool = Field(False, description="keep ScoreNet's loss from training the network")


class Swap(NamedTuple):
    """Which image takes which patches from which partner.

    Attributes:
        perm: rows of the image and its partner, int64 `[M, 2]`; an image that is not mixed is its
            own partner.
        taken: patches that come from the partner, bool `[M, P]`.
        lam: weights in the label, `[M, 2]`.
    """

    perm: Tensor
    taken: Tensor
    lam: Tensor


def gains(saliency: Tensor, rho: float) -> Tensor:
    """Compute `Σ_p relu(s_jp - s_ip - ρ)` for all i and j, `[B, B]`, of saliency `[B, P]`."""
    # relu(d) = (|d| + d) / 2, and a distance sums |d| without materializing B·B·P numbers.
    total = saliency.sum(dim=1)
    signed = total - total[:, None] - rho * saliency.shape[1]
    return ((torch.cdist(saliency + rho, saliency, p=1.0) + signed) / 2).clamp_min(0)


def assign(value: Tensor, bidders: Tensor) -> Tensor:
    """Assign distinct partners to all rows with a large total value, without a host sync.

    Args:
        value: value of each partner (column) to each row, non-negative, `[B, B]`.
        bidders: rows that count, bool `[B]`; the others get what is left.

    Returns:
        A permutation, int64 `[B]`.
    """
    if len(value) == 1:
        return torch.zeros_like(bidders, dtype=torch.long)
    value = value * bidders[:, None]
    return exchange(value, complete_assignment(*auction(value, bidders)))


def auction(value: Tensor, bidders: Tensor) -> tuple[Tensor, Tensor]:
    """Let rows without a partner bid for the one they gain most from, all at once.

    Source: Bertsekas, 1988.

    Returns:
        The partner that each row bid for last, and the row that each partner went to or -1, both
        int64 `[B]`. A row has a partner if that partner went to it.
    """
    rows = torch.arange(len(value), device=value.device)
    raise_by = RAISE * value.amax(dim=1).sum() / bidders.sum().clamp_min(1)
    prices = value.new_zeros(len(value))
    choice, owner = torch.zeros_like(rows), torch.full_like(rows, -1)
    for _ in range(BIDS):
        bidding = bidders & (owner[choice] != rows)
        gain, best = (value - prices).topk(2, dim=1)
        choice = torch.where(bidding, best[:, 0], choice)
        bid = prices[choice] + gain[:, 0] - gain[:, 1] + raise_by
        bid = torch.where(bidding, bid, -1)
        offers = torch.full_like(value, -1).scatter(1, choice[:, None], bid[:, None])
        highest, winner = offers.max(dim=0)
        sold = highest >= 0
        prices = torch.where(sold, highest, prices)
        owner = torch.where(sold, winner, owner)
    return choice, owner


def complete_assignment(choice: Tensor, owner: Tensor) -> Tensor:
    """Complete an auction to a permutation: rows without a partner get free ones in order."""
    rows = torch.arange(len(owner), device=owner.device)
    assigned = owner[choice] == rows
    waiting = assigned.to(torch.uint8).argsort(stable=True)
    free = (owner >= 0).to(torch.uint8).argsort(stable=True)
    # There are as many waiting rows as free partners, and both come first.
    partners = torch.where(assigned[waiting], choice[waiting], free)
    return torch.empty_like(rows).scatter(0, waiting, partners)


def exchange(value: Tensor, partner: Tensor) -> Tensor:
    """Let pairs of rows swap partners where both prefer each other and the total value grows."""
    rows = torch.arange(len(value), device=value.device)
    smallest = torch.finfo(value.dtype).eps * value.amax()
    for _ in range(EXCHANGES):
        swapped = value.index_select(1, partner)  # value to a row of another row's partner
        current = swapped.diagonal()
        growth, other = (swapped + swapped.T - current - current[:, None]).max(dim=1)
        mutual = (other[other] == rows) & (growth > smallest)
        partner = torch.where(mutual, partner[other], partner)
    return partner


def find_swap(saliency: Tensor, easy: Tensor, rows: Tensor, rho: float) -> Swap:
    """Pair the easy images of a batch with others and choose the patches they take.

    Args:
        saliency: `[B, P]`.
        easy: which images are mixed, bool `[B]`.
        rows: the images whose mixes are wanted, int64 `[M]`.
        rho: ρ.
    """
    with torch.autocast(saliency.device.type, enabled=False):
        partner = assign(gains(saliency, rho), easy)[rows]
    partner = torch.where(easy[rows], partner, rows)
    own, other = saliency[rows], saliency[partner]
    taken = other - own > rho  # false everywhere if an image is its own partner
    second = fraction_inside(torch.where(taken, other, own), taken)
    lam = torch.stack([1 - second, second], dim=1)
    return Swap(torch.stack([rows, partner], dim=1), taken, lam)


class TokenMixup(AttentionMethod[TokenMixupSettings, TokenMixupParams]):
    """Horizontal TokenMixup (Choi et al., NeurIPS 2022)."""

    name = "tokenmixup"
    summary = "easy images take the more salient tokens of others"
    paper = Paper(
        authors="Choi, Choi, Kim",
        title="TokenMixup: Efficient Attention-guided Token-level Data Augmentation for "
        "Transformers",
        venue="NeurIPS",
        year=2022,
        arxiv="2210.07562",
    )
    cost = 3.3
    label_rule = LabelRule.HIDDEN
    label_note = "tokens inside the network are mixed, not pixels"
    Settings = TokenMixupSettings

    def build(self, model: nn.Module | None) -> None:
        """Create ScoreNet and choose the block whose input is mixed.

        Raises:
            UsageError: the network has no such block.
        """
        super().build(model)
        blocks = self.network_with(model, "blocks").blocks()
        layer = self.settings.layer
        self.block = 1 + (round(2 * blocks.depth / 7) if layer is None else layer)
        if self.block > blocks.depth:
            raise UsageError(f"tokenmixup.layer = {layer}: the network has {blocks.depth} blocks")
        self.scorenet = nn.Linear(blocks.embed_dim, self.num_classes)
        nn.init.trunc_normal_(self.scorenet.weight, std=0.02)
        nn.init.zeros_(self.scorenet.bias)

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> TokenMixupParams:
        """Return the rows of the batch; nothing is random.

        Raises:
            UsageError: the images do not consist of whole patches.
        """
        self.patch_grid(shape)
        return TokenMixupParams(torch.arange(shape[0])[:, None])

    @torch.no_grad()
    def extract_features(
        self,
        images: Tensor,
        targets: Tensor,
        student: Classifier,
        teacher: Any,
        params: TokenMixupParams,
    ) -> FeatureDict:
        """Return the saliency of each patch, `[B, P]`, and the difficulty of each image, `[B]`."""
        blocks = student.blocks()
        with evaluating(student):
            tokens = blocks.forward_to(images, self.block)
        saliency = blocks.attention(tokens, self.block).mean(dim=1)
        scores = self.scores(tokens, blocks).float()
        losses = F.cross_entropy(
            scores, targets, reduction="none", label_smoothing=self.label_smoothing
        )
        return {"saliency": saliency, "difficulty": DIFFICULTY * losses}

    def scores(self, tokens: Tensor, blocks: ViTBlocks) -> Tensor:
        """Compute ScoreNet's logits `[B, K]` for tokens `[B, T, D]`."""
        features = (
            tokens[:, 0]
            if blocks.uses_class_token
            else tokens[:, blocks.num_prefix_tokens :].mean(dim=1)
        )
        scores: Tensor = self.scorenet(features)
        return scores

    def swap(self, params: TokenMixupParams, features: FeatureDict) -> Swap:
        """Find which image takes which patches from which partner in these mixes."""
        easy = features["difficulty"] <= self.settings.tau
        return find_swap(features["saliency"], easy, params.perm[:, 0], self.settings.rho)

    def mix(
        self, images: Tensor, targets: Tensor, params: TokenMixupParams, **features: Tensor
    ) -> Mixed:
        """Return the swap applied to patches of the images, for inspection, and its labels."""
        swap = self.swap(params, features)
        grid = self.patch_grid(images.shape)
        outside = patches_to_pixels(~swap.taken.unflatten(1, grid), self.patch)
        pasted = paste(images, targets, swap.perm, outside)
        labels = weighted_sum(targets, swap.perm, swap.lam[:, :, None])
        return Mixed(pasted.images, labels, swap.lam, swap.perm, pasted.mask_source)

    def compute_loss(
        self, sources: MixInputs, student: Classifier, teacher: Any, params: TokenMixupParams
    ) -> dict[str, Tensor]:
        """Compute the loss of the mixed tokens, plus ScoreNet's loss on the clean ones."""
        # The swap is a constant.
        swap, blocks = self.swap(params, sources.features), student.blocks()
        # The first blocks run on clean images; the gradient flows through both sources.
        own, other = enter_sources(blocks, sources.images, swap.perm, self.block)
        taken = F.pad(swap.taken, (blocks.num_prefix_tokens, 0))[:, :, None]
        # The remaining blocks run on mixed tokens.
        pooled, _ = blocks.forward_from(torch.where(taken, other, own), self.block)
        logits = student.logits(pooled)
        targets = weighted_sum(sources.targets, swap.perm, swap.lam[:, :, None])
        # ScoreNet learns to classify clean tokens, and trains the first blocks unless detached.
        scored = own.detach() if self.settings.stop_gradient else own
        score_loss = self.cross_entropy(
            self.scores(scored, blocks), sources.targets[swap.perm[:, 0]]
        )
        loss = self.cross_entropy(logits, targets) + self.settings.scorenet_weight * score_loss
        return {
            "loss": loss,
            "mixture_accuracy": mixture_accuracy(logits, targets),
            "scorenet": score_loss.detach(),
            "swapped": swap.taken.float().mean(),
        }


def enter_sources(
    blocks: ViTBlocks, images: Tensor, perm: Tensor, block: int
) -> tuple[Tensor, Tensor]:
    """Compute the tokens that enter a block, for the images of some mixes and their partners.

    The first blocks run once on every image if the mixes are most of the batch.

    Returns:
        Both `[M, T, D]`.
    """
    rows = perm.T.flatten()
    if len(rows) >= len(images):
        tokens = blocks.forward_to(images, block).index_select(0, rows)
    else:
        tokens = blocks.forward_to(images.index_select(0, rows), block)
    own, other = tokens.unflatten(0, (2, len(perm)))
    return own, other
