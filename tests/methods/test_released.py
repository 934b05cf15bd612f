"""Methods against recorded results of their authors' code; see tests/golden/README.md."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adautomix.methods import fmix
from adautomix.methods.alignmix import mix_aligned, transport_plan
from adautomix.methods.guidedmixup import spectral_saliency
from adautomix.methods.recursivemix import RecursiveMix, RecursiveMixParams
from adautomix.methods.snapmix import SnapMix, SnapMixParams, activation_maps
from adautomix.mixing.boxes import boxes_around

FOLDER = Path(__file__).parents[1] / "golden" / "released"
UNUSED: Any = None  # in the place of `self`, where no setting and no network is read


def recorded(name: str) -> dict[str, Tensor]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file.files}


def test_cutmix_boxes() -> None:
    found = recorded("cutmix")
    height, width = found["size"].tolist()
    boxes = boxes_around(found["centers"], 1 - found["lam"], height, width)
    assert torch.equal(boxes, found["boxes"])


@pytest.mark.parametrize("k", [0, 1])
def test_recursivemix(k: int) -> None:
    """The image is not square, so exchanged rows and columns would show."""
    found = recorded("recursivemix")
    left, top, right, bottom = found[f"box{k}"][0].long().tolist()
    box = torch.tensor([[top, bottom, left, right]]).expand(3, 4)
    rows = torch.arange(3)
    params = RecursiveMixParams(torch.stack([rows, rows], dim=1), box)
    history = found["old_images"][:3], found["old_targets"][:3], torch.ones(3)
    mixed = RecursiveMix.mix_with(UNUSED, history, found["images"], found["targets"], params)
    assert torch.equal(mixed.images, found[f"mixed{k}"])
    torch.testing.assert_close(mixed.targets, found[f"targets{k}"])
    assert mixed.lam[0, 0].item() == pytest.approx(found[f"lam{k}"].item())


def test_snapmix() -> None:
    found = recorded("snapmix")
    labels = torch.eye(5)[found["labels"]]
    boxes = (found[name].expand(4, 4) for name in ("box", "source"))
    params = SnapMixParams(torch.stack([torch.arange(4), found["perm"]], dim=1), *boxes)
    maps = activation_maps(found["maps_features"], found["weight"], labels)
    mixed = SnapMix.mix(UNUSED, found["images"], labels, params, maps=maps)
    torch.testing.assert_close(mixed.images, found["mixed"], atol=1e-5, rtol=0)
    weights = torch.stack([found["lam_a"], found["lam_b"]], dim=1)
    torch.testing.assert_close(mixed.lam, weights, atol=1e-5, rtol=0)


@pytest.mark.parametrize("k", [0, 1])
def test_fmix_with_the_released_spectrum(monkeypatch: pytest.MonkeyPatch, k: int) -> None:
    found = recorded("fmix")
    noise, mask = found[f"noise{k}"], found[f"mask{k}"]
    pairs = noise.permute(1, 2, 0).reshape(1, -1, 2).contiguous()
    monkeypatch.setattr(fmix, "gaussian_noise", lambda seed, count: pairs)
    height, width = mask.shape
    waves = fmix.random_waves(torch.zeros(1).long(), height, width, 3.0, "reference")[0]
    scaled = (waves - waves.min()) / (waves.max() - waves.min())
    torch.testing.assert_close(scaled, found[f"waves{k}"], atol=1e-5, rtol=0)
    ours = fmix.highest_pixels(waves[None], mask.sum()[None])[0]
    assert (ours != mask).sum() <= 2  # pixels of nearly equal height
    assert abs(mask.sum() - found[f"lam{k}"] * mask.numel()) <= 1


@pytest.mark.parametrize("move_first", [False, True])
def test_alignmix(move_first: bool) -> None:
    """The authors stop their iterations early; how many they took is recorded."""
    found, k = recorded("alignmix"), int(move_first)
    maps = found["features"].flatten(2).mT
    first, second = maps, maps[found[f"perm{k}"]]
    lam = torch.stack([found["lam"], 1 - found["lam"]]).float().expand(4, 2)
    plan = transport_plan(first, second, 0.1, int(found[f"iterations{k}"]))
    mixed = mix_aligned(first, second, lam, plan, move_first=move_first)
    theirs = found[f"mixed{k}"].flatten(2).mT
    torch.testing.assert_close(mixed, theirs, atol=1e-4, rtol=0)


def test_guidedmixup_saliency() -> None:
    """Their map is blurred once; what is mixed is blurred a second time in both."""
    found = recorded("guidedmixup")
    torch.testing.assert_close(
        spectral_saliency(found["images"]), found["saliency"], atol=1e-4, rtol=1e-3
    )
