"""What a run is going to do, in a few lines before its first step."""

from collections.abc import Iterator

from adautomix.config import TrainConfig
from adautomix.models.modes import has_batch_norm
from adautomix.text import printable
from adautomix.training.loop import Trainer


def run_lines(trainer: Trainer) -> list[str]:
    """Return the network, the schedule and the run folder, one line each."""
    return [printable(line, None) for line in _lines(trainer)]


def _lines(trainer: Trainer) -> Iterator[str]:
    config, student = trainer.config, trainer.student
    millions = sum(parameter.numel() for parameter in student.parameters()) / 1e6
    yield f"network: {config.model}, {millions:.1f} million parameters{_start(config)}"
    if student.origin:
        yield student.origin
    if config.freeze is not None:
        yield frozen_line(config.freeze, trainer)
    left = trainer.steps - trainer.step
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    steps = f"{left:,} steps left of {trainer.steps:,}" if trainer.step else f"{left:,} steps"
    yield (
        f"method: {config.method}{_chosen(config)}, seed {config.seed}; {epochs}, {steps} of "
        f"{config.batch_size} images, {config.precision}"
    )
    if trainer.step < trainer.probe_steps:
        probes = config.probe_epochs
        first = "epoch trains" if probes == 1 else f"{probes} epochs train"
        yield f"linear probing: the first {first} only the heads, at lr {config.lr:g}"
    if config.accumulate > 1 and has_batch_norm(student):
        yield (
            f"note: with --accumulate {config.accumulate}, batch norm normalizes "
            f"{config.batch_size // config.accumulate} images at a time, so results differ from "
            f"those of {config.batch_size} at once"
        )
    yield f"run folder: {trainer.folder.path}"


def _start(config: TrainConfig) -> str:
    """Return where the first weights come from."""
    if config.pretrained:
        return ", from timm's published weights"
    return f", from {config.init}" if config.init else ""


def _chosen(config: TrainConfig) -> str:
    """Return the preset that says when and how to mix."""
    return f" (preset {config.preset})" if config.preset else ""


def frozen_line(name: str, trainer: Trainer) -> str:
    """Return how much of the network is frozen and how much is trained."""
    frozen = trainer.student.frozen.parameters
    sizes = {key: value.numel() for key, value in trainer.student.named_parameters()}
    kept = sum(size for key, size in sizes.items() if key in frozen)
    line = f"frozen: {kept:,} parameters, up to {name}; trained: {sum(sizes.values()) - kept:,}"
    given = trainer.config.pretrained or trainer.config.init
    return line if given else f"{line}; the frozen ones are random without --pretrained or --init"
