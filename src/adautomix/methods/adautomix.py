"""AdAutoMix: a generator mixes images while it plays against the classifier.

Paper: Qin, Jin, Jiang, El-Yacoubi, Gao, "Adversarial AutoMixup", ICLR 2024, arXiv 2312.11954.
Computes: with N images per mix, B images per batch, λ on the simplex and permutations π:

    masks      M = generator(teacher's feature map of stage `tap`), Σ_n M_n = 1   [B, N, H, W]
    mix        x_mix = Σ_n M_n ⊙ x[π_n],  y_mix = Σ_n λ_n y[π_n]
    classifier L_C = CE(mixed(x_mix), y_mix) + (1-α) CE(clean(x), y) + α CE(mixed(x_lin), y_mix),
               x_lin = Σ_n λ_n x[π_n], plain Mixup of the same images
    generator  L_T = CE(teacher(x'_mix), y'_mix),  L_S = CE(student(x'_mix), y'_mix),
               cos = mean_b Σ_n λ_n cosine(teacher(x'_mix), teacher(x[π'_n]))
               paper:        -(L_S - β L_T + (1-β) cos) at every step (equations 11, 15, 16)
               alternating:  -β L_T + (1-β) cos on even steps, L_T on odd ones (released code)
               no adversary: L_T at every step, a cooperative generator
               with `mask_weight`, plus AutoMix's loss of masks whose mean is far from λ

`mixed` and `clean` are two linear heads. For the classifier the masks are constants. The
generator's gradient flows only through its masks; the networks behind them are frozen.
Requires: the feature map of an inner stage, and a teacher (moving average of the classifier).
Cost: 12F per step for N = 3, against 3F of plain training: 1F for the teacher's clean pass, 2F for
its pass on mixes and the backward pass to the images, 9F for the student's three batches. With
`views: split` or `alternate` the student sees one view of each image and a step costs 6F. The
`paper` variant costs 14F. A step without a cosine term omits the teacher's last stage. A step at
which the generator rests (`generator_every`) omits the teacher's pass on mixes and costs 10F. The
released code costs 15F: it runs the teacher again on three permutations of the same batch.
Settings:
- n: 3, as in the paper and in the authors' CIFAR-100 configurations.
- random_n: off, as in the authors' CIFAR-100 ResNet configurations. Their Swin, CUB ResNet-18 and
  Aircraft configurations have it on, but the logs of these runs do not.
- beta_parameter: 1, as in the paper.
- per_sample: off, as in the authors' code.
- derange: off in the authors' configurations but that of CUB-200 with ResNeXt-50.
- alpha: 0.5, as in the paper.
- beta: 0.3, as in the paper for CIFAR-100 and in the log of the 800-epoch run. The first records of
  the 200-epoch log fit 0.7.
- lam_margin: 0.03 in the authors' CIFAR-100 configurations.
- lam_margin_bug: off, as in the authors' own repository; on, as in openmixup (0.2.9 and later).
- lam_embedding: off in the authors' CIFAR-100 ResNet configurations; on for transformers and larger
  images.
- attention_norm: off in the authors' configurations but that of ImageNet with ResNet-50.
- upsampling: `bilinear` in the authors' CIFAR-100 ResNet configurations; `nearest` for
  transformers.
- tap: none (the third of four stages), as in the paper.
- merged_tap: off in the authors' configurations for CNNs; on for Swin.
- variant: `alternating` is the objective of the authors' code, which made the published figures.
- adversary: on, as in the paper.
- mixed_term: on, as in the paper.
- clean_term: on, as in the paper.
- mixup_term: on, as in the paper.
- teacher_term: on, as in the paper.
- student_term: on, as in the paper.
- cosine_term: on, as in the paper.
- clean_updates: 1 is a choice of this implementation, see below.
- generator_every: 1, as in the authors' code.
- generator_prob: 1, as in the authors' released configurations. The logs of Swin and ConvNeXt have
  0.8 (`switch_off`).
- generator_lr: none (the student's) in the authors' CIFAR-100 ResNet configurations.
- generator_min_lr: none (the student's) in the authors' CIFAR-100 ResNet configurations.
- mask_weight: 0 in the authors' CIFAR-100 configurations; their Tiny-ImageNet log has it on.
- mask_margin: 0.1 in the authors' AutoMix recipes.
- views: `full`, as in the paper; `split` and `alternate` are of this implementation.
- label: `lam`, as in the paper; `area` and `scaled` are of this implementation.
- generator_init: `released`, as in the authors' code; `scaled` is of this implementation.
- generator_optimizer: `same`, as in the authors' code; `adamw` is of this implementation.
- mask_warmup: 0, as in the authors' code.
- generator_warmup: on is a choice of this implementation. In the authors' code the generator has
  no warm-up; their CIFAR recipes for CNNs have none at all.
Deviations:
- The teacher's logits of the sources are rows of its one clean pass. Batch statistics do not depend
  on the order of the batch, so the values are the same. If the teacher keeps batch norm statistics
  of its own, clean images update them once per step instead of 1 + N times; `clean_updates: 4`
  gives this one update the weight of four.
- N = 2 follows the formulas for N images. The released code omits the Mixup term at N = 2 and gives
  the clean term weight 1; `alpha: 0` does the same. With `random_n`, α is the same for every N; no
  published run drew N at random.
- At N = 2 both permutations are drawn. The released code keeps the first image in place.
- λ is drawn separately for the generator's and the classifier's mixes. The released code shares it
  from N = 3 on.
- The λ margin is tested on both sides of λ_1, as in the authors' own repository. openmixup compares
  the upper side the wrong way round for N > 2, so that masks remain only where λ_1 is within the
  margin of 1: `lam_margin_bug: true` does the same, and the sweep `methods/margin-bug` compares.
Evidence: 81.55 / 81.97 / 82.32 % top-1 accuracy with ResNet-18 on CIFAR-100 after 200 / 400 / 800
epochs (the authors' tables; clean head of the teacher, median of the last 10 epochs).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from adautomix.methods.base import FeatureDict, MixInputs
from adautomix.methods.base_learned import (
    Combination,
    LearnedMaskMethod,
    LearnedMaskSettings,
    TwoMixParams,
    use_lam_near_edge,
)
from adautomix.methods.facts import Paper
from adautomix.mixing.generator import MixGenerator, Upsampling, mask_spread
from adautomix.mixing.mix_block import mask_loss
from adautomix.mixing.ops import Mixed, mix_by_masks
from adautomix.mixing.params import Shape, draw_permutations, draw_simplex
from adautomix.models import (
    Classifier,
    frozen_running_stats,
    repeated_updates,
    updates_running_stats,
)


class AdAutoMixSettings(LearnedMaskSettings):
    """Settings of AdAutoMix; the defaults are those of the CIFAR-100 ResNet recipes."""

    n: int = Field(3, ge=2, le=16, description="N, number of images per mix")
    random_n: bool = Field(False, description="draw N from {2, …, n} at every step")
    beta_parameter: float = Field(
        1.0, gt=0, description="a in u ~ Beta(a, a), where λ_n = u_n / Σu"
    )
    per_sample: bool = Field(False, description="draw one λ per mix instead of one per batch")
    derange: bool = Field(
        False, description="draw permutations again that leave an image in its place"
    )
    alpha: float = Field(
        0.5, ge=0, le=1, description="α, weight of the Mixup term; the clean term has weight 1 - α"
    )
    beta: float = Field(
        0.3, ge=0, le=1, description="β, weight of the teacher's loss against the cosine"
    )
    lam_margin_bug: bool = Field(
        False,
        description="compare lam_margin the wrong way round for n > 2, as openmixup does; on: the "
        "student sees almost no generated mix",
    )
    lam_embedding: bool = Field(False, description="feed λ to the generator")
    attention_norm: bool = Field(False, description="batch norm after query and key")
    upsampling: Upsampling = Field(
        "bilinear", description="upsampling of the masks: bilinear or nearest"
    )
    variant: Literal["alternating", "paper"] = Field(
        "alternating",
        description="objective of the generator: that of the released code or of the paper",
    )
    adversary: bool = Field(
        True, description="train the generator adversarially; off: it only cooperates, as AutoMix"
    )
    mixed_term: bool = Field(True, description="classifier: include the loss of generated mixes")
    clean_term: bool = Field(True, description="classifier: include the loss of clean images")
    mixup_term: bool = Field(True, description="classifier: include the loss of plain Mixup images")
    teacher_term: bool = Field(True, description="generator: include the teacher's loss")
    student_term: bool = Field(
        True, description="generator: include the student's loss (paper variant)"
    )
    cosine_term: bool = Field(True, description="generator: include the cosine to the sources")
    clean_updates: int = Field(
        1,
        ge=1,
        description="updates of the teacher's batch-norm statistics that its clean pass counts as "
        "with teacher.buffers=own; the released code runs it 1 + n times",
    )
    generator_prob: float = Field(
        1.0,
        ge=0,
        le=1,
        description="probability that a step trains the generator; lower: less often",
    )

    @property
    def view_weights(self) -> dict[str, float]:
        """Weights 1 - α, α and 1 of the classifier's terms that are switched on."""
        terms = {
            "clean": self.clean_term * (1 - self.alpha),
            "mixup": self.mixup_term * self.alpha,
            "mixed": self.mixed_term * 1.0,
        }
        return {name: weight for name, weight in terms.items() if weight}

    @property
    def step_cycle(self) -> int:
        """The generator's steps are adversarial and cooperative in turn."""
        return math.lcm(2 * self.generator_every, super().step_cycle)


@dataclass(frozen=True)
class AdAutoMixParams(TwoMixParams):
    """Parameters of AdAutoMix.

    Attributes:
        adversarial: whether the generator plays against the classifier at this step instead of
            cooperating (variant `alternating`).
        trains_generator: whether the generator is trained at this step.
    """

    adversarial: bool
    trains_generator: bool = True


def cosine_to_sources(logits: Tensor, source_logits: Tensor, perm: Tensor, lam: Tensor) -> Tensor:
    """Mean over the batch of `Σ_n λ_n cosine(logits of the mix, logits of source n)`.

    Args:
        logits: logits of the mixes, `[M, K]`.
        source_logits: logits of the clean batch, `[B, K]`.
        perm: rows of the sources, int64 `[M, N]`.
        lam: weights of the sources, `[M, N]`.
    """
    cosine = F.cosine_similarity(logits.float()[:, None], source_logits.float()[perm], dim=-1)
    return (lam * cosine).sum(dim=1).mean()


class AdAutoMix(LearnedMaskMethod[AdAutoMixSettings, AdAutoMixParams]):
    """AdAutoMix (Qin et al., ICLR 2024)."""

    name = "adautomix"
    summary = "masks learned by a generator that plays against the classifier"
    paper = Paper(
        authors="Qin, Jin, Jiang, El-Yacoubi, Gao",
        title="Adversarial AutoMixup",
        venue="ICLR",
        year=2024,
        arxiv="2312.11954",
    )
    cost = 12.0
    Settings = AdAutoMixSettings
    generator: MixGenerator

    def make_generator(self, channels: int) -> MixGenerator:
        """Attention between the maps of N images."""
        s = self.settings
        return MixGenerator(
            channels,
            lam_embedding=s.lam_embedding,
            upsampling=s.upsampling,
            init=s.generator_init,
            attention_norm=s.attention_norm,
        )

    @property
    def min_batch(self) -> int:
        """A mix takes N different images."""
        return max(self.settings.n, self.view_parts)

    @property
    def eval_head(self) -> str:
        """The clean head, unless an ablation leaves it untrained."""
        trained = self.settings.clean_term and self.settings.alpha < 1
        return "clean" if trained else "mixed"

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> AdAutoMixParams:
        """Draw two independent sets of mixes, and look up what the generator does at this step."""
        n = self._draw_n(generator)
        for_classifier, for_generator = (self._draw_mix(shape[0], n, generator) for _ in range(2))
        turn, offset = divmod(step, self.settings.generator_every)
        return AdAutoMixParams(
            *for_classifier,
            *for_generator,
            adversarial=turn % 2 == 0,
            trains_generator=offset == 0 and self._generator_learns(generator),
            **self.draw_views(shape[0], generator, step),
        )

    @torch.no_grad()
    def extract_features(
        self,
        images: Tensor,
        targets: Tensor,
        student: Classifier,
        teacher: Classifier,
        params: AdAutoMixParams,
    ) -> FeatureDict:
        """Return the teacher's feature map `[B, C, h, w]`, and its logits if the loss needs them.

        The stages above the tap are skipped at steps without a cosine term, unless the teacher
        keeps its own batch norm statistics, which every clean batch must update. Nothing is
        computed at steps without masks.
        """
        weights = self.generator_weights(params)
        if "cosine" in weights or updates_running_stats(teacher):
            with repeated_updates(teacher, self.settings.clean_updates):
                clean = teacher.features(images, self.tap)
            assert clean.tap is not None
            features = self.generator_input(teacher, clean.tap)
            return {"features": features, "logits": teacher.logits(clean.pooled, "mixed")}
        if weights or self.shows_masks(params):
            return {
                "features": self.generator_input(teacher, teacher.feature_map(images, self.tap))
            }
        return {}

    def replace_near_edge(self, masks: Tensor, lam: Tensor) -> Tensor:
        """Return the student's masks `[M, N, H, W]`, constant where λ is near 0 or 1."""
        inverted = self.settings.lam_margin_bug and lam.shape[1] > 2
        return use_lam_near_edge(masks, lam, self.settings.lam_margin, inverted=inverted)

    def generator_mix(
        self, images: Tensor, targets: Tensor, params: AdAutoMixParams, features: Tensor
    ) -> Mixed:
        """Return the mixes that the generator is trained on, differentiable in its weights."""
        perm, lam = params.generator
        masks = self.generator(features, perm, lam, images.shape[2:])
        return mix_by_masks(images, targets, perm, lam, masks)

    def compute_loss(
        self, sources: MixInputs, student: Classifier, teacher: Classifier, params: AdAutoMixParams
    ) -> dict[str, Tensor]:
        """Compute the sum of both losses, which have no parameters with gradients in common.

        One backward pass of the sum therefore trains each player on its own objective.
        """
        # Minimized by the student; the masks are constants.
        student_loss, student_parts = self.student_loss(sources, student, params)
        # Minimized by the generator; student and teacher are held fixed.
        generator_loss, generator_parts = self.generator_loss(sources, student, teacher, params)
        return {"loss": student_loss + generator_loss, **student_parts, **generator_parts}

    def generator_loss(
        self, sources: MixInputs, student: Classifier, teacher: Classifier, params: AdAutoMixParams
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of the generator, a weighted sum of up to four terms.

        Returns:
            The loss, and its terms, detached; 0 and no terms at steps that do not train it.
        """
        weights = self.generator_weights(params)
        loss = sources.images.new_zeros((), dtype=torch.float32)
        if not weights:
            return loss, {}
        features = sources.features
        parts: dict[str, Tensor] = {}
        # A second set of mixes, this time with gradient through the masks.
        mixed = self.generator_mix(sources.images, sources.targets, params, features["features"])
        masks = mixed.masks
        assert masks is not None
        # The gradient passes through the teacher, whose weights require none, into the masks.
        if weights.keys() & {"teacher", "cosine"}:
            logits = teacher(mixed.images, head="mixed")
            parts["teacher"] = self.cross_entropy(logits, mixed.targets)
        # The sources' logits are rows of the clean pass: constants, and no further forward pass.
        if "cosine" in weights:
            parts["cosine"] = cosine_to_sources(logits, features["logits"], mixed.perm, mixed.lam)
        # The student is held fixed too, so this term trains the generator and not the student.
        if "student" in weights:
            logits = fixed_forward(student, mixed.images, head="mixed")
            parts["student"] = self.cross_entropy(logits, mixed.targets)
        if "mask" in weights:
            split = len(masks) < len(sources.images)
            parts["mask"] = mask_loss(masks, mixed.lam, self.settings.mask_margin, split=split)
        # Negative weights are the adversarial terms.
        for name, weight in weights.items():
            loss = loss + weight * parts[name]
        detached = {f"generator_{name}": part.detach() for name, part in parts.items()}
        return loss, {**detached, "mask_spread": mask_spread(masks)}

    def generator_weights(self, params: AdAutoMixParams) -> dict[str, float]:
        """Return the weight of each term of the generator's loss at this step; empty if none."""
        if not params.trains_generator:
            return {}
        weights = generator_weights(self.settings, adversarial=params.adversarial)
        mask = self.settings.mask_weight
        return {**weights, "mask": mask} if mask else weights

    def _generator_learns(self, generator: torch.Generator) -> bool:
        prob = self.settings.generator_prob
        return prob == 1 or float(torch.rand((), generator=generator)) < prob

    def _draw_n(self, generator: torch.Generator) -> int:
        n = self.settings.n
        if not self.settings.random_n:
            return n
        return int(torch.randint(2, n + 1, (), generator=generator))

    def _draw_mix(self, batch: int, n: int, generator: torch.Generator) -> Combination:
        s = self.settings
        lam = draw_simplex(batch, n, s.beta_parameter, generator, per_sample=s.per_sample)
        perm = draw_permutations(batch, n, generator, derange=s.derange)
        return Combination(perm, lam)


def generator_weights(settings: AdAutoMixSettings, *, adversarial: bool) -> dict[str, float]:
    """Return the weight of each term that the generator minimizes; terms of weight 0 are left out.

    Args:
        settings: variant, β, and which terms are switched on.
        adversarial: whether this is an adversarial step; ignored by the `paper` variant, whose
            steps are all alike.
    """
    beta = settings.beta
    if not settings.adversary:
        weights = {"teacher": 1.0}
    elif settings.variant == "paper":
        weights = {"student": -1.0, "teacher": beta, "cosine": -(1 - beta)}
    elif adversarial:
        weights = {"teacher": -beta, "cosine": 1 - beta}
    else:
        weights = {"teacher": 1.0}
    switched_on = {
        "student": settings.student_term,
        "teacher": settings.teacher_term,
        "cosine": settings.cosine_term,
    }
    return {name: w for name, w in weights.items() if w and switched_on[name]}


def fixed_forward(model: Classifier, images: Tensor, head: str) -> Tensor:
    """Compute logits `[B, K]` with a gradient for the images only; no buffer changes."""
    weights = {name: weight.detach() for name, weight in model.named_parameters()}
    with frozen_running_stats(model):
        logits: Tensor = torch.func.functional_call(model, weights, (images,), {"head": head})
    return logits
