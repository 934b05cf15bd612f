"""What every mixing method shares: the mixed batch, the draw, the loss, the interface.

Shapes, everywhere: B images a batch, N images a mix, K classes.
`perm[b, n]` is the row of the batch that is image n of mix b and `lam[b, n]` its share, so the
N-way case is written once and two-image methods are N = 2.
"""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Protocol, Self

import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.rng import generator_at

Shape = Sequence[int]
Seen = dict[str, Tensor]


class MethodSettings(BaseModel):
    """The settings of one method; each method declares its own below this."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclasses.dataclass(frozen=True)
class Draw:
    """The random part of one mix, drawn on the CPU and apart from its use.

    Subclasses add tensors (boxes, masks, ratios), each with one row a mix, and Python values that
    hold for all.
    """

    def to(self, device: torch.device) -> Self:
        """The same draw with its tensors on `device`; the copy does not wait for the device."""
        moved = {
            field.name: value.to(device, non_blocking=True)
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **moved)

    def rows(self, some: slice) -> Self:
        """The draw of some of the mixes."""
        tensors = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        kept = {name: value[some] for name, value in tensors.items() if isinstance(value, Tensor)}
        return dataclasses.replace(self, **kept)


@dataclasses.dataclass(frozen=True)
class Sources:
    """The images that are there to be mixed: a batch, over all processes and all of its parts.

    Attributes:
        images: normalised, `[B, C, H, W]`.
        targets: soft labels, `[B, K]`.
        seen: what the method looked up in the images beforehand, one row an image each.
        own: the rows whose mixes are computed here and now; all, unless the batch is split.
    """

    images: Tensor
    targets: Tensor
    seen: dict[str, Tensor]
    own: slice = dataclasses.field(default_factory=lambda: slice(None))


class Shown(Protocol):
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
    shown: Shown | None = None

    @property
    def masks(self) -> Tensor | None:
        """Weight of each source at each pixel, float32 `[B, N, H, W]`; None where it is `lam`.

        Made anew at each call.
        """
        return None if self.shown is None else self.shown.float()

    def rows(self, some: slice | Tensor) -> Self:
        """Some of the mixes: a slice, indices, or true for each that is kept."""
        tensors = {name: value[some] for name, value in vars(self).items() if name != "shown"}
        masks = self.masks
        return dataclasses.replace(self, **tensors, shown=None if masks is None else masks[some])


def soft_targets(labels: Tensor, num_classes: int) -> Tensor:
    """Class indices `[B]` as one-hot rows; soft labels `[B, K]` pass through. Float32 `[B, K]`."""
    if labels.ndim == 2:
        return labels.float()
    return F.one_hot(labels.long(), num_classes).float()


def draw_permutations(batch: int, n: int, generator: torch.Generator) -> Tensor:
    """N independent permutations of the batch, `[B, N]`."""
    return torch.rand(n, batch, generator=generator).argsort(dim=1).T.contiguous()


def draw_partners(batch: int, generator: torch.Generator) -> Tensor:
    """Each image beside a random partner: `[B, 2]`, the first column is the image itself."""
    partner = torch.randperm(batch, generator=generator)
    return torch.stack([torch.arange(batch), partner], dim=1)


def draw_beta(count: int, n: int, a: float, generator: torch.Generator) -> Tensor:
    """`count` rows of N independent Beta(a, a) draws, `[count, N]`, float32 in (0, 1]."""
    # In double precision: gammas of a small shape underflow in float32, and two that have done
    # so would give 1/2 where Beta(a, a) has next to nothing.
    concentration = torch.full((count, n, 2), a, dtype=torch.float64)
    gamma: Tensor = torch._standard_gamma(concentration, generator=generator)
    draws = (gamma[..., 0] / gamma.sum(dim=-1)).float()
    return draws.clamp_min(torch.finfo(draws.dtype).tiny)  # shares u / Σu need a sum above 0


def draw_lam(batch: int, a: float, generator: torch.Generator, *, per_sample: bool) -> Tensor:
    """Shares (λ, 1 - λ) of two images with λ ~ Beta(a, a), `[B, 2]`.

    One λ serves the whole batch, as in the papers, or each mix has its own.
    """
    u = draw_beta(batch if per_sample else 1, 1, a, generator)
    return torch.cat([u, 1 - u], dim=1).expand(batch, 2).contiguous()


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
        shown=masks,
    )


def cells_to_pixels(cells: Tensor, height: int, width: int) -> Tensor:
    """Cells `[..., h, w]` laid over an image: each pixel `[..., H, W]` is the cell it lies in."""
    rows, columns = (
        torch.arange(size, device=cells.device) * count // size
        for size, count in ((height, cells.shape[-2]), (width, cells.shape[-1]))
    )
    return cells.index_select(-2, rows).index_select(-1, columns)


def inside(model: Any, method: str, part: str) -> Any:
    """The network that a method looks inside of, for a part of it.

    Raises:
        UsageError: it has no such part, as it is none of `build_model`.
    """
    if not hasattr(model, part):
        raise UsageError(f"{method} looks inside the network: pass model=build_model(...)")
    return model


def captured_share(logits: Tensor, targets: Tensor) -> Tensor:
    """Share of the true mixture among as many top predictions as the mixture has classes.

    Plain accuracy for one-hot targets; what "training accuracy" means under mixing otherwise.

    Args:
        logits: `[B, K]`.
        targets: soft labels `[B, K]`.

    Returns:
        The mean over the batch, 0 to 1, as a detached scalar.
    """
    with torch.no_grad():
        classes = (targets > 0).sum(dim=1, keepdim=True)
        by_rank = targets.gather(1, logits.argsort(dim=1, descending=True))
        counted = torch.arange(targets.shape[1], device=targets.device) < classes
        captured = (by_rank * counted).sum(dim=1) / targets.sum(dim=1)
        return captured.mean()


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
    def draw(self, shape: Shape, generator: torch.Generator, step: int) -> Draw:
        """The random part of the mix of a batch of that shape, `[B, C, H, W]`, on the CPU."""

    @abstractmethod
    def mix(self, images: Tensor, targets: Tensor, draw: Any, **seen: Tensor) -> Mixed:
        """Apply a draw to images `[B, C, H, W]` and soft targets `[B, K]`; changes neither.

        A draw may hold fewer mixes than there are images. `seen` is what `look` returned.
        """

    def look(self, images: Tensor, targets: Tensor, student: Any, teacher: Any, draw: Any) -> Seen:
        """What the mix needs to know of the clean images, one row an image; most need nothing."""
        return {}

    def terms(self, sources: Sources, student: Any, teacher: Any, draw: Any) -> dict[str, Tensor]:
        """The loss under a given draw; see `losses`. Here: mix, predict, soft cross-entropy."""
        mixed = self.mix(sources.images, sources.targets, draw, **sources.seen)
        return self.scored(student(mixed.images), mixed.targets)

    def sample(
        self, images: Tensor, targets: Tensor, student: Any, teacher: Any, draw: Any
    ) -> Mixed:
        """The mixes that the student would learn from under a given draw: to be looked at."""
        seen = self.look(images, targets, student, teacher, draw)
        return self.mix(images, targets, draw, **seen)

    def sources(
        self, images: Tensor, labels: Tensor, student: Any, teacher: Any, draw: Any
    ) -> Sources:
        """A batch with soft targets and with what the method sees in it."""
        targets = soft_targets(labels, self.num_classes)
        return Sources(images, targets, self.look(images, targets, student, teacher, draw))

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
            images: normalised, `[B, C, H, W]`.
            labels: class indices `[B]` or soft `[B, K]`.
            student: the trained network.
            teacher: its moving average.
            step: counts from 0; with the seed it names the random numbers.

        Returns:
            `loss`, whose backward gives every trainable part its own gradient and no other;
            `captured`, see `captured_share`; and named parts, detached.

        Raises:
            UsageError: the batch is smaller than a mix.
        """
        draw = self.draw_at(images.shape, step).to(images.device)
        sources = self.sources(images, labels, student, teacher, draw)
        return self.terms(sources, student, teacher, draw)

    def draw_at(self, shape: Shape, step: int) -> Draw:
        """The draw of one step of the run, for a batch of that shape, on the CPU."""
        if shape[0] < self.min_batch:
            raise UsageError(
                f"{self.name} mixes {self.min_batch} images and the batch holds {shape[0]}: "
                f"use a batch size of at least {self.min_batch}"
            )
        return self.draw(shape, generator_at(self.seed, step, f"mix/{self.name}"), step)

    def after_step(self, step: int) -> None:
        """Called once the optimiser has stepped; most methods have nothing to do."""

    def learning_rates(self, lr: float, min_lr: float) -> tuple[float, float]:
        """First and last learning rate of what the method learns; the student's unless set."""
        return lr, min_lr

    def scored(self, logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """The loss of predictions `[B, K]` under soft labels `[B, K]`, and what they captured."""
        return {
            "loss": self.cross_entropy(logits, targets),
            "captured": captured_share(logits, targets),
        }

    def cross_entropy(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Soft cross-entropy in float32 with the run's label smoothing; mean over the batch."""
        return F.cross_entropy(logits.float(), targets, label_smoothing=self.label_smoothing)


class InputMixing(Method):
    """A method that needs nothing but images and labels: `adautomix.mix` has it as a function."""
