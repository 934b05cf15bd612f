"""The training loop: steps, epochs, logging and checkpoints."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import torch
from torch import Tensor

from adautomix.config import TrainConfig
from adautomix.data import Batch, ImageData
from adautomix.device import keep_freed_memory, pick_device
from adautomix.distributed import (
    any_process,
    is_main,
    mean_over_processes,
    min_over_processes,
    world_size,
)
from adautomix.ema import momentum_schedule
from adautomix.errors import RunError, StoppedError, UsageError
from adautomix.models import BACKBONE, NetworkPart, part_up_to
from adautomix.runs.build import (
    build_networks,
    check_smallest_part,
    data_info,
    prepare_loss,
    train_batches,
)
from adautomix.runs.checkpoint import (
    Checkpoint,
    epoch_checkpoint_name,
    resumable_checkpoints,
    save_checkpoint,
)
from adautomix.runs.folder import RunFolder
from adautomix.runs.schema import BestEpoch, EpochRow, Row, TrainRow
from adautomix.training.evaluator import Evaluator, best_so_far
from adautomix.training.graphs import GraphedStep
from adautomix.training.loggers.open import Loggers, open_loggers
from adautomix.training.meters import NEVER, Figures, FiniteWatch, Meters
from adautomix.training.optim import (
    build_method_optimizer,
    build_optimizer,
    cosine_schedule,
    learning_rate,
)
from adautomix.training.progress import Display
from adautomix.training.runtimes import StopRequest, pick_runtime, stop_on_signals
from adautomix.training.step import TrainStep

MAX_STEPS = 10_000_000  # the schedules hold two numbers per step
AGREE_EVERY = 20  # steps between two exchanges about whether any process was asked to stop


class Trainer:
    """Trains one run: owns the networks, the data, the schedules and the run folder.

    Args:
        config: the settings.
        data: the images.
        folder: where metrics and checkpoints are written.
        quiet: show no progress.
        command: the command line, for the summary.
        from_checkpoint: whether `restore` will be called, which makes initial weights unnecessary.

    Raises:
        UsageError: the settings do not fit the data.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: ImageData,
        folder: RunFolder,
        *,
        quiet: bool = False,
        command: str = "",
        from_checkpoint: bool = False,
    ) -> None:
        self.config, self.folder, self.command = config, folder, command
        self.device = pick_device(config.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.data = data.to(self.device)
        self.batches = train_batches(config, self.data, self.device)
        self.student, self.method, self.teacher = build_networks(
            config,
            num_classes=len(data.classes),
            image_size=data.image_size,
            device=self.device,
            from_checkpoint=from_checkpoint,
        )
        check_patience(config, self.data)
        prepare_loss(config, self.data, self.method)
        check_smallest_part(config, len(data.train), self.method, self.student)
        self.evaluator = Evaluator(
            config, self.data, self.method, self.student, self.teacher.model, self.device
        )
        self.optimizer = build_optimizer(config, self.student, self.method)
        self.method_optimizer = build_method_optimizer(config, self.method)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.runtime = pick_runtime(config, self.device)
        self.eager_step = TrainStep(
            config,
            self.batches,
            self.student,
            self.method,
            self.teacher,
            [optimizer for optimizer in (self.optimizer, self.method_optimizer) if optimizer],
            self.scaler,
            compiled=self.runtime == "compile",
        )
        graphed = self.runtime == "graph"
        self.run_step = GraphedStep(self.eager_step) if graphed else self.eager_step
        self.steps = count_steps(config.epochs, self.batches.steps_per_epoch)
        warmup = round(config.warmup_epochs * self.batches.steps_per_epoch)
        hold = self.batches.steps_per_epoch if config.lr_update == "epoch" else 1
        self.probe_steps = config.probe_epochs * self.batches.steps_per_epoch
        self.probed_part = (
            part_up_to(self.student, BACKBONE) if config.probe_epochs else NetworkPart()
        )
        self.lr_factors = cosine_schedule(self.steps, warmup, hold, probe=self.probe_steps)
        # The method's own parameters follow the same cosine, some methods without the warm-up.
        self.method_lr_factors = (
            None
            if self.method.warms_up
            else cosine_schedule(self.steps, 0, hold, probe=self.probe_steps)
        )
        self.teacher_momentum = momentum_schedule(
            self.steps,
            start=config.teacher.momentum,
            end=config.teacher.momentum_end,
            constant_share=config.teacher.constant_share,
        )
        self.method.plan(self.steps, config.mix, config.seed)
        self.step = self.start_step = 0
        self.loggers = Loggers()
        self.epoch_meters, self.log_meters = Meters(), Meters()
        self.finite = FiniteWatch(self.device)
        self.best: BestEpoch | None = None
        self.stale = 0  # evaluations since the best one
        self.seconds_before = 0.0
        self.started = time.perf_counter()
        silent = quiet or not is_main()
        self.display = Display(self.steps, config.epochs, quiet=silent)
        self.stop = StopRequest()
        # Called with the row of each epoch; what it raises ends the training.
        self.on_epoch: Callable[[EpochRow], None] = lambda row: None

    # ------------------------------------------------------------------ the loop

    def fit(self, until: int | None = None) -> None:
        """Train until the last step, or until the step `until`.

        Raises:
            RunError: a signal asked the run to stop (a checkpoint was saved), or the loss or the
                weights became NaN or infinite.
        """
        last = min(until or self.steps, self.steps)
        self.started = time.perf_counter()
        with stop_on_signals() as self.stop, self.display, self.opened_loggers():
            while self.step < last and not self.stopped_early:
                self.train_epoch(last)
                if self.step % self.batches.steps_per_epoch == 0:
                    self.finish_epoch()
                if not self.ended and self.stop_requested():
                    self.save_and_stop()

    @contextmanager
    def opened_loggers(self) -> Iterator[None]:
        """Log rows where the settings say so, in the main process and while the block runs."""
        if not is_main():
            yield
            return
        folder = self.folder.path
        with open_loggers(self.config, folder, self.step, self.display.say) as self.loggers:
            yield

    @property
    def stopped_early(self) -> bool:
        """Whether the settings' number of evaluations in a row brought nothing better."""
        return self.config.patience is not None and self.stale >= self.config.patience

    @property
    def ended(self) -> bool:
        """Whether the run has no steps left."""
        return self.step >= self.steps or self.stopped_early

    def train_epoch(self, last: int) -> None:
        """Train the rest of the current epoch, or less after `last` steps or a request to stop."""
        epoch, done = divmod(self.step, self.batches.steps_per_epoch)
        self.epoch_meters.restart_clock()
        self.log_meters.restart_clock()
        for batch in self.batches.epoch(epoch, start=done):
            first_compiled = self.runtime == "compile" and self.step == self.start_step
            with self.display.compiling(first_compiled):
                self.train_step(batch)
            self.step += 1
            self.display.show(self.step)
            if self.step % self.config.log_every == 0:
                self.log_step()
            elif self.display.due():
                self.display.show(self.step, self.figures(self.log_meters))
            if self.step == last or self.stop_requested():
                return

    def stop_requested(self) -> bool:
        """Whether to stop after this step.

        Several processes only ask one another every `AGREE_EVERY` steps and after each epoch, so
        that all of them stop after the same step.
        """
        if (
            world_size() > 1
            and self.step % AGREE_EVERY
            and self.step % self.batches.steps_per_epoch
        ):
            return False
        return any_process(bool(self.stop))

    def train_step(self, batch: Batch) -> None:
        """Train on one batch and record its losses, without waiting for the device."""
        # Train only the heads at first, and everything from the end of that phase on.
        if (probing := self.step < self.probe_steps) != self.eager_step.probing:
            self.eager_step.probe(self.probed_part, probing=probing)
        # Look up this step's schedules and draw its random numbers on the host.
        lr_factor, momentum = self.lr_factors[self.step], self.teacher_momentum[self.step]
        method_lr = self.method_lr_factors[self.step] if self.method_lr_factors else None
        inputs = self.eager_step.inputs(batch, self.step, lr_factor, momentum, method_lr)
        # Update student, method and teacher.
        losses = self.run_step(inputs)
        # Let the method update state that is not trained by gradients.
        self.method.after_step(self.step)
        # Accumulate the losses on the device; they are read when a row is logged.
        self.epoch_meters.add(losses)
        self.log_meters.add(losses)
        self.finite.check(losses["loss"], self.step)

    def finish_epoch(self) -> None:
        """Evaluate, log and save a checkpoint after an epoch, each as often as the settings ask."""
        epoch = self.step // self.batches.steps_per_epoch
        # Never evaluate or save a network that diverged.
        self.check_finite()
        # Read the training figures of the epoch.
        figures = self.figures(self.epoch_meters, all_processes=True)
        self.epoch_meters.reset()
        # Evaluate student and teacher, and find out whether one of them is the best so far.
        due = epoch % self.config.eval_every == 0 or self.ended
        scores = self.evaluator.evaluate() if due else {}
        row = EpochRow(epoch=epoch, step=self.step, **figures, **scores)
        better = best_so_far(row, self.best)
        self.best = better or self.best
        if due:  # Patience begins when the whole network is trained.
            probing = epoch <= self.config.probe_epochs
            self.stale = 0 if better or probing else self.stale + 1
        # Log the row, and draw mixes after the first, the middle and the last epoch.
        self.log(row)
        self.display.epoch(row, self.config.epochs)
        if epoch in (1, (self.config.epochs + 1) // 2) or self.ended:
            self.evaluator.draw_samples(self.folder.samples / f"epoch-{epoch:04d}.png", self.step)
        # Save a checkpoint last, so that a run resumed from it need not repeat anything above.
        every = self.config.keep_every
        kept = epoch_checkpoint_name(epoch) if every and epoch % every == 0 else None
        if epoch % self.config.checkpoint_every == 0 or self.ended or better or kept:
            self.save(best=better is not None, kept=kept)
        self.on_epoch(row)

    def save_and_stop(self) -> NoReturn:
        """Save a checkpoint and end the run because a signal asked for it.

        Raises:
            StoppedError: always; the message says how to continue.
        """
        self.save()
        raise StoppedError(
            f"stopped by {self.stop.signal_name} at step {self.step} of {self.steps}; "
            f"continue with `adautomix resume {self.folder.path}`"
        )

    # ------------------------------------------------------------------ figures

    def seconds(self) -> float:
        """Seconds spent on this run so far, including time before a resume."""
        return self.seconds_before + time.perf_counter() - self.started

    def figures(self, meters: Meters, *, all_processes: bool = False) -> Figures:
        """Mean losses since the meters were reset, and the speed. Waits for the device.

        Args:
            meters: the meters to read.
            all_processes: average over all processes, which must all call this.
        """
        means = meters.read()
        if all_processes:
            means = mean_over_processes(means)
        return {
            "loss": means.pop("loss"),
            "mixture_accuracy": means.pop("mixture_accuracy", None),
            "parts": means,
            "seconds": round(self.seconds(), 3),
            "images_per_second": round(meters.rate() * self.config.batch_size, 1),
        }

    def log_step(self) -> None:
        """Log a row for the steps since the last one."""
        self.check_finite()
        figures = self.figures(self.log_meters, all_processes=True)
        self.log_meters.reset()
        self.display.show(self.step, figures)
        # That of the heads; with layer_decay the layers below have lower ones.
        rates = {"max_lr": self.config.lr, "min_lr": self.config.min_lr}
        lr = learning_rate(rates, self.lr_factors[self.step - 1])
        row = TrainRow(
            step=self.step,
            epoch=self.step / self.batches.steps_per_epoch,
            lr=float(lr),
            teacher_momentum=self.teacher_momentum[self.step - 1],
            **figures,
        )
        self.log(row)

    def log(self, row: Row) -> None:
        """Append a row to `metrics.jsonl`, and to the loggers that the settings name."""
        if is_main():
            self.folder.log(row)
            self.loggers.add(row)

    def check_finite(self) -> None:
        """End a run whose loss or weights became NaN or infinite, before anything is saved.

        Raises:
            RunError: names the first such step.
        """
        norms = torch._foreach_norm(list(self.student.parameters()))
        self.finite.check(torch.stack(norms).sum(), self.step)
        bad = min_over_processes(self.finite.first_bad())
        if bad < NEVER:
            kept = f"earlier checkpoints are kept in {self.folder.path}"
            if not resumable_checkpoints(self.folder.path):
                kept = "nothing was saved, so that the same --out can be used"
            raise RunError(
                f"the loss became NaN or infinite at step {bad}: lower --lr or set --clip-grad 1; "
                f"{kept}"
            )

    # ------------------------------------------------------------------ state

    def weights(self) -> dict[str, Tensor]:
        """Every parameter and buffer, named "student.…", "teacher.…" or "method.…"."""
        owners = {"student": self.student, "teacher": self.teacher.model, "method": self.method}
        return {
            f"{owner}.{name}": tensor
            for owner, module in owners.items()
            for name, tensor in module.state_dict().items()
        }

    def checkpoint(self) -> Checkpoint:
        """The complete state of the run after this step."""
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch_meters": self.epoch_meters.state_dict(),
            "log_meters": self.log_meters.state_dict(),
            "best": self.best and self.best.model_dump(),
            "stale": self.stale,
            "seconds": self.seconds(),
        }
        if self.method_optimizer is not None:
            state["method_optimizer"] = self.method_optimizer.state_dict()
        settings, facts = self.config.resolved(), data_info(self.data)
        return Checkpoint(self.step, self.weights(), state, settings, facts)

    def save(self, *, best: bool = False, kept: str | None = None) -> None:
        """Save a checkpoint, see `save_checkpoint`.

        Raises:
            RunError: the loss or the weights are not finite, or the disk is full.
        """
        self.check_finite()
        if is_main():
            self.folder.flush_rows()
            save_checkpoint(self.folder.path, self.checkpoint(), best=best, kept=kept)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the state saved in a checkpoint, and delete the rows logged after it."""
        self.student.load_state_dict(checkpoint.part("student"))
        self.teacher.model.load_state_dict(checkpoint.part("teacher"))
        self.method.load_state_dict(checkpoint.part("method"))
        state = checkpoint.state
        self.optimizer.load_state_dict(state["optimizer"])
        if self.method_optimizer is not None:
            self.method_optimizer.load_state_dict(state["method_optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch_meters.load_state_dict(state["epoch_meters"], self.device)
        self.log_meters.load_state_dict(state["log_meters"], self.device)
        self.best = BestEpoch.model_validate(state["best"]) if state["best"] else None
        self.stale = state.get("stale", 0)  # checkpoints of earlier versions have none
        self.seconds_before = state["seconds"]
        self.step = self.start_step = checkpoint.step
        if is_main():
            self.folder.truncate_after(self.step)


def check_patience(config: TrainConfig, data: ImageData) -> None:
    """Check that there are images which may decide when to stop.

    Raises:
        UsageError: `patience` is set, and no images are held out for validation.
    """
    if config.patience is not None and data.val is None:
        raise UsageError(
            f"patience = {config.patience} needs validation images, because test images must not "
            "decide when training stops: set val_fraction, say 0.1, or bring a val folder"
        )


def count_steps(epochs: int, steps_per_epoch: int) -> int:
    """The optimizer steps of a run.

    Raises:
        UsageError: there are more than any run has, which would fill the memory.
    """
    steps = epochs * steps_per_epoch
    if steps > MAX_STEPS:
        raise UsageError(
            f"epochs = {epochs} are {steps} steps of {steps_per_epoch} per epoch, and a run has at "
            f"most {MAX_STEPS}: use at most {MAX_STEPS // steps_per_epoch} epochs"
        )
    return steps
