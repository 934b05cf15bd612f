"""Decoding processes that die or hang, and what is sent through them."""

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adautomix.data.decoding import decoders as module
from adautomix.data.decoding.decoders import DecoderPool, Request, Source
from adautomix.data.decoding.worker_pool import WorkerLostError, WorkerPool
from adautomix.decoder import __main__ as program
from adautomix.decoder.reading import Rules

# Ends or hangs at files with such names, as a defect of a decoder would; else as the program.
STAND_IN = """
import json, os, signal, sys, time
sys.path.insert(0, {root!r})
from adautomix.decoder import __main__ as program, reading

def read_view(path, *arguments):
    if "crash" in os.path.basename(path):
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hang" in os.path.basename(path):
        time.sleep(1000)
    return original(path, *arguments)

original, program.read_view = reading.read_view, read_view
program.main()
"""


@pytest.fixture
def pool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DecoderPool:
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN.format(root=str(Path(program.__file__).parents[2])))
    monkeypatch.setattr(program, "__file__", str(script))
    return DecoderPool(1)


def requests(folder: Path, names: list[str]) -> list[Request]:
    for number, name in enumerate(names):
        Image.new("RGB", (9, 9), (number + 1, 0, 0)).save(folder / name)
    return [Request(Source(str(folder / name)), ("square",)) for name in names]


def test_a_file_that_crashes_a_decoder_is_named_and_the_others_are_read(
    pool: DecoderPool, tmp_path: Path
) -> None:
    wanted = requests(tmp_path, ["a.png", "crash.png", "c.png"])
    out = np.full((3, 4, 4, 3), 9, np.uint8)
    with pool:
        outcome = pool.render(wanted, out, Rules()).result()
    assert outcome.bad == {1: "the process that decoded it was lost: it crashed (SIGSEGV)"}
    assert out[:, 0, 0, 0].tolist() == [1, 0, 3]
    assert outcome.plain == [0, 2]


def test_a_file_that_hangs_a_decoder_is_named(
    pool: DecoderPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = requests(tmp_path, ["a.png", "hang.png"])
    out = np.empty((2, 4, 4, 3), np.uint8)
    with pool:
        pool.render(wanted[:1], out[:1], Rules()).result()  # the process is there
        monkeypatch.setattr(module, "_PATIENCE", 8.0)
        monkeypatch.setattr(module, "_PATIENCE_PER_PICTURE", 0.0)
        outcome = pool.render(wanted, out, Rules()).result()
    assert outcome.bad == {1: "the process that decoded it was lost: no answer within 8 seconds"}
    assert out[:, 0, 0, 0].tolist() == [1, 0]


def test_a_stopped_process_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time; input(); time.sleep(1000)")
    with WorkerPool(str(tmp_path / "slow.py"), 1) as pool:
        future = pool.submit(lambda: pool.exchange({}, lambda _: np.empty(0, np.uint8), (), 3.0))
        while not pool._processes:
            time.sleep(0.01)
        os.kill(pool._processes[0].pid, signal.SIGSTOP)
        with pytest.raises(WorkerLostError, match="no answer within 3 seconds"):
            future.result()
        assert pool._processes == []
    assert threading.active_count() < 50


def test_bytes_are_sent_and_operations_applied() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    wanted = [
        Request(Source((8, 8), image.data), ("padded", None, 0, 0, 0), [("Invert", 0.0)])
        for image in pixels
    ]
    out = np.empty_like(pixels)
    with DecoderPool(1) as pool:
        assert pool.render(wanted, out, Rules()).result().bad == {}
    assert np.array_equal(out, 255 - pixels)


def test_whole_pictures_keep_their_shape(tmp_path: Path) -> None:
    Image.new("RGB", (40, 20), (1, 2, 3)).save(tmp_path / "a.png")
    Image.new("RGB", (5, 7), (4, 5, 6)).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(b"?")
    paths = [str(tmp_path / name) for name in ("a.png", "b.png", "c.png")]
    with DecoderPool(1) as pool:
        pictures, outcome = pool.whole(paths, 10, Rules()).result()
    assert [picture.shape for picture in pictures] == [(10, 20, 3), (7, 5, 3), (0, 0, 3)]
    assert pictures[1][0, 0].tolist() == [4, 5, 6]
    assert outcome.bad == {2: "not an image that can be identified"}
