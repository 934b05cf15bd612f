"""Train a run from its start, or resume it, and write its summary."""

import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from adautomix.class_results import ClassResults
from adautomix.commit import commit
from adautomix.config import TrainConfig
from adautomix.data import ImageData
from adautomix.data.sources.objects import object_source
from adautomix.device import describe_device, peak_memory_mib, pick_device, versions
from adautomix.distributed import (
    barrier,
    broadcast_from_main,
    init_distributed,
    is_main,
    world_size,
)
from adautomix.errors import RunError, UsageError, command_text
from adautomix.files import atomic_write, explain_full_disk
from adautomix.pictures.wrong_photos import write_wrong_photos
from adautomix.runs.build import data_info, load_images
from adautomix.runs.checkpoint import load_checkpoint, move_damaged_last, resumable_checkpoints
from adautomix.runs.data_summary import summarize_data, write_data_summary
from adautomix.runs.folder import WRONG_PHOTOS, RunFolder, unused_folder
from adautomix.runs.lock import run_lock
from adautomix.runs.schema import EarlyStop, EpochRow, NetworkName, NetworkScores, Summary
from adautomix.runs.state import (
    RunState,
    check_same_settings,
    finished_line,
    finished_summary,
    is_damaged,
    remove_run,
    run_state,
)
from adautomix.training.announce import run_lines
from adautomix.training.loop import Trainer
from adautomix.training.progress import say
from adautomix.training.space import check_space, needed_bytes


@dataclass(frozen=True)
class RunResult:
    """The result of a finished run.

    Attributes:
        folder: the run folder.
        final: test scores of "student" and "teacher" after the last epoch.
        summary: the content of `summary.json`.
        trained: whether this call trained it; False if the run had finished before.
    """

    folder: Path
    final: NetworkScores
    summary: Summary
    trained: bool = True


def train(
    config: TrainConfig,
    *,
    data: Any = None,
    fresh: bool = False,
    quiet: bool = False,
    command: str = "",
) -> RunResult:
    """Train one classifier into a run folder, or continue the run that is there already.

    A run that was stopped continues from its last checkpoint, or starts again if it had none. A
    run that has finished is returned as it is. So the same call can be repeated until it succeeds.

    Args:
        config: the settings.
        data: PyTorch data sets to train on instead of `config.data`: one, which is split, or
            (train, test) or (train, val, test). Items are (image, label) pairs without random
            augmentation; images are PIL images, or pixels as uint8 or as floats in [0, 1]. They
            are read once and kept in the image cache, where `resume` and `evaluate` find them.
        fresh: delete the run that is in the folder, and start over.
        quiet: show no progress.
        command: the command line, for the summary.

    Raises:
        UsageError: a setting does not fit the data, a file is missing, or the folder holds a run
            with other settings or something else.
        RunError: the run could not continue; its checkpoints are kept.
    """
    init_distributed(pick_device(config.device))
    if data is not None:
        config = config.model_copy(update={"data": object_source(data)})
    path = broadcast_from_main(lambda: config.out or unused_folder(config))
    state = "new" if fresh else broadcast_from_main(lambda: state_for(path, config))
    if state == "new":
        return start(config, path, data=data, fresh=fresh, quiet=quiet, command=command)
    return continue_run(path, config, data=data, quiet=quiet, command=command)


def state_for(path: Path, config: TrainConfig) -> RunState:
    """Return what training with these settings into a folder means, see `run_state`.

    Raises:
        UsageError: the folder holds a run with other settings, or something else.
    """
    state = run_state(path)
    if state != "new":
        check_same_settings(path, config)
    return state


def start(
    config: TrainConfig, path: Path, *, data: Any, fresh: bool, quiet: bool, command: str
) -> RunResult:
    """Train a new run, see `train`; an old one is only removed once the new one can be trained."""
    images = load_images(config, progress=not quiet, data=data)
    with explain_stop(path), only_writer(path):
        trainer = Trainer(config, images, RunFolder(path), quiet=quiet, command=command)
        show_space(trainer)
        removed = broadcast_from_main(lambda: remove_run(path)) if fresh else ""
        if removed:
            trainer.display.say(removed)
        trainer.folder = broadcast_from_main(lambda: RunFolder.create(config, path))
        if is_main():
            record_data(trainer, images)
        return run_to_end(trainer)


def record_data(trainer: Trainer, images: ImageData) -> None:
    """Write what the run knows of its images: facts, splits and a summary, which is shown."""
    folder = trainer.folder
    folder.write_data_info(data_info(images))
    assert images.record is not None
    folder.write_splits(images.record)
    summary = summarize_data(images, trainer.config, trainer.device)
    write_data_summary(summary, folder.path)
    for line in summary.lines():
        trainer.display.say(line)


def show_space(trainer: Trainer) -> None:
    """Check that the disk has room for the run, and say so if it takes much of what is free.

    Raises:
        UsageError: there is too little room.
    """
    trained = (p for group in trainer.optimizer.param_groups for p in group["params"])
    needed = needed_bytes(trainer.config, trainer.weights(), trained)
    if line := check_space(trainer.folder.path, needed):
        trainer.display.say(line)


def only_writer(path: Path) -> AbstractContextManager[None]:
    """The lock of a run folder in the main process, which alone writes; nothing in the others."""
    return run_lock(path) if is_main() else nullcontext()


@contextmanager
def explain_stop(path: Path) -> Iterator[None]:
    """Say in one line how to go on with a run that a full disk stopped.

    Raises:
        RunError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        saved = resumable_checkpoints(path)
        again = command_text("resume", path) if saved else "repeat the command, which starts again"
        with explain_full_disk(path, again):
            raise error


@contextmanager
def explain_memory(config: TrainConfig) -> Iterator[None]:
    """Say in one line which batch would fit when an allocation of memory fails.

    Raises:
        RunError: an allocation failed.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(f"out of memory: {smaller_batch(config)}") from None


def is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed, on the GPU or on the CPU."""
    on_cpu = "DefaultCPUAllocator" in str(error)  # PyTorch has no exception of its own for this
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or on_cpu


def smaller_batch(config: TrainConfig) -> str:
    """What to do when a run does not fit into memory."""
    larger = range(config.accumulate + 1, config.batch_size // 2 + 1)
    parts = next((parts for parts in larger if config.batch_size % parts == 0), None)
    if parts is None:
        return f"batch_size = {config.batch_size} cannot be split further: lower image_size"
    return (
        f"with --accumulate {parts}, a step computes {config.batch_size // parts} images at a time "
        f"instead of {config.batch_size // config.accumulate}; --max-memory bounds evaluation"
    )


def run_to_end(trainer: Trainer) -> RunResult:
    """Train until the last step, then write the predictions and the summary."""
    for name in trainer.data.bad_files:
        trainer.display.say(f"skipped, unreadable: {name}")
    if not trainer.ended:
        for line in run_lines(trainer):
            trainer.display.say(line)
    with explain_memory(trainer.config):
        trainer.fit()
        if trainer.stopped_early:
            best = f"epoch {trainer.best.epoch}" if trainer.best else "before"
            trainer.display.say(
                f"stopped early (patience = {trainer.config.patience}): no better validation score "
                f"since {best}, which checkpoints/best holds"
            )
        # The summary comes last: a run that has one is finished.
        predictions = save_predictions(trainer)
    return summarize(trainer, predictions)


def summarize(trainer: Trainer, predictions: str) -> RunResult:
    """Write `summary.json` from the scores of the last epoch.

    Args:
        trainer: the trainer after its last step.
        predictions: hash of the predictions, see `save_predictions`.
    """
    config = trainer.config
    barrier()
    final = final_scores(trainer)
    copied = ("method", "data", "model", "width", "seed", "precision")
    facts = trainer.folder.data_info()
    summary = Summary(
        **{name: getattr(config, name) for name in copied},
        device=describe_device(trainer.device),
        processes=world_size(),
        runtime=trainer.runtime,
        epochs=trainer.step // trainer.batches.steps_per_epoch,
        steps=trainer.step,
        seconds=round(trainer.seconds(), 1),
        command=trainer.command,
        versions=versions() | ({"commit": code} if (code := commit()) else {}),
        **{name: value for name, value in facts.items() if name in Summary.model_fields},
        final=final,
        results=save_wrong_photos(trainer),
        best=trainer.best,
        early_stop=early_stop(trainer),
        parameters=sum(p.numel() for p in trainer.student.parameters()),
        peak_memory_mib=round(peak_memory_mib(trainer.device)),
        predictions=predictions,
    )
    if is_main():
        trainer.folder.write_summary(summary)
    return RunResult(trainer.folder.path, summary.final, summary)


def early_stop(trainer: Trainer) -> EarlyStop | None:
    """Why the run ends before its last epoch; None if it does not."""
    patience = trainer.config.patience
    if patience is None or trainer.step == trainer.steps:
        return None
    return EarlyStop(planned_epochs=trainer.config.epochs, patience=patience)


def final_scores(trainer: Trainer) -> NetworkScores:
    """The test scores of the last epoch, as logged; computed again if their line was damaged."""
    for row in reversed(trainer.folder.rows()):
        if isinstance(row, EpochRow) and row.student is not None and row.teacher is not None:
            if row.step == trainer.step:
                return {"student": row.student, "teacher": row.teacher}
            break
    fields = trainer.evaluator.evaluate()
    return {"student": fields["student"], "teacher": fields["teacher"]}


def save_predictions(trainer: Trainer) -> str:
    """Write which test images were classified correctly, which pairs runs in significance tests.

    Returns:
        The SHA-256 of the file.
    """
    if not trainer.evaluator.correct:  # the last epoch was evaluated before a resume
        trainer.evaluator.evaluate()
    content = save(trainer.evaluator.predictions())
    if is_main():
        with atomic_write(trainer.folder.predictions_path) as temporary:
            temporary.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def save_wrong_photos(trainer: Trainer) -> dict[NetworkName, ClassResults]:
    """Write pictures of the most confident wrong images; return the results that name them."""
    results = trainer.evaluator.results
    if not is_main():
        return results
    folder = trainer.folder.path / WRONG_PHOTOS
    return {
        name: write_wrong_photos(result, trainer.data.test, folder, name)
        for name, result in results.items()
    }


def open_run(path: Path, *, data: Any = None, quiet: bool = False, command: str = "") -> Trainer:
    """Build a trainer and restore the newest undamaged checkpoint of a run.

    Args:
        path: the run folder.
        data: PyTorch data sets that the run was started with; None reads them from the cache.
        quiet: show no progress.
        command: the command line, for the summary.

    Raises:
        UsageError: there is no run at `path`, it has no checkpoint yet, or its settings or its
            data are not those that it was trained with.
        RunError: every checkpoint is damaged.
    """
    folder = RunFolder.open(path)
    init_distributed(device_of(folder))
    checkpoint, problem = broadcast_from_main(lambda: load_checkpoint(path))
    restored = broadcast_from_main(folder.restore_damaged)
    folder.check_unchanged(checkpoint)
    config = folder.config()
    images = load_images(
        config, progress=not quiet, data=data, record=folder.splits(), recorded=folder.data_info()
    )
    folder.check_same_data(data_info(images))
    trainer = Trainer(config, images, folder, quiet=quiet, command=command, from_checkpoint=True)
    if is_main():
        for line in [*restored, *([problem] if problem else [])]:
            trainer.display.say(line)
        if problem:
            move_damaged_last(path)
    trainer.restore(checkpoint)
    trainer.display.say(f"continuing {path} from step {trainer.step} of {trainer.steps}")
    show_space(trainer)
    return trainer


def device_of(folder: RunFolder) -> torch.device:
    """The device of a run; while its settings are damaged, the one that this machine has."""
    try:
        name = folder.config().device
    except UsageError:
        name = "auto"
    return pick_device(name)


def resume(path: Path, *, quiet: bool = False, command: str = "") -> RunResult:
    """Resume a run exactly where it stopped; a finished run is returned as it is.

    Args:
        path: the run folder.
        quiet: show no progress.
        command: the command line, for the summary.

    Raises:
        UsageError: there is no run at `path`, it has no checkpoint yet, its settings or its data
            have changed, or another process is writing it.
        RunError: the run could not continue, or every checkpoint is damaged.
    """
    init_distributed(device_of(RunFolder.open(path)))
    return continue_run(path, quiet=quiet, command=command)


def continue_run(
    path: Path,
    config: TrainConfig | None = None,
    *,
    data: Any = None,
    quiet: bool = False,
    command: str = "",
) -> RunResult:
    """Continue a stopped run; say that a finished one has finished.

    Args:
        path: the run folder.
        config: settings of `check_same_settings`, of which those that may differ are taken over.
        data: see `train`.
        quiet: show no progress.
        command: the command line, for the summary.
    """
    verify = config is None  # `resume` also restores what was damaged since
    if done := finished_result(path, verify=verify, quiet=quiet):
        return done
    with explain_stop(path), only_writer(path):
        # Another process may have held the lock until now.
        if done := finished_result(path, verify=verify, quiet=quiet):
            return done
        if config is not None and is_main():
            RunFolder(path).write_config(config.resolved() | {"out": str(path)})
        barrier()
        return run_to_end(open_run(path, data=data, quiet=quiet, command=command))


def finished_result(path: Path, *, verify: bool, quiet: bool) -> RunResult | None:
    """Return the result of a run that has finished, and say so; None if it has not.

    Args:
        path: the run folder.
        verify: read its files too; None if one is damaged.
        quiet: say nothing.
    """
    summary = broadcast_from_main(lambda: finished_summary(path))
    if summary is None or (verify and broadcast_from_main(lambda: is_damaged(path))):
        return None
    say(finished_line(path), quiet=quiet or not is_main())
    return RunResult(path, summary.final, summary, trained=False)
