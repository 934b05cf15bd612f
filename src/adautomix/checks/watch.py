"""What reaches the network and the loss of somebody's loop, seen without touching its code.

The loop is fed batches in which all images are black but one, of noise: where it reaches the
network mixed, more than one image of the batch shines. While a step runs, PyTorch hands every call
of its functions to `Watch`, which looks at the first operands of convolutions and linear layers,
for images, and at the targets of losses.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from adautomix.errors import UsageError

ENTRANCES = (F.conv2d, F.linear)
LOSSES = (
    F.cross_entropy,
    F.nll_loss,
    F.kl_div,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
)
NOT_THE_USERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))

DIM = 0.002  # of all that shines in a batch: less is not seen
ROUNDING = 1e-4  # of brightness and of labels
FEWEST = 6  # images per batch, so that most stay black when one is mixed into others

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Loop:
    """A training loop, as far as the doctor calls it.

    A file that has `make_loop()`, which builds everything anew and returns a `Loop`, can be looked
    at: `adautomix doctor my_training.py`. In the simplest case

        def make_loop() -> Loop:
            training = Training(...)
            return Loop(training.train_step, training.loader, training.validate)

    Attributes:
        train_step: takes images `[B, C, H, W]` and labels as the loader gives them, and does all
            that is done in training with a batch: mixing, forward, loss, backward, optimizer.
        batches: (images, labels) of the loader, B at least 6. Only the first is read, for its
            shape and its classes: the doctor makes batches of its own after it.
        validate: takes images and labels too, and does what is done with a batch in validation.
        off_after: how many training steps mix, where mixing is to end before training does. The
            doctor takes them all: have it end after a few here.
    """

    train_step: Callable[[Tensor, Tensor], Any]
    batches: Iterable[Any]
    validate: Callable[[Tensor, Tensor], Any] | None = None
    off_after: int | None = None


@dataclass(frozen=True)
class LossCall:
    """One call of a loss.

    Attributes:
        name: of PyTorch's function.
        where: the user's file and line.
        classes: one class a row, `[M]`, where the targets name no more than that.
    """

    name: str
    where: str
    classes: Tensor | None


@dataclass
class StepTrace:
    """What was seen in one step.

    Attributes:
        batch: images that the loop was given.
        inputs: mean brightness of each image that entered a network, `[M]` for each entrance.
        losses: calls of losses.
    """

    batch: int
    inputs: list[Tensor] = field(default_factory=list)
    losses: list[LossCall] = field(default_factory=list)

    @property
    def mixed(self) -> list[Tensor]:
        """The inputs in which more images shine than were lit, as `shares_of_light`, `[M]` each.

        A batch may be there several times over, in one tensor: clean and mixed, or two views.
        """
        shares = [shares_of_light(rows) for rows in self.inputs]
        return [
            rows for rows in shares if int((rows > DIM).sum()) > max(1, len(rows) // self.batch)
        ]


class Watch(TorchFunctionMode):
    """Sees inputs and targets while it is entered; changes nothing."""

    def __init__(self, batch: Tensor) -> None:
        super().__init__()
        self.channels = {1, 3, batch.shape[1]}
        self.pixels = batch[0].numel()
        self.seen = StepTrace(len(batch))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.compiler.is_compiling():
            if func in ENTRANCES:
                self._look_at_input(args[0] if args else kwargs["input"])
            elif func in LOSSES:
                target = args[1] if len(args) > 1 else kwargs["target"]
                call = LossCall(func.__name__, users_line(), single_classes(target.detach()))
                self.seen.losses.append(call)
        return func(*args, **kwargs)

    def _look_at_input(self, values: Tensor) -> None:
        are_images = values.ndim == 4 and values.shape[1] in self.channels
        are_flat = values.ndim == 2 and values.shape[1] == self.pixels
        if are_images or are_flat:
            self.seen.inputs.append(values.detach().double().flatten(1).mean(dim=1).cpu())


def watch(call: Callable[[Tensor, Tensor], Any], batches: Iterable[Batch]) -> list[StepTrace]:
    """Call a part of a loop on each batch and see what it does.

    Raises:
        UsageError: no image was seen to enter a network.
    """
    steps = []
    for images, labels in batches:
        with Watch(images) as watching:
            call(images, labels)
        if not watching.seen.inputs:
            raise UsageError(
                "no image was seen to enter a convolution or linear layer: have make_loop build the"
                " network without torch.compile, and train_step call it"
            )
        steps.append(watching.seen)
    return steps


def lit_batches(loop: Loop, count: int) -> Iterator[Batch]:
    """Batches like the loop's first, all black but for one image each.

    Class indices are its classes in turn, so that few pairs of images are of one class.

    Raises:
        UsageError: the loop's batches are no images with labels, too small, or of one class.
    """
    first = next(iter(loop.batches), None)
    if not (isinstance(first, tuple | list) and len(first) == 2):
        raise UsageError("Loop.batches should give pairs (images, labels)")
    images, labels = first
    if images.ndim != 4 or len(images) < FEWEST:
        raise UsageError(
            f"Loop.batches gives images {list(images.shape)}: use [B, C, H, W] with B of {FEWEST} "
            "or more"
        )
    if labels.ndim == 1:
        classes = labels.unique()
        if len(classes) == 1:
            raise UsageError("Loop.batches begins with images of one class: shuffle them")
        labels = classes[torch.arange(len(labels)) % len(classes)]
    for step in range(count):
        yield lit(images, step % len(images)), labels.clone()


def lit(images: Tensor, row: int) -> Tensor:
    """Black images of that shape and kind, but for noise in one row."""
    noise = torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(row))
    brightest = 1 if images.is_floating_point() else 255
    black = torch.zeros_like(images)
    black[row] = (noise * brightest).to(images)
    return black


def shares_of_light(brightness: Tensor) -> Tensor:
    """How far each image is from what most are, by their brightness, as shares of the sum, `[M]`.

    Nothing but rounding errors is no light at all.
    """
    contrast = (brightness - brightness.median()).abs()
    return contrast / contrast.sum() if contrast.max() > ROUNDING else torch.zeros_like(contrast)


def single_classes(targets: Tensor) -> Tensor | None:
    """The classes `[M]` of targets that name one each: indices, or one-hot and smoothed rows.

    Smoothed rows of two classes look like mixes, and are taken for these.
    """
    if not targets.is_floating_point():
        return targets.flatten().cpu()
    rows = targets.float().reshape(len(targets), -1)
    if rows.shape[1] <= 2:
        is_one, classes = (rows <= ROUNDING) | (rows >= 1 - ROUNDING), rows[:, -1] > 0.5
    else:
        others = rows.sort(dim=1).values[:, :-1]
        is_one, classes = others[:, -1] - others[:, 0] <= ROUNDING, rows.argmax(dim=1)
    return classes.long().cpu() if bool(is_one.all()) else None


def users_line() -> str:
    """File and line of the innermost call that is the user's own."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(NOT_THE_USERS):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
