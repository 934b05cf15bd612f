"""Devices by name, and what a device without double precision (Apple's MPS) needs."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.utils._pytree as pytree
from every import each, trainer_of
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from adautomix import device as devices
from adautomix.device import (
    autocast,
    describe_device,
    exact,
    peak_memory_mib,
    pick_device,
    to_device,
)
from adautomix.distributed import init_distributed
from adautomix.errors import UsageError
from adautomix.training.graphs import register_dataclasses

MPS = torch.device("mps")


def test_mps_is_a_device_where_torch_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mps.is_available():
        with pytest.raises(UsageError, match="no device 'mps' here: use cpu, or auto"):
            pick_device("mps")
    monkeypatch.setattr(torch, "empty", lambda *_, device: SimpleNamespace(device=device))
    assert pick_device("mps") == MPS
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu"), "it has to be asked for"


def test_facts_about_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 3 * 2**20)
    assert peak_memory_mib(MPS) == 3
    assert describe_device(MPS).endswith(" GPU (MPS)")
    assert autocast(MPS, "bf16").device == "mps"


class FakeTensor:
    """A tensor that remembers how it was converted and copied."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype, self.calls = device, dtype, list[Any]()

    def float(self) -> "FakeTensor":
        self.dtype = torch.float32
        return self

    def double(self) -> "FakeTensor":
        self.dtype = torch.float64
        return self

    def to(self, device: torch.device, **options: Any) -> "FakeTensor":
        self.device = device
        self.calls.append(options)
        return self


def test_mps_computes_in_single_precision() -> None:
    for name, dtype in (("mps", torch.float32), ("cuda", torch.float64), ("cpu", torch.float64)):
        values: Any = FakeTensor(torch.device(name), torch.float16)
        assert exact(values).dtype == dtype


def test_copies_are_waited_for_except_on_cuda() -> None:
    """Only what is copied to CUDA may be copied while the host goes on."""
    cpu = torch.device("cpu")
    values: Any = FakeTensor(cpu, torch.float64)
    assert to_device(values, MPS).dtype == torch.float32
    assert values.calls == [{}]
    values = FakeTensor(cpu, torch.float64)
    assert to_device(values, torch.device("cuda")).dtype == torch.float64
    assert values.calls == [{"non_blocking": True}]
    values = FakeTensor(cpu, torch.int64)
    assert to_device(values, MPS).dtype == torch.int64


def test_several_processes_need_another_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="device = mps works with one process"):
        init_distributed(MPS)


class NoFloat64(TorchDispatchMode):
    """Fails where a float64 tensor is created."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in pytree.tree_leaves(result):
            assert not isinstance(value, Tensor) or value.dtype != torch.float64, func
        return result


@pytest.mark.parametrize("name", each())
def test_the_work_on_the_device_needs_no_float64(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step, its meters and an evaluation run as on MPS; random numbers are drawn on the host."""
    trainer = trainer_of(name, tmp_path, random_erasing=0.5)
    batch = next(trainer.batches.epoch(0))
    trainer.batches.augment(batch)  # keeps mean and deviation on the device
    monkeypatch.setattr(devices, "has_float64", lambda device: False)
    inputs = trainer.eager_step.inputs(batch, 0, 1.0, 0.9)
    register_dataclasses(inputs)
    for value in pytree.tree_leaves(inputs):
        assert not isinstance(value, Tensor) or value.dtype != torch.float64
    with NoFloat64():
        losses = trainer.run_step(inputs)
        trainer.epoch_meters.add(losses)
        trainer.finite.check(losses["loss"], 0)
        trainer.evaluator.probe()
        trainer.evaluator.scores("test")
    assert trainer.epoch_meters.read()["loss"] > 0
