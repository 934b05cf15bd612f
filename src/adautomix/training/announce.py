"""What a run is going to do, in a few lines before its first step."""

from adautomix.models.modes import has_batch_norm
from adautomix.text import printable
from adautomix.training.loop import Trainer


def run_lines(trainer: Trainer) -> list[str]:
    """Return the network, the schedule and the run folder, one line each."""
    config = trainer.config
    millions = sum(parameter.numel() for parameter in trainer.student.parameters()) / 1e6
    start = ""
    if config.pretrained:
        start = ", from timm's published weights"
    elif config.init:
        start = f", from {config.init}"
    left = trainer.steps - trainer.step
    epochs = "1 epoch" if config.epochs == 1 else f"{config.epochs} epochs"
    steps = f"{left:,} steps left of {trainer.steps:,}" if trainer.step else f"{left:,} steps"
    lines = [
        f"network: {config.model}, {millions:.1f} million parameters{start}",
        f"method: {config.method}, seed {config.seed}; {epochs}, {steps} of "
        f"{config.batch_size} images, {config.precision}",
        f"run folder: {trainer.folder.path}",
    ]
    if config.accumulate > 1 and has_batch_norm(trainer.student):
        part = config.batch_size // config.accumulate
        lines.append(
            f"note: with --accumulate {config.accumulate}, batch norm normalizes {part} images at "
            f"a time, so results differ from those of {config.batch_size} at once"
        )
    return [printable(line, None) for line in lines]
