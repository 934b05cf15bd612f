"""Step time against batch size, image size and N: a row of data and a picture.

python benchmarks/growth.py --width 0.25 --stem cifar
"""

from pathlib import Path
from typing import Annotated

import typer

from adautomix.bench.growth import POINTS, time_growth
from adautomix.bench.rows import append
from adautomix.bench.workload import Workload
from adautomix.cli import TAKES_SETTINGS, names_in, settings_of
from adautomix.reporting.performance import draw_growth

app = typer.Typer(add_completion=False)


@app.command(context_settings=TAKES_SETTINGS)
def main(
    context: typer.Context,
    methods: str = "vanilla,mixup,adautomix",
    steps: Annotated[int, typer.Option(min=2, help="measured steps a point")] = 6,
    points: Annotated[str, typer.Option(help="such as batch_size=50:100,n=2:3")] = "",
    rows: Path = Path("benchmarks/results/growth.jsonl"),
    picture: Path = Path("docs/images/growth.svg"),
) -> None:
    """Takes train's settings."""
    work = Workload(settings_of(context, None, None), names_in(methods), steps)
    chosen = {
        axis: [int(value) for value in values.split(":")]
        for axis, _, values in (item.partition("=") for item in names_in(points))
    }
    figures = time_growth(work, chosen or POINTS, on_progress=typer.echo)
    append(rows, "growth", figures, device=work.device())
    typer.echo(f"Wrote {draw_growth(figures, picture)} and a row of {rows}")


if __name__ == "__main__":
    app()
