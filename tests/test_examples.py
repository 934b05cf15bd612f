"""The examples: each trains, none at its import, and AdAutoMix costs a plain loop few lines."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import TensorDataset

from adautomix.checks.script import load_file

EXAMPLES = Path(__file__).parents[1] / "examples"
NAMES = ("plain_pytorch", "timm_pieces", "lightning_callback", "hf_trainer", "accelerate_loop")
CHANGED, PLAIN = "# changed", "# plain: "


@dataclass
class Course:
    """What was trained: the loss of each backward, the weights before the first step and now."""

    losses: list[float] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    before: list[Tensor] = field(default_factory=list)

    def start(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        if not self.weights:
            self.weights = [w for group in optimizer.param_groups for w in group["params"]]
            self.before = [weight.detach().clone() for weight in self.weights]

    def changed(self) -> float:
        """Share of the weights that are not what they were."""
        pairs = zip(self.weights, self.before, strict=True)
        return sum(not torch.equal(now, then) for now, then in pairs) / len(self.weights)


@pytest.fixture
def course(monkeypatch: pytest.MonkeyPatch) -> Iterator[Course]:
    course = Course()
    backward: Any = Tensor.backward

    def recorded(loss: Tensor, *args: Any, **options: Any) -> None:
        course.losses.append(float(loss.detach()))
        backward(loss, *args, **options)

    monkeypatch.setattr(Tensor, "backward", recorded)
    hook = register_optimizer_step_pre_hook(course.start)
    yield course
    hook.remove()


@pytest.fixture
def _seeds_stay_here(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Examples seed everything, as scripts do."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # put back afterwards, and so is the next
    monkeypatch.setenv("PL_SEED_WORKERS", "0")
    with torch.random.fork_rng(devices=[]):
        yield


def load(name: str) -> ModuleType:
    return load_file(EXAMPLES / f"{name}.py")


def test_these_are_all() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == {*NAMES, "digits"}


@pytest.mark.usefixtures("_seeds_stay_here")
@pytest.mark.parametrize("name", NAMES)
def test_it_trains_and_not_at_its_import(
    name: str, course: Course, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One epoch of two steps."""
    module = load(name)
    assert course.losses == []
    train, test = load("digits").digits(per_class=4)
    few = TensorDataset(*test[:30])
    monkeypatch.setattr(module, "digits", lambda: (train, few))
    accuracy = module.main(epochs=1)
    assert len(course.losses) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in course.losses)
    assert course.changed() > 0.5
    assert accuracy * 30 == pytest.approx(round(accuracy * 30))
    assert f"accuracy {100 * accuracy:.1f}" in capsys.readouterr().out


def test_digits() -> None:
    train, test = load("digits").digits(per_class=3)
    images, labels = train[:]
    assert images.shape == (30, 3, 16, 16)
    assert labels.bincount().tolist() == [3] * 10
    assert len(test) == 1797 - 30
    assert abs(float(images.mean())) < 0.1
    assert abs(float(images.std()) - 1) < 0.1


# ---------------------------------------------------------------------- a plain loop and ours


def plain_lines(lines: list[str]) -> list[str]:
    """The example without AdAutoMix: changed lines left out, what they replace put in."""
    return [line.replace(PLAIN, "") for line in lines if not line.endswith(CHANGED)]


def test_adautomix_takes_few_lines(course: Course, tmp_path: Path) -> None:
    lines = (EXAMPLES / "plain_pytorch.py").read_text().splitlines()
    changed = [line for line in lines if line.endswith(CHANGED)]
    assert len(changed) <= 10
    assert len(changed) == 8
    assert "eight lines changed" in lines[0]
    script = tmp_path / "plain_loop.py"
    script.write_text("\n".join(plain_lines(lines)))
    assert not any(word in script.read_text() for word in ("am.", "self.method", "build_model"))
    plain = load_file(script)
    training = plain.Training(steps=2)
    images, labels = load("digits").digits()[0][:20]
    losses = [training.train_step(images, labels) for _ in range(2)]
    assert all(torch.isfinite(loss) for loss in losses)
    assert course.changed() > 0.5
    assert type(training.model).__module__ == "timm.models.resnet"
