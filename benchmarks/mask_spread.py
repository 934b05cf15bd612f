"""Measure how much AdAutoMix's masks vary over an image in training, by width and first weights.

    python benchmarks/mask_spread.py data=cifar100 batch_size=50 --widths 0.25,1 --steps 200

Trains each width with each initialization for some steps and adds one row and a picture.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common import add_settings, read_settings

from adautomix.bench.rows import append
from adautomix.bench.workload import Row, endless, endless_trainer
from adautomix.config import TrainConfig, make_config, merge
from adautomix.data import ImageData
from adautomix.device import pick_device
from adautomix.reporting.drawing import drawing, series_style
from adautomix.runs.build import load_images

INITIALIZATIONS = ("released", "scaled")
PICTURE = Path("docs/images/mask-spread.svg")


def spreads(
    config: TrainConfig, data: ImageData, steps: int, every: int
) -> list[tuple[int, float]]:
    """Train for some steps and return (step, mean spread of the masks since the last entry).

    Args:
        config: settings of AdAutoMix.
        data: the images.
        steps: training steps.
        every: steps between two entries; the first entry is that of the first step alone.
    """
    trainer, found = endless_trainer(config, data), []
    batches = endless(trainer)
    for step in range(1, steps + 1):
        trainer.train_step(next(batches))
        trainer.step += 1
        if step == 1 or step % every == 0:
            found.append((step, trainer.epoch_meters.read()["mask_spread"]))
            trainer.epoch_meters.reset()
    return found


def measure(
    values: dict[str, Any], data: ImageData, widths: Sequence[float], steps: int, every: int
) -> list[Row]:
    """Return rows with "width", "initialization", "step" and "spread"."""
    rows = []
    for width in widths:
        for init in INITIALIZATIONS:
            own = {"method": "adautomix", "width": width, "adautomix": {"generator_init": init}}
            found = spreads(make_config(merge(values, own)), data, steps, every)
            place = {"width": width, "initialization": init}
            rows += [place | {"step": step, "spread": spread} for step, spread in found]
    return rows


def draw(rows: Sequence[Row], path: Path) -> Path:
    """Write the rows as an SVG with one line per width and initialization, and return its path."""
    from matplotlib.figure import Figure

    lines = list(dict.fromkeys((row["width"], row["initialization"]) for row in rows))
    with drawing("mask-spread"):
        figure = Figure(figsize=(6, 3.2), layout="constrained")
        panel = figure.subplots()
        for i, (width, init) in enumerate(lines):
            own = [row for row in rows if (row["width"], row["initialization"]) == (width, init)]
            points = [row["step"] for row in own], [row["spread"] for row in own]
            panel.plot(*points, label=f"width {width:g}, {init}", **series_style(i))
        panel.set_xlabel("training step")
        panel.set_ylabel("mean spread of the masks")
        panel.set_ylim(bottom=0)
        panel.legend(frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})
    return path


def main() -> None:
    """Train, write the row and the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_settings(parser)
    parser.add_argument(
        "--widths", default="0.25,1", help="multipliers of channels, comma-separated"
    )
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=20, help="steps between two points")
    parser.add_argument("--rows", type=Path, default=Path("docs/results/findings.jsonl"))
    parser.add_argument("--picture", type=Path, default=PICTURE)
    asked = parser.parse_args()
    values = read_settings(asked.settings)
    data = load_images(make_config(merge(values, {"method": "adautomix"})))
    widths = [float(width) for width in asked.widths.split(",")]
    rows = measure(values, data, widths, asked.steps, asked.every)
    device = pick_device("auto")
    append(asked.rows, "mask spread", rows, device=device, stated={"work": "mask-spread"})
    print(f"Wrote {draw(rows, asked.picture)}")


if __name__ == "__main__":
    main()
