"""Properties of every method in the table."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from contract_cases import CASES
from every import BATCH, CLASSES, TRANSFORMER, Bench, each, steps_of, trainer_of
from given import leaves, same_params
from torch import Tensor

from adautomix.errors import UsageError
from adautomix.methods import METHODS, Requirement, describe_methods

EVERY = pytest.mark.parametrize("name", each())
# `test_contract.py` checks the mixes of the others, for many settings of each.
IN_CONTRACT = {cls.name for cls, _ in CASES.values()}
NOT_IN_CONTRACT = pytest.mark.parametrize("name", each(n for n in METHODS if n not in IN_CONTRACT))
# A mixture draws methods per image, not parameters; `test_mixture.py` checks it.
PER_SAMPLE = [
    name
    for name in METHODS
    if "per_sample" in METHODS[name].Settings.model_fields and name != "mixture"
]
# Weighs each source by its own class activation, so weights need not sum to 1.
TWO_WEIGHTS = ("snapmix",)
NOTHING_RANDOM = ("vanilla", "tokenmixup")


@EVERY
def test_it_trains(name: str, tmp_path: Path) -> None:
    """Twelve epochs on 48 images reach far more than the 20 % of guessing on unmixed images."""
    trainer = trainer_of(name, tmp_path, epochs=12, crop="off", flip=False)
    rows = steps_of(trainer, 48)
    assert all(torch.isfinite(torch.tensor(list(row.values()))).all() for row in rows)
    assert trainer.evaluator.probe() > 0.5, "on unmixed training images"


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
def test_class_indices_are_one_hot_labels(name: str) -> None:
    hard, soft = Bench(name), Bench(name)
    assert hard.losses(hard.labels)["loss"].item() == pytest.approx(
        soft.losses(soft.targets)["loss"].item(), rel=1e-5
    )


@EVERY
def test_labels_of_several_classes(name: str) -> None:
    """Soft labels over all classes, and labels with two classes of weight 1."""
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
def test_half_precision(name: str) -> None:
    """Mixes keep the dtype of the images; labels and losses are float32."""
    dtype = torch.bfloat16
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


@NOT_IN_CONTRACT
def test_labels_sum_to_one(name: str) -> None:
    for step in range(3):
        mixed = Bench(name).mix_batch(step)
        mass = mixed.lam.sum(dim=1)
        torch.testing.assert_close(mixed.targets.sum(dim=1), mass)
        assert (mixed.targets >= -1e-6).all()
        if name not in TWO_WEIGHTS:
            torch.testing.assert_close(mass, torch.ones_like(mass))


@NOT_IN_CONTRACT
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
def test_per_sample_parameters_differ_within_a_batch(name: str) -> None:
    params = Bench(name, per_sample=True).make_params()
    rows = [value for value in vars(params).values() if isinstance(value, Tensor)]
    rows = [value for value in rows if value.is_floating_point() or value.shape[1:] == (4,)]
    assert any(len(value.unique(dim=0)) > BATCH // 2 for value in rows)


@NOT_IN_CONTRACT
def test_parameters_depend_on_seed_and_step_alone(name: str) -> None:
    one, other = Bench(name), Bench(name)
    params = one.make_params(4)
    torch.rand(11)  # another user of the global generator
    before = torch.get_rng_state()
    assert same_params(params, other.make_params(4))
    assert torch.equal(before, torch.get_rng_state())
    if name not in NOTHING_RANDOM:
        assert not same_params(params, one.make_params(6))


@NOT_IN_CONTRACT
def test_every_tensor_of_the_parameters_has_one_row_per_mix(name: str) -> None:
    """So that a process, or a part of the batch, can select its rows."""
    bench = Bench(name)
    params = bench.make_params()
    values, some = leaves(params), leaves(params.rows(slice(3, 7)))
    pairs = [pair for pair in zip(values, some, strict=True) if isinstance(pair[0], Tensor)]
    assert pairs
    for value, rows in pairs:
        assert len(value) == BATCH
        assert torch.equal(rows, value[3:7])


@NOT_IN_CONTRACT
def test_inputs_are_not_changed(name: str) -> None:
    bench = Bench(name)
    images, targets = bench.images.clone(), bench.targets.clone()
    bench.losses(bench.targets)["loss"].backward()
    assert torch.equal(bench.images, images)
    assert torch.equal(bench.targets, targets)
    assert bench.images.grad is None


@EVERY
def test_facts_are_stated(name: str) -> None:
    cls = METHODS[name]
    assert cls.name == name
    assert cls.summary
    assert cls.label_note
    assert cls.cost >= 3
    assert cls.uses_teacher == (Requirement.TEACHER in cls.requires)
    if cls.paper is None:
        assert name in ("vanilla", "mixture")
        return
    assert cls.paper.authors
    assert cls.paper.title
    assert cls.paper.venue
    assert 2015 < cls.paper.year < 2030
    assert cls.paper.arxiv is None or re.fullmatch(r"\d{4}\.\d{4,5}", cls.paper.arxiv)


@EVERY
def test_the_card_names_the_paper(name: str) -> None:
    """The docstring at the head of the file and the class state the same source and cost."""
    cls = METHODS[name]
    card = sys.modules[cls.__module__].__doc__ or ""
    assert "Cost" in card
    if cls.paper is not None:
        assert (cls.paper.arxiv or cls.paper.venue) in " ".join(card.split())


def test_descriptions_are_plain_data() -> None:
    described = describe_methods()
    assert json.loads(json.dumps(described)) == described
    assert [entry["name"] for entry in described] == list(METHODS)
    (adautomix,) = (entry for entry in described if entry["name"] == "adautomix")
    facts = ("requires", "cost", "label_rule", "step_cycle", "uses_teacher", "input_mixing")
    assert [adautomix[fact] for fact in facts] == [
        ["stage_features", "teacher"],
        12.0,
        "lambda",
        2,
        True,
        False,
    ]
    assert adautomix["paper"]["arxiv"] == "2312.11954"


def test_kinds_of_step_repeat() -> None:
    cycles: list[tuple[str, dict[str, Any], int]] = [
        ("vanilla", {}, 1),
        ("adautomix", {"generator_every": 3}, 6),
    ]
    cycles += [("automix", {"generator_every": 3}, 3)]
    for name, settings, steps in cycles:
        assert METHODS[name].Settings(**settings).step_cycle == steps
