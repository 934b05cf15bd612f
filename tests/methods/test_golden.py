"""AdAutoMix against the released code: masks, loss parts, every gradient, batch-norm buffers."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn

from adautomix.ema import Teacher
from adautomix.methods.adautomix import (
    AdAutoMix,
    AdAutoMixParams,
    AdAutoMixSettings,
    cosine_to_sources,
)
from adautomix.mixing.generator import MixGenerator
from adautomix.mixing.ops import soft_targets
from adautomix.models import Features

GOLDEN = Path(os.environ.get("GOLDEN_DIR", Path(__file__).parents[1] / "golden"))
MASKS = sorted(GOLDEN.glob("mask_*.npz"))
STEPS = sorted(GOLDEN.glob("step_*.npz"))
Arrays = dict[str, npt.NDArray[Any]]


def load(path: Path) -> Arrays:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def tensors(arrays: Arrays, prefix: str) -> dict[str, Tensor]:
    """The arrays whose names start with a prefix, which is removed."""
    return {
        name.removeprefix(prefix): torch.from_numpy(np.asarray(value))
        for name, value in arrays.items()
        if name.startswith(prefix)
    }


def generator_state(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {"conv_q.conv": "query", "conv_k.conv": "key", "conv_v": "value"}
    state = {}
    for name, value in parameters.items():
        module, _, kind = name.rpartition(".")
        state[f"{names[module]}.{kind}"] = value
    return state


def test_golden_files_exist() -> None:
    assert MASKS, f"no mask_*.npz in {GOLDEN}"
    assert STEPS, f"no step_*.npz in {GOLDEN}"


@pytest.mark.parametrize("path", MASKS, ids=lambda path: path.stem)
def test_masks(path: Path) -> None:
    arrays = load(path)
    n, batch, channels, h, w = arrays["features"].shape
    generator = MixGenerator(
        channels,
        lam_embedding="lamconcat1" in path.stem,
        upsampling="nearest" if "nearest" in path.stem else "bilinear",
    )
    generator.load_state_dict(generator_state(tensors(arrays, "param.")))
    # Source n of mix b is row n·B + b of the stacked feature maps.
    features = torch.from_numpy(arrays["features"]).flatten(0, 1)
    perm = torch.arange(n * batch).reshape(n, batch).T
    lam = torch.tensor(arrays["lam"], dtype=torch.float32).expand(batch, n)
    masks = generator(features, perm, lam, (4 * h, 4 * w))
    torch.testing.assert_close(masks, torch.from_numpy(arrays["mask"]), atol=1e-5, rtol=0)


class TinyClassifier(nn.Module):
    """The two-convolution network of the golden vectors, with the interface of `Classifier`."""

    def __init__(self, classes: int, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.bn1: Any = nn.BatchNorm2d(8) if batch_norm else nn.Identity()
        self.bn2: Any = nn.BatchNorm2d(16) if batch_norm else nn.Identity()
        self.heads = nn.ModuleDict({name: nn.Linear(16, classes) for name in ("clean", "mixed")})

    def default_tap(self) -> int:
        return 1

    def tap_shape(self, tap: int) -> tuple[int, int, int]:
        return 8, 8, 8

    def feature_map(self, images: Tensor, tap: int) -> Tensor:
        out: Tensor = self.bn1(self.conv1(images)).relu()
        return out

    def features(self, images: Tensor, tap: int | None = None) -> Any:
        feature = self.feature_map(images, 1)
        last = self.bn2(self.conv2(feature)).relu()
        return Features(pooled=last.mean(dim=(2, 3)), tap=feature)

    def logits(self, pooled: Tensor, head: str = "clean") -> Tensor:
        out: Tensor = self.heads[head](pooled)
        return out

    def forward(self, images: Tensor, head: str = "clean") -> Tensor:
        return self.logits(self.features(images).pooled, head)


def network_state(arrays: Arrays, kind: str, which: str) -> dict[str, Tensor]:
    """`which` is q (student) or k (teacher); `kind` is "param." or "grad."."""
    state = tensors(arrays, f"{kind}backbone_{which}.")
    for ours, theirs in (("clean", "one"), ("mixed", "mix")):
        head = tensors(arrays, f"{kind}head_{theirs}_{which}.fc.")
        state |= {f"heads.{ours}.{name}": value for name, value in head.items()}
    return state


class Step:
    """One recorded step, rebuilt with our code."""

    def __init__(self, path: Path, buffers: Any = "average") -> None:
        self.arrays = load(path)
        self.images = torch.from_numpy(self.arrays["images"])
        self.labels = torch.from_numpy(self.arrays["labels"])
        student_state = network_state(self.arrays, "param.", "q")
        self.classes = len(student_state["heads.clean.bias"])
        self.student = TinyClassifier(self.classes, "bn1.weight" in student_state)
        self.student.load_state_dict(student_state)
        self.teacher = Teacher(self.student, buffers).model
        self.teacher.load_state_dict(network_state(self.arrays, "param.", "k"))
        self.n = self.arrays["lam_generator"].size if self.arrays["lam_generator"].ndim else 2
        self.method = self.build()
        self.targets = soft_targets(self.labels, self.classes)
        self.params = AdAutoMixParams(
            self.perm("index_classifier"),
            self.lam("lam_classifier"),
            self.perm("index_generator"),
            self.lam("lam_generator"),
            adversarial=int(self.arrays["iteration"]) == 0,
        )

    def build(self) -> AdAutoMix:
        # The released code leaves the Mixup term out at N = 2 and weighs the clean one by 1.
        settings = AdAutoMixSettings(
            n=self.n,
            lam_embedding=True,
            lam_margin=0,
            variant="alternating",
            alpha=0 if self.n == 2 else 0.5,
        )
        common: dict[str, Any] = {"num_classes": self.classes, "model": self.student}
        method = AdAutoMix(settings, **common)
        method.generator.load_state_dict(generator_state(tensors(self.arrays, "param.mix_block.")))
        return method

    def perm(self, name: str) -> Tensor:
        index = torch.from_numpy(self.arrays[name])
        if index.ndim == 1:  # N = 2: image 1 is the batch itself
            index = torch.stack([torch.arange(len(index)), index])
        return index.T

    def lam(self, name: str) -> Tensor:
        lam = torch.tensor(self.arrays[name], dtype=torch.float32)
        if lam.ndim == 0:
            lam = torch.stack([lam, 1 - lam])
        return lam.expand(len(self.labels), -1)

    def expected(self, name: str) -> float:
        return float(self.arrays[name])

    def compute_loss(self) -> dict[str, Tensor]:
        student: Any = self.student
        teacher: Any = self.teacher
        sources = self.method.prepare(self.images, self.targets, student, teacher, self.params)
        return self.method.compute_loss(sources, student, teacher, self.params)


@pytest.fixture(params=STEPS, ids=lambda path: path.stem)
def step(request: pytest.FixtureRequest) -> Step:
    return Step(request.param)


def test_mixed_images(step: Step) -> None:
    features = step.teacher.features(step.images).tap
    generator_mix = step.method.generator_mix(step.images, step.targets, step.params, features)
    classifier_mix = step.method.mix(step.images, step.targets, step.params, features=features)
    for mixed, name in ((generator_mix, "mixed_generator"), (classifier_mix, "mixed_classifier")):
        expected = torch.from_numpy(step.arrays[name])
        torch.testing.assert_close(mixed.images, expected, atol=1e-5, rtol=1e-5)


def test_loss_parts(step: Step) -> None:
    losses = {name: value.item() for name, value in step.compute_loss().items()}
    alpha = step.method.settings.alpha
    reweighted = (1 - alpha) * losses["clean"] + alpha * losses.get("mixup", 0)
    assert losses["mixed"] == pytest.approx(step.expected("loss_mix_student"), abs=1e-5)
    assert reweighted == pytest.approx(step.expected("loss_student_reweighted"), abs=1e-5)
    expected = step.expected("loss_mix_teacher")
    assert losses["generator_teacher"] == pytest.approx(expected, abs=1e-5)
    assert losses["loss"] == pytest.approx(step.expected("loss_total"), abs=1e-5)


def test_cosine(step: Step) -> None:
    clean = step.teacher.features(step.images)
    mixed = step.method.generator_mix(step.images, step.targets, step.params, clean.tap)
    logits = step.teacher(mixed.images, head="mixed")
    sources = step.teacher.logits(clean.pooled, "mixed")
    cosine = cosine_to_sources(logits, sources, mixed.perm, mixed.lam)
    assert cosine.item() == pytest.approx(step.expected("cosine"), abs=1e-5)


def zero_up_to_rounding(step: Step) -> set[str]:
    """Gradients that are zero up to rounding, in the recorded step and in ours.

    The softmax over images does not see a shift common to all values, and batch norm takes the
    bias before it away again.
    """
    normed = isinstance(step.student.bn1, nn.BatchNorm2d)
    return {"generator.value.bias"} | ({"conv1.bias", "conv2.bias"} if normed else set())


def test_every_gradient(step: Step) -> None:
    step.compute_loss()["loss"].backward()
    expected = network_state(step.arrays, "grad.", "q")
    block = generator_state(tensors(step.arrays, "grad.mix_block."))
    expected |= {f"generator.{name}": value for name, value in block.items()}
    mine = {name: p.grad for name, p in step.student.named_parameters()}
    mine |= {name: p.grad for name, p in step.method.named_parameters()}
    assert mine.keys() == expected.keys()
    for name, gradient in expected.items():
        ours = mine[name]
        assert ours is not None, name
        if name in zero_up_to_rounding(step):
            weight = expected[name.replace("bias", "weight")]
            assert ours.abs().max() < 1e-5 * weight.abs().max(), name
        else:
            gap = (ours - gradient).abs().max() / gradient.abs().max()
            assert gap < 1e-4, f"{name}: {gap:.2e}"
    assert all(p.grad is None for p in step.teacher.parameters())


def test_student_buffers(step: Step) -> None:
    step.compute_loss()
    expected = tensors(step.arrays, "after.backbone_q.")
    mine = dict(step.student.named_buffers())
    for name, value in expected.items():
        torch.testing.assert_close(mine[name], value, atol=1e-5, rtol=1e-5)
    if isinstance(step.student.bn1, nn.BatchNorm2d):
        assert expected
        views = 3 if step.n > 2 else 2
        assert int(mine["bn1.num_batches_tracked"]) == views


BATCH_NORM_STEPS = [path for path in STEPS if "bn1" in path.stem]


@pytest.mark.parametrize("path", BATCH_NORM_STEPS, ids=lambda path: path.stem)
@pytest.mark.parametrize("buffers", ["average", "copy"])
def test_teacher_buffers_are_fixed_unless_own(path: Path, buffers: str) -> None:
    step = Step(path, buffers)
    before = {name: buffer.clone() for name, buffer in step.teacher.named_buffers()}
    step.compute_loss()
    for name, buffer in step.teacher.named_buffers():
        assert torch.equal(buffer, before[name]), name


@pytest.mark.parametrize("path", BATCH_NORM_STEPS, ids=lambda path: path.stem)
def test_own_teacher_buffers_are_updated_twice(path: Path) -> None:
    """One clean forward pass and one on mixes, each with momentum 0.1, by hand for layer one."""
    step = Step(path, "own")
    conv = step.teacher.conv1
    running = step.teacher.bn1.running_mean.clone()
    step.compute_loss()
    for images in (step.images, torch.from_numpy(step.arrays["mixed_generator"])):
        with torch.no_grad():
            running = 0.9 * running + 0.1 * conv(images).mean(dim=(0, 2, 3))
    torch.testing.assert_close(step.teacher.bn1.running_mean, running, atol=1e-5, rtol=1e-5)
    assert int(step.teacher.bn1.num_batches_tracked) == 2
