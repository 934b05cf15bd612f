"""A folder of images: `train/<class>/*` with `test/` or `val/`, or one tree `<class>/*`."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from adautomix.data.sources.file_table import FileTable
from adautomix.data.sources.listing import (
    IMAGE_TYPES,
    Label,
    Listing,
    PassedOver,
    count,
    first_visit,
    folder_key,
    is_image,
    is_left_out,
    leads_to_file,
    walk_images,
)
from adautomix.data.sources.splits import official, one_per_split, split_called
from adautomix.errors import UsageError

ClassLevel = Literal["top", "leaf"]


@dataclass
class _Found:
    """Images of one tree by class, and class folders without images."""

    images: dict[str, FileTable] = field(default_factory=dict)
    empty: list[str] = field(default_factory=list)
    nested: set[Path] = field(default_factory=set)
    """Folders with images below the first level."""
    loose: int = 0
    """Images beside the class folders."""


def list_folder(root: Path, level: ClassLevel = "top") -> Listing:
    """List a folder's images by class.

    Symbolic links are followed, but no folder is listed twice. Hidden files, folders of file
    managers, and files that are not images by name or content are skipped and counted. Classes are
    sorted by name, or by number if all names are numbers.

    Args:
        root: the folder. Its subfolders are classes, or splits with names in `splits.SPLIT_NAMES`.
        level: "top": every folder of the first level is a class, with all images below it; "leaf":
            every folder that directly holds images is a class.

    Raises:
        UsageError: the folder has no class folders or fewer than two classes with images, or a
            class has test images only.
    """
    passed = PassedOver()
    trees = _trees(root, passed)
    seen = {folder_key(root)} | {folder_key(tree) for tree in trees.values()}
    found = {split: _read_tree(tree, level, passed, seen) for split, tree in trees.items()}
    _rename_classes(found, level)
    first_split = "train" if "train" in found else next(iter(found))
    classes = _ordered(found[first_split].images)
    if len(classes) < 2:
        raise UsageError(_too_few(trees[first_split], classes, found[first_split].empty))
    _check_classes(trees, found, first_split)
    files = FileTable()
    labels: list[Label] = []
    given: dict[str, Sequence[int]] = {}
    for split, tree in found.items():
        begin = len(files)
        for label, name in enumerate(classes):
            images = sorted(tree.images.pop(name, ()))
            files.extend(images)
            labels += [label] * len(images)
        given[split] = range(begin, len(files))
    return Listing(
        root,
        classes,
        files,
        labels,
        given,
        notes=(*_notes(trees, found, level), *passed.sentences()),
        warnings=_warnings(trees, found),
    )


def subfolders(folder: Path, passed: PassedOver | None = None) -> list[str]:
    """Return the names of a folder's subfolders, without hidden and system folders."""
    counted = passed or PassedOver()
    return sorted(
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and not is_left_out(entry.name, counted)
    )


def _trees(root: Path, passed: PassedOver) -> dict[str, Path]:
    """Return the folder of class folders for each split."""
    names = subfolders(root)
    # A folder "train" without folders in it is a class: pictures of trains.
    called = {
        root / name: split
        for name in names
        if (split := split_called(name)) and subfolders(root / name)
    }
    splits = one_per_split(list(called), called)
    if not splits.keys() - {"val"}:
        _refuse_unnamed_splits(root, names)
    if "train" in splits:
        subfolders(root, passed)  # count what is left out beside the folders of the splits
        serves = official(set(splits))
        return {serves[split]: tree for split, tree in splits.items()}
    # Other folders beside "test" are classes, and so is "test".
    return {"test": splits["test"]} if names == [splits.get("test", root).name] else {"all": root}


def _refuse_unnamed_splits(root: Path, names: list[str]) -> None:
    """Raise an error for two folders with the same subfolders: splits rather than classes."""
    if len(names) != 2:
        return
    below = [subfolders(root / name) for name in names]
    if len(below[0]) > 1 and below[0] == below[1]:
        raise UsageError(
            f"{root} holds two folders with the same subfolders, {names[0]} and {names[1]}: if "
            "they are splits, rename them to train and test; if they are classes, use one of them "
            "as --data or rename their subfolders"
        )


def _read_tree(
    tree: Path, level: ClassLevel, passed: PassedOver, seen: set[tuple[int, int]]
) -> _Found:
    """Return the images of a tree by class: the folder's name, or its path below the tree."""
    found = _Found(loose=_loose_images(tree))
    names = subfolders(tree, passed)
    # Every class folder counts as visited before the first is listed, real ones before links, so
    # that a link from one class to another does not take its images away.
    names.sort(key=lambda name: (tree / name).is_symlink())
    for name in [name for name in names if first_visit(tree / name, passed, seen)]:
        folders = list(walk_images(tree / name, passed, seen))
        for folder, images in folders:
            if folder != tree / name:
                found.nested.add(folder)
            key = str(folder.relative_to(tree)) if level == "leaf" else name
            found.images.setdefault(key, FileTable()).extend(images)
        if not folders:
            found.empty.append(name)
    return found


def _loose_images(tree: Path) -> int:
    """Count the images beside the class folders, which belong to no class."""
    ignored = PassedOver()
    with os.scandir(tree) as entries:
        return sum(
            leads_to_file(entry) and entry.name[0] != "." and is_image(entry.path, ignored)
            for entry in entries
        )


def _rename_classes(found: dict[str, _Found], level: ClassLevel) -> None:
    """Shorten the paths of leaf folders to their names if the names are unique in each split."""
    if level != "leaf":
        return
    for tree in found.values():
        if len({key.rpartition("/")[2] for key in tree.images}) < len(tree.images):
            return
    for tree in found.values():
        tree.images = {key.rpartition("/")[2]: images for key, images in tree.images.items()}


def _ordered(names: dict[str, FileTable]) -> tuple[str, ...]:
    numbered = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=lambda name: (int(name) if numbered else 0, name)))


def _check_classes(trees: dict[str, Path], found: dict[str, _Found], first: str) -> None:
    for split, tree in found.items():
        if not tree.images:
            raise UsageError(
                f"folder {trees[split]} holds no image of any class: add some or remove it"
            )
        for name in tree.images:
            if name not in found[first].images:
                raise UsageError(
                    f"class {name!r} is in {trees[split]} but not in {trees[first]}: add or remove"
                )


def _notes(trees: dict[str, Path], found: dict[str, _Found], level: ClassLevel) -> tuple[str, ...]:
    notes = []
    used = [f"{split} from {tree.name}/" for split, tree in trees.items() if split != "all"]
    if used:
        notes.append(f"splits by folder: {', '.join(used)}")
    nested = set().union(*(tree.nested for tree in found.values()))
    if nested and level == "top":
        notes.append(
            f"images in {count(len(nested), 'nested folder')} belong to the class of the first "
            "level; --class-level leaf makes every folder with images a class"
        )
    return tuple(notes)


def _warnings(trees: dict[str, Path], found: dict[str, _Found]) -> tuple[str, ...]:
    warnings = [
        f"{count(tree.loose, 'image')} directly in {trees[split]} belong to no class: ignored"
        for split, tree in found.items()
        if tree.loose
    ]
    empty = [str(trees[split] / name) for split, tree in found.items() for name in tree.empty]
    if empty:
        shown = ", ".join(empty[:3]) + " …" * (len(empty) > 3)
        warnings.append(f"{count(len(empty), 'class folder')} without images ignored: {shown}")
    return tuple(warnings)


def _too_few(tree: Path, classes: tuple[str, ...], empty: list[str]) -> str:
    layout = f"put the images of each class into a folder of its own, {tree}/<class>/"
    if classes:
        return f"folder {tree} has only one class, {classes[0]!r}, and two are needed: {layout}"
    if empty:
        types = " ".join(IMAGE_TYPES)
        return f"class folder {tree / empty[0]} holds no image ({types})"
    return f"folder {tree} has no class folders: {layout}"
