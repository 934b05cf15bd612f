"""Record what reaches the network and the loss in a training loop, without changing its code.

The loop is fed batches in which one image is noise and all others are black. If the batch reaches
the network mixed, more than one of its images is bright. While a step runs, `StepTracer` intercepts
the calls of PyTorch functions. It looks at the inputs of convolutions and linear layers, for
images, and at the targets of losses.
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

INPUT_FUNCTIONS = (F.conv2d, F.linear)
"""Functions whose first argument may be a batch of images."""
LOSS_FUNCTIONS = (
    F.cross_entropy,
    F.nll_loss,
    F.kl_div,
    F.binary_cross_entropy,
    F.binary_cross_entropy_with_logits,
)
LIBRARY_FOLDERS = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
"""Folders whose code is not the user's."""

MIN_FRACTION = 0.002  # of the brightness of a batch; darker images count as black
ROUNDING = 1e-4  # tolerance for brightness and for labels
MIN_BATCH = 6  # images per batch, so that most images stay black when one is mixed into others


@dataclass(frozen=True)
class Loop:
    """A training loop as the doctor calls it.

    `adautomix doctor my_training.py` calls the function `make_loop` of that file, which builds
    everything and returns a `Loop`. In the simplest case:

        def make_loop() -> Loop:
            training = Training(...)
            return Loop(training.train_step, training.loader, training.validate)

    Attributes:
        train_step: takes images `[B, C, H, W]` and labels as the loader yields them, and does
            everything that training does with a batch: mixing, forward pass, loss, backward pass
            and optimizer step.
        batches: (images, labels) as the loader yields them, with B at least 6. Only the first
            batch is read, for its shape and its classes; the doctor makes its own batches.
        validate: takes the same arguments and does what validation does with a batch.
        off_after: number of training steps after which mixing ends, if it ends before training
            does. The doctor runs all of them, so let mixing end after a few steps here.
    """

    train_step: Callable[[Tensor, Tensor], Any]
    batches: Iterable[Any]
    validate: Callable[[Tensor, Tensor], Any] | None = None
    off_after: int | None = None


@dataclass(frozen=True)
class LossCall:
    """One call of a loss function.

    Attributes:
        name: name of PyTorch's function.
        where: the user's file and line.
        classes: int64 `[M]` if the targets name one class per row, else None.
    """

    name: str
    where: str
    classes: Tensor | None


@dataclass
class StepTrace:
    """What was recorded during one step.

    Attributes:
        batch: number of images that the loop was given.
        inputs: for each call with a batch of images, the mean brightness of each image, `[M]`.
        losses: calls of loss functions.
    """

    batch: int
    inputs: list[Tensor] = field(default_factory=list)
    losses: list[LossCall] = field(default_factory=list)

    @property
    def mixed(self) -> list[Tensor]:
        """The inputs with too many bright images, as `brightness_fractions`, `[M]` each.

        One tensor may contain the batch several times, for example clean and mixed images or two
        views of them; then one bright image per copy is allowed.
        """
        fractions = [brightness_fractions(brightness) for brightness in self.inputs]
        return [
            rows
            for rows in fractions
            if int((rows > MIN_FRACTION).sum()) > max(1, len(rows) // self.batch)
        ]


class StepTracer(TorchFunctionMode):
    """Context in which inputs of networks and targets of losses are recorded.

    Args:
        images: the batch that the loop is given, `[B, C, H, W]`.

    Attributes:
        trace: what has been recorded.
    """

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.channels = {1, 3, images.shape[1]}
        self.pixels = images[0].numel()
        self.trace = StepTrace(len(images))

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if not torch.compiler.is_compiling():
            if func in INPUT_FUNCTIONS:
                self._record_input(args[0] if args else kwargs["input"])
            elif func in LOSS_FUNCTIONS:
                target = args[1] if len(args) > 1 else kwargs["target"]
                classes = single_class_targets(target.detach())
                self.trace.losses.append(LossCall(func.__name__, user_location(), classes))
        return func(*args, **kwargs)

    def _record_input(self, values: Tensor) -> None:
        are_images = values.ndim == 4 and values.shape[1] in self.channels
        are_flat_images = values.ndim == 2 and values.shape[1] == self.pixels
        if are_images or are_flat_images:
            self.trace.inputs.append(values.detach().double().flatten(1).mean(dim=1).cpu())


def trace_steps(
    function: Callable[[Tensor, Tensor], Any], batches: Iterable[tuple[Tensor, Tensor]]
) -> list[StepTrace]:
    """Call a function with each batch (images, labels) and record what it does.

    Raises:
        UsageError: no image reached a network.
    """
    traces = []
    for images, labels in batches:
        with StepTracer(images) as tracer:
            function(images, labels)
        if not tracer.trace.inputs:
            raise UsageError(
                "no image entered a convolution or a linear layer: let make_loop build the network "
                "without torch.compile, and let train_step call it"
            )
        traces.append(tracer.trace)
    return traces


def probe_batches(loop: Loop, count: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches in the form of the loop's first one, in which all images but one are black.

    If the labels are class indices, the classes alternate, so that few pairs of images have the
    same class.

    Raises:
        UsageError: the loop's batches are not images with labels, too small, or of one class.
    """
    first = next(iter(loop.batches), None)
    if not (isinstance(first, tuple | list) and len(first) == 2):
        raise UsageError("Loop.batches should yield pairs (images, labels)")
    images, labels = first
    if images.ndim != 4 or len(images) < MIN_BATCH:
        raise UsageError(
            f"Loop.batches yields images {list(images.shape)}: use [B, C, H, W] with B of "
            f"{MIN_BATCH} or more"
        )
    if labels.ndim == 1:
        classes = labels.unique()
        if len(classes) == 1:
            raise UsageError("Loop.batches starts with images of one class: shuffle them")
        labels = classes[torch.arange(len(labels)) % len(classes)]
    for step in range(count):
        yield probe_images(images, step % len(images)), labels.clone()


def probe_images(images: Tensor, row: int) -> Tensor:
    """Black images of the same shape and dtype, with noise in one row."""
    noise = torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(row))
    brightest = 1 if images.is_floating_point() else 255
    probe = torch.zeros_like(images)
    probe[row] = (noise * brightest).to(images)
    return probe


def brightness_fractions(brightness: Tensor) -> Tensor:
    """Each image's fraction of the total contrast to the median brightness, `[M]`.

    All fractions are 0 if the images differ by rounding errors only.

    Args:
        brightness: mean brightness of each image, `[M]`.
    """
    contrast = (brightness - brightness.median()).abs()
    return contrast / contrast.sum() if contrast.max() > ROUNDING else torch.zeros_like(contrast)


def single_class_targets(targets: Tensor) -> Tensor | None:
    """The classes int64 `[M]` if every target names one class, else None.

    Class indices, one-hot rows and smoothed one-hot rows name one class. With two classes a
    smoothed row cannot be told from a mix, and counts as one.
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


def user_location() -> str:
    """File and line of the innermost call in the user's own code."""
    frame = sys._getframe(1)
    while frame.f_back and frame.f_code.co_filename.startswith(LIBRARY_FOLDERS):
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
