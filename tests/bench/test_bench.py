"""What is measured is the real step, and figures stay what they were from clock to page.

No test here depends on how fast the machine is: where time matters, a made-up clock tells it.
"""

import itertools
import json
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import Command
from records import train_fields
from tiny import state_of

from adautomix import commit as source
from adautomix.bench import phases, plan, rows, steps, work, workload
from adautomix.bench.phases import PHASES, REST, PhaseClock, phase_seconds, time_phases
from adautomix.bench.steps import Timing, step_rows, time_steps
from adautomix.bench.workload import Workload, cycle, endless_trainer, real_step
from adautomix.config import make_config
from adautomix.errors import UsageError
from adautomix.reporting.bench_table import table_of
from adautomix.runs.schema import TrainRow
from adautomix.training.loop import Trainer

CPU = torch.device("cpu")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
BATCH = 8
NET = {"model": "resnet18", "stem": "cifar", "width": 0.125, "batch_size": BATCH}
FLAGS = ("--model", "resnet18", "--stem", "cifar", "--width", 0.125, "--batch-size", 8)
TOY = Workload(NET, ["vanilla", "adautomix"], steps=2, classes=5, size=16)
DIGITS = {"data": "digits", "per_class": 2, "image_size": 16}
DIGIT_FLAGS = ("--data", "digits", "--per-class", 2, "--image-size", 16)


def trainer_of(asked: Workload, number: int = 0) -> Trainer:
    return endless_trainer(asked.configs()[number], asked.images())


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Iterator[float]:
    """A clock that is one second later at each look."""
    clock = itertools.count(0.0)
    monkeypatch.setattr(phases, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    return clock


# --- steps -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_every_method_takes_the_trainers_steps_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    train_step = Trainer.train_step

    def noted(self: Trainer, batch: Any) -> None:
        taken.append(self.config.method)
        train_step(self, batch)

    monkeypatch.setattr(Trainer, "train_step", noted)
    on_progress: list[int] = []
    timings = time_steps(replace(TOY, steps=3), on_progress=on_progress.append)
    assert [(t.method, t.batch_size, len(t.seconds)) for t in timings] == [
        ("vanilla", 8, 3),
        ("adautomix", 8, 3),
    ]
    assert taken == ["vanilla"] * 2 + ["adautomix"] * 2 + ["vanilla", "adautomix"] * 3
    assert on_progress == [1, 2, 3]


def test_a_measured_step_is_a_training_step(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(TOY, 1)
    monkeypatch.setattr(workload, "endless_trainer", lambda config, data: trainer)
    parts = {"student": trainer.student, "teacher": trainer.teacher.model, "own": trainer.method}
    before = {name: state_of(part) for name, part in parts.items()}
    step = real_step(trainer.config, TOY.images())
    step()
    step()
    assert trainer.step == 2
    for name, part in parts.items():
        moved = [not torch.equal(value, before[name][key]) for key, value in state_of(part).items()]
        assert any(moved), name


def test_a_trainer_outlasts_its_measurement_and_has_nowhere_to_write() -> None:
    trainer = trainer_of(TOY)
    assert trainer.steps >= workload.LASTING
    with pytest.raises(OSError, match="Not a directory"):
        trainer.folder.log(TrainRow(**train_fields(0)))


def test_a_cycle_has_every_kind_of_step() -> None:
    assert cycle(make_config({"method": "vanilla"})) == 2
    rests = {"method": "adautomix", "adautomix": {"generator_every": 3}}
    assert cycle(make_config(rests)) == 6


@pytest.mark.slow
def test_variants_are_measured_under_their_names() -> None:
    asked: dict[str, dict[str, Any]] = {
        "plain": {"method": "vanilla", "label": "plain"},
        "split": {"method": "adautomix", "label": "split", "adautomix": {"views": "split"}},
    }
    timed = replace(TOY, methods=[], variants=asked)
    assert [t.method for t in time_steps(timed)] == ["plain", "split"]
    counts = [
        row["flops"] for row in work.work_rows(timed, [Timing(n, 8, [1.0, 1.0]) for n in asked])
    ]
    full = {"method": "adautomix", "label": "full"}
    (most,) = work.work_rows(
        replace(timed, variants={"full": full}), [Timing("full", 8, [1.0] * 2)]
    )
    assert counts[0] < counts[1] < 0.7 * most["flops"]


def test_figures_of_a_timing() -> None:
    timings = [
        Timing("vanilla", 10, [4.0, 1.0, 2.0, 3.0]),
        Timing("mixup", 10, [5.0, 5.0, 8.0], 7.0),
    ]
    first, second = step_rows(timings)
    assert first["seconds"] == 2.5
    assert first["quartiles"] == (1.75, 3.25)
    assert (first["times"], second["times"]) == (1.0, 2.0)
    assert (first["mean_times"], second["mean_times"]) == (1.0, 2.4)
    assert first["images_per_second"] == 4.0
    assert (first["peak_memory_mib"], second["peak_memory_mib"]) == (None, 7.0)


@pytest.mark.slow
def test_memory_is_told_where_it_is_one_methods() -> None:
    assert [t.peak_memory_mib for t in time_steps(TOY)] == [None, None]
    (alone,) = time_steps(replace(TOY, methods=["vanilla"]))
    assert alone.peak_memory_mib is not None
    assert alone.peak_memory_mib > 0


def test_memory_of_a_method_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    gpu = {"memory_allocated": 5 * 2**20, "max_memory_allocated": 12 * 2**20}

    def on_progress(name: str, device: torch.device) -> int | None:
        calls.append(name)
        return gpu.get(name)

    for name in ("reset_peak_memory_stats", *gpu):
        monkeypatch.setattr(torch.cuda, name, partial(on_progress, name))

    def make() -> workload.Step:
        calls.append("make")
        return lambda: calls.append("step")

    config = make_config({"method": "adautomix"})
    _, memory = steps.warmed_up(make, config, torch.device("cuda"))
    assert memory == 7.0
    before, after = ["reset_peak_memory_stats", "memory_allocated"], ["max_memory_allocated"]
    assert calls == [*before, "make", "step", "step", *after]
    calls.clear()
    graphed = make_config({"method": "adautomix", "runtime": "graph"})
    steps.warmed_up(make, graphed, torch.device("cuda"))
    assert calls.count("step") == 8  # each of two kinds: three eager ones, then the captured


# --- phases ----------------------------------------------------------------------------------


def test_the_innermost_phase_is_charged(ticks: Iterator[float]) -> None:
    clock = PhaseClock(CPU)
    with clock.phase("outer"):
        with clock.phase("inner"), clock.phase("inmost"):
            pass
        with clock.phase("inner"):
            pass
    assert clock.seconds == {"outer": 3.0, "inner": 3.0, "inmost": 1.0}


@pytest.mark.parametrize("number", [0, 1])
def test_phases_add_up_to_the_step(number: int, ticks: Iterator[float]) -> None:
    trainer = trainer_of(TOY, number)
    seconds = phase_seconds(trainer, steps=2)
    assert 2 * sum(seconds.values()) == next(ticks) - 1  # from the first look to the last
    absent = {"teacher", "generator"} if trainer.config.method == "vanilla" else set()
    assert seconds.keys() == {*PHASES, REST} - absent


@pytest.mark.slow
def test_shares_of_phases() -> None:
    first, second = time_phases(TOY)
    assert [row["method"] for row in (first, second)] == TOY.methods
    for row in (first, second):
        shares = [share for name, share in row.items() if name not in ("method", "seconds")]
        assert sum(shares) == pytest.approx(1)
        assert min(shares) > 0


@pytest.mark.slow
def test_timing_its_phases_changes_no_step() -> None:
    timed, plain = trainer_of(TOY, 1), trainer_of(TOY, 1)
    phase_seconds(timed, steps=2)
    for batch in itertools.islice(workload.endless(plain), 4):
        plain.train_step(batch)
        plain.step += 1
    theirs = plain.weights()
    assert all(torch.equal(value, theirs[name]) for name, value in timed.weights().items())
    owners = (timed.student, timed.teacher.model, timed.method.generator, timed.eager_step)
    assert not any({*phases.PASSES, "inputs"} & vars(owner).keys() for owner in owners)


def test_phases_need_seams() -> None:
    captured = replace(TOY, values=NET | {"runtime": "compile"})
    with pytest.raises(UsageError, match="runtime = compile leaves no seams"):
        time_phases(captured)


# --- work ------------------------------------------------------------------------------------

# Of the toy network, for one image: channels in and out, side of the kernel, side of the output.
STEM = (3, 8, 3, 16)
STAGES = [
    [(8, 8, 3, 16)] * 4,
    [(8, 16, 3, 8), *[(16, 16, 3, 8)] * 3, (8, 16, 1, 8)],
    [(16, 32, 3, 4), *[(32, 32, 3, 4)] * 3, (16, 32, 1, 4)],
    [(32, 64, 3, 2), *[(64, 64, 3, 2)] * 3, (32, 64, 1, 2)],
]
HEAD = (64, 5, 1, 1)


def by_hand(*layers: tuple[int, int, int, int]) -> int:
    """Multiplications and additions of one forward of a batch."""
    return BATCH * sum(2 * a * b * k**2 * side**2 for a, b, k, side in layers)


@pytest.mark.slow
def test_the_arithmetic_of_a_step_by_hand() -> None:
    vanilla, adautomix = (work.count_flops(config, TOY.images()) for config in TOY.configs())
    forward = by_hand(STEM, *itertools.chain(*STAGES), HEAD)
    # Back through weights and activations; the images themselves want no gradient.
    assert vanilla == 3 * forward - by_hand(STEM)
    # The adversary's steps look at clean images to the end, the others to the third stage.
    clean = forward - by_hand(*STAGES[3], HEAD) / 2
    networks = 3 * vanilla + clean + 2 * forward
    assert networks < adautomix < 1.02 * networks  # the rest is the generator's
    assert adautomix / vanilla == pytest.approx(12 / 3, rel=0.02)


def test_the_peak_leaves_settings_alone() -> None:
    before = torch.backends.cuda.matmul.fp32_precision
    assert work.measured_peak(CPU, "fp32", side=16) > 0
    assert torch.backends.cuda.matmul.fp32_precision == before


@pytest.mark.slow
def test_the_share_of_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "measured_peak", lambda device, precision: 1e9)
    flops = [work.count_flops(config, TOY.images()) for config in TOY.configs()]
    timings = [Timing("adautomix", 8, [2.0]), Timing("peer", 8, [9.0]), Timing("vanilla", 8, [0.5])]
    found = work.work_rows(TOY, timings)
    assert [row["method"] for row in found] == TOY.methods
    assert [row["share_of_peak"] for row in found] == [flops[0] / 0.5e9, flops[1] / 2e9]
    assert found[1]["times"] == flops[1] / flops[0]


# --- rows and the page -----------------------------------------------------------------------


def test_a_row_comes_back_and_names_no_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["/usr/bin/adautomix", "bench", "--data", "/home/me/pets", f"--rows={tmp_path}/r.jsonl"]
    monkeypatch.setattr(sys, "argv", words)
    figures: list[workload.Row] = [
        {"method": "timm mixup", "seconds": 0.5},
        {"method": "café", "quartiles": (1, 2)},
    ]
    path = tmp_path / "new" / "r.jsonl"
    first = rows.append(path, "steps", figures, device=CPU)
    rows.append(path, "work", [], device=CPU)
    back = rows.read(path)
    assert [row["kind"] for row in back] == ["steps", "work"]
    assert back[0] == json.loads(json.dumps(first))
    assert back[0]["figures"][1] == {"method": "café", "quartiles": [1, 2]}
    assert back[0]["command"] == "adautomix bench --data pets --rows=r.jsonl"
    assert back[0]["machine"] == {
        "cpu": rows.processor(),
        "threads": torch.get_num_threads(),
        "gpu": None,
    }
    assert back[0]["versions"].keys() == {"python", "torch", "timm", "adautomix"}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", back[0]["date"])
    text = path.read_text()
    assert str(tmp_path) not in text
    assert f"{Path.home()}/" not in text
    assert f'"{platform.node()}"' not in text


def test_a_commit_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "git", lambda folder, *words: None)
    assert source.commit() is None
    said = {"ls-files": "rows.py", "rev-parse": "0123456789ab", "diff": ""}
    monkeypatch.setattr(source, "git", lambda folder, *words: said.get(words[0]))
    assert source.commit() == "0123456789ab"
    del said["diff"]
    assert source.commit() == "0123456789ab+changes"


def test_a_script_is_named_from_the_root_of_the_checkout() -> None:
    assert (
        rows.command_line(["/a/b/growth.py", "--steps", "2"])
        == "python benchmarks/growth.py --steps 2"
    )
    assert rows.command_line(["/a/__main__.py", "bench"]) == "adautomix bench"


def test_files_that_are_no_rows(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*absent.jsonl: No such file"):
        rows.read(tmp_path / "absent.jsonl")
    (tmp_path / "torn.jsonl").write_text('{"kind": "steps"}\n{"kin')
    with pytest.raises(UsageError, match=r"torn.jsonl, line 2 is not JSON"):
        rows.read(tmp_path / "torn.jsonl")


def test_empty_columns_are_left_out() -> None:
    titles, cells = table_of([{"a_b": 1, "seconds": None}, {"a_b": 2.5, "c": "x"}])
    assert titles == ["a b", "c"]
    assert cells == [["1", "–"], ["2.5", "x"]]


# --- plan ------------------------------------------------------------------------------------


def test_the_cost_of_a_run() -> None:
    config = make_config({"method": "mixup", "batch_size": 10, "epochs": 36, "eval_every": 2})
    found = plan.cost(config, Timing("mixup", 10, [1.0, 3.0]), steps_an_epoch=45, evaluation=20.0)
    assert found == {
        "method": "mixup",
        "asked": True,
        "images_per_second": 5.0,
        "peak_memory_mib": None,
        "seconds_an_epoch": 100.0,
        "hours": 1.0,
    }


@pytest.mark.slow
def test_a_plan_of_three_methods_that_writes_nothing(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("plan", *DIGIT_FLAGS, *FLAGS, "--steps", 2, "--teacher.buffers", "own")
    outcome = command(*words, "--json")
    assert outcome.status == 0, outcome.err
    assert [(row["method"], row["asked"]) for row in outcome.json] == [
        ("adautomix", True),
        ("vanilla", False),
        ("mixup", False),
    ]
    assert all(row["hours"] > 0 for row in outcome.json)
    table = command(*words).out.splitlines()
    assert [line.split()[0] for line in table[1:]] == ["adautomix", "vanilla", "mixup"]
    assert ["requested" in line for line in table[1:]] == [True, False, False]
    assert list(tmp_path.iterdir()) == []


def test_a_plan_needs_its_images(command: Command) -> None:
    outcome = command("plan", "--data", "no-such-folder")
    assert outcome.status == 2
    assert "no folder no-such-folder" in outcome.err


# --- the commands ----------------------------------------------------------------------------

BENCH = ("bench", *FLAGS, "--classes", 5, "--size", 16, "--steps", 2)


@pytest.fixture
def small_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(work.SIDES, "cpu", 32)


@pytest.mark.slow
@pytest.mark.usefixtures("small_peak")
def test_everything_that_bench_measures(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    outcome = command(*BENCH, "--phases", "--work", "--rows", path, "--json")
    assert outcome.status == 0, outcome.err
    assert list(outcome.json) == ["steps", "phases", "work"]
    for kind in ("steps", "phases", "work"):
        assert [row["method"] for row in outcome.json[kind]] == ["vanilla", "adautomix"]
    back = rows.read(path)
    assert {row["kind"]: row["figures"] for row in back} == outcome.json


def test_bench_as_tables(command: Command) -> None:
    outcome = command(*BENCH, "--methods", "vanilla,mixup")
    assert outcome.status == 0, outcome.err
    lines = outcome.out.splitlines()
    assert lines[0] == "steps"
    assert [line.split()[0] for line in lines[1:4]] == ["method", "vanilla", "mixup"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--methods", ","), "no method to measure: name one or more"),
        (("--runtime", "compile", "--phases"), "--runtime compile leaves no seams"),
        (("--steps", 1), "--steps"),
    ],
)
def test_what_bench_refuses(words: tuple[Any, ...], line: str, command: Command) -> None:
    outcome = command(*BENCH, *words)
    assert outcome.status == 2
    assert line in outcome.err


@pytest.mark.parametrize("name", ["plan", "bench"])
def test_commands_have_help(name: str, command: Command) -> None:
    outcome = command(name, "--help")
    assert outcome.status == 0
    assert f"Usage: adautomix {name}" in outcome.out
