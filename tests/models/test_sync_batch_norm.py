"""Batch norm over several processes on the CPU, in a process group of one."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from adautomix.errors import UsageError
from adautomix.models import SyncBatchNorm2dCPU, build_model, convert_sync_batchnorm


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let networks be converted as one of two processes would convert them."""
    monkeypatch.setattr("adautomix.models.sync_batch_norm.world_size", lambda: 2)


@pytest.mark.parametrize("tracked", [True, False])
def test_in_one_process_it_equals_batch_norm(process_group: None, tracked: bool) -> None:
    plain = nn.BatchNorm2d(4, track_running_stats=True)
    plain.track_running_stats = tracked
    nn.init.uniform_(plain.weight, generator=torch.Generator().manual_seed(0))
    synced = SyncBatchNorm2dCPU.from_batch_norm(plain_copy(plain))
    images = 3 + torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(1))
    mine, theirs = images.clone().requires_grad_(), images.clone().requires_grad_()
    out, expected = synced(mine), plain(theirs)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)
    out.cos().sum().backward()
    expected.cos().sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(synced.weight.grad, plain.weight.grad, atol=1e-4, rtol=1e-4)
    for name, buffer in plain.named_buffers():
        torch.testing.assert_close(dict(synced.named_buffers())[name], buffer)
    assert torch.equal(synced.eval()(images), plain.eval()(images))


def plain_copy(norm: nn.BatchNorm2d) -> nn.BatchNorm2d:
    """Return a layer with equal parameters, buffers and flags."""
    twin = nn.BatchNorm2d(norm.num_features)
    twin.load_state_dict(norm.state_dict())
    twin.track_running_stats = norm.track_running_stats
    return twin


def test_converting_keeps_tensors_names_order_and_modes(two_processes: None) -> None:
    model = build_model("resnet18", 5, stem="cifar", width=0.25, image_size=32)
    model.backbone.layer1.eval()
    tensors = [(name, id(value)) for name, value in model.state_dict(keep_vars=True).items()]
    modes = [module.training for module in model.modules()]
    norms = [name for name, module in model.named_modules() if isinstance(module, nn.BatchNorm2d)]
    random_state = torch.get_rng_state()

    assert convert_sync_batchnorm(model) is model

    assert torch.equal(random_state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert tensors == [
        (name, id(value)) for name, value in model.state_dict(keep_vars=True).items()
    ]
    for name in norms:
        assert type(model.get_submodule(name)) is SyncBatchNorm2dCPU, name


def test_in_one_process_nothing_is_converted() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3))
    assert type(convert_sync_batchnorm(model)[0]) is nn.BatchNorm2d


def test_other_batch_norms_are_refused(two_processes: None) -> None:
    with pytest.raises(UsageError, match=r"BatchNorm1d cannot share .* set sync_bn to false"):
        convert_sync_batchnorm(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)))
