"""Collect compared runs as rows of data, and write docs/findings.md from the rows.

    python benchmarks/findings.py collect runs/levers/* --work digits --trained-at COMMIT
    python benchmarks/findings.py write

A work is data, network and schedule on which variants were compared. `collect` adds one row per
work to docs/results/findings.jsonl; the newest row of each work counts. docs/results/findings.yaml
says what each work is and what was decided.
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from write_performance import markdown, provenance

from adautomix.bench.rows import append, read
from adautomix.bench.workload import Row
from adautomix.device import pick_device
from adautomix.errors import UsageError
from adautomix.reporting.bench_table import table_of
from adautomix.reporting.comparison import Comparison, compare_runs
from adautomix.reporting.formatting import (
    METRICS,
    MISSING,
    NETWORKS,
    difference_plus_minus,
    plus_minus,
)
from adautomix.reporting.groups import Group
from adautomix.reporting.significance import TESTED, TITLES, PairedTest
from adautomix.reporting.snapshots import GroupSummary
from adautomix.reporting.statistics import Interval
from adautomix.runs.records import read_runs

RESULTS = Path("docs/results")
PAGE = Path("docs/findings.md")
INTRODUCTION = """\
# Findings: when mixing pays

`python benchmarks/findings.py write` writes this page from the rows in `docs/results/`; no figure
is typed by hand. Each work compares variants on the same data, network, schedule and seeds. Figures
are of the test images after the last epoch: mean ± 95 % Student-t interval over seeds. Differences
pair runs with the same seed, and **bold** ones have an interval that excludes 0. Equal time: what
each had reached when the fastest variant's run with the same seed ended. The student is the
trained network, the teacher its moving average.
"""


# ---------------------------------------------------------------------- rows


def collect(comparison: Comparison) -> list[Row]:
    """Return the figures of each variant and its differences to the baseline.

    Raises:
        UsageError: no run has finished.
    """
    pairs = zip(comparison.groups, comparison.summaries, strict=True)
    found = [(group, summary) for group, summary in pairs if summary.seeds]
    if not found:
        raise UsageError("no finished run to collect: train some, `adautomix compare --sweep …`")
    fastest = min(mean_seconds(summary) for _, summary in found)
    return [figures(group, summary, comparison.tests, fastest) for group, summary in found]


def figures(
    group: Group, summary: GroupSummary, tests: Sequence[PairedTest], fastest: float
) -> Row:
    """Return the figures of one variant; `fastest` is the shortest mean training time."""
    own = [test for test in tests if test.method == group.label]
    return {
        "variant": group.label,
        "seeds": sorted({run.fact("seed") for run in group.runs if run.finished}),
        "times": mean_seconds(summary) / fastest,
        "scores": by_place(
            (network, metric, summary.final.score(network, metric))
            for network in NETWORKS
            for metric in TESTED
        ),
        "differences": by_place((one.network, one.metric, one.interval) for one in own),
        "equal_time": by_place((one.network, one.metric, one.equal_time_interval) for one in own),
    }


def mean_seconds(summary: GroupSummary) -> float:
    """Mean training time of the finished runs of a group."""
    return summary.final.seconds.mean if summary.final.seconds else 0.0


def by_place(found: Iterator[tuple[str, str, Interval | None]]) -> Row:
    """Intervals as plain data, by "network metric"."""
    return {
        f"{network} {metric}": {"mean": interval.mean, "half_width": interval.half_width}
        for network, metric, interval in found
        if interval is not None
    }


# ---------------------------------------------------------------------- page


def write(results: Path = RESULTS, page: Path = PAGE) -> Path:
    """Write the page from the rows in `results`, and return its path.

    Raises:
        UsageError: there are no rows, or a work has no description.
    """
    works = yaml.safe_load((results / "findings.yaml").read_text(encoding="utf-8"))
    rows = read(results / "findings.jsonl")
    if not rows:
        raise UsageError(f"no rows in {results}: add some, `python benchmarks/findings.py collect`")
    page.write_text("\n".join(parts_of_page(works, rows, page.parent)), encoding="utf-8")
    return page


def parts_of_page(works: dict[str, Any], rows: Sequence[Row], beside: Path) -> Iterator[str]:
    """Yield the introduction, the decisions and every work with its newest row."""
    # Rows that `adautomix bench` appended name no work: their kind does.
    newest = {row.get("work", row["kind"]): row for row in rows}
    unknown = newest.keys() - works["works"].keys()
    if unknown:
        raise UsageError(f"findings.yaml does not describe {', '.join(sorted(unknown))}: add it")
    yield INTRODUCTION
    yield f"## What was decided\n\n{works['decided']}"
    for name, work in works["works"].items():
        if name in newest:
            yield f"## {work['title']}\n\n{work['text']}"
            yield from tables(newest[name])
            if (picture := work.get("picture")) and (beside / picture).exists():
                yield f"![{work['title']}]({picture})\n"
            yield provenance(newest[name])
    if "open" in works:
        yield f"## What is open\n\n{works['open']}"


def tables(row: Row) -> Iterator[str]:
    """Yield the tables of one row: comparisons in two tables, other measurements in one."""
    if row["kind"] != "comparison":
        yield markdown(*table_of(shown(row["figures"])))
        return
    yield markdown(["variant", "seeds", *titles(), "time"], [scores(one) for one in row["figures"]])
    compared = [one for one in row["figures"] if one["differences"]]
    if compared:
        cells = [
            cells
            for one in compared
            for cells in (
                [f"{one['variant']}, equal epochs", *changes(one["differences"])],
                [f"{one['variant']}, equal time", *changes(one["equal_time"])],
            )
        ]
        yield markdown(["difference to the baseline", *titles()], cells)


def shown(measured: Sequence[Row]) -> list[Row]:
    """Return the figures that a table shows: of a series over steps, the first and the last."""
    steps = [row["step"] for row in measured if "step" in row]
    ends = {min(steps), max(steps)} if steps else set()
    return [row for row in measured if not ends or row["step"] in ends]


def titles() -> list[str]:
    """Titles of the columns of figures."""
    return [f"{network} {TITLES[metric]}" for network in NETWORKS for metric in TESTED]


def places() -> list[tuple[str, str]]:
    """Keys and metrics of the columns of figures."""
    return [(f"{network} {metric}", metric) for network in NETWORKS for metric in TESTED]


def scores(one: Row) -> list[str]:
    """Cells of one variant."""
    show = {metric.key: metric.show for metric in METRICS}
    figures = [plus_minus(interval(one["scores"].get(key)), show[m]) for key, m in places()]
    return [one["variant"], ", ".join(map(str, one["seeds"])), *figures, f"{one['times']:.2f} ×"]


def changes(found: Row) -> list[str]:
    """Cells of the differences of one variant, in bold where the interval excludes 0."""
    return [change(interval(found.get(key)), metric) for key, metric in places()]


def change(found: Interval | None, metric: str) -> str:
    """One difference, in bold where its interval excludes 0."""
    if found is None:
        return MISSING
    text = difference_plus_minus(found, metric)
    return f"**{text}**" if found.excludes_zero else text


def interval(stored: Row | None) -> Interval | None:
    """Return an interval from its plain data."""
    return None if stored is None else Interval(stored["mean"], stored["half_width"], 0)


# ---------------------------------------------------------------------- command


def main() -> None:
    """Collect or write; run from the root of a checkout."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("write", help="write the page")
    collecting = commands.add_parser("collect", help="add the row of one work")
    collecting.add_argument("runs", nargs="+", type=Path, help="run folders of one work")
    collecting.add_argument("--work", required=True, help="name of the work in findings.yaml")
    collecting.add_argument("--baseline", help="variant that the others are compared to")
    collecting.add_argument("--trained-at", required=True, help="commit that trained the runs")
    collecting.add_argument("--rows", type=Path, default=RESULTS / "findings.jsonl")
    asked = parser.parse_args()
    if asked.command == "write":
        print(f"Wrote {write()}")
        return
    runs = read_runs(asked.runs)
    summary = next(run.summary for run in runs if run.summary is not None)
    append(
        asked.rows,
        "comparison",
        collect(compare_runs(runs, asked.baseline)),
        device=pick_device("auto"),
        stated={
            "work": asked.work,
            "commit": asked.trained_at,
            "command": summary.command,
            "versions": summary.versions,
        },
    )


if __name__ == "__main__":
    main()
