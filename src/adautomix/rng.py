"""Random numbers as a function of (seed, step, stream).

Every draw of a run comes from a generator made here, so it depends on nothing but its
name: not on what else drew numbers, on the device, or on where the run was interrupted.
"""

import hashlib

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
