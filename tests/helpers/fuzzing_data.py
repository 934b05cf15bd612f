"""Fuzz targets for what data sets consist of: list files, the lists of archives, and images."""

import io
from pathlib import Path

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from published import MINIATURE, WRITERS, Pictures
from reading_checks import TRIED, Target, mutate, mutations, only_our_errors, target

from adautomix.data.sources.open import SourceOptions, open_source
from adautomix.decoder.__main__ import answer_views, answer_whole

LIST = b"path,label,split\na.png,cat,train\nb.png,dog,train\nc.png,cat|dog,test\nd.png,dog,test\n"
ARCHIVES = ("tiny-imagenet-200", "imagenet", "cub200", "aircraft", "cars", "flowers102", "pets")
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "JPEG2000")
MODES = {"PNG": ("RGB", "P", "RGBA", "I;16"), "TIFF": ("RGB", "F", "I;16"), "GIF": ("P",)}
MAX_PIXELS = 10_000


def fuzz_lists(scratch: Path) -> Target:
    """List files: random lines, and mutations of a good list."""
    for name in "abcd":
        Image.new("RGB", (4, 4)).save(scratch / f"{name}.png")
    cells = st.sampled_from(["a.png", "b.png", "", "cat", "1", "train", "0|1", "../a.png", "\0"])
    lines = st.lists(st.lists(cells, max_size=4).map(",".join), max_size=6)

    @target(
        st.sampled_from(["list.csv", "list.tsv", "list.txt"]),
        mutations.map(lambda changes: mutate(LIST, changes))
        | lines.map(lambda some: "\n".join(some).encode())
        | st.binary(max_size=60),
    )
    def check(name: str, content: bytes) -> None:
        (scratch / name).write_bytes(content)
        options = SourceOptions(cache_dir=scratch / "cache")
        only_our_errors("lists", lambda: open_source(str(scratch / name), options))

    return check


def fuzz_archives(scratch: Path) -> Target:
    """Published archives in which one file that is no image was damaged."""
    texts: list[tuple[str, Path, bytes]] = []
    for archive in ARCHIVES:
        root = scratch / archive
        WRITERS[archive](root, Pictures(), 3, MINIATURE)
        found = [path for path in sorted(root.rglob("*")) if path.is_file()]
        found = [path for path in found if path.suffix.lower() not in (".jpg", ".jpeg", ".png")]
        texts += [(archive, path, path.read_bytes()) for path in found]

    @target(st.sampled_from(texts), mutations)
    def check(damaged: tuple[str, Path, bytes], changes: list[tuple[str, float, int]]) -> None:
        archive, path, content = damaged
        path.write_bytes(mutate(content, changes))
        options = SourceOptions(root=scratch / archive, cache_dir=scratch / "cache")
        only_our_errors("archives", lambda: open_source(archive, options))
        path.write_bytes(content)

    return check


def fuzz_images(scratch: Path) -> Target:
    """Image files of every format with damaged bytes: pixels of the right size, or a reason."""
    pixels = np.random.default_rng(0).integers(0, 256, (13, 17, 3), dtype=np.uint8)
    whole = []
    for kind in FORMATS:
        for mode in MODES.get(kind, ("RGB",)):
            file = io.BytesIO()
            gray = Image.fromarray(pixels).convert("L")
            image = gray.convert(mode) if mode in ("F", "I;16") else Image.fromarray(pixels)
            image.convert(mode).save(file, kind)
            whole.append(file.getvalue())
    path = scratch / "image"
    rules = {"max_pixels": MAX_PIXELS}
    views = st.sampled_from([["square"], ["center", 10], ["box", [0.3], [1.0], 0.5, 0.5]])

    @target(st.sampled_from(whole), mutations, views)
    def check(content: bytes, changes: list[tuple[str, float, int]], view: list[object]) -> None:
        TRIED["images"] += 1
        path.write_bytes(mutate(content, changes))
        request = {"size": 8, "rules": rules, "pictures": [[str(path), view, []]]}
        answer, answered = answer_views(request, io.BytesIO())
        assert len(answered) == 1
        assert len(answered[0]) == 8 * 8 * 3
        assert all(isinstance(reason, str) and reason for reason in answer["bad"].values())
        answer, answered = answer_whole({"limit": None, "rules": rules, "paths": [str(path)]})
        ((width, height),) = answer["sizes"]
        assert width * height <= MAX_PIXELS
        assert [len(some) for some in answered] == [3 * width * height] * (not answer["bad"])

    return check
