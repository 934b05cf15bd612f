"""What `import adautomix as am` offers, and the documentation's code."""

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from own_loop_fsdp import Net

import adautomix as am
from adautomix.errors import UsageError

ROOT = Path(__file__).parents[1]
HELPERS = Path(__file__).parent / "helpers"
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "own-loop.md").read_text(), re.DOTALL)


def loader(batches: int = 2) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            torch.randn(6, 3, 32, 32, generator=generator),
            torch.randint(10, (6,), generator=generator),
        )
        for _ in range(batches)
    ]


def test_all_public_names_exist_and_are_listed() -> None:
    assert dir(am) == am.__all__
    for name in am.__all__:
        assert getattr(am, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'cutmxi'"):
        _ = am.cutmxi


def test_importing_loads_no_torch() -> None:
    program = "import sys, adautomix; dir(adautomix); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "False"


@pytest.mark.slow
def test_two_processes_with_ddp_end_with_equal_weights(tmp_path: Path) -> None:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    script = tmp_path / "loop.py"
    script.write_text((HELPERS / "own_loop.py").read_text().replace("# LOOP", BLOCKS[-1]))
    done = subprocess.run(
        [sys.executable, *words, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first["lam"] != second["lam"]
    for name, value in first["weights"].items():
        torch.testing.assert_close(second["weights"][name], value, msg=name)
    start = torch.load(tmp_path / "start.pt", weights_only=True)
    moved = [
        name for name, value in start.items() if not torch.equal(value, first["weights"][name])
    ]
    assert {name.split(".")[0] for name in moved} >= {"model", "method"}


@pytest.mark.slow
def test_processes_with_other_seeds_share_what_the_method_learns(tmp_path: Path) -> None:
    """Without that their generators, second heads and teachers would start and stay different."""
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [sys.executable, *words, str(HELPERS / "own_loop_seeds.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    for part in ("own", "teacher"):
        for name, value in first[part].items():
            torch.testing.assert_close(second[part][name], value, msg=f"{part} {name}")
    for record in (first, second):
        half = torch.full_like(record["used_by_one"], 0.5)
        torch.testing.assert_close(record["used_by_one"], half)
        assert record["used_by_none"] is None


@pytest.mark.slow
def test_a_network_that_fsdp_shards_trains_as_a_plain_one(tmp_path: Path) -> None:
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [sys.executable, *words, str(HELPERS / "own_loop_fsdp.py"), str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "src")},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for rank in range(2):
        record = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for part in ("losses", "weights", "teachers"):
            sharded, plain = record[part]
            torch.testing.assert_close(sharded, plain)
        assert "create the method with the whole network first" in record["message"]
        assert "\n" not in record["message"]


@pytest.mark.slow
def test_only_what_looks_inside_a_compiled_network_runs_eagerly() -> None:
    graphs = []

    def count(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled: Any = torch.compile(Net(), backend=count)
    images, labels = torch.randn(6, 3, 16, 16), torch.arange(6) % 4
    with warnings.catch_warnings(record=True) as caught:
        am.create_method("cutmix", model=compiled, num_classes=4)(images, labels)
    assert graphs
    assert not [w for w in caught if "torch.compile" in str(w.message)]

    torch._dynamo.reset()
    graphs.clear()
    wrapped = am.wrap_model(compiled, tap="body", head="out", image_size=16)
    method = am.create_method("adautomix", model=wrapped, num_classes=4, steps=4)
    with pytest.warns(UserWarning, match=r"looks inside Net, .* without torch\.compile"):
        assert method(images, labels).isfinite()
    assert not graphs
    wrapped(images)
    assert graphs


@pytest.mark.parametrize("name", ["automix", "adautomix", "samix", "sumix", "meada"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_methods_that_compute_in_float32_refuse_other_networks(
    name: str, dtype: torch.dtype
) -> None:
    with pytest.raises(UsageError, match=rf"{name} needs .* some are {str(dtype)[6:]}: call") as e:
        am.create_method(name, model=Net().to(dtype), num_classes=4, steps=4)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_methods_that_only_mix_take_networks_of_any_dtype(dtype: torch.dtype) -> None:
    method = am.create_method("cutmix", model=Net().to(dtype), num_classes=4)
    loss = method(torch.randn(6, 3, 16, 16, dtype=dtype), torch.arange(6) % 4)
    loss.backward()
    assert loss.isfinite()


@pytest.mark.parametrize("name", ["puzzlemix", "comixup", "meada"])
def test_methods_that_need_gradients_take_a_plain_module(name: str) -> None:
    with pytest.raises(UsageError, match=r"Net: cannot tell which layer .* head='fc'"):
        am.create_method(name, model=Net(), num_classes=4, steps=4)
    net = torchvision.models.resnet18(num_classes=4)
    method = am.create_method(name, model=net, num_classes=4, steps=4)
    loss = method(torch.randn(6, 3, 16, 16), torch.arange(6) % 4)
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_lazy_layers_must_have_a_size() -> None:
    net = Net()
    net.out = torch.nn.LazyLinear(4)
    with pytest.raises(UsageError, match="head 'out' of Net has no size yet: run one batch"):
        am.wrap_model(net, tap="body", head="out", image_size=16)


def test_create_method_asks_for_steps_only_where_they_matter() -> None:
    model = torchvision.models.resnet18(num_classes=10)
    am.create_method("cutmix", model=model, num_classes=10)
    with pytest.raises(UsageError, match=r"adautomix keeps a moving average .* pass steps="):
        am.create_method("adautomix", model=model, num_classes=10)


def test_create_method_compares_the_number_of_classes() -> None:
    model = torchvision.models.resnet18(num_classes=10)
    with pytest.raises(UsageError, match=r"num_classes=7, but .* has 10 outputs"):
        am.create_method("adautomix", model=model, num_classes=7, steps=5)


@pytest.mark.slow
def test_the_clean_head_is_the_users_and_the_mixed_head_is_learned() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10)
    method = am.create_method("adautomix", model=model, num_classes=10, steps=2)
    before = {name: value.clone() for name, value in method.named_parameters()}
    optimizer = torch.optim.SGD([*model.parameters(), *method.parameters()], lr=0.1)
    assert len({id(p) for g in optimizer.param_groups for p in g["params"]}) == len(
        [p for g in optimizer.param_groups for p in g["params"]]
    )
    fc = model.fc.weight.clone()
    for images, labels in loader():
        method(images, labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        method.after_step()
    assert not torch.equal(model.fc.weight, fc)
    assert any(name.startswith("heads.mixed") for name in before)
    for name, value in method.named_parameters():
        if name.startswith("heads.mixed"):
            assert not torch.equal(value, before[name]), name


def test_the_rank_is_taken_at_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    model = torchvision.models.resnet18(num_classes=10)
    images, labels = loader()[0]
    torch.manual_seed(0)
    losses = []
    for rank in ("0", "1"):
        method = am.create_method("mixup", model=model, num_classes=10)
        monkeypatch.setenv("RANK", rank)
        losses.append(float(method(images, labels).detach()))
    assert losses[0] != losses[1]
