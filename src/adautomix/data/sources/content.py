"""Content hashes of image files, which identify identical and changed files."""

import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from adautomix.data.cache import cache_folder, remembered
from adautomix.data.sources.file_table import ImageFile
from adautomix.data.sources.listing import Listing
from adautomix.decoder.files import open_file

MOST_HASHED = 200_000
"""Largest number of files whose content is hashed; hashing reads every file once."""

SETTLED = 2.0
"""Age in seconds of a file's last change from which its time stamps reveal further changes.

Time stamps are coarse: two writes within one tick look like one.
"""

_BLOCK = 2**20
_THREADS = 8  # reading and hashing release the GIL
_CHUNK = 64


def with_hashes(listing: Listing, cache_dir: Path | None) -> Listing:
    """Return a listing with the content hash of every file; hashes are cached.

    With more than `MOST_HASHED` files, the listing is returned with a note instead of hashes.
    """
    if listing.hashes:
        return listing
    if len(listing.files) > MOST_HASHED:
        return listing.noting(
            f"identical files were not looked for among more than {MOST_HASHED:,} files"
        )
    if listing.files.newest() / 1e9 > time.time() - SETTLED:
        return replace(listing, hashes=tuple(_hash_all(listing.files)))
    folder = cache_folder(cache_dir, f"hashes-{listing.identity()}") / "files"
    hashes: Sequence[str] = remembered(folder, lambda: _hash_all(listing.files))
    return replace(listing, hashes=tuple(hashes))


def _hash_all(files: Sequence[ImageFile]) -> list[str]:
    chunks = [files[start : start + _CHUNK] for start in range(0, len(files), _CHUNK)]
    with ThreadPoolExecutor(_THREADS) as pool:
        hashed = pool.map(lambda chunk: [content_hash(file) for file in chunk], chunks)
        return [one for some in hashed for one in some]


def content_hash(file: ImageFile) -> str:
    """Return a hash of a file's bytes; an unreadable file gets a unique hash."""
    digest = hashlib.blake2b(digest_size=8)
    try:
        with open_file(file.path) as content:
            while block := content.read(_BLOCK):
                digest.update(block)
    except OSError:
        digest.update(os.fsencode(file.path))
    return digest.hexdigest()
