"""Report section of the attack suite: the error at 8/255, accuracy over ε, attacked images."""

from collections.abc import Iterator, Sequence

from adautomix.evaluation.attack.algorithms import Norm
from adautomix.evaluation.attack.results import (
    NORM_SYMBOLS,
    PAPER_EPSILON,
    THREAT_MODEL,
    AttackedNetwork,
    AttackResult,
    Example,
    Sweep,
    attack_title,
    format_epsilon,
)
from adautomix.evaluation.attack.suite import AMPLIFICATION, picture_name
from adautomix.reporting.drawing import Chart, Series, line_chart
from adautomix.reporting.formatting import percent
from adautomix.reporting.section import Evaluated, Picture, Section, Table, embedded, line_style

NOTE = (
    f"{THREAT_MODEL} Each network is attacked with its own gradients. ε is the maximum change, for "
    "pixels in [0, 1]. The random step is the control: it is as long as the attack, but it "
    "ignores the gradient."
)
MASKED = "Gradients may be masked, so that a network looks more robust than it is:"
NOT_MASKED = "No sign of masked gradients was found."
CAPTION = (
    "Top-1 accuracy as ε grows; at ε = 0 the images are unchanged. With useful gradients, each "
    "attack lies well below the random step, PGD does not lie above FGSM, and no line rises."
)
EXAMPLES = (
    "One test image per row: the original; the change made by FGSM at ε = 8/255, amplified "
    f"{AMPLIFICATION} times, where gray means no change; and the attacked image. For each row: the "
    "true class, then the predicted class before → after the attack:"
)
_X_LABELS: dict[Norm, str] = {
    "linf": "L∞ ε (1/255 of the pixel range)",
    "l2": "L2 ε (pixels in [0, 1])",
}

Results = Sequence[tuple[Evaluated, AttackResult]]
Trial = tuple[str, float]
"""The name of an attack, and an ε."""


def section(results: Results) -> Section:
    """Return the section with tables of errors, curves and pictures of attacked images."""
    trials = [(attack, PAPER_EPSILON) for attack in attacks_in(results, "linf")]
    title = f"Error (%) at ε = {format_epsilon(PAPER_EPSILON, 'linf')} (L∞)"
    tables = [error_table(title, results, "linf", trials, masking_note(results))]
    if l2_trials := trials_in(results, "l2"):
        tables.append(error_table("Error (%) under L2 attacks", results, "l2", l2_trials))
    return Section("attack", "Attack", NOTE, tables, list(charts(results)), list(pictures(results)))


def networks_in(results: Results) -> list[tuple[Evaluated, str, AttackedNetwork]]:
    """Return every network with its target and its name."""
    return [
        (one, name, network) for one, result in results for name, network in result.networks.items()
    ]


def sweeps_in(results: Results, norm: Norm) -> list[tuple[Evaluated, str, Sweep]]:
    """Return every sweep in one norm, with its target and the name of its network."""
    return [
        (one, name, sweep)
        for one, name, network in networks_in(results)
        for sweep in network.sweeps
        if sweep.norm == norm
    ]


def attacks_in(results: Results, norm: Norm) -> list[str]:
    """Return the names of the attacks that were run in one norm, including the control."""
    return list(dict.fromkeys(sweep.attack for _, _, sweep in sweeps_in(results, norm)))


def epsilons_in(results: Results, norm: Norm, attacks: Sequence[str]) -> list[float]:
    """Return every ε at which one of the attacks was run, ascending from 0."""
    sweeps = [sweep for _, _, sweep in sweeps_in(results, norm) if sweep.attack in attacks]
    return sorted({epsilon for sweep in sweeps for epsilon in sweep.epsilons})


def trials_in(results: Results, norm: Norm) -> list[Trial]:
    """Return every attack at every ε above 0."""
    return [
        (attack, epsilon)
        for attack in attacks_in(results, norm)
        for epsilon in epsilons_in(results, norm, [attack])[1:]
    ]


# ---------------------------------------------------------------------- tables


def error_table(
    title: str, results: Results, norm: Norm, trials: Sequence[Trial], note: str = ""
) -> Table:
    """Return the error of each network under some attacks, with its number of warnings."""
    common = format_epsilon(PAPER_EPSILON, norm)  # given in the title of the table
    sizes = [format_epsilon(epsilon, norm) for _, epsilon in trials]
    titles = [
        attack_title(attack) + ("" if size == common else f", ε = {size}")
        for (attack, _), size in zip(trials, sizes, strict=True)
    ]
    rows = [
        (
            one.label,
            name,
            percent(1 - network.accuracy),
            *(percent(network.error(attack, norm, epsilon)) for attack, epsilon in trials),
            str(len(network.warnings)),
        )
        for one, name, network in networks_in(results)
    ]
    return Table(title, ("run", "network", "no attack", *titles, "warnings"), rows, note)


def masking_note(results: Results) -> str:
    """Return the signs of masked gradients of all networks as text, or that there are none."""
    text = [
        f"{one.label}, {name}: {'; '.join(network.warnings)}."
        for one, name, network in networks_in(results)
        if network.warnings
    ]
    return " ".join([MASKED, *text]) if text else NOT_MASKED


# ---------------------------------------------------------------------- charts


def charts(results: Results) -> Iterator[Chart]:
    """Yield, per norm, one chart of all attacks on one run, or one chart per attack on several."""
    for norm in NORM_SYMBOLS:
        attacks = attacks_in(results, norm)
        if len(results) == 1 and attacks:
            yield accuracy_chart(results, norm, attacks)
        elif len(results) > 1:
            yield from (accuracy_chart(results, norm, [attack]) for attack in attacks)


def accuracy_chart(results: Results, norm: Norm, attacks: Sequence[str]) -> Chart:
    """Return accuracy over ε; colors distinguish runs or, for a single run, its attacks."""
    epsilons = epsilons_in(results, norm, attacks)
    sweeps = [row for row in sweeps_in(results, norm) if row[2].attack in attacks]
    single = len(attacks) == 1
    subject = attack_title(attacks[0]) if single else "attacks"
    return line_chart(
        "-".join(["attack", norm, *attacks[:single]]),
        f"Accuracy under {subject} ({NORM_SYMBOLS[norm]})",
        CAPTION,
        [make_line(results, attacks, *row) for row in sweeps],
        x_label=_X_LABELS[norm],
        y_label="top-1 on attacked test images (%)",
        columns=("network", *(format_epsilon(epsilon, norm) for epsilon in epsilons)),
        rows=[
            (
                f"{one.label}, {name}, {attack_title(sweep.attack)}",
                *(percent(sweep.accuracy_at(epsilon)) for epsilon in epsilons),
            )
            for one, name, sweep in sweeps
        ],
        marks=(
            [(255 * PAPER_EPSILON, format_epsilon(PAPER_EPSILON, norm))] if norm == "linf" else []
        ),
    )


def make_line(
    results: Results, attacks: Sequence[str], one: Evaluated, network: str, sweep: Sweep
) -> Series:
    """Return the line of one network under one attack."""
    several = len(results) > 1
    scale = 255 if sweep.norm == "linf" else 1
    return Series(
        f"{one.label if several else attack_title(sweep.attack)}, {network}",
        [scale * epsilon for epsilon in sweep.epsilons],
        [100 * accuracy for accuracy in sweep.accuracy],
        one.color if several else attacks.index(sweep.attack),
        line_style(network),
    )


# ---------------------------------------------------------------------- pictures


def pictures(results: Results) -> Iterator[Picture]:
    """Yield the picture of each network's attacked images, if the file exists."""
    for one, name, network in networks_in(results):
        path = one.picture("attack", picture_name(name))
        if network.examples and path is not None:
            text = "; ".join(map(describe_example, network.examples))
            yield Picture(
                f"Attacked images: {one.label}, {name}",
                f"{EXAMPLES} {text}.",
                f"Test images before and after an attack that is hard to see: {text}.",
                embedded(path),
            )


def describe_example(example: Example) -> str:
    """Return the true class, and the predicted class before and after the attack."""
    return f"{example.label}, predicted {example.before} → {example.after}"
