"""The teacher's weights, momentum, batch-norm statistics and mode."""

import math
from typing import Any

import pytest
import torch
from tiny import state_of, tiny_classifier, toy_images
from torch import Tensor, nn

from adautomix.ema import BufferPolicy, Teacher, momentum_schedule
from adautomix.errors import UsageError

POLICIES: tuple[BufferPolicy, ...] = ("average", "copy", "own")
STATISTICS = ("bn1.running_mean", "bn1.running_var", "bn2.running_mean", "bn2.running_var")


def change_student(student: Any) -> Any:
    """Change all weights, statistics and counters of the student, as a training step does."""
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter))
        student(2 * toy_images(10)[0])
    return student


@pytest.mark.parametrize("momentum", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("buffers", POLICIES)
def test_weights_by_hand(momentum: float, buffers: BufferPolicy) -> None:
    student = tiny_classifier()
    teacher = Teacher(student, buffers)
    before = {name: p.clone() for name, p in student.named_parameters()}
    for _ in range(2):
        teacher.update(change_student(student), momentum)
        after = dict(student.named_parameters())
        before = {n: momentum * old + (1 - momentum) * after[n] for n, old in before.items()}
    for name, parameter in teacher.model.named_parameters():
        torch.testing.assert_close(parameter, before[name].detach(), msg=name)
        assert not parameter.requires_grad


def test_the_student_is_copied_and_not_changed() -> None:
    student = tiny_classifier().train()
    before = state_of(student)
    teacher = Teacher(student)
    assert student.training
    assert student.bn1.track_running_stats
    assert all(p.requires_grad for p in student.parameters())
    teacher.model(toy_images(10)[0])
    change_student(teacher.model)
    for name, value in student.state_dict().items():
        assert torch.equal(value, before[name]), name


# ---------------------------------------------------------------------- statistics


def update_once(buffers: BufferPolicy) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """Return the teacher's state before an update, the student's state, and the updated teacher."""
    student = tiny_classifier()
    teacher = Teacher(student, buffers)
    before = state_of(teacher.model)
    teacher.update(change_student(student), 0.75)
    return before, state_of(student), teacher


def test_averaged_statistics() -> None:
    before, student, teacher = update_once("average")
    after = teacher.model.state_dict()
    for name in STATISTICS:
        expected = 0.75 * before[name] + 0.25 * student[name]
        torch.testing.assert_close(after[name], expected, msg=name)
        assert not torch.equal(after[name], student[name])
    assert int(after["bn1.num_batches_tracked"]) == int(student["bn1.num_batches_tracked"]) == 1


def test_copied_statistics() -> None:
    _, student, teacher = update_once("copy")
    after = teacher.model.state_dict()
    for name in (*STATISTICS, "bn2.num_batches_tracked"):
        assert torch.equal(after[name], student[name]), name


def test_own_statistics_are_only_updated_by_forward_passes() -> None:
    before, _, teacher = update_once("own")
    assert all(torch.equal(teacher.model.state_dict()[name], before[name]) for name in STATISTICS)
    images, _ = toy_images(10, seed=3)
    with torch.no_grad():
        teacher.model(images)
        mean = teacher.model.conv1(images).mean(dim=(0, 2, 3))
    expected = 0.9 * before["bn1.running_mean"] + 0.1 * mean
    torch.testing.assert_close(teacher.model.bn1.running_mean, expected)
    assert int(teacher.model.bn1.num_batches_tracked) == 1


@pytest.mark.parametrize("buffers", ["average", "copy"])
def test_other_statistics_are_not_updated_by_forward_passes(buffers: BufferPolicy) -> None:
    _, _, teacher = update_once(buffers)
    before = state_of(teacher.model)
    teacher.model(toy_images(10, seed=3)[0])
    for name, value in teacher.model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("buffers", POLICIES)
def test_evaluation_uses_the_statistics(buffers: BufferPolicy) -> None:
    """Compute the first layer by hand from the buffers, for a single image."""
    _, _, teacher = update_once(buffers)
    model = teacher.model.eval()
    image = toy_images(1, seed=3)[0]
    with torch.no_grad():
        norm, maps = model.bn1, model.conv1(image)
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        expected = (maps - norm.running_mean[:, None, None]) * scale[:, None, None]
        expected = (expected + norm.bias[:, None, None]).relu()
        torch.testing.assert_close(model.features(image, 1).tap, expected)


# ---------------------------------------------------------------------- mode


@pytest.mark.parametrize("buffers", POLICIES)
def test_mode_is_batch_statistics_without_dropout(buffers: BufferPolicy) -> None:
    model: Any = Teacher(tiny_classifier(dropout=0.5).train(), buffers).model
    images, _ = toy_images(10)
    with torch.no_grad():
        logits = model(images)
        assert torch.equal(logits, model(images))  # nothing is dropped
        assert not torch.allclose(logits[:5], model(images[:5]))  # depends on the batch
        order = torch.randperm(10, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(model(images[order]), logits[order])
        normed = model.bn1(model.conv1(images))
    torch.testing.assert_close(normed.mean(dim=(0, 2, 3)), torch.zeros(8), atol=1e-5, rtol=0)


# ---------------------------------------------------------------------- momentum


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25])
def test_schedule_equals_the_papers_formula(fraction: float) -> None:
    steps, start, end = 1000, 0.999, 0.999999
    momentum = momentum_schedule(steps, start=start, end=end, constant_share=fraction)
    assert len(momentum) == steps
    for t, value in enumerate(momentum):
        risen = end - (end - start) * (math.cos(math.pi * t / steps) + 1) / 2
        assert value == pytest.approx(start if t < fraction * steps else risen, abs=1e-12)


def test_schedule_at_known_points() -> None:
    momentum = momentum_schedule(600, start=0.9, end=1.0, constant_share=0.1)
    assert momentum[0] == momentum[59] == 0.9
    assert momentum[60] > 0.9
    assert momentum[200] == pytest.approx(0.925)  # cos 60° = 1/2
    assert momentum[300] == pytest.approx(0.95)
    assert momentum[400] == pytest.approx(0.975)


@pytest.mark.parametrize(
    ("steps", "start"), [(50, 0.0), (100, 0.0), (200, 0.5), (1000, 0.9), (200_000, 0.999)]
)
def test_the_automatic_start_depends_on_the_number_of_steps(steps: int, start: float) -> None:
    momentum = momentum_schedule(steps, start=None, end=0.999999, constant_share=0.1)
    assert momentum[0] == pytest.approx(start)
    assert momentum == momentum_schedule(steps, start=start, end=0.999999, constant_share=0.1)


class Caching(nn.Module):
    """A network that keeps an activation, and weights with a graph, from its last forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(4, 4)
        # The function that parametrizations replaced; networks in the wild still use it.
        self.head = nn.utils.weight_norm(nn.Linear(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        """Logits `[B, 2]`."""
        self.cache = self.body(x)
        logits: Tensor = self.head(self.cache)
        return logits


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_network_is_copied_after_a_forward_pass() -> None:
    torch.manual_seed(0)
    network, x = Caching(), torch.randn(3, 4)
    expected = network(x)
    teacher = Teacher(network)
    torch.testing.assert_close(teacher.model(x), expected)
    assert network.cache.grad_fn is not None
    before = [p.clone() for p in teacher.model.parameters()]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert all(
        torch.equal(old, new) for old, new in zip(before, teacher.model.parameters(), strict=True)
    )
    teacher.update(network, 0.0)
    torch.testing.assert_close(teacher.model(x), network(x))


def test_a_network_that_cannot_be_copied_is_one_line() -> None:
    class Stubborn(nn.Module):
        def __deepcopy__(self, memo: dict[int, Any]) -> Any:
            raise RuntimeError("no\ncopies")

    with pytest.raises(UsageError, match=r"Stubborn cannot be copied .* no copies\): create") as e:
        Teacher(Stubborn())
    assert "\n" not in str(e.value)
