"""Random numbers as a function of (seed, step, stream).

Every random draw of a run comes from a generator created here. A draw therefore depends only on
the seed of the run, the step and the name of the stream. It does not depend on other draws, on
the device, or on where the run was interrupted and resumed.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_at(seed: int, step: int, stream: str) -> int:
    """The seed of one stream at one step, 0 to 2⁶³ - 1.

    Args:
        seed: seed of the run.
        step: optimizer step, epoch or another counter.
        stream: name of what is drawn, for example "mix", "augment" or "order". Different names
            give unrelated seeds.
    """
    digest = hashlib.blake2b(f"{seed}/{step}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_at(seed: int, step: int, stream: str) -> torch.Generator:
    """A CPU generator for one stream at one step; see `seed_at` for the arguments.

    Numbers are drawn on the CPU and then moved, so that a seed gives the same batch on every
    device.
    """
    return torch.Generator().manual_seed(seed_at(seed, step, stream))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU generators of PyTorch, NumPy and Python; restore their states afterwards."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
