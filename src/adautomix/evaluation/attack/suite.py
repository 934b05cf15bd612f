"""Run the attacks on every network of a target, and draw a few attacked images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated

import torch
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from adautomix.evaluation.attack.algorithms import Norm, fgsm, pgd, random_step
from adautomix.evaluation.attack.diagnosis import signs_of_masked_gradients
from adautomix.evaluation.attack.results import (
    PAPER_EPSILON,
    THREAT_MODEL,
    AttackedNetwork,
    AttackResult,
    Sweep,
    format_epsilon,
)
from adautomix.evaluation.image_rows import write_image_rows
from adautomix.evaluation.suite import ResultCache, Suite, SuiteSettings, split_list
from adautomix.evaluation.target import EvalTarget, PixelNetwork
from adautomix.models import evaluating

AMPLIFICATION = 16
"""Factor by which pictures amplify the change; at ε = 8/255 it then spans the whole range."""

Sizes = Annotated[tuple[Annotated[float, Field(ge=0, le=255)], ...], BeforeValidator(split_list)]
Steps = Annotated[tuple[Annotated[int, Field(ge=1, le=10_000)], ...], BeforeValidator(split_list)]


class AttackSettings(SuiteSettings):
    """Which attacks to run, and how strong; write lists as 1,2,4, and `none` to omit an attack."""

    epsilons: Sizes = Field((1, 2, 4, 8, 16), description="L∞ sizes of FGSM, in units of 1/255")
    pgd_epsilons: Sizes = Field((2, 8), description="L∞ sizes of PGD, in units of 1/255")
    l2_epsilons: Sizes = Field((0.5,), description="L2 sizes of PGD, for pixels in [0, 1]")
    steps: Steps = Field((10,), description="number of PGD steps; 10,20 tries both")
    step_size: float = Field(2.5, gt=0, description="PGD step size as a multiple of ε / steps")
    restarts: int = Field(
        1, ge=1, le=100, description="random starts of PGD per image; more make the attack stronger"
    )
    batch_size: int = Field(100, ge=1, description="maximum number of images per gradient")
    examples: int = Field(4, ge=0, le=16, description="attacked images to draw per network")


Perturb = Callable[[PixelNetwork, Tensor, Tensor, float, torch.Generator], Tensor]


@dataclass(frozen=True)
class Attack:
    """An attack or control.

    Attributes:
        name: see `Sweep.attack`.
        norm: norm in which ε is measured.
        epsilons: sizes to try, ascending, without 0.
        perturb: `perturb(network, pixels, labels, epsilon, generator)` returns attacked pixels.
    """

    name: str
    norm: Norm
    epsilons: tuple[float, ...]
    perturb: Perturb


NO_ATTACK = Attack("none", "linf", (0.0,), lambda _network, pixels, *_: pixels)


def requested_attacks(settings: AttackSettings) -> list[Attack]:
    """Return the attacks that the settings ask for; in each norm the control comes first."""
    fgsm_sizes = tuple(epsilon / 255 for epsilon in settings.epsilons)
    pgd_sizes = tuple(epsilon / 255 for epsilon in settings.pgd_epsilons) if settings.steps else ()
    l2_sizes = settings.l2_epsilons if settings.steps else ()
    all_steps = sorted(set(settings.steps))
    attacks = [
        random_attack("linf", fgsm_sizes + pgd_sizes),
        Attack("fgsm", "linf", ascending(fgsm_sizes), lambda n, x, y, e, _: fgsm(n, x, y, e)),
        *(pgd_attack(settings, steps, "linf", pgd_sizes) for steps in all_steps),
        random_attack("l2", l2_sizes),
        *(pgd_attack(settings, steps, "l2", l2_sizes) for steps in all_steps),
    ]
    return [attack for attack in attacks if attack.epsilons]


def ascending(epsilons: Sequence[float]) -> tuple[float, ...]:
    """Return each ε above 0 once, in ascending order."""
    return tuple(sorted({epsilon for epsilon in epsilons if epsilon > 0}))


def random_attack(norm: Norm, epsilons: Sequence[float]) -> Attack:
    """Return the control: a random step of the same sizes as the attacks."""

    def perturb(_: nn.Module, x: Tensor, labels: Tensor, e: float, g: torch.Generator) -> Tensor:
        return random_step(x, e, norm, g)

    return Attack("random", norm, ascending(epsilons), perturb)


def pgd_attack(
    settings: AttackSettings, steps: int, norm: Norm, epsilons: Sequence[float]
) -> Attack:
    """Return PGD with the given number of steps."""

    def perturb(n: nn.Module, x: Tensor, y: Tensor, e: float, g: torch.Generator) -> Tensor:
        size = settings.step_size * e / steps
        return pgd(n, x, y, e, steps, size, norm, g, settings.restarts)

    return Attack(f"pgd-{steps}", norm, ascending(epsilons), perturb)


def run_attack(target: EvalTarget, settings: AttackSettings, cache: ResultCache) -> AttackResult:
    """Attack each network with its own gradients, and look for signs that these are masked."""
    attacks = requested_attacks(settings)
    tasks_per_network = 2 + sum(len(attack.epsilons) for attack in attacks)
    cache.set_total(len(target.networks) * tasks_per_network)
    networks = {
        name: attack_network(target, name, attacks, settings, cache) for name in target.networks
    }
    return AttackResult(threat_model=THREAT_MODEL, images=len(target.data.test), networks=networks)


def attack_network(
    target: EvalTarget,
    name: str,
    attacks: Sequence[Attack],
    settings: AttackSettings,
    cache: ResultCache,
) -> AttackedNetwork:
    """Run all attacks on one network; each ε is one task of the cache."""

    def accuracy(attack: Attack, epsilon: float) -> float:
        task = f"{name}, {attack.name} {attack.norm} {format_epsilon(epsilon, attack.norm)}"
        compute = partial(accuracy_under, target, name, attack, epsilon, settings.batch_size)
        return float(cache.get(task, compute))

    clean = accuracy(NO_ATTACK, 0.0)
    sweeps = [
        make_sweep(attack, [clean, *(accuracy(attack, epsilon) for epsilon in attack.epsilons)])
        for attack in attacks
    ]
    draw = partial(draw_examples, target, name, settings.examples, cache)
    return AttackedNetwork(
        accuracy=clean,
        sweeps=sweeps,
        warnings=signs_of_masked_gradients(sweeps, len(target.data.test)),
        examples=cache.get(f"{name}, picture", draw),
    )


def make_sweep(attack: Attack, accuracies: list[float]) -> Sweep:
    """Return the sweep of an attack from its accuracies at ε = 0 and at each of its ε."""
    return Sweep(
        attack=attack.name,
        norm=attack.norm,
        epsilons=[0.0, *attack.epsilons],
        accuracy=accuracies,
        error=[1 - accuracy for accuracy in accuracies],
    )


def accuracy_under(
    target: EvalTarget, name: str, attack: Attack, epsilon: float, batch_size: int
) -> float:
    """Return the top-1 accuracy of a network, 0 to 1, on test images attacked by its gradients."""
    network = target.networks[name]
    generator = target.generator(f"attack/{attack.name}")
    correct = 0
    with evaluating(network):
        for pixels, labels in target.batches(batch_size=min(batch_size, target.batch_size)):
            attacked = attack.perturb(network, pixels, labels, epsilon, generator)
            correct += int((network(attacked).argmax(dim=1) == labels).sum())
    return correct / len(target.data.test)


def picture_name(network: str) -> str:
    """Return the file name of a network's picture."""
    return f"{network}.png"


def draw_examples(
    target: EvalTarget, name: str, count: int, cache: ResultCache
) -> list[dict[str, str]]:
    """Draw test images, the amplified change by FGSM at 8/255, and their sum, one image per row.

    Returns:
        An `Example` for each row, as plain data.
    """
    network, test = target.networks[name], target.data.test
    rows = torch.randperm(len(test), generator=target.generator("attack/picture"))[:count]
    if not len(rows):
        return []
    pixels, labels = next(target.batches(test.subset(rows), batch_size=count))
    attacked = fgsm(network, pixels, labels, PAPER_EPSILON)
    change = (0.5 + AMPLIFICATION * (attacked - pixels)).clamp(0, 1)
    images = torch.stack([pixels, change, attacked], dim=1)
    write_image_rows(images, cache.output_path(picture_name(name)))
    with evaluating(network):
        before, after = (network(x).argmax(dim=1) for x in (pixels, attacked))
    return [
        {"label": target.classes[y], "before": target.classes[b], "after": target.classes[a]}
        for y, b, a in zip(labels.tolist(), before.tolist(), after.tolist(), strict=True)
    ]


SUITE = Suite(
    name="attack",
    summary="accuracy under FGSM and PGD on pixels, with controls and signs of masked gradients",
    run=run_attack,
    Result=AttackResult,
    Settings=AttackSettings,
)
