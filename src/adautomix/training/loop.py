"""The training loop: an epoch and a step, each readable from top to bottom."""

import time
from typing import Any, NoReturn

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
    world,
)
from adautomix.ema import momentum_schedule
from adautomix.errors import RunError
from adautomix.runs.build import build_networks, check_smallest_part, train_batches
from adautomix.runs.checkpoint import Checkpoint, kept_name, save_checkpoint
from adautomix.runs.folder import RunFolder
from adautomix.training.evaluator import Evaluator, best_so_far
from adautomix.training.graphs import GraphedStep
from adautomix.training.meters import NEVER, FiniteWatch, Meters
from adautomix.training.optim import build_optimizer, cosine_schedule, learning_rate
from adautomix.training.progress import Display
from adautomix.training.runtimes import StopRequest, pick_runtime, stop_on_signals
from adautomix.training.step import TrainStep
from adautomix.training.tensorboard import EventWriter

AGREE_EVERY = 20  # steps between the moments at which several processes ask whether to stop


class Trainer:
    """One run: networks, data, schedules and the folder they are written to.

    Args:
        config: the settings.
        data: the images.
        folder: where figures and checkpoints go.
        quiet: show no progress.
        command: the command line, for the summary.
        from_checkpoint: `restore` follows, so published weights need not be fetched.

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
        check_smallest_part(config, len(data.train), self.method)
        self.judge = Evaluator(
            config, self.data, self.method, self.student, self.teacher.model, self.device
        )
        self.optimizer = build_optimizer(config, self.student, self.method)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.runtime = pick_runtime(config, self.device)
        self.plain_step = TrainStep(
            config,
            self.batches,
            self.student,
            self.method,
            self.teacher,
            self.optimizer,
            self.scaler,
            compiled=self.runtime == "compile",
        )
        graphed = self.runtime == "graph"
        self.run_step = GraphedStep(self.plain_step) if graphed else self.plain_step
        self.steps = config.epochs * self.batches.steps_per_epoch
        warmup = round(config.warmup_epochs * self.batches.steps_per_epoch)
        self.lr_factors = cosine_schedule(self.steps, warmup)
        self.teacher_momentum = momentum_schedule(
            self.steps,
            start=config.teacher.momentum,
            end=config.teacher.momentum_end,
            constant_share=config.teacher.constant_share,
        )
        self.method.plan(self.steps, config.mix, config.seed)
        self.step = self.begun = 0
        self.events: EventWriter | None = None
        self.epoch_meters, self.log_meters = Meters(), Meters()
        self.finite = FiniteWatch(self.device)
        self.best: dict[str, Any] | None = None
        self.seconds_before = 0.0
        self.started = time.perf_counter()
        silent = quiet or not is_main()
        self.display = Display(f"{config.method} s{config.seed}", self.steps, quiet=silent)
        self.stop = StopRequest()

    # ------------------------------------------------------------------ the loop

    def fit(self, until: int | None = None) -> None:
        """Train to the end, or to a number of steps; on a request to stop, save and raise.

        Raises:
            RunError: stopped by a signal, or the loss is no longer finite.
        """
        last = min(until or self.steps, self.steps)
        self.started = time.perf_counter()
        if self.config.tensorboard and is_main():
            self.events = EventWriter(self.folder.path / "tensorboard", self.step)
        with stop_on_signals() as self.stop, self.display:
            while self.step < last:
                self.train_epoch(last)
                if self.step % self.batches.steps_per_epoch == 0:
                    self.finish_epoch()
                if self.step < self.steps and self.asked_to_stop():
                    self.save_and_stop()

    def train_epoch(self, last: int) -> None:
        """The rest of the current epoch, wherever the run stands; less if asked to stop."""
        epoch, done = divmod(self.step, self.batches.steps_per_epoch)
        self.epoch_meters.restart_clock()
        self.log_meters.restart_clock()
        for batch in self.batches.epoch(epoch, start=done):
            with self.display.compiling(self.runtime == "compile" and self.step == self.begun):
                self.train_step(batch)
            self.step += 1
            self.display.show(self.step)
            if self.step % self.config.log_every == 0:
                self.log_step()
            elif self.display.due():
                self.display.show(self.step, self.figures(self.log_meters))
            if self.step == last or self.asked_to_stop():
                return

    def asked_to_stop(self) -> bool:
        """Whether to stop here: where several processes train, at a step that all agree on."""
        if world() > 1 and self.step % AGREE_EVERY and self.step % self.batches.steps_per_epoch:
            return False
        return any_process(bool(self.stop))

    def train_step(self, batch: Batch) -> None:
        """One step and its figures. Nothing here waits for the device."""
        share, momentum = self.lr_factors[self.step], self.teacher_momentum[self.step]
        losses = self.run_step(self.plain_step.inputs(batch, self.step, share, momentum))
        self.method.after_step(self.step)
        self.epoch_meters.add(losses)
        self.log_meters.add(losses)
        self.finite.check(losses["loss"], self.step)

    def finish_epoch(self) -> None:
        """Evaluate, log, checkpoint."""
        epoch = self.step // self.batches.steps_per_epoch
        self.check_finite()
        row = {"kind": "epoch", "epoch": epoch, "step": self.step}
        row |= self.figures(self.epoch_meters, shared=True)
        self.epoch_meters.reset()
        last = self.step == self.steps
        if epoch % self.config.eval_every == 0 or last:
            row |= self.judge.evaluate()
        better = best_so_far(row, self.best)
        self.best = better or self.best
        self.log(row)
        self.display.epoch(row, self.config.epochs)
        if epoch in (1, (self.config.epochs + 1) // 2, self.config.epochs):
            self.judge.draw_samples(self.folder.samples / f"epoch-{epoch:04d}.png", self.step)
        every = self.config.keep_every
        kept = kept_name(epoch) if every and epoch % every == 0 else None
        if epoch % self.config.checkpoint_every == 0 or last or better or kept:
            self.save(best=better is not None, kept=kept)

    def save_and_stop(self) -> NoReturn:
        """Answer a request to stop.

        Raises:
            RunError: says how to go on.
        """
        self.save()
        raise RunError(
            f"stopped by {self.stop.signal_name} at step {self.step} of {self.steps}; "
            f"`adautomix resume {self.folder.path}` goes on from there"
        )

    # ------------------------------------------------------------------ figures

    def seconds(self) -> float:
        """Time spent on this run so far, earlier sittings included."""
        return self.seconds_before + time.perf_counter() - self.started

    def figures(self, meters: Meters, *, shared: bool = False) -> dict[str, Any]:
        """Means since the meters' reset, over all processes if `shared`; waits for the device."""
        means = mean_over_processes(meters.read()) if shared else meters.read()
        return {
            "loss": means.pop("loss"),
            "mixture_accuracy": means.pop("mixture_accuracy", None),
            "parts": means,
            "seconds": round(self.seconds(), 3),
            "images_per_second": round(meters.rate() * self.config.batch_size, 1),
        }

    def log_step(self) -> None:
        """A line of `metrics.jsonl` for the steps since the last one."""
        self.check_finite()
        figures = self.figures(self.log_meters, shared=True)
        self.log_meters.reset()
        self.display.show(self.step, figures)
        self.log(
            {
                "kind": "train",
                "step": self.step,
                "epoch": self.step / self.batches.steps_per_epoch,
                "lr": learning_rate(self.optimizer.param_groups[0], self.lr_factors[self.step - 1]),
                "teacher_momentum": self.teacher_momentum[self.step - 1],
                **figures,
            }
        )

    def log(self, row: dict[str, Any]) -> None:
        """A line of `metrics.jsonl`, and the same as TensorBoard events where asked."""
        if is_main():
            self.folder.log(row)
        if self.events is not None:
            self.events.add(row)

    def check_finite(self) -> None:
        """Stop a run whose loss or weights have left the numbers, before anything is saved.

        Raises:
            RunError: names the step.
        """
        norms = torch._foreach_norm(list(self.student.parameters()))
        self.finite.check(torch.stack(norms).sum(), self.step)
        bad = min_over_processes(self.finite.first_bad())
        if bad < NEVER:
            raise RunError(
                f"loss no longer finite at step {bad}: lower --lr or set --clip-grad 1; what was "
                f"saved before is kept in {self.folder.path}"
            )

    # ------------------------------------------------------------------ state

    def weights(self) -> dict[str, Tensor]:
        """Every tensor that is learned or averaged, by owner."""
        owners = {"student": self.student, "teacher": self.teacher.model, "method": self.method}
        return {
            f"{owner}.{name}": tensor
            for owner, module in owners.items()
            for name, tensor in module.state_dict().items()
        }

    def checkpoint(self) -> Checkpoint:
        """All that the run needs to go on exactly."""
        state = {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "epoch_meters": self.epoch_meters.state_dict(),
            "log_meters": self.log_meters.state_dict(),
            "best": self.best,
            "seconds": self.seconds(),
        }
        return Checkpoint(self.step, self.weights(), state)

    def save(self, *, best: bool = False, kept: str | None = None) -> None:
        """Write a checkpoint; never one whose loss was not finite."""
        self.check_finite()
        if is_main():
            save_checkpoint(self.folder.path, self.checkpoint(), best=best, kept=kept)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Stand where a checkpoint was written."""
        self.student.load_state_dict(checkpoint.part("student"))
        self.teacher.model.load_state_dict(checkpoint.part("teacher"))
        self.method.load_state_dict(checkpoint.part("method"))
        state = checkpoint.state
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch_meters.load_state_dict(state["epoch_meters"], self.device)
        self.log_meters.load_state_dict(state["log_meters"], self.device)
        self.best, self.seconds_before = state["best"], state["seconds"]
        self.step = self.begun = checkpoint.step
        if is_main():
            self.folder.forget_after(self.step)
