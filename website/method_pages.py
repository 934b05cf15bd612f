"""One page per method, written from its card, with a picture of its mixes."""

from collections.abc import Iterator
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_sample_image

import adautomix
from adautomix.methods import METHODS, Method
from adautomix.methods.cards import card_sections, read_card
from adautomix.pictures.image_grid import save_picture
from adautomix.pictures.mix_rows import mix_grid
from adautomix.pictures.preview import preview_rows

PHOTOS = ("china", "flower")
"""Photos that come with scikit-learn, under CC BY 2.0."""
CREDIT = (
    "The photos come with scikit-learn: china.jpg by danielbuechele and flower.jpg by vultilion, "
    "both under the license CC BY 2.0, here cut to squares and mixed."
)
_SIDE = 256  # pixels of the photos that are mixed
_MAX_BYTES = 200_000  # of a picture


def file_name(method: str) -> str:
    """Return the name of a method as a part of an address."""
    return method.replace("+", "-and-")


def method_page(method: type[Method]) -> str:
    """Return the page of a method: what it does, its picture, and the sections of its card."""
    name, card = method.name, read_card(method)
    needs = ", ".join(sorted(item.value.replace("_", " ") for item in method.requires))
    picture = f"![Mixes of two photos by {name}](images/{file_name(name)}.png)"
    parts = [
        f"# {name}",
        card.title,
        f"{picture}{{ loading=lazy }}",
        f"Cost per step: {method.cost:g}F, where plain training costs 3F and F is one forward "
        f"pass. Requires: {needs or 'only images and labels'}.",
        f"    adautomix train --data photos --method {name} --out runs/{file_name(name)}\n"
        f"    adautomix preview --data photos --method {name} --out mixes.png",
    ]
    parts += [f"## {title}\n\n{text}" for title, text in card_sections(method).items()]
    return "\n\n".join(parts) + "\n"


def overview() -> str:
    """Return the page that lists the methods."""
    rows = ["| method | what it does | cost per step |", "| --- | --- | ---: |"]
    rows += [
        f"| [{name}]({file_name(name)}.md) | {method.summary} | {method.cost:g}F |"
        for name, method in METHODS.items()
    ]
    head = (
        "# Methods\n\nF is one forward pass of the network; plain training costs 3F per step. "
        "Each page has the paper, the formulas with shapes, the source of every default, every "
        "deviation from the paper, and published figures. [One page with all cards](../methods.md) "
        "also explains the symbols. [Questions](../faq.md#which-method-for-my-data) says which one "
        "to try first."
    )
    pictures = (
        "The pictures show what `adautomix preview` draws: the original photos, the weight of each "
        "at each pixel, the mix, and its label. Generators of learned methods are untrained there."
    )
    return "\n\n".join([head, "\n".join(rows), f"{pictures} {CREDIT}"]) + "\n"


def method_pages() -> Iterator[tuple[str, str]]:
    """Yield the path and the text of an overview and of the page of each method."""
    yield "methods/index.md", overview()
    for name, method in METHODS.items():
        yield f"methods/{file_name(name)}.md", method_page(method)


def method_nav() -> list[dict[str, str] | str]:
    """Return the pages for the navigation."""
    pages = [{name: f"methods/{file_name(name)}.md"} for name in METHODS]
    return ["methods/index.md", *pages, {"All cards on one page": "methods.md"}]


def draw_pictures(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the path within the site and the file of the picture of each method.

    A picture in `folder` that is newer than the package is kept.
    """
    package = Path(adautomix.__file__).parent
    newest = max(path.stat().st_mtime for path in package.rglob("*.py"))
    for name in METHODS:
        picture = folder / f"{file_name(name)}.png"
        if not picture.exists() or picture.stat().st_mtime < newest:
            draw_picture(name, picture)
        yield f"methods/images/{picture.name}", picture


def draw_picture(name: str, picture: Path) -> None:
    """Draw mixes of the two photos."""
    files = [sample_photo(photo, picture.parent / "photos") for photo in PHOTOS]
    mix_grid(preview_rows({}, methods=name, files=files, count=2), picture)
    with Image.open(picture) as drawn:
        save_picture(drawn.convert("RGB"), picture, _MAX_BYTES)


def sample_photo(name: str, folder: Path) -> Path:
    """Return the file of a photo of scikit-learn, cut to its center square."""
    path = folder / f"{name}.png"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        photo = Image.fromarray(load_sample_image(f"{name}.jpg"))
        side = min(photo.size)
        left, top = (photo.width - side) // 2, (photo.height - side) // 2
        photo.crop((left, top, left + side, top + side)).resize((_SIDE, _SIDE)).save(path)
    return path
