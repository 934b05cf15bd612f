"""Attacks: against foolbox and by hand, the controls, signs of masked gradients, the page."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import foolbox
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from targets import KINDS, linear_network, make_target, random_images, top1_accuracy
from tiny import gradients_of, state_of
from torch import Tensor, nn

from adautomix.data.dataset import InMemory
from adautomix.errors import UsageError
from adautomix.evaluation.attack import (
    AMPLIFIED,
    MARKED,
    NORMS,
    Attacked,
    AttackResult,
    AttackSettings,
    Norm,
    Sweep,
    attacks_of,
    climbed,
    draw_examples,
    fgsm,
    pgd,
    random_starts,
    random_step,
    run_attack,
    signs_of_masking,
)
from adautomix.evaluation.evaluate import evaluate, validate_settings
from adautomix.evaluation.record import Evaluation
from adautomix.evaluation.suite import ResultCache
from adautomix.evaluation.target import EvalTarget, PixelNetwork
from adautomix.reporting.evaluations import write_evaluations
from adautomix.reporting.section import Found
from adautomix.reporting.sections.attack import UNMASKED, section

SIZE = 12
EPSILON = 8 / 255
QUICK = {"epsilons": "2,8", "pgd_epsilons": "2,8", "l2_epsilons": "0.5", "steps": 3}


def photographs(count: int, seed: int = 0) -> InMemory:
    """Noise, tinted by the class so weakly that a small change of all pixels hides the tint."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(KINDS)
    tints = 12 * torch.randn(len(KINDS), 3, generator=torch.Generator().manual_seed(5))
    noise = 40 * torch.randn(count, SIZE, SIZE, 3, generator=generator)
    pixels = (128 + noise + tints[labels][:, None, None]).clamp(0, 255).byte()
    return InMemory(pixels, torch.arange(count), labels)


def pixels_of(split: InMemory) -> Tensor:
    return split.images.permute(0, 3, 1, 2).float() / 255


def convolutions(seed: int) -> PixelNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, len(KINDS)),
        )
    return PixelNetwork(model, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2))


def trained(seed: int = 0) -> PixelNetwork:
    network = convolutions(seed)
    train = photographs(200, seed=1)
    pixels, labels = pixels_of(train), train.labels
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(network(pixels), labels).backward()
        optimizer.step()
    optimizer.zero_grad()
    return network.eval()


@pytest.fixture(scope="module")
def ordinary() -> PixelNetwork:
    return trained()


@pytest.fixture(scope="module")
def split() -> InMemory:
    return photographs(120)


@pytest.fixture
def images(split: InMemory) -> tuple[Tensor, Tensor]:
    return pixels_of(split), split.labels


def start_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def share_right(network: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((network(pixels).argmax(dim=1) == labels).double().mean())


def change_of(found: Tensor, pixels: Tensor, norm: Norm) -> Tensor:
    p = float("inf") if norm == "linf" else 2
    return torch.linalg.vector_norm((found - pixels).flatten(1), ord=p, dim=1)  # type: ignore[no-any-return]


def found_by(target: EvalTarget, **settings: object) -> AttackResult:
    result = evaluate(target, ["attack"], {"attack": QUICK | settings}).result("attack")
    assert isinstance(result, AttackResult)
    return result


def sweep_of(network: Attacked, attack: str, norm: Norm = "linf") -> Sweep:
    (found,) = [s for s in network.sweeps if (s.attack, s.norm) == (attack, norm)]
    return found


# --- against foolbox -------------------------------------------------------------------------


def by_foolbox(attack: Any, network: nn.Module, images: Any, epsilon: float) -> tuple[Tensor, Any]:
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    _, found, success = attack(model, *images, epsilons=epsilon)
    return found, success


@pytest.mark.parametrize("epsilon", [1 / 255, EPSILON, 0.3])
def test_fgsm_is_that_of_foolbox(
    ordinary: PixelNetwork, images: tuple[Tensor, Tensor], epsilon: float
) -> None:
    attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    expected, success = by_foolbox(attack, ordinary, images, epsilon)
    found = fgsm(ordinary, *images, epsilon)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert share_right(ordinary, found, images[1]) == pytest.approx(
        1 - float(success.double().mean()), abs=0.002
    )


ITERATED = {
    "linf": foolbox.attacks.LinfProjectedGradientDescentAttack,
    "l2": foolbox.attacks.L2ProjectedGradientDescentAttack,
}


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", EPSILON), ("l2", 0.5), ("l2", 2.0)])
def test_pgd_is_that_of_foolbox(
    ordinary: PixelNetwork, images: tuple[Tensor, Tensor], norm: Norm, epsilon: float, steps: int
) -> None:
    size = 2.5 * epsilon / steps
    attack = ITERATED[norm](steps=steps, abs_stepsize=size, random_start=False)
    expected, success = by_foolbox(attack, ordinary, images, epsilon)
    found = pgd(ordinary, *images, epsilon, steps, size, norm)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert share_right(ordinary, found, images[1]) == pytest.approx(
        1 - float(success.double().mean()), abs=0.002
    )


def test_the_suite_gives_the_accuracy_of_foolbox(
    ordinary: PixelNetwork, images: tuple[Tensor, Tensor], split: InMemory, tmp_path: Path
) -> None:
    result = found_by(make_target(split, tmp_path, networks={"network": ordinary}))
    sweep = sweep_of(result.networks["network"], "fgsm")
    attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    for epsilon, share in zip(sweep.epsilons[1:], sweep.accuracy[1:], strict=True):
        _, success = by_foolbox(attack, ordinary, images, epsilon)
        assert share == pytest.approx(1 - float(success.double().mean()), abs=0.002)
    assert sweep.error == [1 - share for share in sweep.accuracy]


# --- by hand ---------------------------------------------------------------------------------


def test_epsilon_is_a_size_in_pixels() -> None:
    network = linear_network(
        4
    )  # deviations of 0.2 to 0.3: a step of ε in normalized images is ε / 5
    weight = network.model[1].weight.view(4, 3, 4, 4)
    pixels = torch.full((4, 3, 4, 4), 0.5)
    labels = torch.arange(4)
    p = network(pixels).softmax(dim=1)
    # The gradient of the cross-entropy: Σ_k (p_k - [k = y]) w_k / std.
    errors = p - F.one_hot(labels, 4)
    gradient = torch.einsum("bk,kchw->bchw", errors, weight) / network.std
    expected = pixels + EPSILON * gradient.sign()
    torch.testing.assert_close(fgsm(network, pixels, labels, EPSILON), expected)
    size = change_of(fgsm(network, pixels, labels, EPSILON), pixels, "linf")
    torch.testing.assert_close(size, torch.full((4,), EPSILON))
    step = pgd(network, pixels, labels, 1.0, 1, 0.25, "l2") - pixels
    norms = gradient.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(step, 0.25 * gradient / norms)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("restarts", [1, 3])
def test_no_change_is_larger_than_epsilon(
    ordinary: PixelNetwork, images: tuple[Tensor, Tensor], norm: Norm, restarts: int
) -> None:
    epsilon = EPSILON if norm == "linf" else 0.5
    generator = start_generator()
    attacked = {
        "pgd": pgd(ordinary, *images, epsilon, 4, epsilon, norm, generator, restarts),
        "random": random_step(images[0], epsilon, norm, generator),
        "start": random_starts(images[0], epsilon, norm, generator, restarts)[-1],
    }
    assert float(images[0].max()) == 1, "no pixel is at the edge"
    for name, found in attacked.items():
        size = change_of(found, images[0], norm)
        assert size.max() <= epsilon + 1e-6, name
        assert size.min() > 0.8 * epsilon, name
        assert 0 <= found.min() <= found.max() <= 1, name


def test_the_attacker_does_harm_to_every_batch(
    ordinary: PixelNetwork, images: tuple[Tensor, Tensor]
) -> None:
    clean = share_right(ordinary, *images)
    attacks: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "fgsm": lambda x, y: fgsm(ordinary, x, y, EPSILON),
        "pgd": lambda x, y: pgd(ordinary, x, y, EPSILON, 5, EPSILON / 2),
        "l2": lambda x, y: pgd(ordinary, x, y, 0.5, 5, 0.25, "l2", start_generator()),
    }
    for name, attack in attacks.items():
        right = 0.0
        for pixels, labels in zip(images[0].split(20), images[1].split(20), strict=True):
            found = attack(pixels, labels)
            with torch.no_grad():
                before = F.cross_entropy(ordinary(pixels), labels)
                after = F.cross_entropy(ordinary(found), labels)
            assert after > before, name
            right += share_right(ordinary, found, labels) / 6
        assert right < clean - 0.1, name


@pytest.mark.parametrize("norm", NORMS)
def test_restarts_find_what_any_start_finds(
    ordinary: PixelNetwork, images: tuple[Tensor, Tensor], norm: Norm
) -> None:
    epsilon = 3 / 255 if norm == "linf" else 0.2
    how: dict[str, Any] = {"epsilon": epsilon, "steps": 1, "step_size": epsilon / 2, "norm": norm}
    starts = random_starts(images[0], epsilon, norm, start_generator(), 4)
    wrong = []
    for start in starts:
        with torch.no_grad():
            logits = ordinary(climbed(ordinary, *images, start, **how))
        wrong.append(logits.argmax(dim=1) != images[1])
    found = pgd(ordinary, *images, **how, generator=start_generator(), restarts=4)
    with torch.no_grad():
        all_wrong = ordinary(found).argmax(dim=1) != images[1]
    assert torch.equal(all_wrong, torch.stack(wrong).any(dim=0))
    assert any(not torch.equal(all_wrong, one) for one in wrong), "one start would have done"


def test_restarts_need_a_generator(ordinary: PixelNetwork, images: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UsageError, match="restarts = 2: pass a generator"):
        pgd(ordinary, *images, EPSILON, 1, EPSILON, restarts=2)


# --- chance ----------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
def test_starts_do_not_depend_on_the_batches(images: tuple[Tensor, Tensor], norm: Norm) -> None:
    def drawn(batch: int) -> tuple[Tensor, Tensor]:
        first, second = start_generator(), start_generator(1)
        batches = images[0].split(batch)
        starts = [random_starts(x, 0.1, norm, first, restarts=2) for x in batches]
        steps = [random_step(x, 0.1, norm, second) for x in batches]
        return torch.cat(starts, dim=1), torch.cat(steps)

    for mine, theirs in zip(drawn(7), drawn(50), strict=True):
        assert torch.equal(mine, theirs)


def test_starts_fill_the_ball() -> None:
    gray = torch.full((200, 3, 8, 8), 0.5)
    change = (random_starts(gray, 0.1, "linf", start_generator())[0] - gray) / 0.1
    assert float(change.mean()) == pytest.approx(0, abs=0.01)
    assert float(change.var()) == pytest.approx(1 / 3, rel=0.02)
    first, second = random_starts(gray, 0.1, "l2", start_generator(), restarts=2) - gray
    for change in (first, second):
        torch.testing.assert_close(change_of(change, 0 * gray, "l2"), torch.full((200,), 0.1))
        assert float(change.mean()) == pytest.approx(0, abs=1e-4)
    cosines = F.cosine_similarity(first.flatten(1), second.flatten(1))
    assert float(cosines.abs().max()) < 0.3, "two starts of an image are alike"


@pytest.mark.parametrize(("norm", "length"), [("linf", 0.1), ("l2", 0.1 / 192**0.5)])
def test_the_control_steps_blindly(norm: Norm, length: float) -> None:
    gray = torch.full((50, 3, 8, 8), 0.5)
    change = random_step(gray, 0.1, norm, start_generator()) - gray
    torch.testing.assert_close(change.abs(), torch.full_like(change, length), rtol=0, atol=1e-6)
    assert float(change.sign().mean()) == pytest.approx(0, abs=0.04)


# --- the network is left alone ---------------------------------------------------------------


def test_parameters_get_no_gradient_and_statistics_stay(images: tuple[Tensor, Tensor]) -> None:
    network = convolutions(seed=3).train()
    first = next(network.parameters())
    first.requires_grad_(False)
    wanted = [p.requires_grad for p in network.parameters()]
    before = state_of(network)
    fgsm(network, *images, EPSILON)
    pgd(network, *images, EPSILON, 2, EPSILON, "linf", start_generator(), 2)
    assert all(gradient is None for gradient in gradients_of(network).values())
    assert [p.requires_grad for p in network.parameters()] == wanted
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not images[0].requires_grad


def test_the_attack_is_on_the_network_in_evaluation_mode(images: tuple[Tensor, Tensor]) -> None:
    network = convolutions(seed=3)
    expected = fgsm(network.eval(), *images, EPSILON)
    assert torch.equal(fgsm(network.train(), *images, EPSILON), expected)


# --- the suite -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(ordinary: PixelNetwork) -> dict[str, PixelNetwork]:
    return {"student": ordinary, "teacher": trained(seed=1)}


@pytest.fixture(scope="module")
def result(
    two: dict[str, PixelNetwork], split: InMemory, tmp_path_factory: pytest.TempPathFactory
) -> AttackResult:
    return found_by(make_target(split, tmp_path_factory.mktemp("attack"), networks=two))


def test_nothing_changed_is_plain_accuracy(
    result: AttackResult, two: dict[str, PixelNetwork], split: InMemory, tmp_path: Path
) -> None:
    plain = top1_accuracy(*make_target(split, tmp_path, networks=two).logits())
    for name, network in result.networks.items():
        assert network.accuracy == plain[name]
        assert all(s.epsilons[0] == 0 and s.accuracy[0] == plain[name] for s in network.sweeps)


def test_nothing_is_changed_at_epsilon_0(
    ordinary: PixelNetwork, images: tuple[Tensor, Tensor]
) -> None:
    assert torch.equal(fgsm(ordinary, *images, 0.0), images[0])
    for norm in NORMS:
        assert torch.equal(random_step(images[0], 0.0, norm, start_generator()), images[0])
        found = pgd(ordinary, *images, 0.0, 2, 0.1, norm, start_generator())
        assert torch.equal(found, images[0])


def test_each_network_is_attacked_by_its_own_gradients(
    result: AttackResult, two: dict[str, PixelNetwork], images: tuple[Tensor, Tensor]
) -> None:
    shares = {
        (victim, by): share_right(two[victim], fgsm(two[by], *images, EPSILON), images[1])
        for victim in two
        for by in two
    }
    for name, other in (("student", "teacher"), ("teacher", "student")):
        assert sweep_of(result.networks[name], "fgsm").at(EPSILON) == shares[name, name]
        assert shares[name, name] != shares[name, other], "the two could not be told apart"


def test_the_control_is_weaker_than_every_attack(result: AttackResult) -> None:
    for network in result.networks.values():
        assert [(s.attack, s.norm) for s in network.sweeps] == [
            ("random", "linf"),
            ("fgsm", "linf"),
            ("pgd-3", "linf"),
            ("random", "l2"),
            ("pgd-3", "l2"),
        ]
        random = sweep_of(network, "random").at(EPSILON)
        attacked = [sweep_of(network, name).at(EPSILON) for name in ("fgsm", "pgd-3")]
        assert random is not None
        assert all(share is not None and share < random - 0.1 for share in attacked)


def test_batches_do_not_matter(
    two: dict[str, PixelNetwork], split: InMemory, tmp_path: Path, result: AttackResult
) -> None:
    for batch in (7, 50):
        target = make_target(split, tmp_path / str(batch), networks=two, batch_size=500)
        assert found_by(target, batch_size=batch) == result


def test_every_part_was_announced(
    two: dict[str, PixelNetwork], split: InMemory, tmp_path: Path
) -> None:
    parts = ResultCache(tmp_path / "parts.jsonl", "attack", tmp_path / "pictures")
    settings = AttackSettings(epsilons=(4,), pgd_epsilons=(4, 8), l2_epsilons=(), steps=(1, 2))
    run_attack(make_target(split, tmp_path, networks=two), settings, parts)
    # The plain row and the picture, the control at 2 sizes, FGSM at 1, PGD twice at 2.
    assert parts.done == parts.total == len(parts.values) == 2 * (2 + 2 + 1 + 2 * 2)


def tried(**settings: object) -> list[tuple[str, Norm, list[float]]]:
    attacks = attacks_of(validate_settings("attack", settings))
    scale = {"linf": 255, "l2": 1}
    return [(a.name, a.norm, [round(scale[a.norm] * e, 6) for e in a.epsilons]) for a in attacks]


def test_settings_say_what_is_tried() -> None:
    assert tried(epsilons="4, 1,0,4", pgd_epsilons="(2,)", l2_epsilons=None, steps="20,5,5") == (
        tried(epsilons=[1, 4], pgd_epsilons=2, l2_epsilons=None, steps=(5, 20))
    )
    assert tried(epsilons="4,1", pgd_epsilons="2", l2_epsilons=[], steps=20) == [
        ("random", "linf", [1, 2, 4]),
        ("fgsm", "linf", [1, 4]),
        ("pgd-20", "linf", [2]),
    ]
    assert tried(epsilons=None, pgd_epsilons=None, l2_epsilons="0.25,0.5", steps=None) == []
    assert MARKED in attacks_of(AttackSettings())[1].epsilons


def test_defaults_may_be_written_as_they_are_listed() -> None:
    fields = AttackSettings.model_fields
    assert validate_settings("attack", {n: str(f.default) for n, f in fields.items()}) == (
        AttackSettings()
    )


@pytest.mark.parametrize(
    ("name", "value"), [("epsilons", "8,256"), ("l2_epsilons", "-1"), ("steps", "many")]
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=rf"attack\.{name}"):
        validate_settings("attack", {name: value})


# --- masked gradients ------------------------------------------------------------------------


class Quantized(nn.Module):
    """Few levels of each pixel, whose gradient is 0 everywhere."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.inner((8 * images).round() / 8)
        return out


class Saturated(nn.Module):
    """The same classes, so surely that the loss of a right image is exactly 0."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = 1e5 * self.inner(images)
        return out


@pytest.mark.parametrize("masking", [Quantized, Saturated])
def test_planted_masking_is_warned_of(
    ordinary: PixelNetwork,
    split: InMemory,
    tmp_path: Path,
    masking: Callable[[nn.Module], nn.Module],
) -> None:
    network = PixelNetwork(masking(ordinary.model), (0.5,) * 3, (0.2,) * 3)
    target = make_target(split, tmp_path, networks={"network": network})
    record = evaluate(target, ["attack"], {"attack": QUICK})
    result: Any = record.result("attack")
    assert isinstance(result, AttackResult)
    warnings = result.networks["network"].warnings
    assert any("random step does as well as FGSM (L∞)" in text for text in warnings)
    (table, _) = section([(Found("mine", record, tmp_path, 0), result)]).tables
    assert all(text in table.note for text in warnings)
    assert "Gradients may be masked" in table.note
    assert table.rows[0][-1] == str(len(warnings))


def test_an_ordinary_network_is_not_warned_of(result: AttackResult) -> None:
    assert [network.warnings for network in result.networks.values()] == [[], []]


def swept(attack: str, *accuracy: float) -> Sweep:
    epsilons = [0.0, 2 / 255, 8 / 255, 16 / 255][: len(accuracy)]
    error = [1 - share for share in accuracy]
    return Sweep(
        attack=attack, norm="linf", epsilons=epsilons, accuracy=list(accuracy), error=error
    )


SOUND = {
    "random": swept("random", 0.9, 0.9, 0.88, 0.8),
    "fgsm": swept("fgsm", 0.9, 0.6, 0.3, 0.2),
    "pgd-10": swept("pgd-10", 0.9, 0.5, 0.05, 0.0),
}
RECOVERS = (
    "FGSM (L∞) succeeds less as ε grows from 8/255 to 16/255: accuracy rises from 30.0% to 36.0%"
)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (SOUND["fgsm"], []),
        (swept("fgsm", 0.9, 0.6, 0.3, 0.31), []),
        (swept("fgsm", 0.9, 0.6, 0.3, 0.36), [RECOVERS]),
        (swept("pgd-10", 0.9, 0.61, 0.3, 0.2), []),
        (
            swept("pgd-10", 0.9, 0.7, 0.3, 0.2),
            ["PGD-10 (L∞) does worse than FGSM at ε = 2/255: accuracy 70.0% against 60.0%"],
        ),
        (
            swept("random", 0.9, 0.5, 0.3, 0.2),
            [
                "a random step does as well as FGSM (L∞): mean accuracy 33.3% after it and 36.7% "
                "after the attack"
            ],
        ),
    ],
)
def test_signs_of_masking(other: Sweep, expected: list[str]) -> None:
    sweeps = SOUND | {other.attack: other}
    assert signs_of_masking(list(sweeps.values()), images=1000) == expected


def test_few_images_do_not_alarm() -> None:
    wavering = SOUND | {"fgsm": swept("fgsm", 0.9, 0.6, 0.3, 0.36)}
    assert signs_of_masking(list(wavering.values()), images=50) == []
    fallen = [swept("random", 0.1, 0.0, 0.0, 0.0), swept("fgsm", 0.1, 0.0, 0.0, 0.0)]
    assert signs_of_masking(fallen, images=50) == [], "an attack that finds all is not masked"


# --- shown -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(
    two: dict[str, PixelNetwork], split: InMemory, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Evaluation, EvalTarget]:
    target = make_target(split, tmp_path_factory.mktemp("page"), networks=two)
    return evaluate(target, ["attack"], {"attack": QUICK | {"examples": 3}}), target


def shown_of(evaluated: tuple[Evaluation, EvalTarget], runs: int = 1) -> Any:
    record, target = evaluated
    result: Any = record.result("attack")
    return section([(Found(f"run {n}", record, target.folder, n), result) for n in range(runs)])


def test_the_table_has_the_error_at_8_255(
    evaluated: tuple[Evaluation, EvalTarget], result: AttackResult
) -> None:
    first, second = shown_of(evaluated).tables
    assert first.title == "Error (%) at ε = 8/255 (L∞)"
    assert first.columns[2:] == ("no attack", "random step", "FGSM", "PGD-3", "warnings")
    assert second.columns[2:] == ("no attack", "random step, ε = 0.5", "PGD-3, ε = 0.5", "warnings")
    for row, (name, network) in zip(first.rows, result.networks.items(), strict=True):
        shares = [sweep_of(network, n).accuracy[-1] for n in ("random", "fgsm", "pgd-3")]
        errors = [f"{100 * (1 - share):.2f}" for share in (network.accuracy, *shares)]
        assert row == ("run 0", name, *errors, "0")
    assert first.note == UNMASKED


def test_charts_of_one_run_and_of_several(
    evaluated: tuple[Evaluation, EvalTarget], result: AttackResult
) -> None:
    charts = shown_of(evaluated).charts
    assert [chart.slug for chart in charts] == ["attack-linf", "attack-l2"]
    assert [row[0] for row in charts[0].rows] == [
        f"run 0, {name}, {attack}"
        for name in ("student", "teacher")
        for attack in ("random step", "FGSM", "PGD-3")
    ]
    accuracy = sweep_of(result.networks["teacher"], "fgsm").accuracy
    assert charts[0].columns == ("network", "0/255", "2/255", "8/255")
    assert charts[0].rows[4][1:] == tuple(f"{100 * share:.2f}" for share in accuracy)
    assert [chart.slug for chart in shown_of(evaluated, runs=2).charts] == [
        f"attack-{what}"
        for what in ("linf-random", "linf-fgsm", "linf-pgd-3", "l2-random", "l2-pgd-3")
    ]


def test_the_picture_shows_what_fgsm_did(evaluated: tuple[Evaluation, EvalTarget]) -> None:
    record, target = evaluated
    result: Any = record.result("attack")
    assert isinstance(result, AttackResult)
    network = target.networks["teacher"]
    picture = np.asarray(Image.open(target.folder / "evaluation" / "attack" / "teacher.png"))
    times = 112 // SIZE
    side = times * SIZE
    rows = [6 + n * (side + 6) + np.arange(0, side, times) for n in range(3)]
    tiles = [
        [torch.from_numpy(picture[np.ix_(y, x)].copy()).permute(2, 0, 1) / 255 for x in rows]
        for y in rows
    ]
    before = torch.stack([row[0] for row in tiles])
    change = torch.stack([row[1] for row in tiles])
    after = torch.stack([row[2] for row in tiles])
    examples = result.networks["teacher"].examples
    labels = torch.tensor([KINDS.index(one.label) for one in examples])
    expected = fgsm(network, before, labels, MARKED)
    torch.testing.assert_close(after, expected, rtol=0, atol=0.5 / 255 + 1e-6)
    amplified = (0.5 + AMPLIFIED * (expected - before)).clamp(0, 1)
    torch.testing.assert_close(change, amplified, rtol=0, atol=0.5 / 255 + 1e-4)
    on_progress = [network(pixels).argmax(dim=1) for pixels in (before, expected)]
    for one, first, second in zip(examples, *on_progress, strict=True):
        assert (one.before, one.after) == (KINDS[first], KINDS[second])


def test_the_page_says_what_was_done(evaluated: tuple[Evaluation, EvalTarget]) -> None:
    _, target = evaluated
    page = write_evaluations([target.folder], target.folder / "page.html").read_text()
    words = " ".join(page.split())
    assert "White-box and not adaptive" in words
    assert f"{AMPLIFIED} times amplified" in words
    assert 'id="attack-linf-title"' in words
    assert words.count('src="data:image/png;base64,') == 2


def test_small_batches_leave_no_image_out_of_the_picture(
    ordinary: PixelNetwork, split: InMemory, tmp_path: Path
) -> None:
    target = make_target(split, tmp_path, networks={"network": ordinary}, batch_size=1)
    parts = ResultCache(tmp_path / "parts.jsonl", "attack", tmp_path)
    assert len(draw_examples(target, "network", 3, parts)) == 3


def test_without_pictures_none_is_drawn(split: InMemory, tmp_path: Path) -> None:
    target = make_target(random_images(8, SIZE), tmp_path)
    result = found_by(target, examples=0)
    assert [network.examples for network in result.networks.values()] == [[], []]
    assert not (tmp_path / "evaluation" / "attack").exists()
