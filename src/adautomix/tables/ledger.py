"""The ledger: what was published beside what our runs gave, one row per cell and settings.

Two figures are compared. By the paper's protocol it is the median of the last epochs (ResNets) or
the best of them (transformers and ConvNeXt) of the network whose accuracy was published: the
teacher for methods that train one, the student for the others. The honest figures are those after
the last epoch, of both networks, as a mean over seeds.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median, stdev
from typing import Any, Literal

from adautomix.config import TrainConfig, make_config
from adautomix.config.recipes import Cell, compose, find_cell, read_cells, read_families
from adautomix.errors import UsageError
from adautomix.reporting.groups import flatten
from adautomix.reporting.statistics import Interval, t_interval
from adautomix.runs.records import Run, number_at, read_run

Status = Literal[
    "matched", "within noise", "not matched", "rehearsal", "no figure", "unfinished", "not run"
]

NO_EFFECT = frozenset(
    {
        "channels_last",
        "checkpoint_every",
        "data_root",
        "device",
        "download",
        "eval_batch_size",
        "init",
        "keep_every",
        "label",
        "log",
        "log_every",
        "out",
        "recipe",
        "runtime",
        "seed",
        "skip_bad",
        "sync_bn",
        "tensorboard",
        "workers",
    }
)
"""Settings that do not change what a run computes, up to rounding."""

HARMLESS = frozenset({"precision"})
"""Settings that are listed as different but do not make a run a rehearsal."""


@dataclass(frozen=True)
class LedgerRow:
    """A cell and the runs of it that have the same settings; without runs it was not run.

    Attributes:
        name: name of the recipe, with the label of a variant.
        cell: the cell.
        published: published top-1 accuracy in percent; None for a variant or if there is none.
        protocol: our top-1 accuracy by the paper's protocol, 0 to 1, over the seeds.
        student: top-1 accuracy of the student after the last epoch, 0 to 1, over the seeds.
        teacher: that of the teacher.
        seeds: seeds of the finished runs.
        differs: settings that are not the recipe's, as "name value instead of value".
        status: how ours compares with the published figure.
        noise: difference from the published figure that chance explains, 0 to 1; None if unknown.
        command: the command of the first run.
        commit: the commit that trained it; "" if it was not recorded.
        device: the hardware.
        hours: hours of all its runs together.
        memory_mib: largest peak memory.
        runs: the run folders.
    """

    name: str
    cell: Cell
    published: float | None
    status: Status
    protocol: Interval | None = None
    student: Interval | None = None
    teacher: Interval | None = None
    seeds: tuple[int, ...] = ()
    differs: tuple[str, ...] = ()
    noise: float | None = None
    command: str = ""
    commit: str = ""
    device: str = ""
    hours: float = 0.0
    memory_mib: float | None = None
    runs: tuple[Path, ...] = ()


def find_runs(folders: Iterable[Path]) -> list[Run]:
    """Read all run folders in some folders, at any depth.

    Raises:
        UsageError: There is no run folder, or one cannot be read.
    """
    found: dict[Path, None] = {}
    for folder in folders:
        configs = sorted(folder.rglob("config.yaml"))
        found |= dict.fromkeys(path.parent.resolve() for path in configs)
    if not found:
        raise UsageError("no run folder found: name run folders, or folders that hold some")
    return [read_run(folder) for folder in found]


def collect(runs: Sequence[Run], cells: Sequence[Cell] | None = None) -> list[LedgerRow]:
    """Return the rows of some cells, in their order; runs of other recipes are left out.

    Args:
        runs: Any runs, finished or not.
        cells: The cells to list; None stands for all.
    """
    by_cell: dict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if cell := cell_of(run):
            by_cell[cell.name].append(run)
    rows: list[LedgerRow] = []
    for cell in read_cells().values() if cells is None else cells:
        rows += rows_of(cell, by_cell[cell.name]) or [not_run(cell)]
    return rows


def cell_of(run: Run) -> Cell | None:
    """Return the cell whose recipe a run started from; None if there is none."""
    name = run.config.get("recipe")
    try:
        return find_cell(name) if name else None
    except UsageError:  # the recipe of another version
        return None


def not_run(cell: Cell) -> LedgerRow:
    """Return the row of a cell that has no run."""
    return LedgerRow(cell.name, cell, cell.top1, "not run")


def rows_of(cell: Cell, runs: Sequence[Run]) -> list[LedgerRow]:
    """Return one row for each label and each set of differing settings."""
    groups: dict[tuple[str, tuple[str, ...]], list[Run]] = defaultdict(list)
    for run in runs:
        groups[str(run.config.get("label") or ""), differences_of(run, cell)].append(run)
    return [make_row(cell, label, differs, group) for (label, differs), group in groups.items()]


def make_row(cell: Cell, label: str, differs: tuple[str, ...], runs: Sequence[Run]) -> LedgerRow:
    """Return the row of runs that differ in nothing but the seed."""
    finished = [run for run in runs if run.finished]
    first = (finished or list(runs))[0]
    published = None if label else cell.top1
    protocol = over_seeds([protocol_figure(run, cell) for run in finished])
    noise = None if protocol is None else noise_of(finished, cell, protocol)
    memory = [run.summary.peak_memory_mib for run in finished if run.summary]
    commits = dict.fromkeys(str(v) for run in finished if (v := commit_of(run)))
    return LedgerRow(
        name=f"{cell.name}/{label}" if label else cell.name,
        cell=cell,
        published=published,
        status=status_of(published, protocol, noise, differs, finished=bool(finished)),
        protocol=protocol,
        student=over_seeds([run.figure("student", "top1") for run in finished]),
        teacher=over_seeds([run.figure("teacher", "top1") for run in finished]),
        seeds=tuple(sorted({int(run.fact("seed")) for run in finished})),
        differs=differs,
        noise=noise,
        command=str(first.fact("command") or ""),
        commit=", ".join(commits),
        device=str(first.fact("device") or "") if finished else "",
        hours=sum(run.seconds or 0.0 for run in runs) / 3600,
        memory_mib=max(memory, default=None),
        runs=tuple(run.folder for run in runs),
    )


def commit_of(run: Run) -> str | None:
    """The commit that trained a run; None if it was not recorded."""
    return run.summary.versions.get("commit") if run.summary else None


def over_seeds(figures: Sequence[float | None]) -> Interval | None:
    """Mean and interval of the figures that exist; None if there are none."""
    known = [figure for figure in figures if figure is not None]
    return t_interval(known) if known else None


def protocol_figure(run: Run, cell: Cell) -> float | None:
    """Return the top-1 accuracy of a run as its cell was published, 0 to 1.

    Returns:
        The median or the best of the last epochs; None if not all of them were evaluated. A run
        that is shorter than that counts with all its epochs.
    """
    family = read_families()[cell.family]
    epochs = int(run.fact("epochs"))
    first = max(0, epochs - family.last_epochs)
    rows = [row for row in run.evaluated if row.epoch > first]
    if len(rows) < epochs - first:
        return None
    figures = [value for row in rows if (value := number_at(row, (cell.network, "top1")))]
    if not figures:
        return None
    return max(figures) if family.protocol.startswith("best") else median(figures)


def noise_of(runs: Sequence[Run], cell: Cell, protocol: Interval) -> float | None:
    """Return the difference from a single published run that chance explains at 95 %.

    With several seeds it is the prediction interval of one more run. With one seed it is the
    interval of the difference of two accuracies on as many test images.
    """
    figures = [value for run in runs if (value := protocol_figure(run, cell)) is not None]
    if len(figures) > 1:
        from scipy.stats import t

        quantile = float(t.ppf(0.975, len(figures) - 1))
        return quantile * stdev(figures) * math.sqrt(1 + 1 / len(figures))
    images = read_families()[cell.family].test_images
    return 1.96 * math.sqrt(2 * protocol.mean * (1 - protocol.mean) / images)


def status_of(
    published: float | None,
    protocol: Interval | None,
    noise: float | None,
    differs: Sequence[str],
    *,
    finished: bool,
) -> Status:
    """Return how our figure compares with the published one."""
    if not finished:
        return "unfinished"
    if published is None:
        return "no figure"
    if protocol is None or any(text.partition(" ")[0] not in HARMLESS for text in differs):
        return "rehearsal"
    below = published / 100 - protocol.mean
    if below <= 0:
        return "matched"
    return "within noise" if noise is not None and below <= noise else "not matched"


def differences_of(run: Run, cell: Cell) -> tuple[str, ...]:
    """Return the settings of a run that are not its recipe's, as "name value instead of value"."""
    recipe = settings_of(make_config(compose(cell)).resolved())
    defaults = settings_of(TrainConfig(preset="published").resolved())
    ours = settings_of(run.config)
    found = []
    for name, value in recipe.items():
        # An older run does not have newer settings, whose defaults change nothing.
        own = ours.get(name, defaults.get(name))
        if name.partition(".")[0] not in NO_EFFECT and own != value:
            found.append(f"{name} {own} instead of {value}")
    return tuple(sorted(found) + fewer_images(run, cell))


def fewer_images(run: Run, cell: Cell) -> list[str]:
    """Return in which splits a finished run had not the images that were published."""
    if run.summary is None:
        return []
    family = read_families()[cell.family]
    counts = {
        "train_images": (run.summary.train_images, family.train_images),
        "test_images": (run.summary.test_images, family.test_images),
    }
    return [
        f"{name} {own} instead of {wanted}"
        for name, (own, wanted) in counts.items()
        if own != wanted
    ]


def settings_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings as one level; a data set's folder counts by its name alone."""
    flat = flatten(dict(config))
    return flat | {"data": Path(str(flat["data"])).name}
