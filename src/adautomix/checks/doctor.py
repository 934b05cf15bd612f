"""The doctor: four mistakes that loops with mixing make in silence, found by looking.

- Mixing is left on in validation, so that every figure is one of mixed images.
- Mixed images are learned with one class each: class indices, or soft labels rounded to one class.
- Several processes draw the same random numbers, so that they all mix alike.
- Mixing is not switched off where it was to end.

A fifth finding says that nothing was mixed at all. Silence means that all of this was looked at.

    def make_loop() -> Loop:
        model, mixer = ...
        return Loop(train_step=..., batches=loader, validate=...)

    adautomix doctor my_training.py            # calls make_loop, here and in two processes

What it cannot see: mixing of features inside the network; networks behind `torch.compile`; mixing
while batches are put together, unless `train_step` does it; losses that are not PyTorch's cross
entropy, NLL, KL divergence or binary cross entropy (timm's `SoftTargetCrossEntropy` is its own).
Random crops or erasing in `train_step` that leave a black image otherwise than black look like
mixing: leave them out of `make_loop`. Mixing in a part of the batches is seen if it happens within
the few that are looked at.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

import torch

from adautomix.checks.ranks import Mixes, two_processes
from adautomix.checks.script import address_of
from adautomix.checks.watch import Loop as Loop
from adautomix.checks.watch import Seen, lit_batches, watch
from adautomix.errors import UsageError

VALIDATIONS = 2
LONGEST = 1000  # training steps that the doctor is ready to take before mixing ends


@dataclass(frozen=True)
class Finding:
    """A mistake: what it is, where it was seen, what to do."""

    mistake: str
    seen: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.mistake}: {self.seen}; {self.remedy}"


def examine(
    make_loop: Callable[[], Loop], *, steps: int = 6, processes: bool = True
) -> list[Finding]:
    """Run some batches of a loop and look for mistakes.

    Args:
        make_loop: makes the loop anew at every call. It stands at the top of a file, so that other
            processes find it.
        steps: training steps to look at.
        processes: whether to run it in two processes too.

    Raises:
        UsageError: the loop is not as `Loop` wants it.
        RunError: it fails in two processes.
    """
    several = two_processes(address_of(make_loop), steps) if processes else nullcontext(list)
    with several as mixes_of_processes:
        loop = make_loop()
        trained = watch(loop.train_step, lit_batches(loop, min(steps, loop.off_after or steps)))
        findings = [*never_mixed(trained), *hard_labels(trained)]
        if loop.validate is not None:
            validated = watch(loop.validate, lit_batches(loop, VALIDATIONS))
            findings += mixed_in_validation(validated)
        if loop.off_after is not None:
            findings += mixed_after_the_end(make_loop(), loop.off_after, steps)
        return [*findings, *same_mixes(mixes_of_processes())]


def never_mixed(steps: Sequence[Seen]) -> Iterator[Finding]:
    """Where no training batch was mixed, which no silence should hide."""
    if not any(step.mixed for step in steps):
        yield Finding(
            "no mixing",
            f"none of {len(steps)} training batches reached the network mixed",
            "see that it is on, and that train_step does it (mixing of features is not seen)",
        )


def hard_labels(steps: Sequence[Seen]) -> Iterator[Finding]:
    """Where mixed images are learned with one class each.

    Two losses with different classes are fine: λ CE(a) + (1 - λ) CE(b).
    """
    for number, step in enumerate(steps):
        told = [call.classes for call in step.losses]
        one_class = [classes for classes in told if classes is not None]
        if not step.mixed or not told or len(one_class) < len(told):
            continue
        if all(torch.equal(classes, one_class[0]) for classes in one_class):
            call = step.losses[0]
            yield Finding(
                "hard labels for mixed images",
                f"{call.name} at {call.where} was given one class an image in training step "
                f"{number}",
                "give it the mix's soft targets, [B, K] floats",
            )
            return


def mixed_in_validation(steps: Sequence[Seen]) -> Iterator[Finding]:
    """Where validation sees mixed images."""
    mixed = sum(bool(step.mixed) for step in steps)
    if mixed:
        yield Finding(
            "mixing in validation",
            f"{mixed} of {len(steps)} validation batches reached the network mixed",
            "mix in the training step alone, or only while model.training",
        )


def mixed_after_the_end(loop: Loop, off_after: int, steps: int) -> Iterator[Finding]:
    """Where mixing goes on although it should have ended.

    Raises:
        UsageError: its end is out of reach.
    """
    if not 1 <= off_after <= LONGEST:
        raise UsageError(
            f"Loop.off_after = {off_after}: have make_loop end mixing after 1 to {LONGEST} steps"
        )
    batches = lit_batches(loop, off_after + steps)
    for batch in islice(batches, off_after):
        loop.train_step(*batch)
    mixed = sum(bool(step.mixed) for step in watch(loop.train_step, batches))
    if mixed:
        yield Finding(
            "mixing not switched off",
            f"{mixed} of the {steps} batches after step {off_after} reached the network mixed",
            "ask for the step or epoch before mixing",
        )


def same_mixes(processes: Sequence[Mixes]) -> Iterator[Finding]:
    """Where all processes mix the same batch in the same way."""
    by_step = [mixes for mixes in zip(*processes, strict=True) if all(mixes)]
    if by_step and all(are_equal(*mixes) for mixes in by_step):
        yield Finding(
            "the same mixes on every process",
            f"{len(by_step)} training batches were mixed alike in {len(processes)} processes",
            "seed what the mix is drawn from by rank too, such as seed + rank",
        )


def are_equal(one: list[list[float]], other: list[list[float]]) -> bool:
    """Whether the mixed inputs of a step are the same in two processes."""
    pairs = [(torch.tensor(a), torch.tensor(b)) for a, b in zip(one, other, strict=False)]
    same_shapes = len(one) == len(other) and all(a.shape == b.shape for a, b in pairs)
    return same_shapes and all(torch.allclose(a, b) for a, b in pairs)
