"""The contract over the table of methods: what holds for each, whatever it does."""

from pathlib import Path

import pytest
import torch
from every import BATCH, CLASSES, TRANSFORMER, Bench, steps_of, trainer_of
from torch import Tensor

from adautomix.errors import UsageError
from adautomix.methods import METHODS
from adautomix.mixing.params import MixParams

EVERY = pytest.mark.parametrize("name", METHODS)
PER_SAMPLE = [name for name in METHODS if "per_sample" in METHODS[name].Settings.model_fields]
TWO_WEIGHTS = (
    "snapmix",
)  # each source by what its own class loses or gains: they need not sum to 1
NOTHING_RANDOM = ("vanilla", "tokenmixup")


@EVERY
def test_it_trains(name: str, tmp_path: Path) -> None:
    """Twelve epochs of 48 images: far above the one in five of guessing on unmixed images."""
    trainer = trainer_of(name, tmp_path, epochs=12, crop="off", flip=False)
    rows = steps_of(trainer, 48)
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in rows)
    assert trainer.evaluator.probe() > 0.5, "on training images, unmixed"


@EVERY
def test_it_trains_a_transformer(name: str, tmp_path: Path) -> None:
    trainer = trainer_of(name, tmp_path, **TRANSFORMER)
    before = {key: value.clone() for key, value in trainer.weights().items()}
    rows = steps_of(trainer, 3)
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in rows)
    moved = [key for key, value in trainer.weights().items() if not torch.equal(value, before[key])]
    assert any("attn" in key for key in moved)


@EVERY
def test_it_resumes_exactly(name: str, tmp_path: Path) -> None:
    whole, first, second = (trainer_of(name, tmp_path / part) for part in ("w", "a", "b"))
    steps_of(whole, 5)
    steps_of(first, 2)
    second.restore(first.checkpoint())
    steps_of(second, 3)
    assert second.step == whole.step
    for key, value in whole.weights().items():
        assert torch.equal(value, second.weights()[key]), key


@EVERY
def test_hard_labels_are_soft_ones(name: str) -> None:
    hard, soft = Bench(name), Bench(name)
    assert hard.losses(hard.labels)["loss"].item() == pytest.approx(
        soft.losses(soft.targets)["loss"].item(), rel=1e-5
    )


@EVERY
def test_labels_of_several_classes(name: str) -> None:
    """Shares of all classes, and two classes that are there at once: each is mixed as it is."""
    shares = torch.rand(BATCH, CLASSES, generator=torch.Generator().manual_seed(2)).softmax(dim=1)
    hard = Bench(name).targets
    for targets in (shares, hard + hard.roll(1, dims=1)):
        bench = Bench(name)
        bench.targets = targets
        mixed, losses = bench.mix_batch(), bench.losses(targets)
        assert torch.isfinite(losses["loss"])
        assert 0 <= losses["mixture_accuracy"].item() <= 1
        followed = torch.einsum("bn,bnk->bk", mixed.lam, targets[mixed.perm])
        torch.testing.assert_close(mixed.targets, followed, atol=1e-5, rtol=0)
    others = Bench(name).losses(shares)["loss"].item()
    assert others != pytest.approx(Bench(name).losses(shares.roll(1, dims=1))["loss"].item())


@EVERY
@pytest.mark.parametrize("images", [7, 3, 1])
def test_odd_batches(name: str, images: int) -> None:
    bench = Bench(name, images)
    if images < bench.method.min_batch:
        with pytest.raises(UsageError, match=rf"{name} mixes \d images and the batch holds"):
            bench.losses(bench.labels)
        return
    losses = bench.losses(bench.labels)
    losses["loss"].backward()
    assert torch.isfinite(losses["loss"])
    weights = [p.grad for p in bench.student.parameters() if p.grad is not None]
    assert weights
    assert all(torch.isfinite(gradient).all() for gradient in weights)


@EVERY
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """Images of two bytes under autocast: mixes as they came, labels and losses in float32."""
    bench, whole = Bench(name), Bench(name)
    bench.images = bench.images.to(dtype)
    whole.images = bench.images.float()
    with torch.autocast("cpu", dtype):
        mixed, losses = bench.mix_batch(), bench.losses(bench.labels)
    assert mixed.images.dtype == dtype
    assert mixed.targets.dtype == losses["loss"].dtype == torch.float32
    low, high = whole.images.aminmax()
    assert torch.isfinite(mixed.images).all()
    assert low - 0.1 <= mixed.images.min()
    assert mixed.images.max() <= high + 0.1
    losses["loss"].backward()
    for part, value in whole.losses(whole.labels).items():
        assert losses[part].item() == pytest.approx(value.item(), rel=0.1, abs=0.1), part


@EVERY
def test_labels_have_mass_one(name: str) -> None:
    for step in range(3):
        mixed = Bench(name).mix_batch(step)
        mass = mixed.lam.sum(dim=1)
        torch.testing.assert_close(mixed.targets.sum(dim=1), mass)
        assert (mixed.targets >= -1e-6).all()
        if name not in TWO_WEIGHTS:
            torch.testing.assert_close(mass, torch.ones_like(mass))


@EVERY
def test_masks_sum_to_one_and_labels_follow_the_sources(name: str) -> None:
    bench = Bench(name)
    mixed = bench.mix_batch()
    labels = torch.einsum("bn,bnk->bk", mixed.lam, bench.targets[mixed.perm])
    torch.testing.assert_close(mixed.targets, labels, atol=1e-5, rtol=0)
    if mixed.masks is not None:
        torch.testing.assert_close(
            mixed.masks.sum(dim=1), torch.ones_like(mixed.masks[:, 0]), atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("name", PER_SAMPLE)
def test_per_sample_draws_differ_within_a_batch(name: str) -> None:
    params = Bench(name, per_sample=True).make_params()
    rows = [value for value in vars(params).values() if isinstance(value, Tensor)]
    rows = [value for value in rows if value.is_floating_point() or value.shape[1:] == (4,)]
    assert any(len(value.flatten(1).unique(dim=0)) > BATCH // 2 for value in rows)


@EVERY
def test_draws_depend_on_seed_and_step_alone(name: str) -> None:
    one, other = Bench(name), Bench(name)
    params = one.make_params(4)
    torch.rand(11)  # somebody else draws
    before = torch.get_rng_state()
    assert same_draw(params, other.make_params(4))
    assert torch.equal(before, torch.get_rng_state())
    if name not in NOTHING_RANDOM:
        assert not same_draw(params, one.make_params(6))


def same_draw(one: MixParams, other: MixParams) -> bool:
    values = zip(vars(one).values(), vars(other).values(), strict=True)
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in values)


@EVERY
def test_every_tensor_of_a_draw_has_a_row_a_mix(name: str) -> None:
    """So that a process, or a part of the batch, can take its rows."""
    bench = Bench(name)
    params = bench.make_params()
    tensors = {key: value for key, value in vars(params).items() if isinstance(value, Tensor)}
    assert tensors
    assert all(len(value) == BATCH for value in tensors.values())
    some = vars(params.rows(slice(3, 7)))
    for key, value in tensors.items():
        assert torch.equal(some[key], value[3:7])


@EVERY
def test_inputs_are_left_alone(name: str) -> None:
    bench = Bench(name)
    images, targets = bench.images.clone(), bench.targets.clone()
    bench.losses(bench.targets)["loss"].backward()
    assert torch.equal(bench.images, images)
    assert torch.equal(bench.targets, targets)
    assert bench.images.grad is None


@EVERY
def test_the_card_says_what_it_is(name: str) -> None:
    import sys

    cls = METHODS[name]
    card = sys.modules[cls.__module__].__doc__ or ""
    assert "Cost" in card
    assert name == "vanilla" or "arXiv" in card or "timm" in card
    assert cls.name == name
    assert cls.summary
    assert cls.needs
    assert cls.cost
