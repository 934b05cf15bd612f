"""Compiled and captured training steps give the results of eager ones."""

import dataclasses
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from every import Bench, steps_of, trainer_of
from tiny import CLASSES, state_of, tiny_classifier, toy_images
from torch import Tensor

from adautomix.config import TrainConfig, make_config
from adautomix.ema import Teacher
from adautomix.errors import UsageError
from adautomix.methods import METHODS, InputMixing
from adautomix.training import loop
from adautomix.training.graphs import (
    EAGER_STEPS,
    Captured,
    GraphedStep,
    numbers_to_tensors,
    signature,
)
from adautomix.training.loop import Trainer
from adautomix.training.runtimes import pick_runtime
from adautomix.training.step import Losses, StepInputs

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
STEPS = 14  # enough for every kind of step to be captured and replayed
INPUT_MIXING = [name for name, method in METHODS.items() if issubclass(method, InputMixing)]


def assert_same_training(one: Trainer, other: Trainer, tolerance: float) -> None:
    """Check that losses are equal at every step, and weights and learning rates in the end."""
    for mine, theirs in zip(steps_of(one, STEPS), steps_of(other, STEPS), strict=True):
        assert mine == pytest.approx(theirs, rel=tolerance)
    for name, value in one.weights().items():
        torch.testing.assert_close(value, other.weights()[name], rtol=0, atol=tolerance, msg=name)
    rates = [[float(g["lr"]) for g in t.optimizer.param_groups] for t in (one, other)]
    assert rates[0] == pytest.approx(rates[1])


# ---------------------------------------------------------------------- memory

FAULTS = """
import resource, torch
from adautomix.device import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(2**24).add(1)  # two tensors of 64 MiB, 16384 pages each
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(faults())
keep_freed_memory()
for _ in range(4):  # until the heap has room for both tensors between what else is allocated
    faults()
print(faults())
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_kept() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True)
    before, after = (int(line) for line in done.stdout.split())
    assert before > 100  # 131072 with small pages, fewer with huge ones
    assert after < before / 10


# ---------------------------------------------------------------------- compile


ONE_GRAPH = [
    *((name, {}) for name in (*INPUT_MIXING, "adautomix")),
    ("adautomix", {"variant": "paper"}),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), ONE_GRAPH, ids=lambda value: str(value))
def test_a_step_is_one_graph(name: str, settings: dict[str, Any]) -> None:
    """Dynamo compiles the whole loss with its networks without a graph break, and exactly."""
    bench = Bench(name, **settings)
    method, student, teacher = bench.method, bench.student, bench.teacher

    def device_work(params: Any) -> Tensor:
        sources = method.prepare(bench.images, bench.labels, student, teacher, params)
        return method.compute_loss(sources, student, teacher, params)["loss"]

    torch._dynamo.reset()
    compiled = torch.compile(device_work, fullgraph=True, backend="eager")
    before = state_of(student)
    for step in range(2):
        expected = device_work(bench.make_params(step))
        student.load_state_dict(before)
        torch.testing.assert_close(compiled(bench.make_params(step)), expected)
        student.load_state_dict(before)


@pytest.mark.slow
def test_compiled_mixes_are_equal() -> None:
    """The mixes of every input-mixing method are equal when the C++ compiler builds them."""
    images, labels = toy_images(8)
    torch._dynamo.reset()
    for name in INPUT_MIXING:
        method = METHODS[name](METHODS[name].Settings(), num_classes=CLASSES)
        targets = torch.nn.functional.one_hot(labels, CLASSES).float()
        params = method.params_for_step(images.shape, 3)
        ours = torch.compile(method.mix, fullgraph=True)(images, targets, params)
        plain = method.mix(images, targets, params)
        torch.testing.assert_close(ours.images, plain.images)
        torch.testing.assert_close(ours.targets, plain.targets)


@pytest.mark.slow
def test_a_compiled_run_equals_the_eager_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compile the forward and backward passes of both kinds of steps of AdAutoMix."""
    monkeypatch.setattr(loop, "build_networks", tiny_networks)
    torch._dynamo.reset()
    eager = trainer_of("adautomix", tmp_path / "eager", epochs=4)
    compiled = trainer_of("adautomix", tmp_path / "compiled", epochs=4, runtime="compile")
    assert_same_training(compiled, eager, 1e-4)


def tiny_networks(config: TrainConfig, **_: Any) -> Any:
    """Build small networks, because one of the usual size takes a minute to compile."""
    student = tiny_classifier()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        method = METHODS[config.method](
            config.method_settings, num_classes=CLASSES, seed=config.seed, model=student
        )
    return student, method, Teacher(student)


@GPU
@pytest.mark.parametrize("runtime", ["compile", "graph"])
@pytest.mark.parametrize("name", METHODS)
def test_gpu_runtimes_equal_the_eager_one(name: str, runtime: str, tmp_path: Path) -> None:
    eager = trainer_of(name, tmp_path / "eager", epochs=4, device="cuda")
    other = trainer_of(name, tmp_path / "other", epochs=4, device="cuda", runtime=runtime)
    assert_same_training(other, eager, 1e-3)


@GPU
@pytest.mark.parametrize("name", METHODS)
def test_no_step_waits_for_the_gpu(name: str, tmp_path: Path) -> None:
    trainer = trainer_of(name, tmp_path, epochs=4, device="cuda")
    steps_of(trainer, 2)
    batches = list(trainer.batches.epoch(0))
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches[2:6]:
            trainer.train_step(batch)
            trainer.step += 1
    finally:
        torch.cuda.set_sync_debug_mode("default")


# ---------------------------------------------------------------------- graphs


@dataclasses.dataclass
class Tape:
    """Simulates a CUDA graph: replays a call on the tensors that it was recorded with."""

    work: Callable[[], Losses]
    written: Losses = dataclasses.field(default_factory=dict)
    replays: int = 0

    def replay(self) -> None:
        self.replays += 1
        for name, value in self.work().items():
            self.written.setdefault(name, torch.empty_like(value)).copy_(value)


class Recorder:
    """Simulates the capture of CUDA graphs: only stores the call to replay."""

    def __init__(self) -> None:
        self.tapes: list[Tape] = []

    def __call__(self, work: Callable[[], Losses]) -> tuple[Captured, Losses]:
        self.tapes.append(Tape(work))
        return self.tapes[-1], self.tapes[-1].written


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_replayed_run_equals_the_eager_one(name: str, tmp_path: Path) -> None:
    """A replayed step reads only the tensors it was captured with; anything else would be stale."""
    eager = trainer_of(name, tmp_path / "eager", epochs=4, clip_grad=1.0)
    replayed = trainer_of(name, tmp_path / "replayed", epochs=4, clip_grad=1.0)
    recorder = Recorder()
    replayed.run_step = GraphedStep(replayed.eager_step, recorder)
    assert_same_training(replayed, eager, 1e-5)
    assert recorder.tapes, "no kind of step was repeated often enough to be captured"
    assert sum(tape.replays for tape in recorder.tapes) <= STEPS - EAGER_STEPS
    if name in ("mixup", "adautomix"):
        assert len(recorder.tapes) == (2 if name == "adautomix" else 1)


def test_a_kind_of_step_is_its_shapes_and_its_python_values(tmp_path: Path) -> None:
    trainer = trainer_of("adautomix", tmp_path)
    batches = list(trainer.batches.epoch(0))

    def kind(number: int, step: int, lr_factor: float = 0.5) -> Any:
        inputs = trainer.eager_step.inputs(batches[number], step, lr_factor, 0.9)
        return signature(numbers_to_tensors(inputs, torch.device("cpu")))

    assert kind(0, 0) == kind(1, 2, lr_factor=0.1)
    assert kind(0, 0) != kind(0, 1)  # a step with and one without the generator's update
    short = dataclasses.replace(batches[0], pixels=batches[0].pixels[:6])
    inputs = trainer.eager_step.inputs(short, 0, 0.5, 0.9)
    assert signature(numbers_to_tensors(inputs, torch.device("cpu"))) != kind(0, 0)


def test_schedules_reach_the_step_as_tensors(tmp_path: Path) -> None:
    trainer = trainer_of("vanilla", tmp_path)
    batch = next(trainer.batches.epoch(0))
    inputs = numbers_to_tensors(
        trainer.eager_step.inputs(batch, 0, 0.25, 0.999), batch.labels.device
    )
    assert isinstance(inputs, StepInputs)
    assert isinstance(inputs.momentum, Tensor)
    before = {name: value.clone() for name, value in trainer.teacher.model.named_parameters()}
    trainer.eager_step(inputs)
    assert [float(group["lr"]) for group in trainer.optimizer.param_groups] == pytest.approx(
        [0.0125]
    )
    for name, value in trainer.teacher.model.named_parameters():
        student = dict(trainer.student.named_parameters())[name]
        expected = before[name] + 0.001 * (student - before[name])
        torch.testing.assert_close(value, expected.detach(), rtol=0, atol=1e-7)


# ---------------------------------------------------------------------- choice of the runtime


def test_auto_is_eager_and_graphs_need_a_gpu() -> None:
    cpu = torch.device("cpu")
    assert pick_runtime(make_config({}), cpu) == "eager"
    assert pick_runtime(make_config({"runtime": "compile"}), cpu) == "compile"
    with pytest.raises(UsageError, match="runtime = graph needs a GPU, and the device is cpu"):
        pick_runtime(make_config({"runtime": "graph"}), cpu)
    fp16 = make_config({"runtime": "graph", "precision": "fp16"})
    with pytest.raises(UsageError, match="one process in fp32 or bf16"):
        pick_runtime(fp16, torch.device("cuda"))
