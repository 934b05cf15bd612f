"""The doctor finds each planted mistake, and finds none in correct loops."""

import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import planted
import pytest
import torch
import torch.nn.functional as F
from conftest import Command
from torch import Tensor, nn

from adautomix.checks import ranks
from adautomix.checks.doctor import Finding, examine, find_equal_mixes
from adautomix.checks.ranks import wait_for_results
from adautomix.checks.script import address_of, load_file, load_named
from adautomix.checks.tracing import (
    Loop,
    StepTracer,
    brightness_fractions,
    probe_batches,
    single_class_targets,
    trace_steps,
)
from adautomix.errors import RunError, UsageError

MakeLoop = Callable[[], Loop]
ROOT = Path(__file__).parents[2]
EXAMPLES = ("plain_pytorch", "timm_pieces", "lightning_callback", "hf_trainer", "accelerate_loop")


def findings_of(make_loop: MakeLoop, **options: bool) -> list[Finding]:
    torch.manual_seed(0)
    return examine(make_loop, **{"processes": False, **options})


# ---------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("make_loop", "mistake"),
    [
        (planted.mixes_in_validation, "mixing in validation"),
        (planted.forgets_the_targets, "hard labels for mixed images"),
        (planted.two_classes, "hard labels for mixed images"),
        (planted.rounds_the_targets, "hard labels for mixed images"),
        (planted.rounds_to_smoothed_one_hot, "hard labels for mixed images"),
        (planted.never_stops, "mixing not switched off"),
        (planted.stops_too_late, "mixing not switched off"),
        (planted.never_mixes, "no mixing"),
    ],
)
def test_planted_mistakes_are_found(make_loop: MakeLoop, mistake: str) -> None:
    assert [finding.mistake for finding in findings_of(make_loop)] == [mistake]


def test_findings_say_where_and_how_often() -> None:
    (hard,) = findings_of(planted.rounds_the_targets)
    source = (ROOT / "tests" / "helpers" / "planted.py").read_text().splitlines()
    line = next(i for i, text in enumerate(source, 1) if "targets.argmax(1)" in text)
    assert hard.evidence.startswith(
        f"cross_entropy at planted.py:{line} was given one class per image"
    )
    (late,) = findings_of(planted.stops_too_late)
    assert re.match("[12] of the 6 batches after step 3 reached the network mixed", late.evidence)
    (validation,) = findings_of(planted.mixes_in_validation)
    assert re.match(r"[3-6] of 6 validation batches", validation.evidence)


@pytest.mark.parametrize(
    "make_loop",
    [
        planted.healthy,
        planted.healthy_cutmix,
        planted.healthy_end,
        planted.healthy_two_losses,
        planted.healthy_two_classes,
        planted.healthy_weak_mixup,
        planted.healthy_adautomix,
        planted.healthy_unseeded,
    ],
)
def test_correct_loops_have_no_findings(make_loop: MakeLoop) -> None:
    assert findings_of(make_loop) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_have_no_findings(name: str) -> None:
    assert findings_of(load_file(ROOT / "examples" / f"{name}.py").make_loop) == []


# ---------------------------------------------------------------------- several processes


IN_RANKS = """
import os, torch
import torch.distributed as dist
import torch.nn.functional as F
from adautomix.checks.tracing import Loop

model = torch.nn.Conv2d(3, 2, 4)

def loop_with(generator):
    if "RANK" in os.environ:
        dist.init_process_group("gloo")

    def train_step(images, labels):
        weight = torch.rand((), generator=generator)
        mixed = torch.lerp(images, images.roll(1, 0), weight)
        classes = F.one_hot(labels, 2).float()
        F.cross_entropy(model(mixed)[..., 0, 0], torch.lerp(classes, classes.roll(1, 0), weight))
        if "RANK" in os.environ:
            dist.barrier()

    return Loop(train_step, [(torch.zeros(6, 3, 4, 4), torch.arange(6) % 2)])

def own_seed():
    return loop_with(torch.Generator().manual_seed(int(os.environ.get("RANK", 0))))

def one_seed():
    return loop_with(torch.Generator().manual_seed(3))
"""


@pytest.fixture(scope="module")
def in_ranks(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    script = tmp_path_factory.mktemp("ranks") / "in_ranks.py"
    script.write_text(IN_RANKS)
    return load_file(script)


@pytest.mark.slow
def test_two_processes_that_mix_alike_are_found(in_ranks: ModuleType) -> None:
    (finding,) = findings_of(in_ranks.one_seed, processes=True)
    assert finding.mistake == "the same λ on every process"
    assert finding.evidence == "6 training batches were mixed alike in 2 processes"


@pytest.mark.slow
def test_two_processes_that_mix_differently_have_no_findings(in_ranks: ModuleType) -> None:
    assert findings_of(in_ranks.own_seed, processes=True) == []


def test_a_failing_process_is_reported_without_waiting_for_the_other(tmp_path: Path) -> None:
    files = [tmp_path / "0.json", tmp_path / "1.json"]
    files[1].write_text("RuntimeError: no such device here")
    started = {
        file: subprocess.Popen(command)
        for file, command in zip(files, (["sleep", "1000"], ["false"]), strict=True)
    }
    with pytest.raises(RunError, match=r"2 processes \(RuntimeError: no such device here\): --al"):
        wait_for_results(started)
    assert started[files[0]].poll() is None
    started[files[0]].kill()
    started[files[0]].wait()


def test_a_process_writes_its_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        ranks.main(f"{planted.__file__}:small_batches", "6", str(tmp_path / "result"))
    assert (
        (tmp_path / "result").read_text().startswith("UsageError: Loop.batches yields images [4,")
    )


def mixes_of_ranks(make_loop: MakeLoop, monkeypatch: pytest.MonkeyPatch) -> list[Finding]:
    """Compare the mixes that a loop makes as rank 0 and as rank 1."""
    processes = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        loop = make_loop()
        traces = trace_steps(loop.train_step, probe_batches(loop, 6))
        processes.append([[rows.tolist() for rows in step.mixed] for step in traces])
    return list(find_equal_mixes(processes))


@pytest.mark.parametrize(
    ("make_loop", "alike"),
    [
        (planted.same_seed_everywhere, True),
        (planted.same_lam_everywhere, True),
        (planted.same_rank_everywhere, True),
        (planted.healthy, False),
        (planted.healthy_cutmix, False),
        (planted.healthy_two_losses, False),
        (planted.healthy_adautomix, False),
        (planted.healthy_unseeded, False),
        (planted.never_mixes, False),
    ],
)
def test_equal_mixes_in_two_processes(
    make_loop: MakeLoop, alike: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [finding.mistake for finding in mixes_of_ranks(make_loop, monkeypatch)]
    assert names == ["the same λ on every process"] * alike


# ---------------------------------------------------------------------- probe batches and traces


def test_probe_batches_are_black_except_one_image() -> None:
    images, labels = torch.rand(7, 3, 4, 4), torch.tensor([8, 8, 8, 8, 8, 2, 2])
    batches = list(probe_batches(Loop(print, [(images, labels)]), 9))
    for step, (probe, probe_labels) in enumerate(batches):
        bright = probe.flatten(1).sum(dim=1)
        assert bright.nonzero().flatten().tolist() == [step % 7]
        assert probe_labels.tolist() == [2, 8, 2, 8, 2, 8, 2]
    assert images.min() >= 0, "the loop's own images are not changed"


def test_probe_batches_keep_dtypes_and_soft_labels() -> None:
    images, labels = torch.zeros(6, 3, 4, 4, dtype=torch.uint8), torch.rand(6, 5)
    ((probe, probe_labels),) = probe_batches(Loop(print, [(images, labels)]), 1)
    assert probe.dtype == torch.uint8
    assert probe[0].float().mean() > 50
    assert torch.equal(probe_labels, labels)


def test_brightness_is_measured_from_the_median() -> None:
    fractions = brightness_fractions(torch.tensor([-1.0, -1, 2, -1, 0, -1]))
    torch.testing.assert_close(fractions, torch.tensor([0, 0, 0.75, 0, 0.25, 0]))
    assert brightness_fractions(torch.tensor([1.0, 1 + 1e-6, 1])).sum() == 0


def test_inputs_and_losses_are_recorded() -> None:
    images = torch.rand(6, 1, 4, 4)
    first, head = nn.Conv2d(1, 2, 3), nn.Linear(8, 5)
    with StepTracer(images) as tracer:
        logits = head(first(images).flatten(1))
        nn.functional.nll_loss(logits.log_softmax(dim=1), torch.arange(6) % 5)
    (rows,) = tracer.trace.inputs
    torch.testing.assert_close(rows, images.double().mean(dim=(1, 2, 3)))
    (call,) = tracer.trace.losses
    assert call.name == "nll_loss"
    assert call.classes is not None
    assert call.classes.tolist() == [0, 1, 2, 3, 4, 0]


@pytest.mark.parametrize(
    ("targets", "classes"),
    [
        (torch.tensor([3, 1]), [3, 1]),
        (torch.tensor([[0.0, 1, 0], [1, 0, 0]]), [1, 0]),
        (torch.tensor([[0.05, 0.9, 0.05]]), [1]),
        (torch.tensor([[0.3, 0.7, 0], [1, 0, 0]]), None),
        (torch.tensor([[0.0, 1], [1, 0]]), [1, 0]),
        (torch.tensor([[0.3, 0.7], [0.7, 0.3]]), None),
        (torch.tensor([1.0, 0]), [1, 0]),
        (torch.tensor([0.5, 0]), None),
    ],
)
def test_targets_that_name_one_class(targets: Tensor, classes: list[int] | None) -> None:
    named = single_class_targets(targets)
    assert (named if named is None else named.tolist()) == classes


def test_two_losses_with_class_indices_are_recorded() -> None:
    """λ CE(a) + (1 - λ) CE(b) calls the loss twice, with one class per image."""
    loop = planted.healthy_two_losses()
    (step,) = trace_steps(loop.train_step, probe_batches(loop, 1))
    assert [call.classes is not None for call in step.losses] == [True, True]
    assert step.mixed


# ----------------------------------------------------------- loops that cannot be checked


@pytest.mark.parametrize(
    ("make_loop", "message"),
    [
        (planted.small_batches, r"images \[4, 3, 16, 16\]: use .* B of 6 or more"),
        (planted.without_a_network, "no image entered a convolution"),
        (planted.wrong_batches, r"yield pairs \(images, labels\)"),
        (planted.one_class, "images of one class: shuffle them"),
        (planted.not_a_loop, r"not_a_loop\(\) returns no adautomix.checks.doctor.Loop"),
        (planted.far_end, "off_after = 1000000: let make_loop end mixing after 1 to 1000 steps"),
    ],
)
def test_loops_that_cannot_be_checked(make_loop: MakeLoop, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        findings_of(make_loop)


def test_other_processes_need_a_top_level_function() -> None:
    with pytest.raises(UsageError, match="other processes cannot find it"):
        examine(lambda: planted.healthy())


def test_addresses() -> None:
    assert address_of(planted.healthy) == f"{planted.__file__}:healthy"
    assert load_named(f"{planted.__file__}:healthy").__name__ == "healthy"
    assert address_of(probe_batches) == "adautomix.checks.tracing:probe_batches"
    assert load_named("torch.nn:functional") is F


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("nowhere.py:f", "no file nowhere.py: write path.py:name"),
        ("no_such_module:f", "no module 'no_such_module': install it"),
        ("torch", "'torch' names no attribute"),
        ("torch:nothing", "torch has no 'nothing'"),
    ],
)
def test_unknown_addresses(address: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_named(address)


# ---------------------------------------------------------------------- the command


def doctor_docs() -> str:
    return (ROOT / "docs" / "doctor.md").read_text()


def documented_example() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", doctor_docs(), re.DOTALL)
    return str(code)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    """The example of the documentation, in a file."""
    file = tmp_path / "my_training.py"
    file.write_text(documented_example())
    return file


def test_the_example_of_the_documentation(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (finding,) = mixes_of_ranks(load_file(script).make_loop, monkeypatch)
    documented = re.search(r"    - (the same λ.*?)\n    adautomix: ", doctor_docs(), re.DOTALL)
    assert documented
    assert str(finding) == " ".join(documented[1].split())
    fixed = script.with_name("fixed.py")
    fixed.write_text(documented_example().replace("    torch.manual_seed(0)\n", ""))
    assert mixes_of_ranks(load_file(fixed).make_loop, monkeypatch) == []


def test_the_command_with_findings(command: Command) -> None:
    place = f"{planted.__file__}:never_stops"
    outcome = command("doctor", place, "--alone")
    assert outcome.status == 1
    assert outcome.out.startswith("- mixing not switched off: ")
    assert outcome.out.endswith("; check the step or epoch before mixing\n")
    assert outcome.err == f"adautomix: {place}: 1 problem found; see the fixes above\n"


def test_the_command_without_findings(command: Command, script: Path) -> None:
    outcome = command("doctor", script, "--alone")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out == f"No problems found in {script}.\n"
    assert command("doctor", script, "--alone", "--json").json == []


def test_the_command_prints_json(command: Command) -> None:
    outcome = command("doctor", f"{planted.__file__}:never_stops", "--alone", "--json")
    assert outcome.status == 1
    (finding,) = json.loads(outcome.out)
    assert finding["mistake"] == "mixing not switched off"


def test_output_of_the_loop_goes_to_standard_error(command: Command) -> None:
    outcome = command("doctor", f"{planted.__file__}:healthy_with_output", "--alone", "--json")
    assert outcome.json == []
    assert outcome.err.splitlines() == ["building", *(f"step {step}" for step in range(1, 7))]


def test_every_finding_is_documented() -> None:
    loops = (
        planted.mixes_in_validation,
        planted.rounds_the_targets,
        planted.never_stops,
        planted.never_mixes,
    )
    names = {finding.mistake for loop in loops for finding in findings_of(loop)}
    for name in names | {"the same λ on every process"}:
        assert f"| {name} |" in doctor_docs()


@pytest.mark.parametrize("arguments", [("nowhere.py",), ("--steps", "1")])
def test_wrong_usage(command: Command, arguments: tuple[str, ...]) -> None:
    assert command("doctor", planted.__file__, *arguments).status == 2
