"""Evaluation takes as many images at a time as a bound on the memory allows."""

from pathlib import Path

import pytest
import torch
from conftest import SMALL_NET
from torch import nn

from adautomix.config import load_config
from adautomix.errors import RunError
from adautomix.models import build_model
from adautomix.models.memory import WORKSPACE, fitting_batch, forward_bytes, one_image
from adautomix.runs.trained import load_trained
from adautomix.training.run import explain_memory, train

CPU = torch.device("cpu")


def test_the_largest_layer_counts() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.MaxPool2d(2), nn.Conv2d(8, 2, 1))
    largest = 4 * (3 * 16 * 16 + 8 * 16 * 16)
    pooled = 4 * (8 * 16 * 16 + 8 * 8 * 8)
    assert forward_bytes(model, one_image(16, CPU)) == WORKSPACE * max(largest, pooled)


def test_measuring_changes_nothing() -> None:
    model = build_model("resnet18", 3, width=0.125, stem="cifar", image_size=16, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    small, large = (forward_bytes(model, one_image(side, CPU)) for side in (16, 32))
    assert large == 4 * small
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("requested", "size", "bound", "expected"),
    [(500, 2**20, 1.0, 500), (500, 2**23, 1.0, 128), (500, 2**32, 1.0, 1), (7, 0, 0.001, 7)],
)
def test_the_batch_fits(requested: int, size: int, bound: float, expected: int) -> None:
    assert fitting_batch(requested, size, bound) == expected


def test_a_run_predicts_the_same_in_smaller_batches(photos: Path, tmp_path: Path) -> None:
    names = [str(word).removeprefix("--") for word in SMALL_NET[::2]]
    flags = dict(zip(names, SMALL_NET[1::2], strict=True))
    flags |= {"data": str(photos), "epochs": "1", "batch_size": "6", "method": "vanilla"}
    train(load_config(flags=flags | {"out": tmp_path / "run", "max_memory": 0.0001}), quiet=True)
    trained = load_trained(tmp_path / "run", device="cpu")
    assert trained._fitting_batch(100) < 9
    images = torch.randn(9, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    whole = trained.student(images, head=trained.method.eval_head).softmax(1)
    torch.testing.assert_close(trained.predict(images, "student"), whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_says_what_would_fit(error: Exception) -> None:
    with pytest.raises(RunError) as failure, explain_memory(load_config(flags={"accumulate": "2"})):
        raise error
    assert str(failure.value) == (
        "out of memory: with --accumulate 4, a step computes 25 images at a time instead of 50; "
        "--max-memory bounds evaluation"
    )
    with pytest.raises(RuntimeError, match="other"), explain_memory(load_config()):
        raise RuntimeError("other")
