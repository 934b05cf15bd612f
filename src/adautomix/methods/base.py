"""The interface of every mixing method.

Notation used throughout the package: B images per batch, N images per mix, M mixes (M = B unless a
batch is split), K classes. `perm[b, n]` is the row of the batch that is source n of mix b, and
`lam[b, n]` is the weight of that source. Methods that mix two images are the case N = 2.
"""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from typing_extensions import TypeVar

from adautomix.errors import UsageError
from adautomix.methods.facts import LabelRule, Paper, Requirement
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.decoupled import decoupled_regularizer
from adautomix.mixing.ops import Mixed, soft_targets
from adautomix.mixing.params import CleanParams, MixParams, Shape
from adautomix.mixing.schedule import MixSchedule
from adautomix.mixing.settings import MixSettings
from adautomix.models import Classifier, updates_running_stats
from adautomix.rng import generator_at

FeatureDict = dict[str, Tensor]
LossName = Literal["cross_entropy", "bce"]


class MethodSettings(BaseModel):
    """Base class of the settings of a method."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @property
    def step_cycle(self) -> int:
        """Number of steps after which the kinds of step repeat; 1 if all steps are alike."""
        return 1


S = TypeVar("S", bound=MethodSettings, default=Any)
P = TypeVar("P", bound=MixParams, default=Any)


@dataclasses.dataclass(frozen=True)
class MixInputs:
    """A batch that is ready to be mixed.

    With several processes it holds the images of all of them, because any two may be mixed.

    Attributes:
        images: normalized, `[B, C, H, W]`.
        targets: soft labels, float32 `[B, K]`.
        features: what `Method.extract_features` returned, one row per image.
        own: the rows whose mixes are computed here; all, unless the batch is split over
            processes or gradient accumulation steps.
    """

    images: Tensor
    targets: Tensor
    features: FeatureDict
    own: slice = dataclasses.field(default_factory=lambda: slice(None))


class Method(nn.Module, ABC, Generic[S, P]):
    """Turns a batch into a loss; its parameters are what the method itself learns.

    A subclass states the facts below, implements `make_params` and `mix`, and overrides `build` if
    it learns something or looks inside the network.

    Args:
        settings: an instance of the class's `Settings`.
        num_classes: number of classes, K.
        seed: random seed of the run; with the step number it determines every draw.
        label_smoothing: label smoothing of the cross-entropy, 0 to 1.
        model: the student; only methods that look inside the network need it.

    Attributes:
        names: names of all methods that are defined so far.
        name: name on the command line and in tables.
        summary: one line about what the method does.
        paper: where it was published; None for the baseline.
        requires: what it needs with its default settings.
        cost: forward passes per training step, counting a backward pass as two, with the default
            settings; plain training costs 3.
        label_rule: what decides the weight of each source in a label.
        label_note: one short sentence on why labels follow that rule.
        heads: classification heads that the network must have.
        supports_own_teacher_buffers: whether a teacher can keep batch norm statistics of its own,
            which it can if clean batches pass through it in training mode or it has none.
        needs_float32: whether the network's parameters must be float32, as those of what the
            method learns or adds to its images are.
        uses_teacher: whether the loss depends on the teacher; follows from `requires`.
    """

    names: ClassVar[set[str]] = set()
    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[Paper | None]
    requires: ClassVar[frozenset[Requirement]] = frozenset()
    cost: ClassVar[float] = 3.0
    label_rule: ClassVar[LabelRule] = LabelRule.PIXELS
    label_note: ClassVar[str] = "the weight of each source is its fraction of the pixels"
    heads: ClassVar[tuple[str, ...]] = ("clean",)
    supports_own_teacher_buffers: ClassVar[bool] = False
    needs_float32: ClassVar[bool] = False
    uses_teacher: ClassVar[bool] = False
    Settings: ClassVar[type[MethodSettings]] = MethodSettings

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.uses_teacher = Requirement.TEACHER in cls.requires
        if "name" in vars(cls):
            Method.names.add(cls.name)

    def __init__(
        self,
        settings: S,
        *,
        num_classes: int,
        seed: int = 0,
        label_smoothing: float = 0.0,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.settings: S = settings
        self.num_classes = num_classes
        self.seed = seed
        self.label_smoothing = label_smoothing
        self.schedule: MixSchedule | None = None
        self.steps: int | None = None
        self.loss_name: LossName = "cross_entropy"
        self.decouple = 0.0
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", None, persistent=False)
        self.build(model)

    def build(self, model: nn.Module | None) -> None:
        """Create what the method learns and read what it needs to know of the network.

        Called once, at the end of the constructor. Most methods need neither.

        Args:
            model: the student, or None.

        Raises:
            UsageError: the method cannot use this network.
        """

    def plan(self, steps: int | None, mix: MixSettings, seed: int) -> None:
        """State how long training is and when it mixes; without it every step mixes.

        Args:
            steps: optimizer steps of the whole training; None if unknown.
            mix: when to mix.
            seed: random seed of these decisions, the same in all processes.

        Raises:
            UsageError: the method cannot mix some images of a batch and leave others clean, or
                cannot use the decoupled regularizer.
        """
        self.check_schedule(mix)
        self.check_decoupled(mix.decouple, self.loss_name)
        self.decouple = mix.decouple
        self.steps, self.schedule = steps, MixSchedule(mix, steps or 1, seed)

    def use_loss(self, name: LossName) -> None:
        """Choose what compares logits with labels: the cross-entropy (default) or the binary one.

        The binary cross-entropy treats each class as a question of its own, so labels may name
        several classes or none.

        Raises:
            UsageError: the method does more than mix its input.
        """
        if name == "bce" and not isinstance(self, InputMixing):
            raise UsageError(
                f"{self.name} needs one class per image and the cross-entropy: for several labels "
                "per image, or loss = bce, use a method that only mixes its input: "
                f"{', '.join(sorted(InputMixing.by_name))}"
            )
        self.check_decoupled(self.decouple, name)
        self.loss_name = name

    def weigh_classes(self, weights: Tensor | None) -> None:
        """Weigh each class in the cross-entropy; None, the default, weighs all alike.

        Args:
            weights: at least 0, `[K]`. Their mean over the training images should be 1, so that
                the scale of the loss stays as it is.

        Raises:
            UsageError: the shape is wrong or a weight is negative or not finite.
        """
        if weights is not None:
            if weights.shape != (self.num_classes,):
                raise UsageError(
                    f"class_weights has shape {list(weights.shape)}: pass one weight per class, "
                    f"[{self.num_classes}]"
                )
            if not bool((weights.isfinite() & (weights >= 0)).all()):
                raise UsageError("class_weights must be finite and at least 0")
            weights = weights.float()
        self.class_weights = weights

    @classmethod
    def check_schedule(cls, mix: MixSettings) -> None:
        """Check that the method can mix as the settings ask for.

        Raises:
            UsageError: it cannot mix some images of a batch and leave others clean, or cannot use
                the decoupled regularizer.
        """
        if mix.per_sample and cls.compute_loss is not Method.compute_loss:
            raise UsageError(
                f"mix.per_sample: {cls.name} mixes all images of a step or none; leave it off, or "
                "use a method that only mixes its input, say cutmix"
            )
        cls.check_decoupled(mix.decouple)

    @classmethod
    def check_decoupled(cls, weight: float, loss: LossName = "cross_entropy") -> None:
        """Check that the decoupled regularizer can be added to the loss of the method.

        Raises:
            UsageError: it cannot, and its weight is not 0.
        """
        if weight and cls.compute_loss is not Method.compute_loss:
            raise UsageError(
                f"mix.decouple: the loss of {cls.name} is more than that of its mixes; leave it at "
                "0, or use a method that only mixes its input, say cutmix"
            )
        if weight and loss == "bce":
            raise UsageError("mix.decouple is defined for loss = cross_entropy: leave it at 0")

    @property
    def min_batch(self) -> int:
        """The smallest batch that the method can mix."""
        return 1

    def min_part(self, *, batch_norm: bool) -> int:
        """Return how many images each process, or part of an accumulated batch, needs.

        Args:
            batch_norm: whether the network has batch norm, which needs two images.
        """
        return 2 if batch_norm else 1

    @property
    def eval_head(self) -> str:
        """The head whose predictions are evaluated."""
        return "clean"

    @abstractmethod
    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> P:
        """Draw the random parameters of a mix, on the CPU.

        Args:
            shape: shape of the batch, `[B, C, H, W]`.
            generator: a CPU generator.
            step: number of the training step, from 0; only schedules depend on it.
        """

    @abstractmethod
    def mix(self, images: Tensor, targets: Tensor, params: P, **features: Tensor) -> Mixed:
        """Mix a batch; neither input is changed.

        Args:
            images: `[B, C, H, W]`.
            targets: soft labels, `[B, K]`.
            params: parameters of M mixes; M may be smaller than B.
            features: what `extract_features` returned for these images.
        """

    def extract_features(
        self, images: Tensor, targets: Tensor, student: Any, teacher: Any, params: P
    ) -> FeatureDict:
        """Compute what the mix needs to know of the clean images, one row per image.

        Most methods need nothing. No gradient flows through these features.

        Args:
            images: normalized, `[B, C, H, W]`.
            targets: soft labels, `[B, K]`.
            student: the network in training.
            teacher: its moving average.
            params: parameters of this step.
        """
        return {}

    def compute_loss(
        self, sources: MixInputs, student: Any, teacher: Any, params: P
    ) -> dict[str, Tensor]:
        """Compute the loss for given parameters; see `losses` for what is returned.

        The default mixes, predicts, and takes the soft cross-entropy.
        """
        mixed = self.mix(sources.images, sources.targets, params, **sources.features)
        images, targets = keep_some_clean(mixed, sources, params.coin)
        return self.loss_from_logits(student(images), targets)

    def clean_loss(self, sources: MixInputs, student: Any) -> dict[str, Tensor]:
        """Compute the loss of a step that mixes nothing, at the head that is evaluated."""
        images, targets = sources.images[sources.own], sources.targets[sources.own]
        # A network that is not ours has one head and no argument that names it.
        head = {} if self.eval_head == "clean" else {"head": self.eval_head}
        losses = self.loss_from_logits(student(images, **head), targets)
        return losses | {"clean": losses["loss"].detach()}

    def training_loss(
        self, sources: MixInputs, student: Any, teacher: Any, params: MixParams
    ) -> dict[str, Tensor]:
        """Compute the loss of a training step, which mixes or not; see `losses`."""
        if isinstance(params, CleanParams):
            return self.clean_loss(sources, student)
        return self.compute_loss(sources, student, teacher, cast(P, params))

    def mix_batch(
        self, images: Tensor, targets: Tensor, student: Any, teacher: Any, params: P
    ) -> Mixed:
        """Return the mixes that the student would learn from, for inspection."""
        features = self.extract_features(images, targets, student, teacher, params)
        return self.mix(images, targets, params, **features)

    def prepare(
        self, images: Tensor, labels: Tensor, student: Any, teacher: Any, params: MixParams
    ) -> MixInputs:
        """Convert labels to soft targets and extract the features of the clean images."""
        targets = soft_targets(labels, self.num_classes)
        if isinstance(params, CleanParams):
            self.update_statistics(teacher, images)
            return MixInputs(images, targets, {})
        features = self.extract_features(images, targets, student, teacher, cast(P, params))
        return MixInputs(images, targets, features)

    @torch.no_grad()
    def update_statistics(self, teacher: Any, images: Tensor) -> None:
        """Pass a clean batch through a teacher that keeps batch norm statistics of its own."""
        if self.uses_teacher and updates_running_stats(teacher):
            teacher(images)

    def losses(
        self,
        images: Tensor,
        labels: Tensor,
        student: nn.Module,
        teacher: nn.Module,
        step: int,
    ) -> dict[str, Tensor]:
        """Draw the parameters of a step and compute its loss.

        Args:
            images: normalized, `[B, C, H, W]`.
            labels: class indices `[B]` or soft labels `[B, K]`.
            student: the network in training.
            teacher: its moving average.
            step: number of the training step, from 0; with the seed it determines the draw.

        Returns:
            `loss`, a scalar whose backward pass gives each trainable part the gradient of its own
            objective; `mixture_accuracy`, see `mixture_accuracy`; and named parts of the loss,
            detached.

        Raises:
            UsageError: the batch is smaller than `min_batch`.
        """
        params = self.training_params(images.shape, step).to(images.device)
        sources = self.prepare(images, labels, student, teacher, params)
        return self.training_loss(sources, student, teacher, params)

    def training_params(self, shape: Shape, step: int) -> MixParams:
        """Draw the parameters of a training step, which may mix all, some or none of its images.

        Raises:
            UsageError: the batch is smaller than `min_batch`.
        """
        mixes = True if self.schedule is None else self.schedule.decide(step, shape[0])
        if mixes is False:
            return CleanParams()
        params = self.params_for_step(shape, step)
        return params if mixes is True else dataclasses.replace(params, coin=mixes)

    def params_for_step(self, shape: Shape, step: int) -> P:
        """Draw the parameters of the mixes of one step of the run, on the CPU.

        They are those of a step that mixes, whatever the schedule says.

        Raises:
            UsageError: the batch is smaller than `min_batch`.
        """
        if shape[0] < self.min_batch:
            raise UsageError(
                f"{self.name} mixes {self.min_batch} images and the batch holds {shape[0]}: "
                f"use a batch size of at least {self.min_batch}"
            )
        return self.make_params(shape, generator_at(self.seed, step, f"mix/{self.name}"), step)

    def after_step(self, step: int) -> None:
        """Called after each optimizer step; most methods have nothing to do."""

    @property
    def own_optimizer(self) -> bool:
        """Whether what the method learns has an AdamW of its own; else it is the student's."""
        return False

    @property
    def warms_up(self) -> bool:
        """Whether the learning rate of what the method learns warms up like the student's."""
        return True

    @property
    def own_optimizer_options(self) -> dict[str, Any]:
        """Options of its own AdamW besides learning rates, such as `betas` or `weight_decay`."""
        return {}

    def learning_rates(self, lr: float, min_lr: float) -> tuple[float, float]:
        """Return the first and last learning rate of what the method learns.

        Args:
            lr: first learning rate of the student.
            min_lr: last learning rate of the student.
        """
        return lr, min_lr

    def loss_from_logits(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return `loss` and `mixture_accuracy` of logits `[B, K]` under soft labels `[B, K]`."""
        function = self.binary_cross_entropy if self.loss_name == "bce" else self.cross_entropy
        loss = function(logits, targets)
        if self.decouple:
            regularizer = decoupled_regularizer(logits, targets, self.class_weights)
            loss = loss + self.decouple * regularizer
        return {"loss": loss, "mixture_accuracy": mixture_accuracy(logits, targets)}

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Soft cross-entropy in float32 with the run's label smoothing and class weights.

        The sum is divided by the number of images, not by the sum of their weights, so that the
        scale of the loss is the same for one-hot and for mixed labels.
        """
        return F.cross_entropy(
            logits.float(),
            targets,
            weight=self.class_weights,
            label_smoothing=self.label_smoothing,
        )

    def binary_cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Binary cross-entropy in float32, averaged over images and classes.

        Labels are smoothed as in `cross_entropy`; class weights multiply the terms of their class.
        """
        smooth = targets * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes
        return F.binary_cross_entropy_with_logits(logits.float(), smooth, weight=self.class_weights)

    def network_with(self, model: nn.Module | None, part: str) -> Classifier:
        """Return the network if it has the attribute `part` of `Classifier`.

        Raises:
            UsageError: it does not, because it was not made by `build_model`.
        """
        if not hasattr(model, part):
            raise UsageError(f"{self.name} looks inside the network: pass model=build_model(...)")
        return cast(Classifier, model)


def keep_some_clean(mixed: Mixed, sources: MixInputs, coin: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return mixed images and targets, with clean rows where `coin` is False.

    Args:
        mixed: M mixes.
        sources: the batch they were made of; row i of its own rows belongs to mix i.
        coin: bool `[M]`; None keeps all mixes.
    """
    if coin is None:
        return mixed.images, mixed.targets
    images, targets = sources.images[sources.own], sources.targets[sources.own]
    return (
        torch.where(coin[:, None, None, None], mixed.images, images),
        torch.where(coin[:, None], mixed.targets, targets),
    )


class InputMixing(Method[S, P]):
    """A method that needs nothing but images and labels.

    Each has a function of its own in `adautomix.functional`.
    """

    by_name: ClassVar[dict[str, type["InputMixing[Any, Any]"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        InputMixing.by_name[cls.name] = cls
