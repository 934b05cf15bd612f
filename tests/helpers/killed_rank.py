"""Train like the command, but kill one of several processes at a step, the first time.

Run as `killed_rank.py MARKER RANK STEP train …` by torchrun.
"""

import os
import signal
import sys
from pathlib import Path

from adautomix.cli import main
from adautomix.data import Batch
from adautomix.training.loop import Trainer

marker, rank, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
train_step = Trainer.train_step


def die_at(self: Trainer, batch: Batch) -> None:
    if self.step == step and os.environ["RANK"] == rank and not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    train_step(self, batch)


Trainer.train_step = die_at  # type: ignore[method-assign]
main(sys.argv[4:])
