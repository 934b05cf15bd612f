"""Train a run from its start, or resume it, and write its summary."""

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import save

from adautomix.config import TrainConfig
from adautomix.data.sources.objects import object_source
from adautomix.device import describe_device, peak_memory_mib, pick_device, versions
from adautomix.distributed import (
    barrier,
    broadcast_from_main,
    init_distributed,
    is_main,
    world_size,
)
from adautomix.errors import AdAutoMixError
from adautomix.files import atomic_write
from adautomix.runs.build import data_info, load_images
from adautomix.runs.checkpoint import load_checkpoint, move_damaged_last
from adautomix.runs.data_summary import summarize_data, write_data_summary
from adautomix.runs.folder import RunFolder
from adautomix.runs.schema import EpochRow, NetworkScores, Summary
from adautomix.training.loop import Trainer


@dataclass(frozen=True)
class RunResult:
    """The result of a finished run.

    Attributes:
        folder: the run folder.
        final: test scores of "student" and "teacher" after the last epoch.
        summary: the content of `summary.json`.
    """

    folder: Path
    final: NetworkScores
    summary: Summary


def train(
    config: TrainConfig, *, data: Any = None, quiet: bool = False, command: str = ""
) -> RunResult:
    """Train one classifier and write a run folder.

    Args:
        config: the settings.
        data: PyTorch data sets to train on instead of `config.data`: one, which is split, or
            (train, test) or (train, val, test). Items are (image, label) pairs without random
            augmentation; images are PIL images, or pixels as uint8 or as floats in [0, 1]. They
            are read once and kept in the image cache, where `resume` and `evaluate` find them.
        quiet: show no progress.
        command: the command line, for the summary.

    Raises:
        UsageError: a setting does not fit the data, a file is missing, or the folder exists.
        RunError: the run could not continue; its checkpoints are kept.
    """
    init_distributed(pick_device(config.device))
    if data is not None:
        config = config.model_copy(update={"data": object_source(data)})
    images = load_images(config, progress=not quiet, data=data)
    folder = broadcast_from_main(lambda: RunFolder.create(config))
    try:
        trainer = Trainer(config, images, folder, quiet=quiet, command=command)
    except AdAutoMixError:
        (folder.path / "config.yaml").unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            folder.path.rmdir()
        raise
    if is_main():
        folder.write_data_info(data_info(images))
        assert images.record is not None
        folder.write_splits(images.record)
        summary = summarize_data(images, config, trainer.device)
        write_data_summary(summary, folder.path)
        for line in summary.lines():
            trainer.display.say(line)
    return run_to_end(trainer)


def run_to_end(trainer: Trainer) -> RunResult:
    """Train until the last step, then write the summary and the predictions."""
    for name in trainer.data.bad_files:
        trainer.display.say(f"skipped, unreadable: {name}")
    trainer.fit()
    result = summarize(trainer)
    save_predictions(trainer)
    return result


def summarize(trainer: Trainer) -> RunResult:
    """Write `summary.json` from the scores of the last epoch."""
    config = trainer.config
    barrier()
    rows = (row for row in reversed(trainer.folder.rows()) if isinstance(row, EpochRow))
    last = next(row for row in rows if row.student is not None and row.teacher is not None)
    final = {"student": last.student, "teacher": last.teacher}
    copied = ("method", "data", "model", "width", "seed", "precision", "epochs")
    summary = Summary(
        **{name: getattr(config, name) for name in copied},
        device=describe_device(trainer.device),
        processes=world_size(),
        runtime=trainer.runtime,
        steps=trainer.steps,
        seconds=round(trainer.seconds(), 1),
        command=trainer.command,
        versions=versions(),
        **trainer.folder.data_info(),
        final=final,
        best=trainer.best,
        parameters=sum(p.numel() for p in trainer.student.parameters()),
        peak_memory_mib=round(peak_memory_mib(trainer.device)),
    )
    if is_main():
        trainer.folder.write_summary(summary)
    return RunResult(trainer.folder.path, summary.final, summary)


def save_predictions(trainer: Trainer) -> None:
    """Write which test images were classified correctly, which pairs runs in significance tests."""
    if not trainer.evaluator.correct:  # the last epoch was evaluated before a resume
        trainer.evaluator.evaluate()
    if is_main():
        with atomic_write(trainer.folder.path / "predictions.safetensors") as temporary:
            temporary.write_bytes(save(trainer.evaluator.predictions()))


def open_run(path: Path, *, quiet: bool = False, command: str = "") -> Trainer:
    """Build a trainer and restore the newest undamaged checkpoint of a run.

    Raises:
        UsageError: there is no run at `path`, or it has no checkpoint yet.
        RunError: every checkpoint is damaged.
    """
    folder = RunFolder.open(path)
    config = folder.config()
    init_distributed(pick_device(config.device))
    checkpoint, problem = broadcast_from_main(lambda: load_checkpoint(path))
    trainer = Trainer(
        config,
        load_images(config, progress=not quiet, record=folder.splits()),
        folder,
        quiet=quiet,
        command=command,
        from_checkpoint=True,
    )
    if problem and is_main():
        trainer.display.say(problem)
        move_damaged_last(path)
    trainer.restore(checkpoint)
    return trainer


def resume(path: Path, *, quiet: bool = False, command: str = "") -> RunResult:
    """Resume a run exactly where it stopped; for a finished run, only write its summary again.

    Args:
        path: the run folder.
        quiet: show no progress.
        command: the command line, for the summary.

    Raises:
        UsageError: there is no run at `path`, or it has no checkpoint yet.
        RunError: the run could not continue, or every checkpoint is damaged.
    """
    return run_to_end(open_run(path, quiet=quiet, command=command))
