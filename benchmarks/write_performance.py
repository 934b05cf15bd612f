"""Write docs/performance.md from the rows of data in benchmarks/results."""

from pathlib import Path

import typer

from adautomix.reporting.performance import write_performance


def main(rows: Path = Path("benchmarks/results"), page: Path = Path("docs/performance.md")) -> None:
    """From the root of a checkout."""
    typer.echo(f"Wrote {write_performance(rows, page)}")


if __name__ == "__main__":
    typer.run(main)
