"""What every mixing method shares: the mixed batch, the draw, the loss, the interface.

Shapes, everywhere: B images a batch, N images a mix, K classes.
`perm[b, n]` is the row of the batch that is image n of mix b and `lam[b, n]` its share, so the
N-way case is written once and two-image methods are N = 2.
"""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.metrics import mixture_accuracy
from adautomix.mixing.ops import Mixed, soft_targets
from adautomix.mixing.params import MixParams, Shape
from adautomix.rng import generator_at

FeatureDict = dict[str, Tensor]


class MethodSettings(BaseModel):
    """The settings of one method; each method declares its own below this."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclasses.dataclass(frozen=True)
class MixInputs:
    """The images that are there to be mixed: a batch, over all processes and all of its parts.

    Attributes:
        images: normalized, `[B, C, H, W]`.
        targets: soft labels, `[B, K]`.
        seen: what the method looked up in the images beforehand, one row an image each.
        own: the rows whose mixes are computed here and now; all, unless the batch is split.
    """

    images: Tensor
    targets: Tensor
    features: dict[str, Tensor]
    own: slice = dataclasses.field(default_factory=lambda: slice(None))


def inside(model: Any, method: str, part: str) -> Any:
    """The network that a method looks inside of, for a part of it.

    Raises:
        UsageError: it has no such part, as it is none of `build_model`.
    """
    if not hasattr(model, part):
        raise UsageError(f"{method} looks inside the network: pass model=build_model(...)")
    return model


class Method(nn.Module, ABC):
    """A way to turn a batch into a loss; what it learns itself are its parameters.

    Args:
        settings: the method's own settings.
        num_classes: K.
        seed: names the run's random numbers.
        label_smoothing: share of each target spread over all classes, 0 to 1.
        model: the student; only methods that look inside it need it.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    cost: ClassVar[str] = "3F"
    needs: ClassVar[str] = "nothing"
    heads: ClassVar[tuple[str, ...]] = ("clean",)
    uses_teacher: ClassVar[bool] = False
    Settings: ClassVar[type[MethodSettings]] = MethodSettings

    def __init__(
        self,
        settings: MethodSettings,
        *,
        num_classes: int,
        seed: int = 0,
        label_smoothing: float = 0.0,
        model: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.settings: Any = settings
        self.num_classes = num_classes
        self.seed = seed
        self.label_smoothing = label_smoothing

    @property
    def min_batch(self) -> int:
        """The smallest batch that the method can mix."""
        return 1

    @property
    def eval_head(self) -> str:
        """The head whose predictions are the method's."""
        return "clean"

    @abstractmethod
    def make_params(self, shape: Shape, generator: torch.Generator, step: int) -> MixParams:
        """The random part of the mix of a batch of that shape, `[B, C, H, W]`, on the CPU."""

    @abstractmethod
    def mix(self, images: Tensor, targets: Tensor, params: Any, **features: Tensor) -> Mixed:
        """Apply a draw to images `[B, C, H, W]` and soft targets `[B, K]`; changes neither.

        `params` may hold fewer mixes than there are images. `features` is what `extract_features`
        returned.
        """

    def extract_features(
        self, images: Tensor, targets: Tensor, student: Any, teacher: Any, params: Any
    ) -> FeatureDict:
        """What the mix needs to know of the clean images, one row an image; most need nothing."""
        return {}

    def compute_loss(
        self, sources: MixInputs, student: Any, teacher: Any, params: Any
    ) -> dict[str, Tensor]:
        """The loss under a given draw; see `losses`. Here: mix, predict, soft cross-entropy."""
        mixed = self.mix(sources.images, sources.targets, params, **sources.features)
        return self.loss_from_logits(student(mixed.images), mixed.targets)

    def mix_batch(
        self, images: Tensor, targets: Tensor, student: Any, teacher: Any, params: Any
    ) -> Mixed:
        """The mixes that the student would learn from under a given draw: to be looked at."""
        features = self.extract_features(images, targets, student, teacher, params)
        return self.mix(images, targets, params, **features)

    def prepare(
        self, images: Tensor, labels: Tensor, student: Any, teacher: Any, params: Any
    ) -> MixInputs:
        """A batch with soft targets and with what the method sees in it."""
        targets = soft_targets(labels, self.num_classes)
        return MixInputs(
            images, targets, self.extract_features(images, targets, student, teacher, params)
        )

    def losses(
        self,
        images: Tensor,
        labels: Tensor,
        student: nn.Module,
        teacher: nn.Module,
        step: int,
    ) -> dict[str, Tensor]:
        """Draw for this step and compute its loss.

        Args:
            images: normalized, `[B, C, H, W]`.
            labels: class indices `[B]` or soft `[B, K]`.
            student: the trained network.
            teacher: its moving average.
            step: counts from 0; with the seed it names the random numbers.

        Returns:
            `loss`, whose backward gives every trainable part its own gradient and no other;
            `mixture_accuracy`, see `mixture_accuracy`; and named parts, detached.

        Raises:
            UsageError: the batch is smaller than a mix.
        """
        params = self.params_for_step(images.shape, step).to(images.device)
        sources = self.prepare(images, labels, student, teacher, params)
        return self.compute_loss(sources, student, teacher, params)

    def params_for_step(self, shape: Shape, step: int) -> MixParams:
        """The draw of one step of the run, for a batch of that shape, on the CPU."""
        if shape[0] < self.min_batch:
            raise UsageError(
                f"{self.name} mixes {self.min_batch} images and the batch holds {shape[0]}: "
                f"use a batch size of at least {self.min_batch}"
            )
        return self.make_params(shape, generator_at(self.seed, step, f"mix/{self.name}"), step)

    def after_step(self, step: int) -> None:
        """Called once the optimizer has stepped; most methods have nothing to do."""

    def learning_rates(self, lr: float, min_lr: float) -> tuple[float, float]:
        """First and last learning rate of what the method learns; the student's unless set."""
        return lr, min_lr

    def loss_from_logits(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The loss of predictions `[B, K]` under soft labels `[B, K]`, and what they captured."""
        return {
            "loss": self.cross_entropy(logits, targets),
            "mixture_accuracy": mixture_accuracy(logits, targets),
        }

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Soft cross-entropy in float32 with the run's label smoothing; mean over the batch."""
        return F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)


class InputMixing(Method):
    """A method that needs nothing but images and labels; `adautomix.mix` has it as a function."""

    by_name: ClassVar[dict[str, type["InputMixing"]]] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        InputMixing.by_name[cls.name] = cls
