"""The run folder: settings, a line a logged step, the final figures."""

import json
from pathlib import Path
from typing import Any

import yaml

from adautomix.config import TrainConfig, make_config
from adautomix.errors import UsageError
from adautomix.files import atomic_write

TIMING = ("seconds", "images_per_second")


class RunFolder:
    """Where a run keeps everything; made by `create`, found again by `open`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.metrics_path = path / "metrics.jsonl"
        self.samples = path / "samples"

    @classmethod
    def create(cls, config: TrainConfig) -> "RunFolder":
        """A new folder with its `config.yaml`.

        Raises:
            UsageError: the folder asked for holds something already.
        """
        path = config.out or unused_folder(config)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UsageError(
                f"{path} exists: choose another --out, or go on with `adautomix resume {path}`"
            )
        path.mkdir(parents=True, exist_ok=True)
        resolved = config.resolved() | {"out": str(path)}
        with atomic_write(path / "config.yaml") as temporary:
            temporary.write_text(yaml.safe_dump(resolved, sort_keys=False))
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "RunFolder":
        """An existing run.

        Raises:
            UsageError: there is none.
        """
        if not (path / "config.yaml").is_file():
            raise UsageError(f"{path} is not a run folder: it has no config.yaml")
        return cls(path)

    def config(self) -> TrainConfig:
        """The settings that the run was started with."""
        return make_config(yaml.safe_load((self.path / "config.yaml").read_text()))

    def write_data_info(self, card: dict[str, Any]) -> None:
        """Write `data.json`: classes, image size and normalization, for use without the data."""
        with atomic_write(self.path / "data.json") as temporary:
            temporary.write_text(json.dumps(card, indent=1) + "\n")

    def data_info(self) -> dict[str, Any]:
        """What `data.json` holds."""
        card: dict[str, Any] = json.loads((self.path / "data.json").read_text())
        return card | {name: tuple(card[name]) for name in ("mean", "std")}

    def log(self, row: dict[str, Any]) -> None:
        """Add a line to `metrics.jsonl`."""
        with self.metrics_path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        """The lines logged so far; one that a crash cut off is left out."""
        if not self.metrics_path.exists():
            return []
        lines = self.metrics_path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("}\n")]

    def truncate_after(self, step: int) -> None:
        """Drop lines past a step: the run goes on from there and will write them again."""
        kept = [row for row in self.rows() if row["step"] <= step]
        with atomic_write(self.metrics_path) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept))

    def write_summary(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`."""
        with atomic_write(self.path / "summary.json") as temporary:
            temporary.write_text(json.dumps(summary, indent=1) + "\n")

    def summary(self) -> dict[str, Any] | None:
        """The final figures, or None while the run is unfinished."""
        path = self.path / "summary.json"
        return json.loads(path.read_text()) if path.exists() else None


def without_timing(row: dict[str, Any]) -> dict[str, Any]:
    """A logged line without what depends on the clock: equal for equal runs."""
    return {name: value for name, value in row.items() if name not in TIMING}


def unused_folder(config: TrainConfig) -> Path:
    """`runs/<data>-<method>-s<seed>`, numbered where that exists."""
    base = Path("runs") / f"{Path(config.data).name}-{config.method}-s{config.seed}"
    path, number = base, 2
    while path.exists():
        path, number = base.with_name(f"{base.name}-{number}"), number + 1
    return path
