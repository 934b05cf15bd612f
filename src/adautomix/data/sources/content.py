"""Hashes of the content of image files, which tell identical and changed files."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from adautomix.data.cache import cache_folder, remembered
from adautomix.data.sources.listing import ImageFile, Listing

MOST_HASHED = 200_000
"""Files of a data set up to which their content is hashed; it must be read once for that."""

_WHOLE = 256 * 1024
_PART = 64 * 1024


def with_hashes(listing: Listing, cache_dir: Path | None) -> Listing:
    """Return a listing with the hash of every file's content, which the cache remembers.

    Above `MOST_HASHED` files the listing comes back without hashes and with a note.
    """
    if listing.hashes:
        return listing
    if len(listing.files) > MOST_HASHED:
        return listing.noting(
            f"identical files were not looked for among more than {MOST_HASHED:,} files"
        )
    folder = cache_folder(cache_dir, f"hashes-{listing.identity()}") / "files"
    hashes: Sequence[str] = remembered(
        folder, lambda: [content_hash(file) for file in listing.files]
    )
    return replace(listing, hashes=tuple(hashes))


def content_hash(file: ImageFile) -> str:
    """Return a hash of a file: of all of it up to 256 KiB, else of three parts and the size.

    A file that cannot be read gets a hash of its own.
    """
    digest = hashlib.blake2b(str(file.size).encode(), digest_size=8)
    try:
        descriptor = os.open(file.path, os.O_RDONLY)
    except OSError:
        return hashlib.blake2b(os.fsencode(file.path), digest_size=8).hexdigest()
    try:
        if file.size <= _WHOLE:
            digest.update(os.read(descriptor, _WHOLE))
        else:
            for start in (0, (file.size - _PART) // 2, file.size - _PART):
                digest.update(os.pread(descriptor, _PART, start))
    finally:
        os.close(descriptor)
    return digest.hexdigest()
