"""Attacks: the error at 8/255, accuracy over ε, and what was done to a few images."""

from collections.abc import Iterator, Sequence

from adautomix.evaluation.attack import (
    AMPLIFIED,
    MARKED,
    NORMS,
    THREAT,
    Attacked,
    AttackResult,
    Example,
    Norm,
    Sweep,
    attack_in_words,
    picture_name,
    size_in_words,
)
from adautomix.reporting.drawing import Chart, Series, line_chart
from adautomix.reporting.figures import percent
from adautomix.reporting.section import Found, Picture, Section, Table, embedded, line_style

NOTE = (
    f"{THREAT} Each network is attacked with its own gradients; ε is a size in pixels of [0, 1]. "
    "The random step is the control: as long as the attack, and blind."
)
MASKED = "Gradients may be masked, and what looks like robustness be none:"
UNMASKED = "No sign of masked gradients was found."
CAPTION = (
    "Top-1 accuracy as more may be changed; at ε = 0 nothing is. An attack should lie well below "
    "the random step, PGD not above FGSM, and no line should rise."
)
PICTURED = (
    f"One test image a row: as it is; the change that FGSM makes at ε = 8/255, {AMPLIFIED} times "
    "amplified, gray where there is none; the attacked image. Right class, then what the network "
    "tells before → after:"
)
_AXES: dict[Norm, str] = {
    "linf": "L∞ ε (1/255 of the pixel range)",
    "l2": "L2 ε (pixels of 0 to 1)",
}

Results = Sequence[tuple[Found, AttackResult]]
Try = tuple[str, float]
"""An attack by its name, at an ε."""


def section(found: Results) -> Section:
    """The errors, the curves, and a picture of each network."""
    marked = [(attack, MARKED) for attack in attacks_in(found, "linf")]
    title = f"Error (%) at ε = {size_in_words(MARKED, 'linf')} (L∞)"
    tables = [errors(title, found, "linf", marked, warnings_in_words(found))]
    if tries := tries_in(found, "l2"):
        tables.append(errors("Error (%) under L2 attacks", found, "l2", tries))
    return Section("attack", "Attack", NOTE, tables, list(charts(found)), list(pictures(found)))


def networks_in(found: Results) -> list[tuple[Found, str, Attacked]]:
    """Every network with its run and its name."""
    return [(one, name, net) for one, result in found for name, net in result.networks.items()]


def sweeps_in(found: Results, norm: Norm) -> list[tuple[Found, str, Sweep]]:
    """Every sweep in one norm, with its run and network."""
    networks = networks_in(found)
    return [(one, name, s) for one, name, net in networks for s in net.sweeps if s.norm == norm]


def attacks_in(found: Results, norm: Norm) -> list[str]:
    """The attacks that some network was under, the control among them."""
    return list(dict.fromkeys(sweep.attack for _, _, sweep in sweeps_in(found, norm)))


def epsilons_in(found: Results, norm: Norm, attacks: Sequence[str]) -> list[float]:
    """Every ε at which some of the attacks were tried, ascending from 0."""
    sweeps = [sweep for _, _, sweep in sweeps_in(found, norm) if sweep.attack in attacks]
    return sorted({epsilon for sweep in sweeps for epsilon in sweep.epsilons})


def tries_in(found: Results, norm: Norm) -> list[Try]:
    """Every attack at every ε above 0."""
    return [
        (attack, epsilon)
        for attack in attacks_in(found, norm)
        for epsilon in epsilons_in(found, norm, [attack])[1:]
    ]


# ---------------------------------------------------------------------- tables


def errors(title: str, found: Results, norm: Norm, tries: Sequence[Try], note: str = "") -> Table:
    """The error of each network without attack and under some, with the number of warnings."""
    said = size_in_words(MARKED, norm)  # in the title of its own table
    sizes = [size_in_words(epsilon, norm) for _, epsilon in tries]
    titles = [
        attack_in_words(attack) + ("" if size == said else f", ε = {size}")
        for (attack, _), size in zip(tries, sizes, strict=True)
    ]
    rows = [
        (
            one.label,
            name,
            percent(1 - network.accuracy),
            *(percent(network.error(attack, norm, epsilon)) for attack, epsilon in tries),
            str(len(network.warnings)),
        )
        for one, name, network in networks_in(found)
    ]
    return Table(title, ("run", "network", "no attack", *titles, "warnings"), rows, note)


def warnings_in_words(found: Results) -> str:
    """The signs of masked gradients of every network, or that there are none."""
    text = [
        f"{one.label}, {name}: {'; '.join(network.warnings)}."
        for one, name, network in networks_in(found)
        if network.warnings
    ]
    return " ".join([MASKED, *text]) if text else UNMASKED


# ---------------------------------------------------------------------- charts


def charts(found: Results) -> Iterator[Chart]:
    """In each norm one chart of all attacks of one run, or one an attack of several runs."""
    for norm in NORMS:
        attacks = attacks_in(found, norm)
        if len(found) == 1 and attacks:
            yield curves(found, norm, attacks)
        elif len(found) > 1:
            yield from (curves(found, norm, [attack]) for attack in attacks)


def curves(found: Results, norm: Norm, attacks: Sequence[str]) -> Chart:
    """Accuracy over ε under some attacks: colors tell runs, or of one run its attacks."""
    epsilons = epsilons_in(found, norm, attacks)
    shown = [row for row in sweeps_in(found, norm) if row[2].attack in attacks]
    alone = len(attacks) == 1
    what = attack_in_words(attacks[0]) if alone else "attacks"
    return line_chart(
        "-".join(["attack", norm, *attacks[:alone]]),
        f"Accuracy under {what} ({NORMS[norm]})",
        CAPTION,
        [line(found, attacks, *row) for row in shown],
        x_label=_AXES[norm],
        y_label="top-1 on attacked test (%)",
        columns=("network", *(size_in_words(epsilon, norm) for epsilon in epsilons)),
        rows=[
            (
                f"{one.label}, {name}, {attack_in_words(sweep.attack)}",
                *(percent(sweep.at(epsilon)) for epsilon in epsilons),
            )
            for one, name, sweep in shown
        ],
        marks=[(255 * MARKED, size_in_words(MARKED, norm))] if norm == "linf" else [],
    )


def line(found: Results, attacks: Sequence[str], one: Found, network: str, sweep: Sweep) -> Series:
    """One network under one attack."""
    several = len(found) > 1
    scale = 255 if sweep.norm == "linf" else 1
    return Series(
        f"{one.label if several else attack_in_words(sweep.attack)}, {network}",
        [scale * epsilon for epsilon in sweep.epsilons],
        [100 * accuracy for accuracy in sweep.accuracy],
        one.color if several else attacks.index(sweep.attack),
        line_style(network),
    )


# ---------------------------------------------------------------------- pictures


def pictures(found: Results) -> Iterator[Picture]:
    """What was done to a few images of each network, where the picture is there."""
    for one, name, network in networks_in(found):
        path = one.picture("attack", picture_name(name))
        if network.examples and path.is_file():
            text = "; ".join(map(in_words, network.examples))
            yield Picture(
                f"Attacked images: {one.label}, {name}",
                f"{PICTURED} {text}.",
                f"Test images before and after an attack that is hard to see: {text}.",
                embedded(path),
            )


def in_words(example: Example) -> str:
    """The right class, and the class text before and after."""
    return f"{example.label}, text {example.before} → {example.after}"
