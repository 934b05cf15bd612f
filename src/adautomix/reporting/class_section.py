"""The part of a page about single classes: bars, confusions, and the photos that are wrong."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adautomix.class_results import ClassResults, WrongImage
from adautomix.reporting.class_charts import (
    MAX_BARS,
    class_bars,
    class_columns,
    class_rows,
    confusion_chart,
)
from adautomix.reporting.drawing import Chart
from adautomix.reporting.formatting import percent
from adautomix.reporting.section import Gallery, Photo, Section, Table, embedded
from adautomix.reporting.verdict import best_network, cautions
from adautomix.text import printable

NOTE = (
    "Recall is the fraction of the photos of a class that is right; precision is the fraction of "
    "the photos predicted as a class that belong to it; F1 is their harmonic mean. Balanced "
    "accuracy is the mean recall over the classes, and macro-F1 the mean F1: unlike accuracy, both "
    "count a small class as much as a large one. Intervals are 95 % Wilson intervals."
)
WRONG = (
    "The wrong answers that the network is most confident about. Check their labels first: a wrong "
    "label, a second object or a kind of photo that is missing in the training images is often "
    "seen at a glance."
)

FindPicture = Callable[[str], Path | None]
"""Return the path of a picture by its name, or None if there is no such file."""


@dataclass(frozen=True)
class Classified:
    """The results per class of one target.

    Attributes:
        label: name of the target on the page.
        networks: results by network name.
        picture: finds the pictures of wrong images.
    """

    label: str
    networks: Mapping[str, ClassResults]
    picture: FindPicture

    @property
    def best(self) -> ClassResults:
        """The results of the better network."""
        return self.networks[best_network(self.networks)]


def class_section(slug: str, title: str, targets: Sequence[Classified]) -> Section:
    """Return the section about classes.

    Args:
        slug: id of the heading, which begins the ids of the charts.
        title: heading.
        targets: what the section shows, each with at least one network.
    """
    return Section(
        slug,
        title,
        NOTE,
        [summary_table(targets), *class_tables(targets)],
        list(class_charts(slug, targets)),
        galleries=list(galleries(targets)),
    )


def summary_table(targets: Sequence[Classified]) -> Table:
    """Return one row per network: what is right, balanced accuracy and macro-F1."""
    rows: list[tuple[str, ...]] = [
        (
            one.label,
            name,
            f"{results.correct:,} of {results.images:,}",
            percent(results.accuracy),
            f"{100 * results.interval[0]:.1f} to {100 * results.interval[1]:.1f}",
            percent(results.balanced_accuracy),
            percent(results.macro_f1),
        )
        for one in targets
        for name, results in one.networks.items()
    ]
    columns = ("right", "right (%)", "95 % interval", "balanced accuracy (%)", "macro-F1 (%)")
    notes = dict.fromkeys(line for one in targets for line in cautions(one.best))
    return Table("All classes", ("run", "network", *columns), rows, " ".join(notes))


def class_tables(targets: Sequence[Classified]) -> Iterator[Table]:
    """Yield the weakest classes of the better network of each target."""
    for one in targets:
        results = one.best
        rest = len(results.classes) - MAX_BARS
        note = f"{rest:,} more classes are in the numbers of the chart." if rest > 0 else ""
        title = f"Classes of {one.label}, {best_network(one.networks)}"
        yield Table(title, class_columns(results), class_rows(results, MAX_BARS), note)


def class_charts(slug: str, targets: Sequence[Classified]) -> Iterator[Chart]:
    """Yield the bars and the confusion matrix of each network."""
    for number, one in enumerate(targets):
        for name, results in one.networks.items():
            key, label = f"{slug}-{number}-{name}", f"{printable(one.label, None)}, {name}"
            yield class_bars(f"{key}-bars", f"Right per class: {label}", results)
            if results.confusions:
                yield confusion_chart(f"{key}-matrix", f"Confusion matrix: {label}", results)


def galleries(targets: Sequence[Classified]) -> Iterator[Gallery]:
    """Yield the wrong photos of each network whose pictures are there."""
    for one in targets:
        for name, results in one.networks.items():
            if gallery := wrong_gallery(f"Most confident wrong: {one.label}, {name}", results, one):
                yield gallery


def wrong_gallery(title: str, results: ClassResults, one: Classified) -> Gallery | None:
    """Return the wrong photos of one network; None without pictures."""
    photos = [
        photo(image, results, path)
        for image in results.wrong
        if image.picture is not None and (path := one.picture(Path(image.picture).name))
    ]
    return Gallery(title, WRONG, photos) if photos else None


def photo(image: WrongImage, results: ClassResults, path: Path) -> Photo:
    """Return a wrong photo with what it is and what it was taken for."""
    names = [one.name for one in results.classes]
    truth = ", ".join(names[k] for k in image.labels) or "no label"
    answer = f"{names[image.predicted]} ({100 * image.confidence:.0f} %)"
    where = Path(image.file).name if image.file else f"test image {image.row}"
    return Photo(embedded(path), truth, f"predicted as {answer}", where)
