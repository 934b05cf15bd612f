"""Attacks against foolbox and by hand, the controls, signs of masked gradients, the page."""

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
from adautomix.evaluation.attack.algorithms import (
    Norm,
    ascend,
    fgsm,
    pgd,
    random_starts,
    random_step,
)
from adautomix.evaluation.attack.diagnosis import signs_of_masked_gradients
from adautomix.evaluation.attack.results import (
    NORM_SYMBOLS,
    PAPER_EPSILON,
    AttackedNetwork,
    AttackResult,
    Sweep,
)
from adautomix.evaluation.attack.suite import (
    AMPLIFICATION,
    AttackSettings,
    draw_examples,
    requested_attacks,
    run_attack,
)
from adautomix.evaluation.evaluate import evaluate, validate_settings
from adautomix.evaluation.record import Evaluation
from adautomix.evaluation.suite import ResultCache
from adautomix.evaluation.target import EvalTarget, PixelNetwork
from adautomix.reporting.evaluations import read_evaluated, write_evaluations
from adautomix.reporting.section import Evaluated
from adautomix.reporting.sections.attack import NOT_MASKED, section

SIZE = 12
EPSILON = 8 / 255
QUICK = {"epsilons": "2,8", "pgd_epsilons": "2,8", "l2_epsilons": "0.5", "steps": 3}


def tinted_images(count: int, seed: int = 0) -> InMemory:
    """Return noise with a class-dependent tint, weak enough for a small change to hide it."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % len(KINDS)
    tints = 12 * torch.randn(len(KINDS), 3, generator=torch.Generator().manual_seed(5))
    noise = 40 * torch.randn(count, SIZE, SIZE, 3, generator=generator)
    pixels = (128 + noise + tints[labels][:, None, None]).clamp(0, 255).byte()
    return InMemory(pixels, torch.arange(count), labels)


def pixels_of(split: InMemory) -> Tensor:
    return split.images.permute(0, 3, 1, 2).float() / 255


def make_convnet(seed: int) -> PixelNetwork:
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


def train_network(seed: int = 0) -> PixelNetwork:
    network = make_convnet(seed)
    train = tinted_images(200, seed=1)
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
    return train_network()


@pytest.fixture(scope="module")
def split() -> InMemory:
    return tinted_images(120)


@pytest.fixture
def images(split: InMemory) -> tuple[Tensor, Tensor]:
    return pixels_of(split), split.labels


def make_generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fraction_correct(network: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    with torch.no_grad():
        return float((network(pixels).argmax(dim=1) == labels).double().mean())


def change_size(attacked: Tensor, pixels: Tensor, norm: Norm) -> Tensor:
    p = float("inf") if norm == "linf" else 2
    return torch.linalg.vector_norm((attacked - pixels).flatten(1), ord=p, dim=1)  # type: ignore[no-any-return]


def run_suite(target: EvalTarget, **settings: object) -> AttackResult:
    result = evaluate(target, ["attack"], {"attack": QUICK | settings}).result("attack")
    assert isinstance(result, AttackResult)
    return result


def find_sweep(network: AttackedNetwork, attack: str, norm: Norm = "linf") -> Sweep:
    (sweep,) = [s for s in network.sweeps if (s.attack, s.norm) == (attack, norm)]
    return sweep


# --- against foolbox -------------------------------------------------------------------------


def run_foolbox(attack: Any, network: nn.Module, images: Any, epsilon: float) -> tuple[Tensor, Any]:
    model = foolbox.PyTorchModel(network, bounds=(0, 1), device="cpu")
    _, attacked, success = attack(model, *images, epsilons=epsilon)
    return attacked, success


@pytest.mark.parametrize("epsilon", [1 / 255, EPSILON, 0.3])
def test_fgsm_equals_foolbox(
    ordinary: PixelNetwork, images: tuple[Tensor, Tensor], epsilon: float
) -> None:
    attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    expected, success = run_foolbox(attack, ordinary, images, epsilon)
    attacked = fgsm(ordinary, *images, epsilon)
    torch.testing.assert_close(attacked, expected, rtol=0, atol=1e-6)
    assert fraction_correct(ordinary, attacked, images[1]) == pytest.approx(
        1 - float(success.double().mean()), abs=0.002
    )


ITERATED = {
    "linf": foolbox.attacks.LinfProjectedGradientDescentAttack,
    "l2": foolbox.attacks.L2ProjectedGradientDescentAttack,
}


@pytest.mark.parametrize("steps", [1, 10])
@pytest.mark.parametrize(("norm", "epsilon"), [("linf", EPSILON), ("l2", 0.5), ("l2", 2.0)])
def test_pgd_equals_foolbox(
    ordinary: PixelNetwork, images: tuple[Tensor, Tensor], norm: Norm, epsilon: float, steps: int
) -> None:
    size = 2.5 * epsilon / steps
    attack = ITERATED[norm](steps=steps, abs_stepsize=size, random_start=False)
    expected, success = run_foolbox(attack, ordinary, images, epsilon)
    attacked = pgd(ordinary, *images, epsilon, steps, size, norm)
    torch.testing.assert_close(attacked, expected, rtol=0, atol=1e-6)
    assert fraction_correct(ordinary, attacked, images[1]) == pytest.approx(
        1 - float(success.double().mean()), abs=0.002
    )


def test_the_suite_gives_the_accuracy_of_foolbox(
    ordinary: PixelNetwork, images: tuple[Tensor, Tensor], split: InMemory, tmp_path: Path
) -> None:
    result = run_suite(make_target(split, tmp_path, networks={"network": ordinary}))
    sweep = find_sweep(result.networks["network"], "fgsm")
    attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    for epsilon, value in zip(sweep.epsilons[1:], sweep.accuracy[1:], strict=True):
        _, success = run_foolbox(attack, ordinary, images, epsilon)
        assert value == pytest.approx(1 - float(success.double().mean()), abs=0.002)
    assert sweep.error == [1 - value for value in sweep.accuracy]


# --- by hand ---------------------------------------------------------------------------------


def test_epsilon_is_a_size_in_pixels() -> None:
    # With deviations of 0.2 to 0.3, a step of ε in normalized images would be ε / 5 to ε / 3 here.
    network = linear_network(4)
    weight = network.model[1].weight.view(4, 3, 4, 4)
    pixels = torch.full((4, 3, 4, 4), 0.5)
    labels = torch.arange(4)
    p = network(pixels).softmax(dim=1)
    # The gradient of the cross-entropy: Σ_k (p_k - [k = y]) w_k / std.
    errors = p - F.one_hot(labels, 4)
    gradient = torch.einsum("bk,kchw->bchw", errors, weight) / network.std
    expected = pixels + EPSILON * gradient.sign()
    torch.testing.assert_close(fgsm(network, pixels, labels, EPSILON), expected)
    size = change_size(fgsm(network, pixels, labels, EPSILON), pixels, "linf")
    torch.testing.assert_close(size, torch.full((4,), EPSILON))
    step = pgd(network, pixels, labels, 1.0, 1, 0.25, "l2") - pixels
    norms = gradient.flatten(1).norm(dim=1)[:, None, None, None]
    torch.testing.assert_close(step, 0.25 * gradient / norms)


@pytest.mark.parametrize("norm", NORM_SYMBOLS)
@pytest.mark.parametrize("restarts", [1, 3])
def test_no_change_is_larger_than_epsilon(
    ordinary: PixelNetwork, images: tuple[Tensor, Tensor], norm: Norm, restarts: int
) -> None:
    epsilon = EPSILON if norm == "linf" else 0.5
    generator = make_generator()
    attacked = {
        "pgd": pgd(ordinary, *images, epsilon, 4, epsilon, norm, generator, restarts),
        "random": random_step(images[0], epsilon, norm, generator),
        "start": random_starts(images[0], epsilon, norm, generator, restarts)[-1],
    }
    assert float(images[0].max()) == 1, "no pixel is at the edge of the range"
    for name, perturbed in attacked.items():
        size = change_size(perturbed, images[0], norm)
        assert size.max() <= epsilon + 1e-6, name
        assert size.min() > 0.8 * epsilon, name
        assert 0 <= perturbed.min() <= perturbed.max() <= 1, name


def test_attacks_lower_accuracy_on_every_batch(
    ordinary: PixelNetwork, images: tuple[Tensor, Tensor]
) -> None:
    clean = fraction_correct(ordinary, *images)
    attacks: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "fgsm": lambda x, y: fgsm(ordinary, x, y, EPSILON),
        "pgd": lambda x, y: pgd(ordinary, x, y, EPSILON, 5, EPSILON / 2),
        "l2": lambda x, y: pgd(ordinary, x, y, 0.5, 5, 0.25, "l2", make_generator()),
    }
    for name, attack in attacks.items():
        right = 0.0
        for pixels, labels in zip(images[0].split(20), images[1].split(20), strict=True):
            attacked = attack(pixels, labels)
            with torch.no_grad():
                before = F.cross_entropy(ordinary(pixels), labels)
                after = F.cross_entropy(ordinary(attacked), labels)
            assert after > before, name
            right += fraction_correct(ordinary, attacked, labels) / 6
        assert right < clean - 0.1, name


@pytest.mark.parametrize("norm", NORM_SYMBOLS)
def test_restarts_succeed_where_any_start_succeeds(
    ordinary: PixelNetwork, images: tuple[Tensor, Tensor], norm: Norm
) -> None:
    epsilon = 3 / 255 if norm == "linf" else 0.2
    how: dict[str, Any] = {"epsilon": epsilon, "steps": 1, "step_size": epsilon / 2, "norm": norm}
    starts = random_starts(images[0], epsilon, norm, make_generator(), 4)
    wrong = []
    for start in starts:
        with torch.no_grad():
            logits = ordinary(ascend(ordinary, *images, start, **how))
        wrong.append(logits.argmax(dim=1) != images[1])
    attacked = pgd(ordinary, *images, **how, generator=make_generator(), restarts=4)
    with torch.no_grad():
        all_wrong = ordinary(attacked).argmax(dim=1) != images[1]
    assert torch.equal(all_wrong, torch.stack(wrong).any(dim=0))
    assert any(not torch.equal(all_wrong, one) for one in wrong), "one start suffices"


def test_restarts_need_a_generator(ordinary: PixelNetwork, images: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(UsageError, match="restarts = 2 needs random starts: pass a generator"):
        pgd(ordinary, *images, EPSILON, 1, EPSILON, restarts=2)


# --- random numbers --------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORM_SYMBOLS)
def test_starts_do_not_depend_on_the_batch_size(images: tuple[Tensor, Tensor], norm: Norm) -> None:
    def drawn(batch: int) -> tuple[Tensor, Tensor]:
        first, second = make_generator(), make_generator(1)
        batches = images[0].split(batch)
        starts = [random_starts(x, 0.1, norm, first, restarts=2) for x in batches]
        steps = [random_step(x, 0.1, norm, second) for x in batches]
        return torch.cat(starts, dim=1), torch.cat(steps)

    for mine, theirs in zip(drawn(7), drawn(50), strict=True):
        assert torch.equal(mine, theirs)


def test_starts_fill_the_ball() -> None:
    gray = torch.full((200, 3, 8, 8), 0.5)
    change = (random_starts(gray, 0.1, "linf", make_generator())[0] - gray) / 0.1
    assert float(change.mean()) == pytest.approx(0, abs=0.01)
    assert float(change.var()) == pytest.approx(1 / 3, rel=0.02)
    first, second = random_starts(gray, 0.1, "l2", make_generator(), restarts=2) - gray
    for change in (first, second):
        torch.testing.assert_close(change_size(change, 0 * gray, "l2"), torch.full((200,), 0.1))
        assert float(change.mean()) == pytest.approx(0, abs=1e-4)
    cosines = F.cosine_similarity(first.flatten(1), second.flatten(1))
    assert float(cosines.abs().max()) < 0.3, "two starts of an image are similar"


@pytest.mark.parametrize(("norm", "length"), [("linf", 0.1), ("l2", 0.1 / 192**0.5)])
def test_the_random_step_ignores_the_gradient(norm: Norm, length: float) -> None:
    gray = torch.full((50, 3, 8, 8), 0.5)
    change = random_step(gray, 0.1, norm, make_generator()) - gray
    torch.testing.assert_close(change.abs(), torch.full_like(change, length), rtol=0, atol=1e-6)
    assert float(change.sign().mean()) == pytest.approx(0, abs=0.04)


# --- the network is not modified -------------------------------------------------------------


def test_parameters_get_no_gradient_and_statistics_stay(images: tuple[Tensor, Tensor]) -> None:
    network = make_convnet(seed=3).train()
    first = next(network.parameters())
    first.requires_grad_(False)
    flags = [p.requires_grad for p in network.parameters()]
    before = state_of(network)
    fgsm(network, *images, EPSILON)
    pgd(network, *images, EPSILON, 2, EPSILON, "linf", make_generator(), 2)
    assert all(gradient is None for gradient in gradients_of(network).values())
    assert [p.requires_grad for p in network.parameters()] == flags
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not images[0].requires_grad


def test_the_attack_is_on_the_network_in_evaluation_mode(images: tuple[Tensor, Tensor]) -> None:
    network = make_convnet(seed=3)
    expected = fgsm(network.eval(), *images, EPSILON)
    assert torch.equal(fgsm(network.train(), *images, EPSILON), expected)


# --- the suite -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def two(ordinary: PixelNetwork) -> dict[str, PixelNetwork]:
    return {"student": ordinary, "teacher": train_network(seed=1)}


@pytest.fixture(scope="module")
def result(
    two: dict[str, PixelNetwork], split: InMemory, tmp_path_factory: pytest.TempPathFactory
) -> AttackResult:
    return run_suite(make_target(split, tmp_path_factory.mktemp("attack"), networks=two))


def test_epsilon_0_gives_the_clean_accuracy(
    result: AttackResult, two: dict[str, PixelNetwork], split: InMemory, tmp_path: Path
) -> None:
    plain = top1_accuracy(*make_target(split, tmp_path, networks=two).logits())
    for name, network in result.networks.items():
        assert network.accuracy == plain[name]
        assert all(s.epsilons[0] == 0 and s.accuracy[0] == plain[name] for s in network.sweeps)


def test_images_are_unchanged_at_epsilon_0(
    ordinary: PixelNetwork, images: tuple[Tensor, Tensor]
) -> None:
    assert torch.equal(fgsm(ordinary, *images, 0.0), images[0])
    for norm in NORM_SYMBOLS:
        assert torch.equal(random_step(images[0], 0.0, norm, make_generator()), images[0])
        attacked = pgd(ordinary, *images, 0.0, 2, 0.1, norm, make_generator())
        assert torch.equal(attacked, images[0])


def test_each_network_is_attacked_by_its_own_gradients(
    result: AttackResult, two: dict[str, PixelNetwork], images: tuple[Tensor, Tensor]
) -> None:
    accuracies = {
        (victim, by): fraction_correct(two[victim], fgsm(two[by], *images, EPSILON), images[1])
        for victim in two
        for by in two
    }
    for name, other in (("student", "teacher"), ("teacher", "student")):
        assert (
            find_sweep(result.networks[name], "fgsm").accuracy_at(EPSILON) == accuracies[name, name]
        )
        assert accuracies[name, name] != accuracies[name, other], "the networks are equal"


def test_the_control_is_weaker_than_every_attack(result: AttackResult) -> None:
    for network in result.networks.values():
        assert [(s.attack, s.norm) for s in network.sweeps] == [
            ("random", "linf"),
            ("fgsm", "linf"),
            ("pgd-3", "linf"),
            ("random", "l2"),
            ("pgd-3", "l2"),
        ]
        random = find_sweep(network, "random").accuracy_at(EPSILON)
        attacked = [find_sweep(network, name).accuracy_at(EPSILON) for name in ("fgsm", "pgd-3")]
        assert random is not None
        assert all(value is not None and value < random - 0.1 for value in attacked)


@pytest.mark.slow
def test_results_do_not_depend_on_the_batch_size(
    two: dict[str, PixelNetwork], split: InMemory, tmp_path: Path, result: AttackResult
) -> None:
    for batch in (7, 50):
        target = make_target(split, tmp_path / str(batch), networks=two, batch_size=500)
        assert run_suite(target, batch_size=batch) == result


def test_the_number_of_tasks_is_announced(
    two: dict[str, PixelNetwork], split: InMemory, tmp_path: Path
) -> None:
    cache = ResultCache(tmp_path / "parts.jsonl", "attack", tmp_path / "pictures")
    settings = AttackSettings(epsilons=(4,), pgd_epsilons=(4, 8), l2_epsilons=(), steps=(1, 2))
    run_attack(make_target(split, tmp_path, networks=two), settings, cache)
    # The clean accuracy and the picture, the control at 2 sizes, FGSM at 1, PGD twice at 2.
    assert cache.done == cache.total == len(cache.values) == 2 * (2 + 2 + 1 + 2 * 2)


def attack_sizes(**settings: object) -> list[tuple[str, Norm, list[float]]]:
    attacks = requested_attacks(validate_settings("attack", settings))
    scale = {"linf": 255, "l2": 1}
    return [(a.name, a.norm, [round(scale[a.norm] * e, 6) for e in a.epsilons]) for a in attacks]


def test_settings_select_the_attacks() -> None:
    assert attack_sizes(
        epsilons="4, 1,0,4", pgd_epsilons="(2,)", l2_epsilons=None, steps="20,5,5"
    ) == (attack_sizes(epsilons=[1, 4], pgd_epsilons=2, l2_epsilons=None, steps=(5, 20)))
    assert attack_sizes(epsilons="4,1", pgd_epsilons="2", l2_epsilons=[], steps=20) == [
        ("random", "linf", [1, 2, 4]),
        ("fgsm", "linf", [1, 4]),
        ("pgd-20", "linf", [2]),
    ]
    assert attack_sizes(epsilons=None, pgd_epsilons=None, l2_epsilons="0.25,0.5", steps=None) == []
    assert PAPER_EPSILON in requested_attacks(AttackSettings())[1].epsilons


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
    """A network behind a quantization of the pixels, whose gradient is 0 everywhere."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.inner((8 * images).round() / 8)
        return out


class Saturated(nn.Module):
    """A network with the same predictions, so confident that the loss of a correct one is 0."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = 1e5 * self.inner(images)
        return out


@pytest.mark.slow
@pytest.mark.parametrize("masking", [Quantized, Saturated])
def test_masked_gradients_are_reported(
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
    (table, _) = section([(Evaluated("mine", record, tmp_path, 0), result)]).tables
    assert all(text in table.note for text in warnings)
    assert "Gradients may be masked" in table.note
    assert table.rows[0][-1] == str(len(warnings))


def test_an_ordinary_network_gets_no_warning(result: AttackResult) -> None:
    assert [network.warnings for network in result.networks.values()] == [[], []]


def make_sweep(attack: str, *accuracy: float) -> Sweep:
    epsilons = [0.0, 2 / 255, 8 / 255, 16 / 255][: len(accuracy)]
    error = [1 - value for value in accuracy]
    return Sweep(
        attack=attack, norm="linf", epsilons=epsilons, accuracy=list(accuracy), error=error
    )


SOUND = {
    "random": make_sweep("random", 0.9, 0.9, 0.88, 0.8),
    "fgsm": make_sweep("fgsm", 0.9, 0.6, 0.3, 0.2),
    "pgd-10": make_sweep("pgd-10", 0.9, 0.5, 0.05, 0.0),
}
RECOVERS = (
    "FGSM (L∞) succeeds less as ε grows from 8/255 to 16/255: accuracy rises from 30.0% to 36.0%"
)


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        (SOUND["fgsm"], []),
        (make_sweep("fgsm", 0.9, 0.6, 0.3, 0.31), []),
        (make_sweep("fgsm", 0.9, 0.6, 0.3, 0.36), [RECOVERS]),
        (make_sweep("pgd-10", 0.9, 0.61, 0.3, 0.2), []),
        (
            make_sweep("pgd-10", 0.9, 0.7, 0.3, 0.2),
            ["PGD-10 (L∞) does worse than FGSM at ε = 2/255: accuracy 70.0% against 60.0%"],
        ),
        (
            make_sweep("random", 0.9, 0.5, 0.3, 0.2),
            [
                "a random step does as well as FGSM (L∞): mean accuracy 33.3% after it and 36.7% "
                "after the attack"
            ],
        ),
    ],
)
def test_signs_of_masked_gradients(other: Sweep, expected: list[str]) -> None:
    sweeps = SOUND | {other.attack: other}
    assert signs_of_masked_gradients(list(sweeps.values()), images=1000) == expected


def test_differences_within_the_standard_error_give_no_warning() -> None:
    noisy = SOUND | {"fgsm": make_sweep("fgsm", 0.9, 0.6, 0.3, 0.36)}
    assert signs_of_masked_gradients(list(noisy.values()), images=50) == []
    fallen = [make_sweep("random", 0.1, 0.0, 0.0, 0.0), make_sweep("fgsm", 0.1, 0.0, 0.0, 0.0)]
    assert signs_of_masked_gradients(fallen, images=50) == [], (
        "gradients count as masked although every attack succeeds"
    )


# --- the report ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(
    two: dict[str, PixelNetwork], split: InMemory, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Evaluation, EvalTarget]:
    target = make_target(split, tmp_path_factory.mktemp("page"), networks=two)
    return evaluate(target, ["attack"], {"attack": QUICK | {"examples": 3}}), target


def make_section(evaluated: tuple[Evaluation, EvalTarget], runs: int = 1) -> Any:
    record, target = evaluated
    result: Any = record.result("attack")
    return section([(Evaluated(f"run {n}", record, target.folder, n), result) for n in range(runs)])


@pytest.mark.slow
def test_the_table_has_the_error_at_8_255(
    evaluated: tuple[Evaluation, EvalTarget], result: AttackResult
) -> None:
    first, second = make_section(evaluated).tables
    assert first.title == "Error (%) at ε = 8/255 (L∞)"
    assert first.columns[2:] == ("no attack", "random step", "FGSM", "PGD-3", "warnings")
    assert second.columns[2:] == ("no attack", "random step, ε = 0.5", "PGD-3, ε = 0.5", "warnings")
    for row, (name, network) in zip(first.rows, result.networks.items(), strict=True):
        accuracies = [find_sweep(network, n).accuracy[-1] for n in ("random", "fgsm", "pgd-3")]
        errors = [f"{100 * (1 - value):.2f}" for value in (network.accuracy, *accuracies)]
        assert row == ("run 0", name, *errors, "0")
    assert first.note == NOT_MASKED


@pytest.mark.slow
def test_charts_of_one_run_and_of_several_runs(
    evaluated: tuple[Evaluation, EvalTarget], result: AttackResult
) -> None:
    charts = make_section(evaluated).charts
    assert [chart.slug for chart in charts] == ["attack-linf", "attack-l2"]
    assert [row[0] for row in charts[0].rows] == [
        f"run 0, {name}, {attack}"
        for name in ("student", "teacher")
        for attack in ("random step", "FGSM", "PGD-3")
    ]
    accuracy = find_sweep(result.networks["teacher"], "fgsm").accuracy
    assert charts[0].columns == ("network", "0/255", "2/255", "8/255")
    assert charts[0].rows[4][1:] == tuple(f"{100 * value:.2f}" for value in accuracy)
    assert [chart.slug for chart in make_section(evaluated, runs=2).charts] == [
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
    expected = fgsm(network, before, labels, PAPER_EPSILON)
    torch.testing.assert_close(after, expected, rtol=0, atol=0.5 / 255 + 1e-6)
    amplified = (0.5 + AMPLIFICATION * (expected - before)).clamp(0, 1)
    torch.testing.assert_close(change, amplified, rtol=0, atol=0.5 / 255 + 1e-4)
    predictions = [network(pixels).argmax(dim=1) for pixels in (before, expected)]
    for one, first, second in zip(examples, *predictions, strict=True):
        assert (one.before, one.after) == (KINDS[first], KINDS[second])


def test_the_page_explains_the_attack(evaluated: tuple[Evaluation, EvalTarget]) -> None:
    _, target = evaluated
    page = write_evaluations(
        read_evaluated([target.folder]), target.folder / "page.html"
    ).read_text()
    text = " ".join(page.split())
    assert "White-box, not adaptive" in text
    assert f"amplified {AMPLIFICATION} times" in text
    assert 'id="attack-linf-title"' in text
    assert text.count('src="data:image/png;base64,') == 2


def test_the_picture_is_complete_with_small_batches(
    ordinary: PixelNetwork, split: InMemory, tmp_path: Path
) -> None:
    target = make_target(split, tmp_path, networks={"network": ordinary}, batch_size=1)
    cache = ResultCache(tmp_path / "parts.jsonl", "attack", tmp_path)
    assert len(draw_examples(target, "network", 3, cache)) == 3


def test_no_picture_without_examples(split: InMemory, tmp_path: Path) -> None:
    target = make_target(random_images(8, SIZE), tmp_path)
    result = run_suite(target, examples=0)
    assert [network.examples for network in result.networks.values()] == [[], []]
    assert not (tmp_path / "evaluation" / "attack").exists()
