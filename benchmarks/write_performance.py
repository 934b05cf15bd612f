"""Write docs/performance.md from the rows of data in benchmarks/results.

python benchmarks/write_performance.py
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from growth import AXES

from adautomix.bench.rows import read
from adautomix.bench.workload import Row
from adautomix.errors import UsageError
from adautomix.reporting.bench_table import show_time, table_of
from adautomix.subsample import subsample

INTRODUCTION = """\
# Performance

`python benchmarks/write_performance.py` writes this page from the rows in `benchmarks/results/`,
using the newest row of each command and machine. No figure is typed by hand. Times are medians with
quartiles. Commands are as they were when they ran. Since then, `--vs` of `adautomix bench` has
become `benchmarks/compare_openmixup.py`, and `--mixing` `benchmarks/mixing_alone.py`.
"""
NO_GPU = "No row comes from a GPU yet: every figure below was measured on a CPU.\n"
PICTURE = "images/growth.svg"  # beside the page
MOST_POINTS = 11  # that a table shows of a long series


SECTIONS = {
    "steps": (
        "A step",
        "The trainer's own step: reading, augmentation, losses, optimizer, teacher. Methods take "
        "turns, step by step, in one process.",
    ),
    "peers": (
        "Beside other libraries",
        "Steps of the same network, batch and classes in fp32, in the same turns. The other "
        "library's batch lies ready in memory; ours is read and augmented within the time.",
    ),
    "phases": (
        "Where a step goes",
        "Share of each part in the real step, timed inside it; nested parts count once, as the "
        "innermost. The device is waited for between parts, so the sum may exceed a step's time.",
    ),
    "work": (
        "Arithmetic",
        "Floating-point operations of matrix products, convolutions and attention in a real step, "
        "and their rate as a share of what a large matrix product or convolution reaches on this "
        "machine.",
    ),
    "loading": (
        "Reading photographs",
        "Epochs of random-resized crops of 224 pixels, bicubic with antialiasing, flipped and "
        "normalized, with equally many processes. Loaders take turns, epoch by epoch. What each "
        "setting of `--cache` loses is in `docs/data.md`.",
    ),
    "prefetching": (
        "Waiting for images in training",
        "Share of a training step spent waiting for its batch, with and without RandAugment.",
    ),
    "mixing": (
        "Mixing alone",
        "One call on a batch in memory: the draw, the images and the labels. Libraries take turns.",
    ),
    "growth": ("As the work grows", "One step while one thing grows and the others stay."),
    "memory": (
        "Memory over a long run",
        "Held between two steps: by tensors on a GPU, by the whole process on a CPU.",
    ),
    "epochs": ("Time an epoch over a run", "Whole epochs, evaluation and checkpoints included."),
    "seeds": (
        "Several seeds of a small network",
        "One step of each of several networks: in turns with all cores, with one process per core "
        "(as `compare` does on a CPU), or as one step of stacked weights by `torch.func.vmap`, "
        "which has neither data nor a teacher to handle.",
    ),
    "scaling": (
        "Over processes",
        "Steps of processes with one thread and a batch each, which share batch statistics, mixes "
        "and gradients; apart: as many at the same time that share nothing but the machine.",
    ),
    "schedules": (
        "A generator that learns less often",
        "AdAutoMix whose generator learns at every k-th step only; top-1 accuracies of student and "
        "teacher are means over seeds with 95 % intervals.",
    ),
}
"""The parts of the page by kind of row: title, and what was measured how."""


def a_column_a_method(figures: Sequence[Row]) -> list[Row]:
    """Rows of (axis, value, method, seconds) with the methods side by side."""
    points: dict[tuple[str, float], Row] = {}
    for figure in figures:
        place = {"grows": AXES[figure["axis"]], "to": figure["value"]}
        point = points.setdefault((figure["axis"], figure["value"]), place)
        point[figure["method"]] = show_time(figure["seconds"])
    return list(points.values())


def write_performance(folder: Path, page: Path) -> Path:
    """Write the page from the rows in `folder/*.jsonl`, and return its path.

    Raises:
        UsageError: there are no rows.
    """
    rows = [row for file in sorted(folder.glob("*.jsonl")) for row in read(file)]
    if not rows:
        raise UsageError(
            f"no rows in {folder}: make some, `adautomix bench --rows {folder}/x.jsonl`"
        )
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(parts_of_page(rows, page.parent)), encoding="utf-8")
    return page


def parts_of_page(rows: Sequence[Row], beside: Path) -> Iterator[str]:
    """The introduction, then each part that has rows."""
    yield INTRODUCTION
    if not any(row["machine"]["gpu"] for row in rows):
        yield NO_GPU
    for kind, (title, text) in SECTIONS.items():
        found = newest([row for row in rows if row["kind"] == kind])
        if found:
            yield f"## {title}\n\n{text}\n"
        if found and kind == "growth" and (beside / PICTURE).exists():
            yield f"![{title}]({PICTURE})\n"
        for row in found:
            yield markdown(*table_of(shown(kind, row["figures"])))
            yield provenance(row)


def shown(kind: str, figures: Sequence[Row]) -> Sequence[Row]:
    """What a table has of the figures: methods side by side, a few of a long series."""
    if kind == "growth":
        return a_column_a_method(figures)
    return subsample(figures, MOST_POINTS) if kind in ("memory", "epochs") else figures


def newest(rows: Sequence[Row]) -> list[Row]:
    """The last row of each command on each machine."""
    by_day = sorted(rows, key=lambda row: str(row["date"]))
    return list({f"{row['machine']} {row['command']}": row for row in by_day}.values())


def markdown(titles: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, all but the first column aligned to the right."""
    lines = [titles, ["---"] + ["---:"] * (len(titles) - 1), *cells]
    escaped = ([cell.replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def provenance(row: Row) -> str:
    """Where a table comes from: machine, versions, commit, day and command."""
    machine = row["machine"]
    plural = "" if machine["threads"] == 1 else "s"
    place = f"{machine['cpu']}, {machine['threads']} thread{plural}"
    if machine["gpu"]:
        place = f"{machine['gpu']} beside {place}"
    versions = ", ".join(f"{name} {value}" for name, value in row["versions"].items())
    commit = f"commit {row['commit']}" if row["commit"] else "outside of a checkout"
    return f"{place}; {versions}; {commit}; {row['date']}:\n\n    {row['command']}\n"


def main(
    folder: Path = Path("benchmarks/results"), page: Path = Path("docs/performance.md")
) -> None:
    """Write the page; run from the root of a checkout."""
    print(f"Wrote {write_performance(folder, page)}")


if __name__ == "__main__":
    main()
