"""Runs that early stopping ended before their last epoch."""

from collections.abc import Sequence

from adautomix.runs.records import Run


def early_stop_lines(runs: Sequence[Run]) -> list[str]:
    """Return one sentence per run that was stopped early: where and why."""
    return [line for run in runs if (line := _line(run))]


def _line(run: Run) -> str | None:
    summary = run.summary
    if summary is None or summary.early_stop is None or summary.best is None:
        return None
    stop, best = summary.early_stop, summary.best
    waited = "1 evaluation" if stop.patience == 1 else f"{stop.patience} evaluations"
    return (
        f"{run.name}: stopped early after epoch {summary.epochs} of {stop.planned_epochs}, because "
        f"{waited} in a row brought no better validation score than epoch {best.epoch} "
        f"({best.network} {best.main:.2%}), which `--which best` uses."
    )
