"""Runs whose learned masks were flat, so that their generated images were plain Mixup."""

from collections.abc import Sequence

from adautomix.runs.records import Run

SPREAD = "mask_spread"  # part of the loss that methods with learned masks report
VISIBLE = 0.01  # standard deviation over pixels below which a mask cannot be told from a constant


def flat_mask_lines(runs: Sequence[Run]) -> list[str]:
    """Return one sentence per run whose masks were flat in at least one epoch.

    Args:
        runs: any runs; those of methods without learned masks report no spread.
    """
    return [line for run in runs if (line := _line(run))]


def _line(run: Run) -> str | None:
    spreads = [row.parts[SPREAD] for row in run.epoch_rows if SPREAD in row.parts]
    flat = sum(spread < VISIBLE for spread in spreads)
    if not flat:
        return None
    return (
        f"{run.name}: masks were flat (mean spread below {VISIBLE}) in {flat} of {len(spreads)} "
        "epochs that trained the generator, where generated images are plain Mixup; "
        f"--{run.method}.generator-init scaled starts with visible masks."
    )
