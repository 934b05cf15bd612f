"""The doctor: four mistakes that loops with mixing make in silence, found by looking.

- Mixing is left on in validation, so that every figure is one of mixed images.
- Mixed images are learned with one class each: class indices, or soft labels rounded to one class.
- Several processes draw the same random numbers, so that they all mix alike.
- Mixing is not switched off where it was to end.

A fifth finding says that nothing was mixed at all. Silence means that all of this was looked at,
as far as the `Loop` says: without `validate` there is no validation to look at, and so on.

    adautomix doctor my_training.py            # calls its make_loop(), here and in two processes

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
from adautomix.checks.watch import ROUNDING, LossCall, StepTrace, lit_batches, watch
from adautomix.checks.watch import Loop as Loop
from adautomix.errors import UsageError

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
        if not isinstance(loop, Loop):
            raise UsageError(f"{make_loop.__name__}() gives no adautomix.checks.doctor.Loop")
        trained = watch(loop.train_step, lit_batches(loop, min(steps, loop.off_after or steps)))
        findings = [*never_mixed(trained), *hard_labels(trained)]
        if loop.validate is not None:
            validated = watch(loop.validate, lit_batches(loop, steps))
            findings += mixed_in_validation(validated)
        if loop.off_after is not None:
            findings += mixed_after_the_end(make_loop(), loop.off_after, steps)
        return [*findings, *same_mixes(mixes_of_processes())]


def never_mixed(steps: Sequence[StepTrace]) -> Iterator[Finding]:
    """Where no training batch was mixed, which no silence should hide."""
    if not any(step.mixed for step in steps):
        yield Finding(
            "no mixing",
            f"none of {len(steps)} training batches reached the network mixed",
            "see that it is on, and that train_step does it (mixing of features is not seen)",
        )


def hard_labels(steps: Sequence[StepTrace]) -> Iterator[Finding]:
    """Where mixed images are learned with one class each.

    In half of the mixed steps at least: in a few, two classes may happen to be mixed each with
    itself.
    """
    mixed = [step for step in steps if step.mixed and step.losses]
    hard = [step for step in mixed if has_one_class(step.losses)]
    if hard and 2 * len(hard) >= len(mixed):
        call = hard[0].losses[0]
        yield Finding(
            "hard labels for mixed images",
            f"{call.name} at {call.where} was given one class an image in {len(hard)} of "
            f"{len(mixed)} mixed training batches",
            "give it the mix's soft targets, [B, K] floats",
        )


def has_one_class(losses: Sequence[LossCall]) -> bool:
    """Whether all losses of a step name one class an image, and the same.

    Two losses with different classes are fine: λ CE(a) + (1 - λ) CE(b).
    """
    named = [call.classes for call in losses if call.classes is not None]
    return len(named) == len(losses) and all(torch.equal(named[0], classes) for classes in named)


def mixed_in_validation(steps: Sequence[StepTrace]) -> Iterator[Finding]:
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
    """Where all processes mix the same batch with the same λ at every step.

    The order of the images does not count: partners may differ where λ does not. A λ that is the
    same at all steps is taken for a constant, and then partners are what is compared.
    """
    by_step = [mixes for mixes in zip(*processes, strict=True) if all(mixes)]
    if not by_step:
        return
    lam = [[sorted_rows(mix) for mix in mixes] for mixes in by_step]
    varies = any(not are_equal(first, lam[0][0]) for first, *_ in lam)
    compared = lam if varies else by_step
    if all(are_equal(first, other) for first, *others in compared for other in others):
        yield Finding(
            "the same λ on every process",
            f"{len(by_step)} training batches were mixed alike in {len(processes)} processes",
            "seed what the mix is drawn from by rank too, such as seed + rank",
        )


def sorted_rows(inputs: list[list[float]]) -> list[list[float]]:
    """The rows of every mixed input by size."""
    return [sorted(rows) for rows in inputs]


def are_equal(one: list[list[float]], other: list[list[float]]) -> bool:
    """Whether the mixed inputs of a step are the same in two processes."""
    pairs = [(torch.tensor(a), torch.tensor(b)) for a, b in zip(one, other, strict=False)]
    same_shapes = len(one) == len(other) and all(a.shape == b.shape for a, b in pairs)
    return same_shapes and all(torch.allclose(a, b, atol=ROUNDING) for a, b in pairs)
