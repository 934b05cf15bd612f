"""Draw the pictures of the tutorial from the folder in which `website/tutorial.py` followed it.

    python website/tutorial_pictures.py FOLDER

Pages are drawn by Chromium, as they look at 1,000 pixels wide.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from adautomix.pictures.image_grid import save_picture

PICTURES = Path(__file__).parents[1] / "docs" / "images" / "tutorial"
MAX_BYTES = 150_000
PAGES = {"plain": "runs/plain/report.html", "methods": "runs/methods/report.html"}
SIZE = (1000, 1100)  # of a picture of a page


def draw_pictures(folder: Path) -> None:
    """Write the picture of the mixes and of the top of each page."""
    with Image.open(folder / "mixes.png") as mixes:
        save_picture(mixes.convert("RGB"), PICTURES / "mixes.webp", MAX_BYTES)
    for name, page in PAGES.items():
        if (folder / page).exists():
            picture = draw_page(folder / page)
            save_picture(picture, PICTURES / f"{name}.webp", MAX_BYTES)


def draw_page(page: Path) -> Image.Image:
    """Return a picture of the top of a page.

    Raises:
        CalledProcessError: Chromium failed.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "page.png"
        size = f"--window-size={SIZE[0]},{SIZE[1]}"
        words = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", size]
        command = ["chromium", *words, f"--screenshot={file}", page.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        with Image.open(file) as drawn:
            return drawn.convert("RGB")


if __name__ == "__main__":
    draw_pictures(Path(sys.argv[1]))
