"""Training: the loop, the teacher, optimizers, checkpoints."""

from adautomix.training.loop import Trainer
from adautomix.training.run import RunResult, resume, train

__all__ = ["RunResult", "Trainer", "resume", "train"]
