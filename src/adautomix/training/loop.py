"""The training loop: an epoch and a step, each readable from top to bottom."""

import contextlib
import dataclasses
import time
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from adautomix.config import TrainConfig
from adautomix.data import ImageData, load_data
from adautomix.data.pipeline import TrainBatches, eval_batches
from adautomix.errors import AdAutoMixError, RunError, UsageError
from adautomix.evaluation.accuracy import Scores, evaluate
from adautomix.methods import Method, find_method
from adautomix.models import Classifier, build_model, evaluating, frozen_statistics
from adautomix.reporting.grid import mix_grid
from adautomix.reporting.preview import data_batch, mix_rows
from adautomix.rng import generator_at, seed_at
from adautomix.training.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from adautomix.training.display import Display
from adautomix.training.meters import FiniteWatch, Meters
from adautomix.training.optim import build_optimizer, cosine_schedule, set_learning_rate
from adautomix.training.run_folder import RunFolder
from adautomix.training.runtime import (
    StopRequest,
    autocast,
    describe_device,
    peak_memory_mib,
    pick_device,
    stop_on_signals,
    versions,
)
from adautomix.training.teacher import Teacher, momentum_schedule

PROBE_IMAGES = 512
SAMPLE_ROWS = 4


@dataclasses.dataclass(frozen=True)
class RunResult:
    """What a finished run gave.

    Attributes:
        folder: the run folder.
        final: scores of "student" and "teacher" on the test set after the last epoch.
        summary: everything in `summary.json`.
    """

    folder: Path
    final: dict[str, Scores]
    summary: dict[str, Any]


def load_images(config: TrainConfig, *, progress: bool = True) -> ImageData:
    """The data set that a run asks for."""
    return load_data(
        config.data,
        root=config.data_root,
        download=config.download,
        image_size=config.image_size,
        per_class=config.per_class,
        test_fraction=config.test_fraction,
        val_fraction=config.val_fraction,
        seed=config.seed,
        skip_bad=config.skip_bad,
        workers=config.workers,
        progress=progress,
    )


def build_networks(
    config: TrainConfig, *, num_classes: int, image_size: int, device: torch.device
) -> tuple[Classifier, Method, Teacher[Classifier]]:
    """The student, the method and the teacher at the start of a run."""
    cls = find_method(config.method)
    seed = seed_at(config.seed, 0, "weights")
    student = build_model(
        config.model,
        num_classes,
        stem=config.stem,
        width=config.width,
        pretrained=config.pretrained,
        image_size=image_size,
        drop_path=config.drop_path,
        heads=cls.heads,
        options=config.model_options,
        generator_seed=seed,
    )
    torch.manual_seed(seed)
    method = cls(
        config.method_settings,
        num_classes=num_classes,
        seed=config.seed,
        label_smoothing=config.label_smoothing,
        model=student,
    )
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    student = student.to(device, memory_format=layout)  # type: ignore[call-overload]
    return student, method.to(device), Teacher(student, config.teacher.buffers)


class Trainer:
    """One run: networks, data, schedules and the folder they are written to.

    Args:
        config: the settings.
        data: the images.
        folder: where figures and checkpoints go.
        quiet: show no progress.
        command: the command line, for the summary.

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
    ) -> None:
        self.config, self.folder, self.command = config, folder, command
        self.device = pick_device(config.device)
        self.data = data.to(self.device)
        self.batches = train_batches(config, self.data, self.device)
        self.student, self.method, self.teacher = build_networks(
            config,
            num_classes=len(data.classes),
            image_size=data.image_size,
            device=self.device,
        )
        check_smallest_part(config, len(data.train), self.method)
        if config.compile:
            setattr(self.method, "terms", torch.compile(self.method.terms))  # noqa: B010
        self.optimizer = build_optimizer(config, self.student, self.method)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.steps = config.epochs * self.batches.steps_per_epoch
        warmup = round(config.warmup_epochs * self.batches.steps_per_epoch)
        self.lr_shares = cosine_schedule(self.steps, warmup)
        self.teacher_momentum = momentum_schedule(
            self.steps,
            start=config.teacher.momentum,
            end=config.teacher.momentum_end,
            constant_share=config.teacher.constant_share,
        )
        self.step = 0
        self.epoch_meters, self.log_meters = Meters(), Meters()
        self.finite = FiniteWatch(self.device)
        self.best: dict[str, Any] | None = None
        self.seconds_before = 0.0
        self.started = time.perf_counter()
        self.display = Display(f"{config.method} s{config.seed}", self.steps, quiet=quiet)
        self.stop = StopRequest()

    # ------------------------------------------------------------------ the loop

    def fit(self, until: int | None = None) -> None:
        """Train to the end, or to a number of steps; on a request to stop, save and raise.

        Raises:
            RunError: stopped by a signal, or the loss is no longer finite.
        """
        last = min(until or self.steps, self.steps)
        self.started = time.perf_counter()
        with stop_on_signals() as self.stop, self.display:
            while self.step < last:
                self.train_epoch(last)
                if self.step % self.batches.steps_per_epoch == 0:
                    self.finish_epoch()
                if self.stop and self.step < self.steps:
                    self.save_and_stop()

    def train_epoch(self, last: int) -> None:
        """The rest of the current epoch, wherever the run stands; less if asked to stop."""
        epoch, done = divmod(self.step, self.batches.steps_per_epoch)
        self.epoch_meters.restart_clock()
        self.log_meters.restart_clock()
        for images, labels in self.batches.epoch(epoch, start=done):
            self.train_step(images, labels)
            self.step += 1
            self.display.show(self.step)
            if self.step % self.config.log_every == 0:
                self.log_step()
            elif self.display.due():
                self.display.show(self.step, self.figures(self.log_meters))
            if self.step == last or self.stop:
                return

    def train_step(self, images: Tensor, labels: Tensor) -> None:
        """One step: losses, gradients, optimiser, teacher. Nothing here waits for the device."""
        step, parts = self.step, self.config.accumulate
        torch.manual_seed(seed_at(self.config.seed, step, "dropout"))
        set_learning_rate(self.optimizer, self.lr_shares[step])
        rows = zip(images.tensor_split(parts), labels.tensor_split(parts), strict=True)
        for part, (some_images, some_labels) in enumerate(rows):
            share = len(some_images) / len(images)
            with autocast(self.device, self.config.precision):
                losses = self.method.losses(
                    some_images, some_labels, self.student, self.teacher.model, step, part
                )
            self.scaler.scale(losses["loss"] * share).backward()
            self.epoch_meters.add(losses)
            self.log_meters.add(losses)
            self.finite.look(losses["loss"], step)
        self.apply_gradients()
        self.teacher.update(self.student, self.teacher_momentum[step])
        self.method.after_step(step)

    def apply_gradients(self) -> None:
        """Clip where asked, step the optimiser, forget the gradients."""
        if self.config.clip_grad is not None:
            self.scaler.unscale_(self.optimizer)
            weights = [*self.student.parameters(), *self.method.parameters()]
            torch.nn.utils.clip_grad_norm_(weights, self.config.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)

    def finish_epoch(self) -> None:
        """Evaluate, log, checkpoint."""
        epoch = self.step // self.batches.steps_per_epoch
        self.check_finite()
        row = {"kind": "epoch", "epoch": epoch, "step": self.step}
        row |= self.figures(self.epoch_meters)
        self.epoch_meters.reset()
        last = self.step == self.steps
        if epoch % self.config.eval_every == 0 or last:
            row |= self.evaluate()
        is_best = self.note_best(row)
        self.folder.log(row)
        self.display.epoch(row, self.config.epochs)
        if epoch in (1, (self.config.epochs + 1) // 2, self.config.epochs):
            self.draw_samples(epoch)
        if epoch % self.config.checkpoint_every == 0 or last or is_best:
            self.save(best=is_best)

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

    def figures(self, meters: Meters) -> dict[str, Any]:
        """Means since the meters' reset, and the speed; waits for the device."""
        means = meters.read()
        images_an_addition = self.config.batch_size / self.config.accumulate
        return {
            "loss": means.pop("loss"),
            "captured": means.pop("captured", None),
            "parts": means,
            "seconds": round(self.seconds(), 3),
            "images_per_second": round(meters.rate() * images_an_addition, 1),
        }

    def log_step(self) -> None:
        """A line of `metrics.jsonl` for the steps since the last one."""
        self.check_finite()
        figures = self.figures(self.log_meters)
        self.log_meters.reset()
        self.display.show(self.step, figures)
        self.folder.log(
            {
                "kind": "train",
                "step": self.step,
                "epoch": self.step / self.batches.steps_per_epoch,
                "lr": self.optimizer.param_groups[0]["lr"],
                "teacher_momentum": self.teacher_momentum[self.step - 1],
                **figures,
            }
        )

    def check_finite(self) -> None:
        """Stop a run whose loss or weights have left the numbers, before anything is saved.

        Raises:
            RunError: names the step.
        """
        norms = torch._foreach_norm(list(self.student.parameters()))
        self.finite.look(torch.stack(norms).sum(), self.step)
        bad = self.finite.first_bad()
        if bad is not None:
            raise RunError(
                f"loss no longer finite at step {bad}: lower --lr or set --clip-grad 1; what was "
                f"saved before is kept in {self.folder.path}"
            )

    def networks(self) -> dict[str, Classifier]:
        """The trained network and its moving average."""
        return {"student": self.student, "teacher": self.teacher.model}

    def evaluate(self) -> dict[str, Any]:
        """Scores of both networks on held-out images, and the probe."""
        with autocast(self.device, self.config.precision):
            scores = self.evaluate_on("test")
            row: dict[str, Any] = {name: s._asdict() for name, s in scores.items()}
            if self.data.val is not None:
                held_out = self.evaluate_on("val")
                row["val"] = {name: s._asdict() for name, s in held_out.items()}
            return row | {"probe": self.probe()}

    def evaluate_on(self, split: str) -> dict[str, Scores]:
        """Scores of both networks on one split."""
        images = eval_batches(
            self.data.splits()[split],
            self.data,
            batch_size=self.config.eval_batch_size,
            device=self.device,
        )
        return evaluate(self.networks(), images, self.method.eval_head)

    def probe(self) -> float:
        """The student's accuracy on a few unmixed, uncropped training images."""
        count = min(PROBE_IMAGES, len(self.data.train))
        generator = generator_at(self.config.seed, 0, "probe")
        rows = torch.randperm(len(self.data.train), generator=generator)[:count]
        some = self.data.train.subset(rows)
        images, labels = next(eval_batches(some, self.data, batch_size=count, device=self.device))
        with evaluating(self.student):
            predicted = self.student(images, head=self.method.eval_head).argmax(dim=1)
        return float((predicted == labels).double().mean())

    def draw_samples(self, epoch: int) -> None:
        """A picture of the mixes that the student learns from at this point."""
        batch = data_batch(self.data, self.config.seed, self.device)
        with frozen_statistics(self.teacher.model), autocast(self.device, self.config.precision):
            rows = mix_rows(
                self.method,
                batch,
                count=SAMPLE_ROWS,
                student=self.student,
                teacher=self.teacher.model,
                step=self.step,
            )
        self.folder.samples.mkdir(exist_ok=True)
        mix_grid(rows, self.folder.samples / f"epoch-{epoch:04d}.png")

    def note_best(self, row: dict[str, Any]) -> bool:
        """Whether this epoch's better network beats all before; on held-out images if there are."""
        if "student" not in row:
            return False
        split = "val" if "val" in row else "test"
        scores = row["val"] if split == "val" else row
        network = max(("student", "teacher"), key=lambda name: scores[name]["top1"])
        top1 = scores[network]["top1"]
        if self.best is not None and top1 <= self.best["top1"]:
            return False
        self.best = {"epoch": row["epoch"], "network": network, "top1": top1, "split": split}
        return True

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

    def save(self, *, best: bool = False) -> None:
        """Write a checkpoint; never one whose loss was not finite."""
        self.check_finite()
        save_checkpoint(self.folder.path, self.checkpoint(), best=best)

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
        self.step = checkpoint.step
        self.folder.forget_after(self.step)

    def summarize(self) -> RunResult:
        """Write `summary.json` from the last epoch's figures."""
        last = next(row for row in reversed(self.folder.rows()) if "student" in row)
        final = {name: last[name] for name in ("student", "teacher")}
        summary = {
            **{n: getattr(self.config, n) for n in ("method", "data", "model", "width", "seed")},
            "device": describe_device(self.device),
            **{n: getattr(self.config, n) for n in ("precision", "epochs")},
            "steps": self.steps,
            "seconds": round(self.seconds(), 1),
            "command": self.command,
            "versions": versions(),
            **self.folder.data_card(),
            "final": final,
            "best": self.best,
            "parameters": sum(p.numel() for p in self.student.parameters()),
            "peak_memory_mib": round(peak_memory_mib(self.device)),
        }
        self.folder.write_summary(summary)
        scores = {name: Scores(**values) for name, values in final.items()}
        return RunResult(self.folder.path, scores, summary)


def check_smallest_part(config: TrainConfig, images: int, method: Method) -> None:
    """See that the smallest part of a batch that is processed at once can be mixed.

    Raises:
        UsageError: it has too few images.
    """
    last = 0 if config.drop_last else images % config.batch_size
    smallest = (last or config.batch_size) // config.accumulate
    needed = max(2, method.min_batch)  # batch norm needs two
    if smallest < needed:
        raise UsageError(
            f"{method.name} needs {needed} images at a time and would get {smallest}: choose "
            "another batch_size, accumulate or drop_last"
        )


def train_batches(config: TrainConfig, data: ImageData, device: torch.device) -> TrainBatches:
    """The training batches that the settings ask for."""
    return TrainBatches(
        data,
        batch_size=config.batch_size,
        seed=config.seed,
        device=device,
        crop=config.crop,
        pad=config.pad,
        flip=config.flip,
        scale_min=config.scale_min,
        drop_last=config.drop_last,
    )


def train(config: TrainConfig, *, quiet: bool = False, command: str = "") -> RunResult:
    """Train one classifier into a run folder.

    Raises:
        UsageError: a setting, a file or the folder is not what it should be.
        RunError: the run could not go on; what was saved is still there.
    """
    data = load_images(config, progress=not quiet)
    pick_device(config.device)
    folder = RunFolder.create(config)
    try:
        trainer = Trainer(config, data, folder, quiet=quiet, command=command)
    except AdAutoMixError:
        (folder.path / "config.yaml").unlink()
        with contextlib.suppress(OSError):
            folder.path.rmdir()
        raise
    folder.write_data_card(data_card(data))
    return run_to_end(trainer)


def data_card(data: ImageData) -> dict[str, Any]:
    """What a prediction needs to know of the data, and what a reader wants to."""
    return {
        "classes": list(data.classes),
        "image_size": data.image_size,
        "mean": list(data.mean),
        "std": list(data.std),
        "train_images": len(data.train),
        "test_images": len(data.test),
        "bad_files": list(data.bad_files),
    }


def run_to_end(trainer: Trainer) -> RunResult:
    """Train, then write the summary."""
    for name in trainer.data.bad_files:
        trainer.display.say(f"left out, unreadable: {name}")
    trainer.fit()
    return trainer.summarize()


def open_run(path: Path, *, quiet: bool = False, command: str = "") -> Trainer:
    """A trainer that stands where the run's newest whole checkpoint was written.

    Raises:
        UsageError: no run there, or no checkpoint yet.
        RunError: no checkpoint is whole.
    """
    folder = RunFolder.open(path)
    checkpoint, problem = load_checkpoint(path)
    config = folder.config()
    trainer = Trainer(
        config, load_images(config, progress=not quiet), folder, quiet=quiet, command=command
    )
    if problem:
        trainer.display.say(problem)
    trainer.restore(checkpoint)
    return trainer


def resume(path: Path, *, quiet: bool = False, command: str = "") -> RunResult:
    """Go on exactly where a run stopped; a finished run only gets its summary again."""
    return run_to_end(open_run(path, quiet=quiet, command=command))
