"""Accuracy under white-box attacks: FGSM and PGD on pixels, each network by its own gradients.

The paper gives the error under FGSM at ε = 8/255. Its script adds ε to the *normalized* image and
clamps that to [0, 1], which is no attack of size 8/255. Here networks take pixels in [0, 1] and
normalize inside, so ε is a size in pixels.

- FGSM: Goodfellow, Shlens, Szegedy, *Explaining and Harnessing Adversarial Examples*, ICLR 2015.
- PGD: Madry et al., *Towards Deep Learning Models Resistant to Adversarial Attacks*, ICLR 2018.
- Signs of masked gradients: Athalye, Carlini, Wagner, *Obfuscated Gradients Give a False Sense of
  Security*, ICML 2018; Carlini et al., *On Evaluating Adversarial Robustness*, 2019.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import BaseModel, BeforeValidator, Field
from torch import Tensor, nn

from adautomix.errors import UsageError
from adautomix.evaluation.occlusion import fit
from adautomix.evaluation.suite import ResultCache, Suite, SuiteResult, SuiteSettings
from adautomix.evaluation.target import EvalTarget, PixelNetwork
from adautomix.models import evaluating

Norm = Literal["linf", "l2"]
NORMS: dict[Norm, str] = {"linf": "L∞", "l2": "L2"}
"""How each is written."""
MARKED = 8 / 255
"""The L∞ size of the paper's figure."""
AMPLIFIED = 16  # a perturbation of the marked size then spans the whole range
THREAT = (
    "White-box and not adaptive: the attacker knows the weights and follows the gradient of the "
    "cross-entropy, but fits the attack to no peculiarity of the network. What withstands it may "
    "fall to a stronger attack; nothing here proves robustness."
)
_TINY = 1e-12


# ---------------------------------------------------------------------- attacks


def loss_gradient(network: nn.Module, pixels: Tensor, labels: Tensor) -> Tensor:
    """The gradient `[B, 3, H, W]` of each image's own cross-entropy; parameters get none."""
    with torch.enable_grad():
        pixels = pixels.detach().requires_grad_()
        loss = F.cross_entropy(network(pixels), labels, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, pixels)
    return gradient


def fgsm(network: nn.Module, pixels: Tensor, labels: Tensor, epsilon: float) -> Tensor:
    """One step of size ε along the sign of the gradient.

    Args:
        network: gives logits `[B, K]` for pixels; asked in evaluation mode.
        pixels: `[B, 3, H, W]` in [0, 1].
        labels: the right classes, `[B]`.
        epsilon: L∞ size in pixels, 0 to 1.

    Returns:
        Adversarial pixels `[B, 3, H, W]` in [0, 1], at most ε from the given ones.
    """
    with evaluating(network):
        gradient = loss_gradient(network, pixels, labels)
    return (pixels + epsilon * gradient.sign()).clamp(0, 1)


def pgd(
    network: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    epsilon: float,
    steps: int,
    step_size: float,
    norm: Norm = "linf",
    generator: torch.Generator | None = None,
    restarts: int = 1,
) -> Tensor:
    """Many steps along the gradient, each brought back into the ball of ε and into [0, 1].

    Args:
        network: gives logits `[B, K]` for pixels; asked in evaluation mode.
        pixels: `[B, 3, H, W]` in [0, 1].
        labels: the right classes, `[B]`.
        epsilon: size in pixels, of the largest change (L∞) or of the whole change (L2).
        steps: how many, from 1.
        step_size: length of a step in the same norm.
        norm: of ε and of the steps.
        generator: of the random starts, see `random_starts`; none: start at the image itself.
        restarts: starts to try; later ones only for images that are still told right.

    Returns:
        Adversarial pixels `[B, 3, H, W]` in [0, 1], at most ε from the given ones.

    Raises:
        UsageError: several starts without a generator, which would all be the same.
    """
    if generator is None and restarts > 1:
        raise UsageError(f"restarts = {restarts}: pass a generator, or every start is the image")
    starts = random_starts(pixels, epsilon, norm, generator, restarts)
    climb = partial(climbed, network, epsilon=epsilon, steps=steps, step_size=step_size, norm=norm)
    with evaluating(network):
        found = climb(pixels, labels, starts[0])
        for start in starts[1:]:
            left = (network(found).argmax(dim=1) == labels).nonzero()[:, 0]
            if len(left):
                found[left] = climb(pixels[left], labels[left], start[left])
    return found


def climbed(
    network: nn.Module,
    pixels: Tensor,
    labels: Tensor,
    start: Tensor,
    *,
    epsilon: float,
    steps: int,
    step_size: float,
    norm: Norm,
) -> Tensor:
    """Where the steps of `pgd` lead from `start`, all `[B, 3, H, W]`."""
    found = start
    for _ in range(steps):
        step = step_size * direction(loss_gradient(network, found, labels), norm)
        # Clamping moves a pixel towards the image's own, so the result stays within ε.
        found = (pixels + project(found + step - pixels, epsilon, norm)).clamp(0, 1)
    return found


def direction(gradient: Tensor, norm: Norm) -> Tensor:
    """The step of length 1 along which the loss rises fastest; 0 where there is no gradient."""
    return gradient.sign() if norm == "linf" else gradient / lengths(gradient).clamp_min(_TINY)


def project(change: Tensor, epsilon: float, norm: Norm) -> Tensor:
    """The nearest change of size at most ε, `[B, 3, H, W]`."""
    if norm == "linf":
        return change.clamp(-epsilon, epsilon)
    return change * (epsilon / lengths(change).clamp_min(_TINY)).clamp_max(1)


def lengths(change: Tensor) -> Tensor:
    """The L2 length of each image's change, `[B, 1, 1, 1]`."""
    found: Tensor = torch.linalg.vector_norm(change, dim=(1, 2, 3), keepdim=True)
    return found


def random_starts(
    pixels: Tensor,
    epsilon: float,
    norm: Norm,
    generator: torch.Generator | None,
    restarts: int = 1,
) -> Tensor:
    """Starts `[R, B, 3, H, W]` in [0, 1] within ε of the pixels; without generator, the pixels.

    Uniform in the ball (L∞), or on its surface (L2), where nearly all of it is in so many
    dimensions. Numbers are taken image by image: a generator that serves one batch after another
    gives an image the same starts whatever the size of the batches.
    """
    if generator is None:
        return pixels[None]
    # uniform_ takes its numbers in order whatever the shape; normal_ takes them in blocks.
    uniform = torch.rand(len(pixels), restarts, *pixels.shape[1:], generator=generator)
    if norm == "linf":
        change = epsilon * (2 * uniform - 1)
    else:
        gaussian = torch.special.ndtri(uniform.clamp_min(torch.finfo(torch.float32).eps / 4))
        change = epsilon * torch.stack([direction(g, "l2") for g in gaussian.unbind(1)], dim=1)
    return (pixels + change.to(pixels.device).transpose(0, 1)).clamp(0, 1)


def random_step(pixels: Tensor, epsilon: float, norm: Norm, generator: torch.Generator) -> Tensor:
    """The control: a step of size ε along random signs, clamped to [0, 1], `[B, 3, H, W]`.

    Numbers are taken image by image, as in `random_starts`.
    """
    signs = torch.rand(pixels.shape, generator=generator).sub(0.5).sign().to(pixels.device)
    length = epsilon if norm == "linf" else epsilon / math.sqrt(pixels[0].numel())
    return (pixels + length * signs).clamp(0, 1)


# ---------------------------------------------------------------------- settings and results


def listed(value: Any) -> Any:
    """A list from a text with commas, a single value, or None for an empty one."""
    if isinstance(value, str):
        return [item for item in value.strip("()[] ").split(",") if item.strip()]
    if value is None:
        return []
    return value if isinstance(value, list | tuple) else [value]


Sizes = Annotated[tuple[Annotated[float, Field(ge=0, le=255)], ...], BeforeValidator(listed)]
Steps = Annotated[tuple[Annotated[int, Field(ge=1, le=10_000)], ...], BeforeValidator(listed)]


class AttackSettings(SuiteSettings):
    """Which attacks, how strong; lists are written 1,2,4 and `none` leaves an attack out."""

    epsilons: Sizes = Field((1, 2, 4, 8, 16), description="L∞ sizes of FGSM, in 255ths")
    pgd_epsilons: Sizes = Field((2, 8), description="L∞ sizes of PGD, in 255ths")
    l2_epsilons: Sizes = Field((0.5,), description="L2 sizes of PGD, for pixels in [0, 1]")
    steps: Steps = Field((10,), description="of PGD; 10,20 tries both")
    step_size: float = Field(2.5, gt=0, description="of PGD, in parts of ε / steps")
    restarts: int = Field(1, ge=1, le=100, description="random starts of PGD; the worst counts")
    batch_size: int = Field(100, ge=1, description="at most so many images a gradient")
    examples: int = Field(4, ge=0, le=16, description="images to draw of each network")


class Sweep(BaseModel):
    """One attack on one network as ε grows; shares are 0 to 1.

    Attributes:
        attack: "random" (the control), "fgsm" or "pgd-" with the steps.
        norm: of ε.
        epsilons: in pixels of [0, 1], ascending from 0, which is no attack.
        accuracy: top-1 at each.
        error: 1 - accuracy; that of "fgsm" at 8/255 is the paper's figure.
    """

    attack: str
    norm: Norm
    epsilons: list[float]
    accuracy: list[float]
    error: list[float]

    def at(self, epsilon: float) -> float | None:
        """The accuracy at an ε; None where it was not tried."""
        pairs = zip(self.epsilons, self.accuracy, strict=True)
        return next((a for e, a in pairs if math.isclose(e, epsilon)), None)

    @property
    def in_words(self) -> str:
        """The attack with its norm."""
        return f"{attack_in_words(self.attack)} ({NORMS[self.norm]})"


class Example(BaseModel):
    """The class of a pictured image, and those the network tells before and after the attack."""

    label: str
    before: str
    after: str


class Attacked(BaseModel):
    """What attacks did to one network.

    Attributes:
        accuracy: top-1 without attack, 0 to 1.
        sweeps: the control and the attacks.
        warnings: signs that its gradients are masked; empty where there is none.
        examples: the images of its picture, from top to bottom.
    """

    accuracy: float
    sweeps: list[Sweep]
    warnings: list[str]
    examples: list[Example]

    def error(self, attack: str, norm: Norm, epsilon: float) -> float | None:
        """1 - accuracy under an attack; None where it was not tried."""
        for one in self.sweeps:
            if (one.attack, one.norm) == (attack, norm) and (share := one.at(epsilon)) is not None:
                return 1 - share
        return None


class AttackResult(SuiteResult):
    """Each network under attacks with its own gradients.

    Attributes:
        threat: what the attacker knows and does.
        images: how many were attacked.
        networks: by name.
    """

    threat_model: str
    images: int
    networks: dict[str, Attacked]


# ---------------------------------------------------------------------- the suite

Perturb = Callable[[PixelNetwork, Tensor, Tensor, float, torch.Generator], Tensor]


@dataclass(frozen=True)
class Attack:
    """An attack or control, and the ε it is tried at.

    `perturb(network, pixels, labels, epsilon, generator)` gives the attacked pixels.
    """

    name: str
    norm: Norm
    epsilons: tuple[float, ...]
    perturb: Perturb


NO_ATTACK = Attack("none", "linf", (0.0,), lambda _network, pixels, *_: pixels)


def attacks_of(settings: AttackSettings) -> list[Attack]:
    """What the settings ask for, in each norm the control first; ε = 0 is not among them."""
    of_fgsm = tuple(epsilon / 255 for epsilon in settings.epsilons)
    of_pgd = tuple(epsilon / 255 for epsilon in settings.pgd_epsilons) if settings.steps else ()
    of_l2 = settings.l2_epsilons if settings.steps else ()
    all_steps = sorted(set(settings.steps))
    wanted = [
        control("linf", of_fgsm + of_pgd),
        Attack("fgsm", "linf", ascending(of_fgsm), lambda n, x, y, e, _: fgsm(n, x, y, e)),
        *(iterated(settings, steps, "linf", of_pgd) for steps in all_steps),
        control("l2", of_l2),
        *(iterated(settings, steps, "l2", of_l2) for steps in all_steps),
    ]
    return [attack for attack in wanted if attack.epsilons]


def ascending(epsilons: Sequence[float]) -> tuple[float, ...]:
    """Each ε above 0 once."""
    return tuple(sorted({epsilon for epsilon in epsilons if epsilon > 0}))


def control(norm: Norm, epsilons: Sequence[float]) -> Attack:
    """The random step at the same ε as the attacks."""

    def perturb(_: nn.Module, x: Tensor, labels: Tensor, e: float, g: torch.Generator) -> Tensor:
        return random_step(x, e, norm, g)

    return Attack("random", norm, ascending(epsilons), perturb)


def iterated(settings: AttackSettings, steps: int, norm: Norm, epsilons: Sequence[float]) -> Attack:
    """PGD with so many steps."""

    def perturb(n: nn.Module, x: Tensor, y: Tensor, e: float, g: torch.Generator) -> Tensor:
        size = settings.step_size * e / steps
        return pgd(n, x, y, e, steps, size, norm, g, settings.restarts)

    return Attack(f"pgd-{steps}", norm, ascending(epsilons), perturb)


def run_attack(target: EvalTarget, settings: AttackSettings, cache: ResultCache) -> AttackResult:
    """Attack each network with its own gradients, and look for signs that these are masked."""
    attacks = attacks_of(settings)
    per_network = 2 + sum(len(attack.epsilons) for attack in attacks)
    cache.set_total(len(target.networks) * per_network)
    networks = {name: attacked(target, name, attacks, settings, cache) for name in target.networks}
    return AttackResult(threat_model=THREAT, images=len(target.data.test), networks=networks)


def attacked(
    target: EvalTarget,
    name: str,
    attacks: Sequence[Attack],
    settings: AttackSettings,
    cache: ResultCache,
) -> Attacked:
    """One network under all attacks, one part an ε."""

    def accuracy(attack: Attack, epsilon: float) -> float:
        part = f"{name}, {attack.name} {attack.norm} {size_in_words(epsilon, attack.norm)}"
        compute = partial(accuracy_under, target, name, attack, epsilon, settings.batch_size)
        return float(cache.get(part, compute))

    clean = accuracy(NO_ATTACK, 0.0)
    sweeps = [
        sweep(attack, [clean, *(accuracy(attack, epsilon) for epsilon in attack.epsilons)])
        for attack in attacks
    ]
    draw = partial(draw_examples, target, name, settings.examples, cache)
    return Attacked(
        accuracy=clean,
        sweeps=sweeps,
        warnings=signs_of_masking(sweeps, len(target.data.test)),
        examples=cache.get(f"{name}, picture", draw),
    )


def sweep(attack: Attack, accuracy: list[float]) -> Sweep:
    """The record of an attack from its accuracy at 0 and at each of its ε."""
    return Sweep(
        attack=attack.name,
        norm=attack.norm,
        epsilons=[0.0, *attack.epsilons],
        accuracy=accuracy,
        error=[1 - share for share in accuracy],
    )


def accuracy_under(
    target: EvalTarget, name: str, attack: Attack, epsilon: float, batch_size: int
) -> float:
    """Top-1 of a network, 0 to 1, on test images that were attacked with its own gradients."""
    network = target.networks[name]
    generator = target.generator(f"attack/{attack.name}")
    right = 0
    with evaluating(network):
        for pixels, labels in target.batches(batch_size=min(batch_size, target.batch_size)):
            found = attack.perturb(network, pixels, labels, epsilon, generator)
            right += int((network(found).argmax(dim=1) == labels).sum())
    return right / len(target.data.test)


def size_in_words(epsilon: float, norm: Norm) -> str:
    """An ε as it is usually written: 8/255 for L∞, 0.5 for L2."""
    return f"{255 * epsilon:g}/255" if norm == "linf" else f"{epsilon:g}"


def attack_in_words(attack: str) -> str:
    """The name of an attack in prose and tables."""
    return "random step" if attack == "random" else attack.upper()


# ---------------------------------------------------------------------- masked gradients


def signs_of_masking(sweeps: Sequence[Sweep], images: int) -> list[str]:
    """Signs that the gradients of a network do not lead to its adversarial images, in words.

    An accuracy counts as higher than another where they differ by more than two standard errors
    of shares of so many images.
    """
    known = {(one.attack, one.norm): one for one in sweeps}
    warnings: list[str] = []
    for one in sweeps:
        if one.attack == "random":
            continue
        warnings += recoveries(one, images)
        warnings += equalled_by_chance(one, known["random", one.norm], images)
        if one.attack != "fgsm" and (single := known.get(("fgsm", one.norm))):
            warnings += beaten_by_one_step(one, single, images)
    return warnings


def clearly_higher(first: float, second: float, images: int) -> bool:
    """Whether one share of the images is above another by more than two standard errors."""
    variance = (first * (1 - first) + second * (1 - second)) / images
    return first - second > 2 * math.sqrt(variance)


def recoveries(one: Sweep, images: int) -> Iterator[str]:
    """Where a larger ε leaves more images right than a smaller one, whose changes it may make."""
    lowest = min(range(len(one.accuracy)), key=one.accuracy.__getitem__)
    highest = max(range(lowest, len(one.accuracy)), key=one.accuracy.__getitem__)
    before, after = one.accuracy[lowest], one.accuracy[highest]
    if clearly_higher(after, before, images):
        sizes = [size_in_words(one.epsilons[i], one.norm) for i in (lowest, highest)]
        yield (
            f"{one.in_words} succeeds less as ε grows from {sizes[0]} to {sizes[1]}: "
            f"accuracy rises from {before:.1%} to {after:.1%}"
        )


def equalled_by_chance(one: Sweep, random: Sweep, images: int) -> Iterator[str]:
    """Whether an attack does not clearly more than random steps, on average over their sizes."""
    attack = fmean(one.accuracy[1:])
    chance = fmean(share for e in one.epsilons[1:] if (share := random.at(e)) is not None)
    if attack > 0 and not clearly_higher(chance, attack, images):  # where nothing is left: no sign
        yield (
            f"a random step does as well as {one.in_words}: mean accuracy {chance:.1%} after it "
            f"and {attack:.1%} after the attack"
        )


def beaten_by_one_step(one: Sweep, single: Sweep, images: int) -> Iterator[str]:
    """Where FGSM does more harm than many steps at the same ε."""
    for epsilon, accuracy in zip(one.epsilons, one.accuracy, strict=True):
        rival = single.at(epsilon)
        if rival is not None and clearly_higher(accuracy, rival, images):
            yield (
                f"{one.in_words} does worse than FGSM at ε = {size_in_words(epsilon, one.norm)}: "
                f"accuracy {accuracy:.1%} against {rival:.1%}"
            )


# ---------------------------------------------------------------------- the picture


def picture_name(network: str) -> str:
    """The file of a network's picture."""
    return f"{network}.png"


def draw_examples(
    target: EvalTarget, name: str, count: int, cache: ResultCache
) -> list[dict[str, str]]:
    """Draw test images, the amplified change by FGSM at 8/255, and the sum, one image a row."""
    from torchvision.utils import save_image

    network, test = target.networks[name], target.data.test
    rows = torch.randperm(len(test), generator=target.generator("attack/picture"))[:count]
    if not len(rows):
        return []
    pixels, labels = next(target.batches(test.subset(rows), batch_size=count))
    found = fgsm(network, pixels, labels, MARKED)
    change = (0.5 + AMPLIFIED * (found - pixels)).clamp(0, 1)
    tiles = fit(torch.stack([pixels, change, found], dim=1).flatten(0, 1))
    save_image(tiles, cache.picture_path(picture_name(name)), nrow=3, padding=6, pad_value=1)
    with evaluating(network):
        on_progress = [labels, network(pixels).argmax(dim=1), network(found).argmax(dim=1)]
    return [
        {key: target.classes[k] for key, k in zip(("label", "before", "after"), row, strict=True)}
        for row in torch.stack(on_progress, dim=1).tolist()
    ]


SUITE = Suite(
    name="attack",
    summary="accuracy under FGSM and PGD on pixels, with controls and signs of masked gradients",
    run=run_attack,
    Result=AttackResult,
    Settings=AttackSettings,
)
