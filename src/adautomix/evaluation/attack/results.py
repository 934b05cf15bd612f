"""Results of the attack suite, and how attacks and their sizes are written."""

import math

from pydantic import BaseModel

from adautomix.evaluation.attack.algorithms import Norm
from adautomix.evaluation.suite import SuiteResult

NORM_SYMBOLS: dict[Norm, str] = {"linf": "L∞", "l2": "L2"}
PAPER_EPSILON = 8 / 255
"""The L∞ size at which the paper reports the error under FGSM."""
THREAT_MODEL = (
    "White-box, not adaptive: the attacker knows the weights and follows the gradient of the "
    "cross-entropy, but the attack is not adapted to any property of the network. A stronger "
    "attack may succeed where these fail; nothing here proves robustness."
)


class Sweep(BaseModel):
    """The accuracy of one network under one attack, for several sizes ε.

    Attributes:
        attack: "random" (the control), "fgsm", or "pgd-" followed by the number of steps.
        norm: norm in which ε is measured.
        epsilons: sizes in pixels of [0, 1], ascending from 0, which is no attack.
        accuracy: top-1 accuracy at each ε, 0 to 1.
        error: 1 - accuracy; the paper reports that of "fgsm" at 8/255.
    """

    attack: str
    norm: Norm
    epsilons: list[float]
    accuracy: list[float]
    error: list[float]

    def accuracy_at(self, epsilon: float) -> float | None:
        """Return the accuracy at an ε, or None if that ε was not tried."""
        pairs = zip(self.epsilons, self.accuracy, strict=True)
        return next((a for e, a in pairs if math.isclose(e, epsilon)), None)

    @property
    def title(self) -> str:
        """The attack with its norm, such as "PGD-10 (L∞)"."""
        return f"{attack_title(self.attack)} ({NORM_SYMBOLS[self.norm]})"


class Example(BaseModel):
    """The true class of an attacked image, and the predicted class before and after the attack."""

    label: str
    before: str
    after: str


class AttackedNetwork(BaseModel):
    """The results of all attacks on one network.

    Attributes:
        accuracy: top-1 accuracy without attack, 0 to 1.
        sweeps: the controls and the attacks.
        warnings: signs that the gradients are masked; empty if there are none.
        examples: the images of the network's picture, from top to bottom.
    """

    accuracy: float
    sweeps: list[Sweep]
    warnings: list[str]
    examples: list[Example]

    def error(self, attack: str, norm: Norm, epsilon: float) -> float | None:
        """Return the error under an attack, 0 to 1, or None if that attack was not tried."""
        for sweep in self.sweeps:
            if (sweep.attack, sweep.norm) == (attack, norm):
                accuracy = sweep.accuracy_at(epsilon)
                if accuracy is not None:
                    return 1 - accuracy
        return None


class AttackResult(SuiteResult):
    """The results of attacks on each network with its own gradients.

    Attributes:
        threat_model: what the attacker knows and does.
        images: number of images attacked.
        networks: results by network name.
    """

    threat_model: str
    images: int
    networks: dict[str, AttackedNetwork]


def format_epsilon(epsilon: float, norm: Norm) -> str:
    """Write an ε as papers do: 8/255 for L∞, 0.5 for L2."""
    return f"{255 * epsilon:g}/255" if norm == "linf" else f"{epsilon:g}"


def attack_title(attack: str) -> str:
    """Return the name of an attack for text and tables: "random step", "FGSM" or "PGD-10"."""
    return "random step" if attack == "random" else attack.upper()
