"""Random numbers as a function of (seed, step, stream).

Every draw of a run comes from a generator made here, so it depends on nothing but its
name: not on what else drew numbers, on the device, or on where the run was interrupted.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def seed_at(seed: int, step: int, stream: str) -> int:
    """A 63-bit seed for one stream at one step; different names give unrelated seeds."""
    digest = hashlib.blake2b(f"{seed}/{step}/{stream}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_at(seed: int, step: int, stream: str) -> torch.Generator:
    """A CPU generator for one stream ("mix", "augment", "order", …) at one step.

    Draws are made on the CPU and then moved, so that the same seed gives the same batch on
    every device.
    """
    return torch.Generator().manual_seed(seed_at(seed, step, stream))


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within it PyTorch, NumPy and Python draw from `seed`; afterwards each goes on as before."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
