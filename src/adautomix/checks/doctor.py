"""Find four common mistakes in a training loop that uses mixing, by running a few batches.

- Mixing is active during validation, so that metrics are those of mixed images.
- Mixed images are trained with one class each: class indices, or soft labels rounded to a class.
- All processes draw the same random numbers, so that they mix alike.
- Mixing is not switched off where it should end.

A fifth finding says that nothing was mixed at all. No findings means that all of this was checked,
as far as the `Loop` allows: without `validate`, for example, validation is not checked.

    adautomix doctor my_training.py            # calls its make_loop(), here and in two processes

Limitations. The doctor does not see mixing of features inside the network, networks behind
`torch.compile`, mixing in the collate function (unless `train_step` does it), or losses other than
PyTorch's cross entropy, NLL, KL divergence and binary cross entropy (timm's
`SoftTargetCrossEntropy` is its own). Random crops or erasing in `train_step` that turn a black
image into something else look like mixing: leave them out of `make_loop`. Mixing of only some
batches is found if it happens within the few batches that run.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice

import torch

from adautomix.checks.ranks import Mixes, two_processes
from adautomix.checks.script import address_of
from adautomix.checks.tracing import ROUNDING, LossCall, StepTrace, probe_batches, trace_steps
from adautomix.checks.tracing import Loop as Loop
from adautomix.errors import UsageError

MAX_OFF_AFTER = 1000
"""The largest number of training steps that the doctor runs before mixing ends."""


@dataclass(frozen=True)
class Finding:
    """A mistake in a training loop.

    Attributes:
        mistake: what is wrong.
        evidence: where and how often it was observed.
        remedy: what to do.
    """

    mistake: str
    evidence: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.mistake}: {self.evidence}; {self.remedy}"


def examine(
    make_loop: Callable[[], Loop], *, steps: int = 6, processes: bool = True
) -> list[Finding]:
    """Run some batches of a training loop and return the mistakes found.

    Args:
        make_loop: builds and returns the loop, a new one in each call. It must be defined at the
            top level of a file, so that other processes can load it.
        steps: number of training steps.
        processes: also run the loop in two processes.

    Raises:
        UsageError: the loop does not meet the requirements of `Loop`.
        RunError: the loop fails in two processes.
    """
    background = two_processes(address_of(make_loop), steps) if processes else nullcontext(list)
    with background as mixes_of_processes:
        loop = make_loop()
        if not isinstance(loop, Loop):
            raise UsageError(f"{make_loop.__name__}() returns no adautomix.checks.doctor.Loop")
        mixing_steps = min(steps, loop.off_after or steps)
        traces = trace_steps(loop.train_step, probe_batches(loop, mixing_steps))
        findings = [*find_no_mixing(traces), *find_hard_labels(traces)]
        if loop.validate is not None:
            validation = trace_steps(loop.validate, probe_batches(loop, steps))
            findings += find_mixing_in_validation(validation)
        if loop.off_after is not None:
            findings += find_mixing_after_its_end(make_loop(), loop.off_after, steps)
        return [*findings, *find_equal_mixes(mixes_of_processes())]


def find_no_mixing(steps: Sequence[StepTrace]) -> Iterator[Finding]:
    """Report that no training batch was mixed, so that the absence of findings means something."""
    if not any(step.mixed for step in steps):
        yield Finding(
            "no mixing",
            f"none of {len(steps)} training batches reached the network mixed",
            "check that mixing is on and that train_step does it (mixing of features is not seen)",
        )


def find_hard_labels(steps: Sequence[StepTrace]) -> Iterator[Finding]:
    """Report that mixed images are trained with one class each, in at least half of the steps.

    In a few steps all images may happen to be mixed with images of their own class.
    """
    mixed = [step for step in steps if step.mixed and step.losses]
    hard = [step for step in mixed if has_one_class(step.losses)]
    if hard and 2 * len(hard) >= len(mixed):
        call = hard[0].losses[0]
        yield Finding(
            "hard labels for mixed images",
            f"{call.name} at {call.where} was given one class per image in {len(hard)} of "
            f"{len(mixed)} mixed training batches",
            "pass it the mix's soft targets, [B, K] floats",
        )


def has_one_class(losses: Sequence[LossCall]) -> bool:
    """Whether all losses of a step name the same single class per image.

    Two losses with different classes are correct: λ CE(a) + (1 - λ) CE(b).
    """
    named = [call.classes for call in losses if call.classes is not None]
    return len(named) == len(losses) and all(torch.equal(named[0], classes) for classes in named)


def find_mixing_in_validation(steps: Sequence[StepTrace]) -> Iterator[Finding]:
    """Report that validation sees mixed images."""
    mixed = sum(bool(step.mixed) for step in steps)
    if mixed:
        yield Finding(
            "mixing in validation",
            f"{mixed} of {len(steps)} validation batches reached the network mixed",
            "mix in the training step only, or only while model.training is set",
        )


def find_mixing_after_its_end(loop: Loop, off_after: int, steps: int) -> Iterator[Finding]:
    """Report that mixing continues after the step at which it should end.

    Raises:
        UsageError: `off_after` is too large to run.
    """
    if not 1 <= off_after <= MAX_OFF_AFTER:
        raise UsageError(
            f"Loop.off_after = {off_after}: let make_loop end mixing after 1 to {MAX_OFF_AFTER} "
            "steps"
        )
    batches = probe_batches(loop, off_after + steps)
    for batch in islice(batches, off_after):
        loop.train_step(*batch)
    mixed = sum(bool(step.mixed) for step in trace_steps(loop.train_step, batches))
    if mixed:
        yield Finding(
            "mixing not switched off",
            f"{mixed} of the {steps} batches after step {off_after} reached the network mixed",
            "check the step or epoch before mixing",
        )


def find_equal_mixes(processes: Sequence[Mixes]) -> Iterator[Finding]:
    """Report that all processes mix the same batch with the same λ in every step.

    The order of the images is ignored, because partners may differ while λ does not. If λ is the
    same in all steps, it is a constant, and the partners are compared instead.
    """
    by_step = [mixes for mixes in zip(*processes, strict=True) if all(mixes)]
    if not by_step:
        return
    lam = [[sorted_rows(mix) for mix in mixes] for mixes in by_step]
    lam_varies = any(not are_equal(first, lam[0][0]) for first, *_ in lam)
    compared = lam if lam_varies else by_step
    if all(are_equal(first, other) for first, *others in compared for other in others):
        yield Finding(
            "the same λ on every process",
            f"{len(by_step)} training batches were mixed alike in {len(processes)} processes",
            "make the seed of the mixing generator depend on the rank, for example seed + rank",
        )


def sorted_rows(inputs: list[list[float]]) -> list[list[float]]:
    """The values of each mixed input in ascending order."""
    return [sorted(rows) for rows in inputs]


def are_equal(first: list[list[float]], second: list[list[float]]) -> bool:
    """Whether the mixed inputs of a step are equal in two processes, up to rounding."""
    pairs = [(torch.tensor(a), torch.tensor(b)) for a, b in zip(first, second, strict=False)]
    same_shapes = len(first) == len(second) and all(a.shape == b.shape for a, b in pairs)
    return same_shapes and all(torch.allclose(a, b, atol=ROUNDING) for a, b in pairs)
