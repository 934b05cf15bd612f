"""Training: the loop, one step, the optimizer, evaluation during training, comparisons."""

from adautomix.training.loop import Trainer
from adautomix.training.run import RunResult, resume, train

__all__ = ["RunResult", "Trainer", "resume", "train"]
