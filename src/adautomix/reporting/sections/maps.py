"""Report section of the maps suite: how much of the Grad-CAM maps is left in mixes, pictures."""

from collections.abc import Iterator, Sequence

from adautomix.evaluation.maps import MapsResult, NetworkMaps
from adautomix.reporting.formatting import decimals, percent
from adautomix.reporting.section import Evaluated, Picture, Section, Table, embedded

MAX_PICTURES = 4  # per page; all pictures are in the folders
NOTE = (
    "Grad-CAM maps show where a network sees evidence for a class. Each map on a mix is compared "
    "with the map on the clean image of that class. Similarity is the cosine of the two maps; it "
    "is 1 if the network sees the class in the mix as in the clean image. Inside is the fraction "
    "of the map on the mix that lies where the image of the class has the largest mask; area is "
    "the fraction of the pixels there, which is what a map without any information would reach. "
    "Values are means over the sources whose class occurs once in the mix and whose map is not "
    "empty. Each run mixes by its own method, and mixes of other methods are harder or easier; "
    "compare networks on the same mixes with --maps.mixes plain."
)
CAPTION = (
    "Top: the originals, and the mix with its λ. Bottom: the map of each original's class, in the "
    "original on the left and in the mix on the right, over the image in gray. Bright is where the "
    "network sees the class; each map is scaled by its maximum."
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

three_decimals = decimals(3)

Results = Sequence[tuple[Evaluated, MapsResult]]


def section(results: Results) -> Section:
    """Return the section with one row per network and mixing method, and a few pictures."""
    rows = [row for one, result in results for row in table_rows(one, result)]
    table = Table("How much of the maps is left in a mix", COLUMNS, rows)
    return Section("maps", "Grad-CAM", NOTE, [table], pictures=pictures(results))


def table_rows(one: Evaluated, result: MapsResult) -> Iterator[tuple[str, ...]]:
    """Yield the rows of one target."""
    for name, network in result.networks.items():
        for method, survival in network.survival.items():
            yield (
                one.label,
                f"{name}, {method}",
                three_decimals(survival.similarity),
                percent(survival.inside),
                percent(survival.area),
                str(survival.sources),
                network.layer,
                f"{network.side}×{network.side}",
            )


def pictures(results: Results) -> list[Picture]:
    """Return pictures of the first target of each color, of its last network if there are many."""
    first_of_color = {one.color: (one, result) for one, result in reversed(results)}
    selected = [first_of_color[color] for color in sorted(first_of_color)]
    networks = [
        (one, name, network)
        for one, result in selected
        for name, network in result.networks.items()
    ]
    if len(networks) > MAX_PICTURES:
        networks = [(one, *list(result.networks.items())[-1]) for one, result in selected]
    shown = [
        picture
        for one, name, network in networks
        for picture in network_pictures(one, name, network)
    ]
    return shown[:MAX_PICTURES]


def network_pictures(one: Evaluated, name: str, network: NetworkMaps) -> Iterator[Picture]:
    """Yield the pictures of one network that exist."""
    for method, file in network.pictures.items():
        path = one.picture("maps", file)
        if path is not None:
            alt = (
                f"Images, their {method} mixes, and Grad-CAM maps of {network.layer} of the "
                f"{name} of {one.label} on both; the numbers are in the table."
            )
            title = f"{one.label}, {name}: maps on {method} mixes"
            yield Picture(title, CAPTION, alt, embedded(path))
