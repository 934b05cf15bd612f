"""What a run is going to do, in a few lines before its first step."""

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
    if trainer.student.origin:
        lines.insert(1, trainer.student.origin)
    if config.freeze is not None:
        lines.insert(-2, frozen_line(config.freeze, trainer))
    if trainer.step < trainer.probe_steps:
        first = (
            "epoch trains" if config.probe_epochs == 1 else f"{config.probe_epochs} epochs train"
        )
        lines.insert(-1, f"linear probing: the first {first} only the heads, at lr {config.lr:g}")
    return [printable(line, None) for line in lines]


def frozen_line(name: str, trainer: Trainer) -> str:
    """Return how much of the network is frozen and how much is trained."""
    frozen = trainer.student.frozen.parameters
    sizes = {key: value.numel() for key, value in trainer.student.named_parameters()}
    kept = sum(size for key, size in sizes.items() if key in frozen)
    return f"frozen: {kept:,} parameters, up to {name}; trained: {sum(sizes.values()) - kept:,}"
