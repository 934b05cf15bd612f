"""Feed random settings, run folders and descriptions of networks to everything that reads them.

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
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
import yaml
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from records import epoch_fields, summary_fields, train_fields

from adautomix.config import load_config, make_config, unflatten
from adautomix.config.schema import TrainConfig, architecture_of
from adautomix.errors import AdAutoMixError
from adautomix.methods import METHODS
from adautomix.models import check_build_arguments, check_replacements
from adautomix.runs.checkpoint import FILES, read_manifest, write_manifest
from adautomix.runs.folder import RunFolder
from adautomix.runs.records import read_run, write_metrics, write_summary
from adautomix.runs.schema import EpochRow, Row, Summary, TrainRow
from adautomix.text import printable

TRIED: Counter[str] = Counter()

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
mutations = st.lists(
    st.tuples(
        st.sampled_from(["flip", "cut", "insert", "repeat"]),
        st.floats(0, 1),
        st.integers(0, 255),
    ),
    min_size=1,
    max_size=3,
)


def only_our_errors(kind: str, read: Callable[[], Any]) -> None:
    """Call a reader; what it may raise is an `AdAutoMixError` of one printable line."""
    TRIED[kind] += 1
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            read()
    except AdAutoMixError as error:
        line = printable(" ".join(str(error).split()), None)
        if not line or len(line) > 5000:
            raise AssertionError(f"no line to print: {line[:200]!r}") from error


def mutate(content: bytes, changes: list[tuple[str, float, int]]) -> bytes:
    """Apply changes at positions from 0 (start) to 1 (end) of the content."""
    for kind, place, value in changes:
        position = int(place * len(content))
        head, tail = content[:position], content[position:]
        if kind == "flip" and tail:
            content = head + bytes([tail[0] ^ (value or 1)]) + tail[1:]
        elif kind == "cut":
            content = head
        elif kind == "insert":
            content = head + bytes([value]) * 3 + tail
        elif kind == "repeat":
            content = head + tail * 2
    return content


# ---------------------------------------------------------------------- what is fuzzed


@given(st.dictionaries(names, values, max_size=5))
def fuzz_settings(settings: dict[str, Any]) -> None:
    """Nested values, as a Python user passes them."""
    only_our_errors("settings", lambda: make_config(settings))


@given(st.dictionaries(names, st.text(max_size=30), max_size=4))
def fuzz_flags(flags: dict[str, str]) -> None:
    """Dotted names and texts, as the command line passes them."""
    only_our_errors("flags", lambda: make_config(unflatten(flags)))


def fuzz_files(scratch: Path) -> Callable[[], None]:
    """YAML files: random bytes, random values, and mutated settings."""
    path = scratch / "settings.yaml"
    plain = make_config({"method": "mixup"}).resolved()
    whole = yaml.safe_dump(plain).encode()

    @given(
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


def fuzz_runs(scratch: Path) -> Callable[[], None]:
    """Run folders in which one file was damaged."""
    whole = make_run(scratch)
    files = [path for path in sorted(whole.rglob("*")) if path.is_file()]
    contents = [path.read_bytes() for path in files]

    @given(st.integers(0, len(files) - 1), mutations)
    def check(index: int, changes: list[tuple[str, float, int]]) -> None:
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
            only_our_errors("runs", read)
        files[index].write_bytes(contents[index])

    return check


@given(
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


def targets(scratch: Path) -> dict[str, Callable[[], None]]:
    """Every fuzz target by name; each call tries as many inputs as the settings say."""
    return {
        "settings": fuzz_settings,
        "flags": fuzz_flags,
        "files": fuzz_files(scratch),
        "runs": fuzz_runs(scratch),
        "networks": fuzz_networks,
    }


def bounded(target: Callable[[], None], inputs: int, seed: int | None = None) -> Callable[[], None]:
    """A target that tries so many inputs: always the same ones, or those of a seed."""
    options = hypothesis.settings(
        max_examples=inputs,
        deadline=None,
        database=None,
        derandomize=seed is None,
        suppress_health_check=list(HealthCheck),
    )
    tried = options(target)
    return tried if seed is None else hypothesis.seed(seed)(tried)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--minutes", type=float, default=5, help="when to stop")
    parser.add_argument("--seed", type=int, default=0, help="the first inputs to try")
    options = parser.parse_args()
    started = time.monotonic()
    failures, seed = 0, options.seed
    scratch = Path(tempfile.mkdtemp())
    try:
        known = targets(scratch)
        while time.monotonic() - started < 60 * options.minutes:
            for name, target in known.items():
                try:
                    bounded(target, 200, seed)()
                except Exception as error:
                    failures += 1
                    print(f"{name}, seed {seed}: {type(error).__name__}: {error}", flush=True)
            seed += 1
    finally:
        shutil.rmtree(scratch)
    for name, count in TRIED.items():
        print(f"{name}: {count} inputs")
    minutes = (time.monotonic() - started) / 60
    print(f"{TRIED.total()} inputs, {failures} failures, {minutes:.1f} minutes")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
