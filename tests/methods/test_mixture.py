"""A mixture compared with its members, mix by mix."""

import pytest
import torch
from given import make, rng

from adautomix.errors import UsageError
from adautomix.methods import METHODS
from adautomix.methods.mixture import Mixture
from adautomix.training.graphs import signature
from adautomix.training.step import StepInputs

SHAPE = (8, 3, 16, 12)
IMAGES = torch.rand(SHAPE, generator=rng(1))
TARGETS = torch.eye(8)


@pytest.mark.parametrize("seed", range(6))
def test_a_batch_is_the_mix_of_one_member(seed: int) -> None:
    options = {"cutmix": {"alpha": 0.5}}
    method = make(Mixture, mix=("mixup", "cutmix", "cutout"), options=options)
    generator = rng(seed)
    params = method.make_params(SHAPE, generator, 0)
    mixed = method.mix(IMAGES, TARGETS, params)
    replay = rng(seed)
    number = int(torch.multinomial(torch.ones(3).double(), 1, replacement=True, generator=replay))
    name = ("mixup", "cutmix", "cutout")[number]
    member = make(METHODS[name], **options.get(name, {}))
    expected = member.mix(IMAGES, TARGETS, member.make_params(SHAPE, replay, 0))
    assert params.members == (number,)
    assert params.choice.tolist() == [number] * 8
    assert torch.equal(mixed.images, expected.images)
    assert torch.equal(mixed.targets, expected.targets)


def test_each_mix_is_that_of_its_own_member() -> None:
    names = ("mixup", "cutout", "resizemix")
    method = make(Mixture, mix=names, per_sample=True)
    params = method.make_params(SHAPE, rng(3), 0)
    assert set(params.choice.tolist()) == {0, 1, 2}
    mixed = method.mix(IMAGES, TARGETS, params)
    whole = [
        make(METHODS[name]).mix(IMAGES, TARGETS, part)
        for name, part in zip(names, params.parts, strict=True)
    ]
    masks = mixed.masks
    assert masks is not None
    for b, number in enumerate(params.choice.tolist()):
        member = whole[number]
        assert torch.equal(mixed.images[b], member.images[b])
        assert torch.equal(mixed.targets[b], member.targets[b])
        sources = member.perm.shape[1]
        assert mixed.perm[b].tolist() == (member.perm[b].tolist() * 2)[:2]
        assert mixed.lam[b].tolist() == ([*member.lam[b].tolist(), 0.0])[:2]
        shown = member.lam[:, :, None, None].expand(-1, -1, 16, 12)
        shown = shown if member.masks is None else member.masks
        assert torch.equal(masks[b, :sources], shown[b])
        assert masks[b].sum(dim=0).eq(1).all()


def test_members_are_drawn_as_often_as_their_weights_say() -> None:
    method = make(Mixture, mix=("mixup", "cutmix", "fmix"), weights=(6, 0, 2), per_sample=True)
    drawn = method.make_params((4000, 3, 4, 4), rng(2), 0).choice
    counts = torch.bincount(drawn, minlength=3)
    assert counts[1] == 0
    assert counts[0].item() / 4000 == pytest.approx(0.75, abs=0.03)


def test_lists_may_be_written_as_on_the_command_line() -> None:
    settings = Mixture.Settings(mix="mixup, cutmix", weights="1,3")
    assert settings == Mixture.Settings(mix=("mixup", "cutmix"), weights=(1.0, 3.0))


def test_the_recipe_of_transformers_is_a_member() -> None:
    method = make(Mixture, mix=("mixup+cutmix",), options={"mixup+cutmix": {"switch_prob": 1}})
    member = make(METHODS["mixup+cutmix"], switch_prob=1)
    generator = rng(5)
    torch.multinomial(torch.ones(1).double(), 1, replacement=True, generator=generator)
    expected = member.mix(IMAGES, TARGETS, member.make_params(SHAPE, generator, 0))
    mixed = method.mix(IMAGES, TARGETS, method.make_params(SHAPE, rng(5), 0))
    assert torch.equal(mixed.images, expected.images)


def test_each_member_is_a_kind_of_step_of_its_own() -> None:
    """A captured graph must not replay CutMix at a step of Mixup."""
    method = make(Mixture, mix=("mixup", "cutmix"))
    by_member: dict[tuple[int, ...], set[object]] = {}
    for seed in range(8):
        params = method.make_params(SHAPE, rng(seed), 0)
        inputs = StepInputs(None, params, 0.1, 0.9)  # type: ignore[arg-type]
        by_member.setdefault(params.members, set()).add(signature(inputs))
    assert [len(kinds) for kinds in by_member.values()] == [1, 1]


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"mix": ()}, "mixture.mix is empty: name at least one method"),
        ({"mix": ("mixup", "adautomix")}, "adautomix takes more than images and labels; use some"),
        ({"mix": ("mixture",)}, "mixture.mix: a mixture cannot contain another"),
        ({"mix": ("cutmx",)}, "mixture.mix: cutmx is unknown; use some of cutmix"),
        ({"weights": (1.0,)}, "mixture.weights has 1 values for 3 methods: give one per method"),
        ({"weights": (0.0, 0.0, 0.0)}, "mixture.weights must be at least 0"),
        ({"weights": (1.0, -1.0, 3.0)}, "mixture.weights must be at least 0"),
        ({"options": {"fmix": {}}}, "mixture.options.fmix: fmix is not among mixture.mix"),
        ({"options": {"mixup": {"alpha": -1}}}, "mixture.options.mixup.alpha = -1"),
    ],
)
def test_impossible_mixtures_are_refused_in_one_line(
    settings: dict[str, object], line: str
) -> None:
    with pytest.raises(UsageError) as error:
        Mixture.Settings(**settings)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
