"""Grad-CAM: what is left of the maps of the sources in a mix, as a table and pictures."""

from collections.abc import Iterator, Sequence

from adautomix.evaluation.maps import MapsResult, NetworkMaps
from adautomix.reporting.figures import decimals, percent
from adautomix.reporting.section import Found, Picture, Section, Table, embedded

MOST_PICTURES = 4  # on a page; all are in the folders
NOTE = (
    "Grad-CAM maps of a class on its clean image and on mixes with it. Similarity: the cosine of "
    "the two maps, 1 where the network sees the class in the mix as it did alone. Inside: the "
    "share of the map on the mix that lies where the class's own image has the largest mask, to "
    "be held against the share of the pixels there (area), which is what a map without any "
    "knowledge would have. Means over sources with a share, a class and a map of their own. Runs "
    "mix by their own method: other mixes are harder or easier, so hold networks against each "
    "other where these are the same (--maps.mixes plain)."
)
CAPTION = (
    "Above, the originals and the mix with its λ; below, laid over each in gray, the map of each "
    "original's class: alone on the left, in the mix on the right. Bright is where the network "
    "sees the class; each map is drawn by its own largest value."
)
COLUMNS = (
    "run",
    "network, mixes",
    "similarity",
    "inside (%)",
    "area (%)",
    "sources",
    "layer",
    "map",
)
three = decimals(3)


def section(found: Sequence[tuple[Found, MapsResult]]) -> Section:
    """A row a network and method, and a few pictures."""
    rows = [row for one, result in found for row in rows_of(one, result)]
    table = Table("What a mix leaves of the maps", COLUMNS, rows)
    return Section("maps", "Grad-CAM", NOTE, [table], pictures=pictures(found))


def rows_of(one: Found, result: MapsResult) -> Iterator[tuple[str, ...]]:
    """The table's rows of one subject."""
    for name, network in result.networks.items():
        for method, survival in network.survival.items():
            yield (
                one.label,
                f"{name}, {method}",
                three(survival.similarity),
                percent(survival.inside),
                percent(survival.area),
                str(survival.sources),
                network.layer,
                f"{network.side}×{network.side}",
            )


def pictures(found: Sequence[tuple[Found, MapsResult]]) -> list[Picture]:
    """Those of the first subject of each color; of the last network alone if they are many."""
    firsts = {one.color: (one, result) for one, result in reversed(found)}
    some = [firsts[color] for color in sorted(firsts)]
    drawn = [
        (one, name, network) for one, result in some for name, network in result.networks.items()
    ]
    if len(drawn) > MOST_PICTURES:
        drawn = [(one, *list(result.networks.items())[-1]) for one, result in some]
    every = [picture for one, name, network in drawn for picture in of_network(one, name, network)]
    return every[:MOST_PICTURES]


def of_network(one: Found, name: str, network: NetworkMaps) -> Iterator[Picture]:
    """The pictures of one network that are still there."""
    for method, file in network.pictures.items():
        path = one.picture("maps", file)
        if path.is_file():
            alt = (
                f"Images, their {method} mixes, and Grad-CAM maps of {network.layer} of the "
                f"{name} of {one.label} over both; the figures are in the table."
            )
            title = f"{one.label}, {name}: maps on {method} mixes"
            yield Picture(title, CAPTION, alt, embedded(path))
