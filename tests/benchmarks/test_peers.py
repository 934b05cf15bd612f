"""Measuring against other libraries: what is run and what is refused, never how long it takes."""

import sys

import numpy as np
import peers
import pytest
import torch
from mixing_alone import MIXERS, MixTiming, Mode, time_mixing
from openmixup_step import OpenMixupStep, openmixup_step
from peers import require_peer

from adautomix.errors import UsageError

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("openmixup", "sh benchmarks/install_openmixup.sh"), ("kornia", "pip install kornia")],
)
def test_a_peer_that_is_absent_names_its_remedy(
    name: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda module: None)
    with pytest.raises(UsageError, match=f"{name} is not installed: run `{remedy}"):
        require_peer(name)


def test_openmixup_needs_mmcv(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "find_spec", lambda module: None if module == "mmcv" else module)
    with pytest.raises(UsageError, match="openmixup is not installed"):
        require_peer("openmixup")


def test_a_peer_that_is_installed_passes() -> None:
    require_peer("timm")


# ---------------------------------------------------------------------- mixing alone


@pytest.mark.parametrize("library", MIXERS)
def test_mixing_is_timed_in_every_mode(library: str) -> None:
    pytest.importorskip(library)
    timings = time_mixing(libraries=[library], batch=4, size=8, rounds=3, device=CPU)
    modes: list[Mode] = ["batch"] if library == "torchvision" else ["batch", "sample"]
    expected = [(library, method, mode) for method in ("mixup", "cutmix") for mode in modes]
    assert [(t.library, t.method, t.mode) for t in timings] == expected
    for timing in timings:
        assert len(timing.seconds) == 3
        assert min(timing.seconds) > 0


@pytest.mark.parametrize("library", MIXERS)
@pytest.mark.parametrize("method", ["mixup", "cutmix"])
def test_timed_mixers_mix(library: str, method: str) -> None:
    pytest.importorskip(library)
    mixer = MIXERS[library](method, "batch")
    assert mixer is not None
    images = torch.arange(8.0)[:, None, None, None].expand(8, 3, 16, 16)
    mixed = images.clone()
    torch.manual_seed(1)  # timm draws from NumPy; neither draw is all of one image
    np.random.seed(0)
    result = mixer(mixed, torch.arange(8))
    mixed = result.images if library == "adautomix" else result[0]  # type: ignore[attr-defined,index]
    assert mixed.shape == images.shape
    assert not torch.equal(mixed, images)


def test_without_names_all_that_is_installed_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mixing_alone.is_installed", lambda name: name == "timm")
    timings = time_mixing(["mixup"], batch=2, size=4, rounds=2, device=CPU)
    assert [t.library for t in timings] == ["adautomix", "timm", "adautomix", "timm"]


def test_median_and_quartiles() -> None:
    timing = MixTiming("timm", "mixup", "batch", 2, 4, [4.0, 1.0, 2.0, 3.0, 5.0])
    assert timing.median == 3
    assert timing.quartiles == (2.0, 4.0)


@pytest.mark.parametrize(
    ("methods", "libraries", "batch", "rounds", "message"),
    [
        (["mixup"], ["numpy"], 2, 2, "'numpy': use one of adautomix, timm"),
        (["fmix"], ["timm"], 2, 2, "'fmix': use mixup or cutmix"),
        (["mixup"], ["timm"], 3, 2, "an even batch"),
        (["mixup"], ["timm"], 2, 1, "2 rounds or more"),
    ],
)
def test_what_cannot_be_timed(
    methods: list[str], libraries: list[str], batch: int, rounds: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        time_mixing(methods, libraries, batch=batch, size=4, rounds=rounds, device=CPU)


# ---------------------------------------------------------------------- a step of openmixup


def toy_step(method: str, model: str = "resnet18", size: int = 16) -> OpenMixupStep:
    return openmixup_step(method, batch_size=4, classes=5, size=size, device=CPU, model=model)


@pytest.mark.parametrize("method", ["vanilla", "cutmix", "adautomix"])
def test_openmixup_step_trains(method: str) -> None:
    pytest.importorskip("openmixup")
    step = toy_step(method)
    # Biases may stay: the last norm of a block starts at 0 and lets no gradient through.
    trained = [p for p in step.model.parameters() if p.requires_grad and p.ndim > 1]
    before = [p.clone() for p in trained]
    step()
    assert not any(torch.equal(old, new) for old, new in zip(before, trained, strict=True))


def test_openmixup_step_moves_its_average() -> None:
    pytest.importorskip("openmixup")
    step = toy_step("adautomix")
    before = step.model.backbone_k.conv1.weight.clone()
    step()
    moved = (step.model.backbone_k.conv1.weight - before).abs().max()
    assert moved > 0
    assert moved < (step.model.backbone_q.conv1.weight - before).abs().max()


def test_openmixup_leaves_the_process_as_it_was() -> None:
    pytest.importorskip("openmixup")
    cuda, operators = torch.Tensor.cuda, sys.modules.get("mmcv.ops")
    toy_step("mixup")()
    assert torch.Tensor.cuda is cuda
    assert sys.modules.get("mmcv.ops") is operators


@pytest.mark.parametrize(
    ("method", "model", "message"),
    [
        ("nomix", "resnet18", "no method 'nomix' here: use one of vanilla, mixup"),
        ("mixup", "vit", "no openmixup network 'vit' here: use one of resnet18"),
    ],
)
def test_what_openmixup_does_not_have(method: str, model: str, message: str) -> None:
    pytest.importorskip("openmixup")
    with pytest.raises(UsageError, match=message):
        toy_step(method, model)
