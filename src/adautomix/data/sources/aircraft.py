"""FGVC-Aircraft: 100 variants, train and val together for training, as in the paper."""

from dataclasses import replace
from pathlib import Path

from adautomix.data.sources.listing import Listing
from adautomix.data.sources.torchvision_sets import read_with_torchvision

BANNER = 20
"""Height in pixels of the copyright banner at the bottom of every image."""


def read_aircraft(folder: Path) -> Listing:
    """List the images with their variant as class; `crop_bottom` cuts off their banner.

    The release asks users to cut off the banner. The code behind the published figures does not,
    and neither does torchvision.

    Args:
        folder: the unpacked archive, which holds `data/variants.txt`.
    """
    places = {"fgvc-aircraft-2013b": folder}
    splits = {"train": "trainval", "test": "test"}
    listing = read_with_torchvision("FGVCAircraft", folder, places, splits)
    note = (
        f"the banner of {BANNER} pixels at the bottom of every image is cut off, as the release "
        "asks; published figures of mixing methods left it in"
    )
    return replace(listing, crop_bottom=BANNER).noting(note)
