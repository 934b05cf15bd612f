"""Decide for each training step whether it mixes, the same way for every method.

A step either mixes as its method does, or trains the student on the clean batch alone. The decision
depends only on the seed and the step number, so resumed runs and all processes agree.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from adautomix.mixing.settings import MixSettings
from adautomix.rng import generator_at


@dataclass(frozen=True)
class MixSchedule:
    """Decides for each step of a training whether it mixes.

    Attributes:
        settings: when to mix.
        steps: optimizer steps of the whole training.
        seed: random seed; seed and step number determine each decision.
    """

    settings: MixSettings
    steps: int
    seed: int

    def probability(self, step: int) -> float:
        """Return the probability that a step mixes, 0 to 1."""
        s, progress = self.settings, step / self.steps
        # A training that goes on beyond its planned end keeps mixing if nothing stopped it before.
        if progress < s.start or (progress >= s.stop and s.stop < 1):
            return 0.0
        risen = min(1.0, (progress - s.start) / s.ramp) if s.ramp else 1.0
        return s.prob * risen

    def decide(self, step: int, batch: int) -> bool | Tensor:
        """Return whether a step mixes, or which images of its batch do, bool `[batch]`.

        Nothing is drawn where the probability is 0 or 1.
        """
        probability = self.probability(step)
        if probability in (0, 1):
            return probability == 1
        generator = generator_at(self.seed, step, "mix-coin")
        if self.settings.per_sample:
            return torch.rand(batch, generator=generator) < probability
        return float(torch.rand((), generator=generator)) < probability
