"""Lists of images in CSV, TSV or text files: `path,label[,split]`, or one list per split."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from adautomix.data.sources.class_names import class_files, read_class_names
from adautomix.data.sources.listing import IMAGE_TYPES, Listing, count, from_splits
from adautomix.data.sources.splits import official, one_per_split, split_called
from adautomix.data.sources.tables import number_of_columns, read_cells
from adautomix.errors import UsageError

LIST_TYPES = (".csv", ".tsv", ".txt")
_PATH_TITLES = (
    "path",
    "file",
    "filename",
    "file_name",
    "image",
    "image_id",
    "image_path",
    "img",
    "id",
    "name",
    "image_name",
    "filepath",
)
_LABEL_TITLES = (
    "label",
    "class",
    "category",
    "target",
    "class_name",
    "label_name",
    "y",
    "class_id",
    "label_id",
    "breed",
    "species",
)
_SPLIT_TITLES = ("split", "subset", "set", "partition", "fold", "usage")
_LIST_ENDINGS = ("", "_list", "_labels", "_files", "-list", "-labels", "list")


@dataclass(frozen=True)
class _Row:
    """A line of a list: the file and label as written, and the split if the line names one."""

    path: str
    label: str
    split: str | None


@dataclass(frozen=True)
class _List:
    """The rows of one list file."""

    path: Path
    rows: list[_Row]
    ignored: int
    """Further columns."""


def is_list_file(path: Path) -> bool:
    """Whether a file has the suffix of a list."""
    return path.suffix.lower() in LIST_TYPES


def lists_of(folder: Path) -> dict[str, Path]:
    """Return the list file of each split in a folder, such as `train.txt` and `test.txt`.

    Lists without labels, such as a competition's `test.csv`, are no splits. Without a list for
    training there are none.

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
    read = {split: _read_list(path) for split, path in lists.items()}
    folder = next(iter(lists.values())).parent
    rows = _rows_by_split(read)
    every = [row for part in rows.values() for row in part]
    classes, label_of, named_by = _classes(every, folder, class_names)
    places = _Places(image_root or folder, every)
    pairs = {
        split: [(places.find(row.path), label_of[row.label]) for row in part]
        for split, part in rows.items()
    }
    listing = from_splits(places.root, classes, pairs, folder.name)
    used = ", ".join(path.name for path in lists.values())
    ignored = max(part.ignored for part in read.values())
    notes = [f"images and labels are those of {used}"]
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


def _read_list(path: Path) -> _List:
    """Return the rows of a list, with or without a line of titles.

    Raises:
        UsageError: the list is empty, or a line has no label.
    """
    lines = list(read_cells(path))
    titles = [cell.lower() for cell in lines[0]] if lines else []
    has_titles = bool(titles) and _are_titles(lines[0])
    columns = _title_columns(path, titles) if has_titles else _bare_columns(lines)
    body = lines[1:] if has_titles else lines
    if not body:
        raise UsageError(f"the list {path} names no image")
    needed = max(column for column in columns if column is not None)
    for number, cells in enumerate(body, 1 + has_titles):
        if len(cells) <= needed or not cells[columns[1]]:
            raise UsageError(f"line {number} of {path} has no label: write lines like path,label")
    rows = [
        _Row(
            cells[columns[0]], cells[columns[1]], None if columns[2] is None else cells[columns[2]]
        )
        for cells in body
    ]
    used = sum(column is not None for column in columns)
    return _List(path, rows, len(body[0]) - used)


def _are_titles(cells: Sequence[str]) -> bool:
    """Whether a first line is titles: it names no image file and a title that is known."""
    names = [cell.lower() for cell in cells]
    if any(name.endswith(IMAGE_TYPES) for name in names):
        return False
    return any(name in _PATH_TITLES + _LABEL_TITLES + _SPLIT_TITLES for name in names)


def _title_columns(path: Path, titles: Sequence[str]) -> tuple[int, int, int | None]:
    """Columns of path, label and split by their titles."""
    split = _column(titles, _SPLIT_TITLES)
    image = _column(titles, _PATH_TITLES)
    rest = [k for k in range(len(titles)) if k not in (image, split)]
    label = next((k for k in rest if titles[k] in _LABEL_TITLES), None)
    if image is None:
        image = next((k for k in rest if k != label), None)
    if label is None:
        label = next((k for k in rest if k != image), None)
    if image is None or label is None:
        raise UsageError(
            f"the list {path} has the columns {', '.join(titles)}: name them path, label and, if "
            "there is one, split"
        )
    return image, label, split


def _column(titles: Sequence[str], known: Sequence[str]) -> int | None:
    """The first column whose title is known, in the order of the known titles."""
    return next((titles.index(title) for title in known if title in titles), None)


def _bare_columns(lines: Sequence[Sequence[str]]) -> tuple[int, int, int | None]:
    """Path and label come first; a third column is the split if all of it names splits."""
    third = all(len(cells) > 2 and split_called(cells[2]) for cells in lines)
    return 0, 1, 2 if third and lines else None


def _rows_by_split(read: dict[str, _List]) -> dict[str, list[_Row]]:
    if set(read) != {"all"}:
        parts = {split: part.rows for split, part in read.items()}
    else:
        parts = _by_column(read["all"])
    serves = official(set(parts))
    return {serves[split]: rows for split, rows in parts.items()}


def _by_column(whole: _List) -> dict[str, list[_Row]]:
    """The rows of one list by its column of splits; "all" if it has none."""
    if whole.rows[0].split is None:
        return {"all": whole.rows}
    parts: dict[str, list[_Row]] = {}
    for row in whole.rows:
        split = split_called(row.split or "")
        if split is None:
            raise UsageError(f"{whole.path} has a split {row.split!r}: use train, val and test")
        parts.setdefault(split, []).append(row)
    return {split: parts[split] for split in ("train", "val", "test") if split in parts}


def _classes(
    rows: Sequence[_Row], folder: Path, class_names: Path | None
) -> tuple[list[str], dict[str, int], str]:
    """Class names, the label of each written label, and the file that gave the names."""
    written = {row.label for row in rows}
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


class _Places:
    """Finds the files of a list: from one folder, perhaps with a suffix that the list leaves out.

    Args:
        root: folder of the list.
        rows: all rows; the first one decides where all files are.

    Raises:
        UsageError: the file of the first row is nowhere.
    """

    def __init__(self, root: Path, rows: Sequence[_Row]) -> None:
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
        """Where the files are, if not simply where the list says."""
        where = f" in {self.folder.name}/" if self.folder != self.root else ""
        suffix = f" with the suffix {self.suffix}" if self.suffix else ""
        return f"the images of the list are{where}{suffix}" if where or suffix else ""

    def find(self, path: str) -> Path:
        """The file of a row."""
        return self.folder / f"{path}{self.suffix}"
