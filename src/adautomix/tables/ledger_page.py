"""The ledger as Markdown, as an HTML page and as rows of data."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adautomix.config.recipes import FIGURES, read_families
from adautomix.reporting.formatting import MISSING, mebibytes, percent, plus_minus
from adautomix.reporting.render import render, write_html
from adautomix.reporting.statistics import Interval
from adautomix.tables.ledger import LedgerRow

COLUMNS = (
    "cell",
    "published (%)",
    "ours, paper's protocol (%)",
    "student, last epoch (%)",
    "teacher, last epoch (%)",
    "seeds",
    "status",
    "differs from the recipe",
    "hours",
    "memory (MiB)",
    "device",
    "commit",
)

EXPLANATION = (
    "Published figures come from single runs. By the paper's protocol our figure is the median of "
    "the last 10 epochs (ImageNet: 5), or for transformers and ConvNeXt the best of the last 10, "
    "of the network whose accuracy was published: the teacher for AutoMix, SAMix and AdAutoMix, "
    "the student for the others. The figures after the last epoch are means over seeds with a "
    "95 % Student-t interval.",
    "matched: at least the published figure. within noise: below it by no more than chance "
    "explains at 95 %; with several seeds that is the prediction interval of one more run, with "
    "one seed the binomial interval of two accuracies on the test images. rehearsal: the settings "
    "are not those of the recipe. no figure: none was published. not run: no run was given.",
)


@dataclass(frozen=True)
class NotRun:
    """The cells of a family that have no run.

    Attributes:
        title: the family in words.
        cells: their names, with the published figures.
    """

    title: str
    cells: list[str]


def cells_of(row: LedgerRow) -> list[str]:
    """Return a row as text, in the order of `COLUMNS`."""
    published = MISSING
    if row.published is not None:
        published = f"{row.published:.2f} ({row.cell.network})"
    return [
        row.name,
        published,
        plus_minus(row.protocol, percent),
        plus_minus(row.student, percent),
        plus_minus(row.teacher, percent),
        ", ".join(map(str, row.seeds)) or MISSING,
        row.status,
        "; ".join(row.differs) or MISSING,
        f"{row.hours:.2f}",
        mebibytes(row.memory_mib),
        row.device or MISSING,
        row.commit or MISSING,
    ]


def split_rows(rows: Sequence[LedgerRow]) -> tuple[list[LedgerRow], list[NotRun]]:
    """Return the rows with runs, and the cells without by family."""
    missing: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.status == "not run":
            figure = MISSING if row.published is None else f"{row.published:.2f}"
            missing[row.cell.family].append(f"{row.cell.method}@{row.cell.epochs} {figure}")
    families = read_families()
    sections = [NotRun(f"{name}: {families[name].title}", cells) for name, cells in missing.items()]
    return [row for row in rows if row.status != "not run"], sections


def summary_of(rows: Sequence[LedgerRow]) -> str:
    """Return how many rows have each status, in one sentence."""
    counts: dict[str, int] = defaultdict(int)
    for row in rows:
        counts[row.status] += 1
    return f"{len(rows)} rows: {', '.join(f'{n} {status}' for status, n in counts.items())}."


def markdown(rows: Sequence[LedgerRow]) -> str:
    """Return the ledger in Markdown."""
    done, missing = split_rows(rows)
    lines = ["# Ledger: published figures and ours", ""]
    lines += ["Written by `adautomix ledger`; nothing in it is typed by hand.", ""]
    lines += [summary_of(rows), ""]
    for paragraph in EXPLANATION:
        lines += [paragraph, ""]
    if done:
        lines += ["## Runs", "", _line(COLUMNS), _line(["---"] * len(COLUMNS))]
        lines += [_line(cells_of(row)) for row in done]
        lines += ["", "Commands:", ""]
        lines += [f"- {row.name}: `{row.command}`" for row in done if row.command]
        lines.append("")
    if missing:
        lines += ["## Not run", "", "Method, epochs and published top-1 accuracy in percent.", ""]
        for section in missing:
            lines += [f"**{section.title}.** {', '.join(section.cells)}.", ""]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def write_markdown(rows: Sequence[LedgerRow], out: Path) -> Path:
    """Write the ledger in Markdown, and return its path."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(markdown(rows), encoding="utf-8")
    return out


def write_ledger_page(rows: Sequence[LedgerRow], out: Path) -> Path:
    """Write the ledger as a self-contained HTML page, and return its path."""
    done, missing = split_rows(rows)
    html = render(
        "ledger.html.j2",
        title="Published figures and ours",
        summary=summary_of(rows),
        explanation=EXPLANATION,
        columns=COLUMNS,
        rows=[(row, cells_of(row)) for row in done],
        missing=missing,
    )
    return write_html(html, out)


def row_fields(row: LedgerRow) -> dict[str, Any]:
    """Return a row for programs; accuracies are in percent."""
    return {
        "cell": row.cell.name,
        "name": row.name,
        "family": row.cell.family,
        "method": row.cell.method,
        "epochs": row.cell.epochs,
        "published_top1": row.published,
        "figure_from": FIGURES[row.cell.figure],
        "network": row.cell.network,
        "protocol": read_families()[row.cell.family].protocol,
        "ours_by_protocol": interval_fields(row.protocol),
        "student_last": interval_fields(row.student),
        "teacher_last": interval_fields(row.teacher),
        "seeds": list(row.seeds),
        "status": row.status,
        "differs": list(row.differs),
        "noise": None if row.noise is None else round(100 * row.noise, 3),
        "command": row.command,
        "commit": row.commit,
        "device": row.device,
        "hours": round(row.hours, 4),
        "memory_mib": row.memory_mib,
    }


def interval_fields(interval: Interval | None) -> dict[str, Any] | None:
    """Return mean and half-width in percent, and the number of seeds."""
    if interval is None:
        return None
    half = interval.half_width
    return {
        "mean": round(100 * interval.mean, 3),
        "half_width": None if half is None else round(100 * half, 3),
        "seeds": interval.n,
    }
