"""Feed random settings, run folders, networks, lists and images to everything that reads them.

    make fuzz MINUTES=5

A reader may only return or raise an `AdAutoMixError` of one line. Every input that did something
else becomes an example of its own in a test.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml
from fuzzing_data import fuzz_archives, fuzz_images, fuzz_lists
from fuzzing_quick import QuickTarget, quick_targets
from hypothesis import strategies as st
from reading_checks import TRIED, Target, mutate, mutations, only_our_errors, target
from records import epoch_fields, summary_fields, train_fields

from adautomix.config import load_config, make_config, unflatten
from adautomix.config.schema import TrainConfig, architecture_of
from adautomix.methods import METHODS
from adautomix.models import check_build_arguments, check_replacements
from adautomix.runs.checkpoint import FILES, read_manifest, write_manifest
from adautomix.runs.folder import RunFolder
from adautomix.runs.records import read_run, write_metrics, write_summary
from adautomix.runs.schema import EpochRow, Row, Summary, TrainRow

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["auto", "1e9", "2024-13-45", "none", "[/b]", "../x", "\ud800", "a\0b"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.integers(), inner, max_size=4)
    ),
    max_leaves=8,
)
names = st.sampled_from([*TrainConfig.model_fields, *METHODS]) | st.text(max_size=10)
# ---------------------------------------------------------------------- what is fuzzed


@target(st.dictionaries(names, values, max_size=5))
def fuzz_settings(settings: dict[str, Any]) -> None:
    """Nested values, as a Python user passes them."""
    only_our_errors("settings", lambda: make_config(settings))


@target(st.dictionaries(names, st.text(max_size=30), max_size=4))
def fuzz_flags(flags: dict[str, str]) -> None:
    """Dotted names and texts, as the command line passes them."""
    only_our_errors("flags", lambda: make_config(unflatten(flags)))


def fuzz_files(scratch: Path) -> Target:
    """YAML files: random bytes, random values, and mutated settings."""
    path = scratch / "settings.yaml"
    plain = make_config({"method": "mixup"}).resolved()
    whole = yaml.safe_dump(plain).encode()

    @target(
        st.binary(max_size=60)
        | mutations.map(lambda changes: mutate(whole, changes))
        | st.dictionaries(names, values, max_size=4).map(lambda v: json.dumps(v).encode())
    )
    def check(content: bytes) -> None:
        path.write_bytes(content)
        only_our_errors("files", lambda: load_config(file=path))

    return check


def make_run(folder: Path) -> Path:
    """A finished run without weights: every file of text that a run folder holds."""
    run = RunFolder(folder / "run")
    settings = make_config({"method": "mixup", "model": "resnet18"}).resolved()
    run.write_config(settings)
    facts = {"classes": ["a", "b"], "image_size": 8, "mean": [0.5] * 3, "std": [0.5] * 3}
    info = {**facts, "train_images": 4, "test_images": 2, "bad_files": []}
    run.write_data_info(info)
    rows: list[Row] = [TrainRow(**train_fields(1)), EpochRow(**epoch_fields(2))]
    write_metrics(run.metrics_path, rows)
    write_summary(run.summary_path, Summary(**summary_fields()))
    last = run.path / "checkpoints" / "last"
    last.mkdir(parents=True)
    hashes = dict.fromkeys(FILES, "0" * 64)
    manifest = {"version": 2, "step": 2, "sha256": hashes, "settings": settings, "data_info": info}
    write_manifest(last, manifest)
    return run.path


def fuzz_runs(scratch: Path) -> Target:
    """Run folders in which one file was damaged."""
    whole = make_run(scratch)
    files = [path for path in sorted(whole.rglob("*")) if path.is_file()]
    contents = [path.read_bytes() for path in files]

    @target(st.integers(0, len(files) - 1), mutations)
    def check(index: int, changes: list[tuple[str, float, int]]) -> None:
        TRIED["runs"] += 1
        files[index].write_bytes(mutate(contents[index], changes))
        run = RunFolder(whole)
        for read in (
            run.config,
            run.data_info,
            run.rows,
            run.summary,
            lambda: read_manifest(whole / "checkpoints" / "last"),
            lambda: read_run(whole),
            lambda: architecture_of(whole),
        ):
            only_our_errors("reads of runs", read)
        files[index].write_bytes(contents[index])

    return check


@target(
    st.sampled_from(["resnet18", "vit_tiny_patch16_224", "hf-hub:x", "local-dir:/"]) | scalars,
    st.dictionaries(
        st.sampled_from(["layers", "depth", "pretrained", "checkpoint_path"]) | st.text(max_size=9),
        values,
        max_size=3,
    ),
)
def fuzz_networks(name: Any, arguments: dict[str, Any]) -> None:
    """Names and arguments of networks, as the `config.json` of an exported folder holds them."""
    only_our_errors("networks", lambda: check_build_arguments(name, arguments))
    only_our_errors("networks", lambda: check_replacements({"conv1": arguments}))


def targets(scratch: Path) -> dict[str, Target | QuickTarget]:
    """Every fuzz target by name; each call tries as many inputs as the settings say."""
    return {
        "settings": fuzz_settings,
        "flags": fuzz_flags,
        "files": fuzz_files(scratch),
        "runs": fuzz_runs(scratch),
        "networks": fuzz_networks,
        "lists": fuzz_lists(_made(scratch / "lists")),
        "archives": fuzz_archives(_made(scratch / "archives")),
        "images": fuzz_images(_made(scratch / "images")),
        **quick_targets(scratch),
    }


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=5, help="when to stop")
    parser.add_argument("--seed", type=int, default=0, help="the first inputs to try")
    parser.add_argument("--targets", help="what to feed, comma-separated; none: everything")
    options = parser.parse_args()
    started = time.monotonic()
    failures, seed = 0, options.seed
    scratch = Path(tempfile.mkdtemp())
    try:
        known = targets(scratch)
        chosen = options.targets.split(",") if options.targets else list(known)
        while time.monotonic() - started < 60 * options.minutes:
            for name in chosen:
                try:
                    known[name].tried(200, seed)()
                except Exception as error:
                    failures += 1
                    print(f"{name}, seed {seed}: {type(error).__name__}: {error}", flush=True)
            seed += 1
            if (seed - options.seed) % 10 == 0:
                print(f"{TRIED.total()} inputs so far, {failures} failures", flush=True)
    finally:
        shutil.rmtree(scratch)
    for name, count in TRIED.items():
        print(f"{name}: {count} inputs")
    minutes = (time.monotonic() - started) / 60
    print(f"{TRIED.total()} inputs, {failures} failures, {minutes:.1f} minutes")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
