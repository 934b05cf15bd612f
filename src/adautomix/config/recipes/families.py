"""Families of cells: what all cells on one data set and network share."""

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

import yaml

from adautomix.config.files import merge

Protocol = Literal["median-10", "median-5", "best-10"]
"""How figures were published: the median or the best of so many last epochs."""


@dataclass(frozen=True)
class Family:
    """A data set and a network, with the augmentation and schedule that all methods share.

    Attributes:
        name: name of the family, such as "cifar100-r18".
        title: data set and network in words.
        protocol: which figure of the last epochs was published.
        train_images: number of training images.
        test_images: number of test images.
        classes: number of classes.
        settings: nested settings of all its cells.
        differs: what still differs from the source, by topic.
        start: the family whose run with the same method provides the initial weights; None if the
            settings say how training starts.
        missing: why its cells cannot be trained; None if they can.
    """

    name: str
    title: str
    protocol: Protocol
    train_images: int
    test_images: int
    classes: int
    settings: dict[str, Any]
    differs: dict[str, str]
    start: str | None = None
    missing: str | None = None

    @property
    def last_epochs(self) -> int:
        """Number of last epochs that the published figure is taken from."""
        return int(self.protocol.partition("-")[2])


@cache
def read_families() -> dict[str, Family]:
    """Return the packaged families by name, in the order of the tables."""
    folder = resources.files("adautomix.config.recipes") / "families"
    files = ("cifar-cnn", "cifar-vit", "tiny-imagenet", "imagenet", "fine-grained")
    return {
        name: _family(name, family, group)
        for file in files
        if (group := yaml.safe_load((folder / f"{file}.yaml").read_text(encoding="utf-8")))
        for name, family in group["families"].items()
    }


def _family(name: str, family: dict[str, Any], group: dict[str, Any]) -> Family:
    assert group["protocol"] in get_args(Protocol)
    images = family.get("images") or group["images"]
    return Family(
        name=name,
        title=family["title"],
        protocol=group["protocol"],
        train_images=images["train"],
        test_images=images["test"],
        classes=images["classes"],
        settings=merge(group["common"], family["settings"]),
        differs=group["differs"] | family.get("differs", {}),
        start=family.get("start"),
        missing=family.get("missing"),
    )
