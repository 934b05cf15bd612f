"""Record of the images in each split, written to and read from a run folder.

The first line of `splits.jsonl.gz` describes the data set. One line per image file follows: path,
label, split (null if it is in none), size, modification time and hash. Images that come as arrays
are recorded by their row numbers and one hash of all pixels.
"""

import gzip
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adautomix.data.sources.content import content_hash
from adautomix.data.sources.file_table import FileTable, ImageFile, image_file
from adautomix.data.sources.listing import Arrays, Found, Label, Listing
from adautomix.errors import UsageError
from adautomix.files import atomic_write

FILE = "splits.jsonl.gz"
VERSION = 1


@dataclass(frozen=True)
class SplitRecord:
    """The exact images and labels of each split.

    Attributes:
        source: value of `--data`.
        rows: int64 rows of the images of each split: "train", "test" and optionally "val".
        listing: the image files that the rows index; None for arrays.
        content: hash of all pixels of arrays; "" for files.
    """

    source: str
    rows: Mapping[str, Tensor]
    listing: Listing | None = None
    content: str = ""

    def digest(self) -> str:
        """Return a hash of the content and labels of the images of every split."""
        digest = hashlib.blake2b(self.content.encode(), digest_size=8)
        for split, rows in self.rows.items():
            digest.update(split.encode())
            digest.update(rows.numpy().tobytes())
        if self.listing is not None:
            digest.update(self.listing.fingerprint().encode())
        return digest.hexdigest()

    def files(self, split: str) -> list[str]:
        """Return the paths of the image files of a split, in its order.

        Raises:
            UsageError: the images are not files, or there is no such split.
        """
        if self.listing is None:
            raise UsageError(f"the images of {self.source} are not files: name image files")
        if split not in self.rows:
            raise UsageError(f"there is no split {split!r}: use {', '.join(self.rows)}")
        return [self.listing.files.paths[row] for row in self.rows[split].tolist()]


def record_of(source: str, found: Found, rows: Mapping[str, Tensor]) -> SplitRecord:
    """Return the record of the splits of a source."""
    if isinstance(found, Listing):
        return SplitRecord(source, rows, found)
    return SplitRecord(source, rows, content=array_hash(found))


def array_hash(arrays: Arrays) -> str:
    """Return a hash of all pixels and labels of arrays."""
    digest = hashlib.blake2b(arrays.images.numpy().data, digest_size=16)
    digest.update(arrays.labels.numpy().tobytes())
    return digest.hexdigest()


def write_record(record: SplitRecord, folder: Path) -> None:
    """Write a record to a run folder."""
    with (
        atomic_write(folder / FILE) as temporary,
        temporary.open("wb") as raw,
        # A fixed time in the header makes files of equal records identical.
        gzip.GzipFile("", "wb", compresslevel=3, fileobj=raw, mtime=0) as packed,
        io.TextIOWrapper(packed, encoding="utf-8", errors="surrogateescape") as text,
    ):
        for line in _lines(record):
            text.write(json.dumps(line, ensure_ascii=False) + "\n")


def _lines(record: SplitRecord) -> Iterator[Any]:
    facts: dict[str, Any] = {"version": VERSION, "source": record.source}
    listing = record.listing
    if listing is None:
        rows = {split: rows.tolist() for split, rows in record.rows.items()}
        yield facts | {"content": record.content, "rows": rows}
        return
    yield facts | {
        "root": str(listing.root),
        "name": listing.name,
        "classes": listing.classes,
        "crop_bottom": listing.crop_bottom,
        "splits": list(record.rows),
    }
    split_of: list[str | None] = [None] * len(listing.files)
    for name, members in record.rows.items():
        for row in members.tolist():
            split_of[row] = name
    root = f"{listing.root}{os.sep}"
    for row, (file, label) in enumerate(zip(listing.files, listing.labels, strict=True)):
        content = listing.hashes[row] if listing.hashes else None
        path, split = file.path.removeprefix(root), split_of[row]
        yield [path, label, split, file.size, file.modified, content]


def read_record(folder: Path, root: Path | None = None) -> SplitRecord | None:
    """Return the record in a run folder, checked against the files; None if an older run has none.

    Args:
        folder: the run folder.
        root: current folder of the images, if it was moved or copied.

    Raises:
        UsageError: the record is damaged, or images have vanished or changed since it was written.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with gzip.open(path, "rt", encoding="utf-8", errors="surrogateescape") as file:
            lines = (json.loads(line) for line in file)
            facts: dict[str, Any] = next(lines, {})
            if "content" not in facts:
                return _record_of_files(facts, lines, root or Path(facts["root"]))
            rows = {split: torch.tensor(rows) for split, rows in facts["rows"].items()}
            return SplitRecord(facts["source"], rows, content=facts["content"])
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged ({error}): train the run again") from None


def _record_of_files(
    facts: Mapping[str, Any], lines: Iterable[list[Any]], root: Path
) -> SplitRecord:
    files = FileTable()
    labels: list[Label] = []
    hashes: list[str] = []
    rows: dict[str, list[int]] = {split: [] for split in facts["splits"]}
    problems: list[str] = []
    for path, label, split, size, modified, content in lines:
        recorded = ImageFile(str(root / path), size, modified)
        file = _unchanged(recorded, content, problems if split else [])
        if file is None:
            continue
        if split:
            rows[split].append(len(files))
        files.append(file)
        labels.append(label)
        if content is not None:
            hashes.append(content)
    if problems:
        raise UsageError(
            f"{problems[0]} since the run started (one of {len(problems)} such images): restore "
            "it, or train a new run"
        )
    listing = Listing(
        root,
        tuple(facts["classes"]),
        files,
        labels,
        dict(rows),
        facts["name"],
        facts["crop_bottom"],
        hashes=tuple(hashes),
    )
    tensors = {split: torch.tensor(some, dtype=torch.int64) for split, some in rows.items()}
    return SplitRecord(facts["source"], tensors, listing)


def _unchanged(recorded: ImageFile, content: str | None, problems: list[str]) -> ImageFile | None:
    """Return the file as it is now; if it is gone or changed, add a problem and return None."""
    try:
        now = image_file(recorded.path)
    except OSError:
        problems.append(f"{recorded.path} has vanished")
        return None
    same = now.size == recorded.size and now.modified == recorded.modified
    if not same and content is not None:  # a copied or touched file has a new modification time
        same = content_hash(now) == content
    if not same:
        problems.append(f"{recorded.path} has changed")
        return None
    return now


def recorded_source(record: SplitRecord, found: Found | None) -> Found:
    """Return the recorded image files; for arrays, the source's current arrays if unchanged.

    Raises:
        UsageError: the pixels or labels of arrays have changed.
    """
    if record.listing is not None:
        return record.listing
    assert isinstance(found, Arrays)
    if array_hash(found) != record.content:
        raise UsageError(
            f"the images of {record.source} have changed since the run started: restore them, or "
            "train a new run"
        )
    return replace(found, given=dict(record.rows))
