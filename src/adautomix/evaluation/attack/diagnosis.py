"""Signs of masked gradients, which make a network look more robust than it is.

Attacks that follow the gradient fail on a network whose gradients are zero, random or misleading,
although adversarial images exist. The signs are those listed by Athalye et al. (2018) and Carlini
et al. (2019): a stronger attack that succeeds less, and an attack that is no better than chance.
"""

import math
from collections.abc import Iterator, Sequence
from statistics import fmean

from adautomix.evaluation.attack.results import Sweep, format_epsilon


def signs_of_masked_gradients(sweeps: Sequence[Sweep], images: int) -> list[str]:
    """Describe the signs that a network's gradients are masked; empty if there are none.

    One accuracy counts as higher than another if they differ by more than two standard errors.

    Args:
        sweeps: all sweeps of one network, including the random controls.
        images: number of images that the accuracies are measured on.
    """
    by_name = {(sweep.attack, sweep.norm): sweep for sweep in sweeps}
    warnings: list[str] = []
    for sweep in sweeps:
        if sweep.attack == "random":
            continue
        warnings += rises_with_epsilon(sweep, images)
        warnings += no_better_than_random(sweep, by_name["random", sweep.norm], images)
        if sweep.attack != "fgsm" and (fgsm := by_name.get(("fgsm", sweep.norm))):
            warnings += weaker_than_fgsm(sweep, fgsm, images)
    return warnings


def is_clearly_higher(first: float, second: float, images: int) -> bool:
    """Return whether one accuracy exceeds another by more than two standard errors."""
    variance = (first * (1 - first) + second * (1 - second)) / images
    return first - second > 2 * math.sqrt(variance)


def rises_with_epsilon(sweep: Sweep, images: int) -> Iterator[str]:
    """Warn if accuracy is higher at a larger ε, although every smaller change is allowed there."""
    lowest = min(range(len(sweep.accuracy)), key=sweep.accuracy.__getitem__)
    highest = max(range(lowest, len(sweep.accuracy)), key=sweep.accuracy.__getitem__)
    before, after = sweep.accuracy[lowest], sweep.accuracy[highest]
    if is_clearly_higher(after, before, images):
        sizes = [format_epsilon(sweep.epsilons[i], sweep.norm) for i in (lowest, highest)]
        yield (
            f"{sweep.title} succeeds less as ε grows from {sizes[0]} to {sizes[1]}: "
            f"accuracy rises from {before:.1%} to {after:.1%}"
        )


def no_better_than_random(sweep: Sweep, random: Sweep, images: int) -> Iterator[str]:
    """Warn if an attack lowers accuracy no more than random steps do, averaged over all ε."""
    attacked = fmean(sweep.accuracy[1:])
    control = fmean(a for e in sweep.epsilons[1:] if (a := random.accuracy_at(e)) is not None)
    # An accuracy of 0 cannot fall further, so it is no sign.
    if attacked > 0 and not is_clearly_higher(control, attacked, images):
        yield (
            f"a random step does as well as {sweep.title}: mean accuracy {control:.1%} after it "
            f"and {attacked:.1%} after the attack"
        )


def weaker_than_fgsm(sweep: Sweep, fgsm: Sweep, images: int) -> Iterator[str]:
    """Warn if FGSM lowers accuracy more than many steps do at the same ε."""
    for epsilon, accuracy in zip(sweep.epsilons, sweep.accuracy, strict=True):
        after_fgsm = fgsm.accuracy_at(epsilon)
        if after_fgsm is not None and is_clearly_higher(accuracy, after_fgsm, images):
            size = format_epsilon(epsilon, sweep.norm)
            yield (
                f"{sweep.title} does worse than FGSM at ε = {size}: "
                f"accuracy {accuracy:.1%} against {after_fgsm:.1%}"
            )
