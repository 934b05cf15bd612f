"""Lists of images in CSV, TSV or text files: `path,label[,split]`, or one list per split."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from adautomix.data.sources.class_names import class_files, read_class_names
from adautomix.data.sources.list_rows import ListRows, Row, read_list_rows
from adautomix.data.sources.listing import IMAGE_TYPES, Label, Listing, count, from_splits
from adautomix.data.sources.splits import official, one_per_split, split_called
from adautomix.data.sources.tables import number_of_columns
from adautomix.errors import UsageError

LIST_TYPES = (".csv", ".tsv", ".txt")
_LIST_ENDINGS = ("", "_list", "_labels", "_files", "-list", "-labels", "list")


def is_list_file(path: Path) -> bool:
    """Whether a file has the suffix of a list."""
    return path.suffix.lower() in LIST_TYPES


def lists_of(folder: Path) -> dict[str, Path]:
    """Return the list file of each split in a folder, such as `train.txt` and `test.txt`.

    Lists without labels, such as a competition's `test.csv`, are ignored. Without a training list,
    the result is empty.

    Raises:
        UsageError: two lists stand for the same split.
    """
    called = {
        path: split
        for path in sorted(folder.iterdir())
        if is_list_file(path) and path.is_file() and (split := split_of_list(path.stem))
    }
    labeled = [path for path in called if number_of_columns(path) >= 2]
    splits = one_per_split(labeled, called)
    return splits if "train" in splits else {}


def read_lists(
    lists: dict[str, Path], *, image_root: Path | None = None, class_names: Path | None = None
) -> Listing:
    """Return the images that list files name.

    Args:
        lists: list file by split: "train", "val", "test"; or "all" for one list whose column
            "split", if it has one, tells the splits.
        image_root: folder that relative paths start from; default: the folder of the list, or one
            of its subfolders.
        class_names: file with the name of each class: one per line, or with a column of numbers.
            Default: such a file beside the list, if there is one.

    Raises:
        UsageError: a list is not readable, images are missing, labels have no name, or a class
            has test images only.
    """
    read = {split: read_list_rows(path) for split, path in lists.items()}
    folder = next(iter(lists.values())).parent
    rows = _rows_by_split(read)
    every = [row for part in rows.values() for row in part]
    classes, label_of, named_by = _classes(every, folder, class_names)
    several = any(part.several for part in read.values())
    places = _Places(image_root or folder, every)
    pairs: dict[str, list[tuple[Path, Label]]] = {
        split: [(places.find(row.path), _label(row, label_of, several)) for row in part]
        for split, part in rows.items()
    }
    listing = from_splits(places.root, classes, pairs, folder.name)
    used = ", ".join(path.name for path in lists.values())
    ignored = max(part.ignored for part in read.values())
    notes = [f"images and labels are those of {used}"]
    if several:
        notes.append("an image may have several labels")
    if ignored:
        notes.append(f"{count(ignored, 'further column')} of the lists ignored")
    if named_by:
        notes.append(f"class names are those of {named_by}")
    if places.note:
        notes.append(places.note)
    return listing.noting(*notes)


def split_of_list(stem: str) -> str | None:
    """Return the split that the name of a list file stands for, such as "train_list"."""
    name = stem.lower()
    for ending in _LIST_ENDINGS:
        if ending and name.endswith(ending) and (split := split_called(name[: -len(ending)])):
            return split
    return split_called(name)


def _rows_by_split(read: dict[str, ListRows]) -> dict[str, list[Row]]:
    if set(read) != {"all"}:
        parts = {split: part.rows for split, part in read.items()}
    else:
        parts = _by_column(read["all"])
    serves = official(set(parts))
    return {serves[split]: rows for split, rows in parts.items()}


def _by_column(whole: ListRows) -> dict[str, list[Row]]:
    """Group the rows of one list by its split column; "all" if it has none."""
    if whole.rows[0].split is None:
        return {"all": whole.rows}
    parts: dict[str, list[Row]] = {}
    for row in whole.rows:
        split = split_called(row.split or "")
        if split is None:
            raise UsageError(f"{whole.path} has a split {row.split!r}: use train, val and test")
        parts.setdefault(split, []).append(row)
    return {split: parts[split] for split in ("train", "val", "test") if split in parts}


def _classes(
    rows: Sequence[Row], folder: Path, class_names: Path | None
) -> tuple[list[str], dict[str, int], str]:
    """Return class names, the class index of each written label, and the file with the names."""
    written = {label for row in rows for label in row.labels}
    if not all(label.lstrip("-").isdecimal() for label in written):
        ordered = sorted(written)
        return ordered, {name: label for label, name in enumerate(ordered)}, ""
    ordered = sorted(written, key=int)
    label_of = {number: label for label, number in enumerate(ordered)}
    if class_names is not None:
        names = read_class_names(class_names)
        lacking = [number for number in ordered if int(number) not in names]
        if lacking:
            raise UsageError(f"{class_names} has no name for class {lacking[0]}: add it")
        return [names[int(number)] for number in ordered], label_of, class_names.name
    for beside in class_files(folder):
        names = read_class_names(beside)
        if all(int(number) in names for number in ordered):
            return [names[int(number)] for number in ordered], label_of, beside.name
    return ordered, label_of, ""


def _label(row: Row, label_of: Mapping[str, int], several: bool) -> Label:
    """Return the class index, or a multi-hot vector if there may be several labels."""
    if not several:
        return label_of[row.labels[0]]
    flags = [0.0] * len(label_of)
    for label in row.labels:
        flags[label_of[label]] = 1.0
    return flags


class _Places:
    """Finds the files of a list below one folder, adding a suffix if the list omits it.

    Args:
        root: folder of the list.
        rows: all rows; the first one determines folder and suffix.

    Raises:
        UsageError: the file of the first row is not found.
    """

    def __init__(self, root: Path, rows: Sequence[Row]) -> None:
        first = Path(rows[0].path)
        folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
        suffixes = ("", *IMAGE_TYPES, *(suffix.upper() for suffix in IMAGE_TYPES))
        for suffix in suffixes:
            for folder in folders:
                if (folder / f"{first}{suffix}").is_file():
                    self.root = root
                    self.folder, self.suffix = folder, suffix
                    return
        raise UsageError(
            f"{root / first} is missing: the paths of a list start from its folder; set "
            "--data-root to the folder that they start from"
        )

    @property
    def note(self) -> str:
        """Return a note on where the files were found, if that differs from the list."""
        where = f" in {self.folder.name}/" if self.folder != self.root else ""
        suffix = f" with the suffix {self.suffix}" if self.suffix else ""
        return f"the images of the list are{where}{suffix}" if where or suffix else ""

    def find(self, path: str) -> Path:
        """Return the file of a row."""
        return self.folder / f"{path}{self.suffix}"
