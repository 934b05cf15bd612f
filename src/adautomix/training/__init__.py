"""Training: the loop, the teacher, optimisers, checkpoints."""

from adautomix.training.loop import RunResult, Trainer, resume, train

__all__ = ["RunResult", "Trainer", "resume", "train"]
