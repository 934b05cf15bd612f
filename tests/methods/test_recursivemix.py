"""RecursiveMix compared with a loop that keeps its history in a list."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from given import compiled, make, network, rng, staged
from tiny import CLASSES, state_of, toy_images
from torch import Tensor
from torchvision.ops import roi_align

from adautomix.methods import recursivemix as recursivemix_module
from adautomix.methods.base import MixInputs
from adautomix.methods.recursivemix import (
    HISTORY,
    RecursiveMix,
    RecursiveMixParams,
    box_average,
    draw_recursivemix,
)
from adautomix.methods.vanilla import Vanilla
from adautomix.mixing.ops import Mixed, soft_targets


@pytest.mark.parametrize(("height", "width", "shape"), [(32, 32, (4, 4)), (24, 40, (6, 5))])
def test_box_average_is_roi_align(height: int, width: int, shape: tuple[int, int]) -> None:
    maps = torch.randn(60, 3, *shape, generator=rng(1))
    draws = torch.rand(60, 2, 2, generator=rng(2)).sort(dim=2).values
    box = (draws * torch.tensor([height + 1.0, width + 1.0])[:, None]).long().flatten(1)
    box[0], box[1] = torch.tensor([0, height, 0, width]), torch.tensor([5, 5, 3, 3])
    ours = box_average(maps, box, height, width)
    scale = torch.tensor([shape[0] / height, shape[1] / width])
    for b, (top, bottom, left, right) in enumerate(box.tolist()):
        # torchvision has one scale for both directions, so boxes are passed in pixels of the map.
        corners = [left * scale[1], top * scale[0], right * scale[1], bottom * scale[0]]
        region = torch.tensor([[0.0, *corners]])
        theirs = roi_align(maps[b : b + 1], region, output_size=1, aligned=True).flatten()
        if top == bottom or left == right:
            assert not ours[b].any()
        else:
            torch.testing.assert_close(ours[b], theirs, atol=1e-5, rtol=1e-5)


class ByHand:
    """RecursiveMix in plain PyTorch, one image at a time, with the history in a list."""

    def __init__(self, model: Any, method: Any) -> None:
        self.model, self.head, self.omega = model, method.roi_head, method.settings.omega
        self.history: dict[int, tuple[Tensor, Tensor, Tensor]] = {}

    def step(self, images: Tensor, labels: Tensor, params: RecursiveMixParams) -> dict[str, Any]:
        mixes, targets, lams = [], [], []
        size = images.shape[2]
        for b, (top, bottom, left, right) in enumerate(params.box.tolist()):
            mix, target, lam = images[b].clone(), F.one_hot(labels[b], CLASSES).float(), 1.0
            if b in self.history and bottom > top and right > left:
                old, old_target, _ = self.history[b]
                small = F.interpolate(old[None], size=(bottom - top, right - left))[0]
                mix[:, top:bottom, left:right] = small
                lam = 1 - (bottom - top) * (right - left) / size**2
                target = lam * target + (1 - lam) * old_target
            mixes.append(mix)
            targets.append(target)
            lams.append(lam)
        mixed, target = torch.stack(mixes), torch.stack(targets)
        features = self.model.features(mixed, 1)
        logits = self.model.logits(features.pooled)
        loss = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
        consistency = torch.zeros(())
        scale = features.tap.shape[2] / size
        for b, (top, bottom, left, right) in enumerate(params.box.tolist()):
            if lams[b] < 1:
                box = torch.tensor([[b, left, top, right, bottom]]).float()
                region = roi_align(features.tap, box, 1, spatial_scale=scale, aligned=True)
                prediction = self.head(region.flatten(1)).log_softmax(dim=1)[0]
                old_logits = self.history[b][2]
                entropy = -(old_logits.softmax(dim=0) * prediction).sum()
                consistency = consistency + (1 - lams[b]) * entropy / len(images)
        for b in range(len(images)):
            self.history[b] = (mixed[b], target[b], logits[b].detach())
        return {"mixed": mixed, "targets": target, "loss": loss + self.omega * consistency}


@pytest.mark.parametrize("per_sample", [False, True])
def test_recursivemix_step_by_step(per_sample: bool) -> None:
    """Six steps with batches of changing size: losses, gradients, kept rows."""
    model, twin = staged(), staged()
    method = make(RecursiveMix, model, per_sample=per_sample, omega=0.7)
    other = make(RecursiveMix, twin, per_sample=per_sample, omega=0.7)
    by_hand = ByHand(twin, other)
    for step, count in enumerate((6, 6, 4, 6, 1, 5)):
        images, labels = toy_images(count, seed=step)
        params = method.params_for_step(images.shape, step)
        losses = method.losses(images, labels, model, None, step)
        expected = by_hand.step(images, labels, params)
        losses["loss"].backward()
        expected["loss"].backward()
        assert losses["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-5)
        torch.testing.assert_close(method.kept_images[:count], expected["mixed"])
        torch.testing.assert_close(method.kept_targets[:count], expected["targets"])
        torch.testing.assert_close(method.kept_targets.sum(dim=1), torch.ones(6))
        for row, (image, _, logits) in by_hand.history.items():
            torch.testing.assert_close(method.kept_images[row], image)
            torch.testing.assert_close(method.kept_logits[row], logits)
        pairs = zip(
            [*model.named_parameters(), *method.named_parameters()],
            [*twin.named_parameters(), *other.named_parameters()],
            strict=True,
        )
        for (name, mine), (_, theirs) in pairs:
            if theirs.grad is not None:
                torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-5, rtol=1e-4, msg=name)
            elif mine.grad is not None:
                assert not mine.grad.any(), name


def test_the_first_step_is_vanilla() -> None:
    images, labels = toy_images(6)
    model = staged()
    before = state_of(model)
    method = make(RecursiveMix, model)
    ours = method.losses(images, labels, model, None, 0)
    model.load_state_dict(before)
    theirs = make(Vanilla).losses(images, labels, model, None, 0)
    assert ours["loss"].item() == theirs["loss"].item()
    assert ours["consistency"].item() == 0
    assert torch.equal(method.kept_images, images)


def test_empty_boxes_are_always_vanilla() -> None:
    model = staged()
    method = make(RecursiveMix, model, alpha=0.0)
    for step in range(3):
        images, labels = toy_images(6, seed=step)
        method.losses(images, labels, model, None, step)
        assert torch.equal(method.kept_images, images)
        assert torch.equal(method.kept_targets, soft_targets(labels, CLASSES))


def trained(method: Any, model: Any, steps: range) -> list[float]:
    optimizer = torch.optim.SGD([*model.parameters(), *method.parameters()], lr=0.1)
    losses = []
    for step in steps:
        images, labels = toy_images(4 if step == 2 else 6, seed=step)
        loss = method.losses(images, labels, model, None, step)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_recursivemix_continues_from_its_state_dict() -> None:
    model = staged()
    method = make(RecursiveMix, model)
    first = trained(method, model, range(3))
    saved, weights = state_of(method), state_of(model)
    assert set(HISTORY) <= set(saved)
    went_on = trained(method, model, range(3, 6))
    twin = staged(5)
    other = make(RecursiveMix, twin)
    other.load_state_dict(saved)
    twin.load_state_dict(weights)
    assert trained(other, twin, range(3, 6)) == went_on
    assert first != went_on
    fresh = make(RecursiveMix, staged())
    fresh.load_state_dict(state_of(make(RecursiveMix, staged())))  # before any step


def test_history_is_kept_in_place_and_without_a_graph() -> None:
    model = staged()
    method = make(RecursiveMix, model)
    trained(method, model, range(1))
    places = [getattr(method, name).data_ptr() for name in HISTORY]
    trained(method, model, range(1, 5))
    assert places == [getattr(method, name).data_ptr() for name in HISTORY]
    method.load_state_dict(state_of(method))
    assert places == [getattr(method, name).data_ptr() for name in HISTORY]
    assert not any(getattr(method, name).requires_grad for name in HISTORY)


def test_mix_batch_does_not_change_the_history() -> None:
    model = staged()
    method = make(RecursiveMix, model)
    trained(method, model, range(2))
    kept = state_of(method)
    for count, size in ((9, 16), (6, 16), (3, 20)):
        images, labels = toy_images(count, seed=9, size=size)
        targets = soft_targets(labels, CLASSES)
        params = method.params_for_step(images.shape, 1)
        mixed = method.mix_batch(images, targets, model, None, params)
        for b, (top, bottom, left, right) in enumerate(params.box.tolist()):
            # Without a history of that size, the previous image of the batch takes its place.
            past = method.kept_images[b] if (count, size) == (6, 16) else images[b - 1]
            expected = images[b].clone()
            small = F.interpolate(past[None], size=(bottom - top, right - left))[0]
            expected[:, top:bottom, left:right] = small
            torch.testing.assert_close(mixed.images[b], expected)
        torch.testing.assert_close(mixed.targets.sum(dim=1), torch.ones(count))
    for name, value in method.state_dict().items():
        assert torch.equal(value, kept[name])


def test_parts_of_a_batch_share_one_history() -> None:
    """A batch gives the same loss and history whether it is split or not (without batch norm)."""
    whole, split = (network("convnext_tiny") for _ in range(2))
    one, two = (make(RecursiveMix, model, per_sample=True) for model in (whole, split))
    for step in range(3):
        images, labels = toy_images(6, seed=step)
        params = one.params_for_step(images.shape, step)
        expected = one.compute_loss(
            one.prepare(images, labels, whole, None, params), whole, None, params
        )
        sources = two.prepare(images, labels, split, None, params)
        loss = 0.0
        for own in (slice(0, 2), slice(2, 6)):
            part = MixInputs(sources.images, sources.targets, sources.features, own)
            found = two.compute_loss(part, split, None, params.rows(own))["loss"]
            found.backward()
            loss += (own.stop - own.start) / 6 * found.item()
        assert loss == pytest.approx(expected["loss"].item(), rel=1e-5)
        for name in HISTORY:
            torch.testing.assert_close(getattr(two, name), getattr(one, name))


def test_processes_gather_each_others_history(monkeypatch: pytest.MonkeyPatch) -> None:
    """The view of the first of two processes, which also receives the rows of the other."""
    images, labels = toy_images(6)
    targets = soft_targets(labels, CLASSES)
    logits = torch.randn(6, CLASSES, generator=rng(3))
    perm = torch.arange(6)[:, None].expand(6, 2)
    method = make(RecursiveMix, staged())
    wholes = [perm[:, 0], images, targets, logits]

    def gather(values: Tensor) -> Tensor:
        (whole,) = (
            w
            for w in wholes
            if w.dtype == values.dtype
            and w.shape[1:] == values.shape[1:]
            and torch.equal(w[:3], values)
        )
        return whole

    monkeypatch.setattr(recursivemix_module, "gather_rows", gather)
    mixed = Mixed(images[:3], targets[:3], torch.ones(3, 2), perm[:3])
    method.allocate(6, images.shape[1:])
    method.keep(6, mixed, logits[:3])
    assert torch.equal(method.kept_images, images)
    assert torch.equal(method.kept_targets, targets)
    assert torch.equal(method.kept_logits, logits)
    assert method.kept.tolist() == [1] * 6


def test_boxes_of_recursivemix_have_a_uniform_area() -> None:
    """Before clipping, in an image so large that rounding down does not matter."""
    box = draw_recursivemix(6000, 2000, 2000, 0.5, rng(), per_sample=True).box
    whole = ((box[:, ::2] > 0) & (box[:, 1::2] < 2000)).all(dim=1)
    sides = (box[:, 1] - box[:, 0])[whole].double()
    assert sides.max() ** 2 / 2000**2 < 0.5
    # Boxes that touch no border are more often small, so boxes of one size are compared.
    weight = 1 / (1 - sides / 2000) ** 2
    for share in (0.1, 0.2, 0.3, 0.4):
        below = weight[(sides / 2000) ** 2 < share].sum() / weight.sum()
        assert below.item() == pytest.approx(share / 0.5, abs=0.06)
    shared = draw_recursivemix(5, 32, 32, 0.5, rng())
    assert len(shared.box.unique(dim=0)) == 1
    assert torch.equal(shared.perm, torch.arange(5)[:, None].expand(5, 2))


def test_recursivemix_in_half_precision() -> None:
    model = network()
    method = make(RecursiveMix, model)
    for step in range(2):
        images, labels = toy_images(5, seed=step)
        images = images.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = method.losses(images, labels, model, None, step)["loss"]
        loss.backward()
        assert loss.dtype == method.kept_logits.dtype == torch.float32
    params = method.params_for_step((5, 3, 16, 16), 1)
    half = method.mix(images.bfloat16(), torch.eye(5), params)
    assert half.images.dtype == torch.bfloat16
    assert half.images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.slow
def test_a_step_of_recursivemix_is_one_graph_once_there_is_a_history() -> None:
    model, twin = staged(), staged()
    method, other = make(RecursiveMix, model), make(RecursiveMix, twin)
    images, labels = toy_images(6)

    def step_of(method: Any, model: Any) -> Callable[[RecursiveMixParams], Tensor]:
        def work(params: RecursiveMixParams) -> Tensor:
            sources = method.prepare(images, labels, model, None, params)
            loss: Tensor = method.compute_loss(sources, model, None, params)["loss"]
            return loss

        return work

    mine, theirs = step_of(method, model), step_of(other, twin)
    first = method.params_for_step(images.shape, 0)
    assert mine(first).item() == theirs(first).item()
    with compiled(mine) as graph:
        for step in range(1, 4):
            params = method.params_for_step(images.shape, step)
            torch.testing.assert_close(graph(params), theirs(params))
            for name in HISTORY:
                torch.testing.assert_close(getattr(method, name), getattr(other, name))
