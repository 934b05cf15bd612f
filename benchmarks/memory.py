"""That training goes on at the same cost: memory over many steps, seconds of each epoch.

python benchmarks/memory.py --data digits --width 0.25 --stem cifar --epochs 30
"""

from pathlib import Path
from typing import Annotated

import typer

from adautomix.bench.growth import memory_over_steps, time_epochs
from adautomix.bench.rows import append
from adautomix.bench.workload import Workload
from adautomix.cli import TAKES_SETTINGS, settings_of

app = typer.Typer(add_completion=False)


@app.command(context_settings=TAKES_SETTINGS)
def main(
    context: typer.Context,
    method: str = "adautomix",
    steps: Annotated[int, typer.Option(min=2, max=5000)] = 1000,
    every: Annotated[int, typer.Option(min=1, help="steps between readings")] = 50,
    rows: Path = Path("benchmarks/results/memory.jsonl"),
) -> None:
    """Takes train's settings."""
    work = Workload(settings_of(context, None, None), [method], steps)
    append(rows, "memory", memory_over_steps(work, every), device=work.device())
    append(rows, "epochs", time_epochs(work.configs()[0]), device=work.device())
    typer.echo(f"Added two rows to {rows}")


if __name__ == "__main__":
    app()
