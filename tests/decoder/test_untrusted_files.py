"""Image files of every kind as 8-bit RGB, and files that must not be decoded."""

import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from adautomix.decoder.files import FORMATS, is_plain
from adautomix.decoder.reading import Rules, read_view, read_whole

RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16)


def read(path: Path, rules: Rules | None = None) -> np.ndarray:
    return np.asarray(read_whole(str(path), None, rules or Rules()))


def gray(path: Path) -> np.ndarray:
    pixels = read(path)
    assert np.array_equal(pixels[..., 0], pixels[..., 1])
    assert np.array_equal(pixels[..., 0], pixels[..., 2])
    return pixels[..., 0]


# --- bit depth ------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [8, 12, 16])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_gray_in_16_bit_files_is_scaled_by_its_depth(
    tmp_path: Path, bits: int, suffix: str
) -> None:
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(RAMP << (bits - 8)).save(path)
    assert np.array_equal(gray(path), RAMP)


def test_ten_bits_are_read_from_a_tiff_tag(tmp_path: Path) -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    info[281] = 1023
    Image.fromarray(RAMP << 2).save(tmp_path / "x.tif", tiffinfo=info)
    assert np.array_equal(gray(tmp_path / "x.tif"), RAMP)


def png_with_significant_bits(image: Image.Image, path: Path, bits: int) -> None:
    image.save(path)
    content = path.read_bytes()
    chunk = b"sBIT" + bytes([bits])
    chunk = struct.pack(">I", 1) + chunk + struct.pack(">I", zlib.crc32(chunk))
    path.write_bytes(content[:33] + chunk + content[33:])  # behind the header


@pytest.mark.parametrize("bits", [10, 14])
def test_bits_are_read_from_a_png_chunk(tmp_path: Path, bits: int) -> None:
    png_with_significant_bits(Image.fromarray(RAMP << (bits - 8)), tmp_path / "x.png", bits)
    assert np.array_equal(gray(tmp_path / "x.png"), RAMP)


def test_a_dark_picture_of_stated_depth_stays_dark(tmp_path: Path) -> None:
    png_with_significant_bits(Image.fromarray(RAMP), tmp_path / "x.png", 16)
    assert gray(tmp_path / "x.png").max() == 0


def test_twelve_bits_of_a_portable_graymap(tmp_path: Path) -> None:
    samples = (RAMP << 4).astype(">u2").tobytes()
    (tmp_path / "x.pgm").write_bytes(b"P5 16 16 4095\n" + samples)
    assert abs(gray(tmp_path / "x.pgm").astype(int) - RAMP).max() <= 1


@pytest.mark.parametrize("limit", [1, 255, 4095, 65535, 1e6])
def test_floating_point_pictures(tmp_path: Path, limit: float) -> None:
    values = (RAMP / 255 * limit).astype(np.float32)
    Image.fromarray(values).save(tmp_path / "x.tif")
    assert abs(gray(tmp_path / "x.tif").astype(int) - RAMP).max() <= 1


@pytest.mark.parametrize("shift", [0, 4, 8, 16])
def test_32_bit_integers(tmp_path: Path, shift: int) -> None:
    Image.fromarray(RAMP.astype(np.int32) << shift).save(tmp_path / "x.tif")
    assert np.array_equal(gray(tmp_path / "x.tif"), RAMP)


def test_values_below_zero_and_not_a_number_are_black(tmp_path: Path) -> None:
    values = np.array([[-1, 0.5], [np.nan, 1]], np.float32)
    Image.fromarray(values[::-1].copy()).save(tmp_path / "x.tif")
    assert gray(tmp_path / "x.tif").tolist()[1] == [0, 128]


# --- transparency ---------------------------------------------------------------------------


def test_transparency_is_composited_on_white(tmp_path: Path) -> None:
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, [0, 255, 51]
    Image.fromarray(pixels, "RGBA").save(tmp_path / "x.png")
    expected = [[255, 255, 255], [200, 0, 0], [244, 204, 204]]
    assert read(tmp_path / "x.png")[0].tolist() == expected
    dropped = read(tmp_path / "x.png", Rules(composite=False))
    assert dropped[0].tolist() == [[200, 0, 0]] * 3


def test_a_transparent_palette_and_gray_with_alpha(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "p.png", transparency=0)
    assert read(tmp_path / "p.png")[0].tolist() == [[255] * 3, [40, 50, 60]]
    Image.fromarray(np.array([[[7, 0], [7, 255]]], np.uint8), "LA").save(tmp_path / "la.png")
    assert read(tmp_path / "la.png")[0].tolist() == [[255] * 3, [7] * 3]


# --- what is not decoded --------------------------------------------------------------------


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"


def test_postscript_never_reaches_another_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("started a program")

    path = tmp_path / "x.png"
    path.write_bytes(EPS)
    with Image.open(path) as unlimited:
        assert unlimited.format == "EPS"  # the danger is real
    for name in ("Popen", "run", "check_call", "check_output"):
        monkeypatch.setattr(f"subprocess.{name}", refuse)
    monkeypatch.setattr("os.system", refuse)
    with pytest.raises(OSError, match="cannot identify"):
        read(path)


def test_only_known_formats_are_decoded(tmp_path: Path) -> None:
    assert not {"EPS", "PDF", "WMF", "FPX", "MIC", "SPIDER", "FITS", "IPTC"} & set(FORMATS)
    Image.new("RGB", (4, 4)).save(tmp_path / "x.png", "TGA")
    with pytest.raises(OSError, match="cannot identify"):
        read(tmp_path / "x.png")


def test_a_name_says_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4), (1, 2, 3)).save(tmp_path / "x.jpg", "PNG")
    assert read(tmp_path / "x.jpg")[0, 0].tolist() == [1, 2, 3]


def test_a_named_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(OSError, match="not a regular file"):
        read(tmp_path / "x.png")


def test_a_folder_is_not_a_picture(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"not a regular file|directory"):
        read(tmp_path)


def test_pictures_above_the_limit_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    Image.new("RGB", (30, 20)).save(path)
    path.write_bytes(path.read_bytes()[:50])  # decoding it would fail
    with pytest.raises(ValueError, match="30 × 20 pixels are more than max_pixels = 599"):
        read(path, Rules(max_pixels=599))
    with pytest.raises(OSError, match=r"truncated|decod"):
        read(path, Rules(max_pixels=600))


# --- plain pictures and cut bottoms ---------------------------------------------------------


def test_pictures_of_a_few_colors_are_plain() -> None:
    picture = Image.new("RGB", (9, 9))
    for level in range(4):
        picture.putpixel((level, 0), (level, 0, 0))
    assert is_plain(picture)
    picture.putpixel((5, 5), (0, 9, 0))
    assert not is_plain(picture)


@pytest.mark.parametrize("view", [("square",), ("center", 8), ("box", [1.0], [1.0], 0.0, 0.0)])
def test_a_banner_is_cut_off(tmp_path: Path, view: tuple[object, ...]) -> None:
    picture = Image.new("RGB", (8, 10), (0, 200, 0))
    picture.paste((255, 0, 0), (0, 8, 8, 10))
    picture.save(tmp_path / "x.png")
    seen, _ = read_view(str(tmp_path / "x.png"), view, 8, Rules(crop_bottom=2))
    assert seen.getcolors() == [(64, (0, 200, 0))]
    assert read_whole(str(tmp_path / "x.png"), 4, Rules(crop_bottom=2)).size == (4, 4)
