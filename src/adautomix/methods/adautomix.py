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

`mixed` and `clean` are two linear heads. For the classifier the masks are constants. The
generator's gradient flows only through its masks; the networks behind them are frozen.
Requires: the feature map of an inner stage, and a teacher (moving average of the classifier).
Cost: 12F per step for N = 3, against 3F of plain training: 1F for the teacher's clean pass, 2F for
its pass on mixes and the backward pass to the images, 9F for the student's three batches. The
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
- lam_embedding: off in the authors' CIFAR-100 ResNet configurations; on for transformers and larger
  images.
- attention_norm: off in the authors' configurations but that of ImageNet with ResNet-50.
- upsampling: `bilinear` in the authors' CIFAR-100 ResNet configurations; `nearest` for
  transformers.
- tap: none (the third of four stages), as in the paper.
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
- generator_lr: none (the student's) in the authors' CIFAR-100 ResNet configurations.
- generator_min_lr: none (the student's) in the authors' CIFAR-100 ResNet configurations.
- generator_warmup: on is a choice of this implementation. In the authors' code the generator has
  no warm-up; their CIFAR recipes for CNNs have none at all.
Deviations:
- The teacher's logits of the sources are rows of its one clean pass. Batch statistics do not depend
  on the order of the batch, so the values are the same. If the teacher keeps batch norm statistics
  of its own, clean images update them once per step instead of 1 + N times; `clean_updates: 4`
  gives this one update the weight of four.
- N = 2 follows the formulas for N images. The released code omits the Mixup term at N = 2 and gives
  the clean term weight 1; `alpha: 0` does the same.
- At N = 2 both permutations are drawn. The released code keeps the first image in place.
- λ is drawn separately for the generator's and the classifier's mixes. The released code shares it
  from N = 3 on.
- The λ margin is tested on both sides of λ_1, as in the authors' own repository.
Evidence: 81.55 / 81.97 / 82.32 % top-1 accuracy with ResNet-18 on CIFAR-100 after 200 / 400 / 800
epochs (the authors' tables; clean head of the teacher, median of the last 10 epochs).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from adautomix.methods.base import FeatureDict, Method, MethodSettings, MixInputs
from adautomix.methods.base_learned import (
    Combination,
    TwoMixParams,
    View,
    use_lam_near_edge,
    view_logits,
)
from adautomix.methods.facts import LabelRule, Paper, Requirement
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.generator import MixGenerator, Upsampling
from adautomix.mixing.ops import Mixed, mix_by_lam, mix_by_masks
from adautomix.mixing.params import Shape, draw_permutations, draw_simplex
from adautomix.models import (
    Classifier,
    frozen_running_stats,
    repeated_updates,
    updates_running_stats,
)


class AdAutoMixSettings(MethodSettings):
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
    lam_margin: float = Field(
        0.03, ge=0, lt=0.5, description="use plain Mixup where λ_1 is this close to 0 or 1"
    )
    lam_embedding: bool = Field(False, description="feed λ to the generator")
    attention_norm: bool = Field(False, description="batch norm after query and key")
    upsampling: Upsampling = Field(
        "bilinear", description="upsampling of the masks: bilinear or nearest"
    )
    tap: int | None = Field(
        None,
        ge=1,
        description="stage that feeds the generator; none: the third of four, or the middle block",
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
    generator_every: int = Field(1, ge=1, description="train the generator once in this many steps")
    generator_lr: float | None = Field(
        None, gt=0, description="learning rate of the generator; none: the student's"
    )
    generator_min_lr: float | None = Field(
        None, ge=0, description="last learning rate of the generator; none: the student's"
    )
    generator_warmup: bool = Field(
        True, description="warm up the learning rate of the generator like the student's"
    )

    @property
    def step_cycle(self) -> int:
        """Steps from one adversarial generator step to the next."""
        return 2 * self.generator_every


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


class AdAutoMix(Method[AdAutoMixSettings, AdAutoMixParams]):
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
    requires = frozenset({Requirement.STAGE_FEATURES, Requirement.TEACHER})
    cost = 12.0
    needs_float32 = True
    label_rule = LabelRule.LAMBDA
    label_note = "λ is drawn, masks are learned"
    heads = ("clean", "mixed")
    supports_own_teacher_buffers = True
    Settings = AdAutoMixSettings

    def build(self, model: nn.Module | None) -> None:
        """Create the generator for the feature map of the tapped stage."""
        network, s = self.network_with(model, "tap_shape"), self.settings
        self.tap = s.tap or network.default_tap()
        channels, _, _ = network.tap_shape(self.tap)
        self.generator = MixGenerator(
            channels,
            lam_embedding=s.lam_embedding,
            upsampling=s.upsampling,
            attention_norm=s.attention_norm,
        )

    @property
    def min_batch(self) -> int:
        """A mix takes N different images."""
        return self.settings.n

    @property
    def eval_head(self) -> str:
        """The clean head, unless an ablation leaves it untrained."""
        trained = self.settings.clean_term and self.settings.alpha < 1
        return "clean" if trained else "mixed"

    @property
    def warms_up(self) -> bool:
        """Whether the learning rate of the generator warms up like the student's."""
        return self.settings.generator_warmup

    def learning_rates(self, lr: float, min_lr: float) -> tuple[float, float]:
        """Return the generator's own learning rates where they are set."""
        s = self.settings
        return s.generator_lr or lr, min_lr if s.generator_min_lr is None else s.generator_min_lr

    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> AdAutoMixParams:
        """Draw two independent sets of mixes, and look up what the generator does at this step."""
        n = self._draw_n(generator)
        for_classifier, for_generator = (self._draw_mix(shape[0], n, generator) for _ in range(2))
        turn, offset = divmod(step, self.settings.generator_every)
        return AdAutoMixParams(
            *for_classifier,
            *for_generator,
            adversarial=turn % 2 == 0,
            trains_generator=offset == 0,
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
        keeps its own batch norm statistics, which every clean batch must update.
        """
        if "cosine" in self.generator_weights(params) or updates_running_stats(teacher):
            with repeated_updates(teacher, self.settings.clean_updates):
                clean = teacher.features(images, self.tap)
            assert clean.tap is not None
            return {"features": clean.tap, "logits": teacher.logits(clean.pooled, "mixed")}
        return {"features": teacher.feature_map(images, self.tap)}

    def mix(
        self, images: Tensor, targets: Tensor, params: AdAutoMixParams, **features: Tensor
    ) -> Mixed:
        """Return the mixes that the student is trained on; no gradient reaches the generator.

        Mixes with λ near 0 or 1 are plain Mixup.
        """
        perm, lam = params.classifier
        with torch.no_grad():
            masks = self.generator(features["features"], perm, lam, images.shape[2:])
            masks = use_lam_near_edge(masks, lam, self.settings.lam_margin)
            return mix_by_masks(images, targets, perm, lam, masks)

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
        classifier_loss, classifier_parts = self.classifier_loss(sources, student, params)
        # Minimized by the generator; student and teacher are held fixed.
        generator_loss, generator_parts = self.generator_loss(sources, student, teacher, params)
        return {"loss": classifier_loss + generator_loss, **classifier_parts, **generator_parts}

    def classifier_loss(
        self, sources: MixInputs, student: Classifier, params: AdAutoMixParams
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute L_C, the loss of the student.

        Returns:
            The loss, and its parts and the mixture accuracy, detached.
        """
        views = list(self.classifier_views(sources, params))
        loss = sources.images.new_zeros((), dtype=torch.float32)
        parts: dict[str, Tensor] = {}
        # Up to three forward passes with gradient, one per view: clean, plain Mixup, mixed.
        outputs = view_logits(student, views)
        for view, logits in zip(views, outputs, strict=True):
            part = self.cross_entropy(logits, view.targets)
            loss = loss + view.weight * part
            parts[view.name] = part.detach()
        # The last view is the generated mixes, unless an ablation leaves them out.
        if views:
            parts["mixture_accuracy"] = mixture_accuracy(outputs[-1], views[-1].targets)
        return loss, parts

    def classifier_views(self, sources: MixInputs, params: AdAutoMixParams) -> Iterator[View]:
        """Yield the batches that the student is trained on, in the order its batch norm sees."""
        s, images, targets = self.settings, sources.images, sources.targets
        if s.clean_term and s.alpha < 1:
            yield View("clean", 1 - s.alpha, "clean", images[sources.own], targets[sources.own])
        if s.mixup_term and s.alpha > 0:
            linear = mix_by_lam(images, targets, *params.classifier)
            yield View("mixup", s.alpha, "mixed", linear.images, linear.targets)
        if s.mixed_term:
            mixed = self.mix(images, targets, params, **sources.features)
            yield View("mixed", 1.0, "mixed", mixed.images, mixed.targets)

    def generator_loss(
        self, sources: MixInputs, student: Classifier, teacher: Classifier, params: AdAutoMixParams
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of the generator, a weighted sum of up to three terms.

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
        # Negative weights are the adversarial terms.
        for name, weight in weights.items():
            loss = loss + weight * parts[name]
        return loss, {f"generator_{name}": part.detach() for name, part in parts.items()}

    def generator_weights(self, params: AdAutoMixParams) -> dict[str, float]:
        """Return the weight of each term of the generator's loss at this step; empty if none."""
        if not params.trains_generator:
            return {}
        return generator_weights(self.settings, adversarial=params.adversarial)

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
