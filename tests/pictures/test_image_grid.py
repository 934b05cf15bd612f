"""Grids of images: positions, sizes, captions, heat maps and files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from adautomix.pictures.image_grid import (
    GAP,
    LINE,
    MAX_BYTES,
    TILE,
    GridLayout,
    Text,
    TextLine,
    heat_map,
    heat_tile,
    image_grid,
    image_tile,
    save_picture,
)

RED = image_tile(np.array([1.0, 0, 0])[:, None, None].repeat(64, 1).reshape(3, 8, 8))


def test_the_layout_adds_up_by_hand() -> None:
    layout = GridLayout(widths=(100, 0, 50), blocks=(2, 1), header=30, tile=80, line=20)
    assert [layout.left(column) for column in range(3)] == [12, 124, 136]
    assert [layout.rule(block) for block in range(2)] == [30, 30 + 12 + 200]
    assert [layout.top(0, row) for row in range(2)] == [42, 142]
    assert layout.size == (198, 30 + 12 + 200 + 12 + 100)


def test_a_grid_without_titles_has_no_header_and_no_rules() -> None:
    grid = np.asarray(image_grid([[[RED]], [[RED]]]))
    assert (grid[:GAP] == 255).all()
    assert (grid[GAP : GAP + TILE, GAP : GAP + TILE] == (255, 0, 0)).all()
    assert (grid[GAP + TILE + 4 : GAP + TILE + LINE + GAP] == 255).all()
    ruled = np.asarray(image_grid([[[RED]], [[RED]]], {}))
    assert (ruled[:, GAP] == (217, 217, 212)).all(axis=1).sum() == 2


def test_a_caption_extends_below_empty_cells_only() -> None:
    wide = image_tile(np.zeros((3, 8, 8), np.uint8), "W" * 60)
    for row, right in (([wide, None, RED], 2), ([wide, RED, RED], 1), ([wide, None, None], 3)):
        grid = np.asarray(image_grid([[row]]))
        columns = np.flatnonzero((grid[GAP + TILE + 2 :] < 128).any(axis=(0, 2)))
        left = GAP + right * (TILE + GAP)
        assert left - GAP - 20 < columns.max() < left - GAP


def test_text_cells_stay_in_their_column() -> None:
    lines = (TextLine("W" * 60, bold="0.50"), TextLine("W" * 60), TextLine(bold="W" * 60))
    text = Text(lines)
    grid = np.asarray(image_grid([[[text, Text(), RED]]], widths=(100, 0, TILE)))
    assert (grid[GAP : GAP + 3 * LINE, GAP : GAP + 100] < 128).any()
    assert (grid[:, GAP + 101 : GAP + 100 + 2 * GAP] == 255).all()


def test_uint8_and_float_images_give_the_same_tile() -> None:
    pixels = np.arange(3 * 16, dtype=np.uint8).reshape(3, 4, 4)
    floats = pixels.astype(np.float32) / 255
    np.testing.assert_array_equal(image_tile(pixels).pixels, image_tile(floats).pixels)
    gray = image_tile(pixels[:1]).pixels
    assert gray.shape == (4, 4, 3)
    assert (gray == gray[..., :1]).all()
    clipped = image_tile(np.full((3, 1, 1), 1.5, np.float32)).pixels
    assert clipped.tolist() == [[[255, 255, 255]]]


def test_the_heat_map_runs_from_dark_to_bright_and_clips() -> None:
    first, last, below, above = heat_map(np.array([[0.0, 1.0, -1.0, 2.0]], dtype=np.float32))[0]
    assert first.tolist() == below.tolist() == [68, 1, 84]
    assert last.tolist() == above.tolist() == [253, 231, 37]


def test_a_heat_map_over_an_image_is_a_weighted_mean() -> None:
    values = np.ones((1, 1), np.float32)
    over = np.array([0.3, 0.6, 0.9], np.float32)[:, None, None]
    expected = [0.6 * color + 0.4 * 255 * 0.6 for color in (253, 231, 37)]
    assert heat_tile(values, over=over).pixels[0, 0] == pytest.approx(expected, abs=0.51)


def test_a_webp_of_noise_is_small_enough_and_its_tiles_are_in_place(tmp_path: Path) -> None:
    noise = torch.rand(10, 3, 128, 128, generator=torch.Generator().manual_seed(0)).numpy()
    rows = [[image_tile(image, "noise") for image in noise]] * 4
    path = save_picture(image_grid([rows], {}), tmp_path / "new" / "noise.webp")
    assert 0 < path.stat().st_size <= MAX_BYTES
    assert Image.open(path).size == (706, 323)  # half of it: no quality was low enough
    red = save_picture(image_grid([[[None, RED]]], {}), tmp_path / "red.webp")
    written = Image.open(red).convert("RGB")
    color: Any = written.getpixel((12 + 140 + 64, 34 + 12 + 64))
    assert color == pytest.approx((255, 0, 0), abs=8)
    assert written.getpixel((12 + 64, 34 + 12 + 64)) == (255, 255, 255)


def test_a_png_is_lossless_until_it_is_too_large(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    picture, path = Image.fromarray(noise), tmp_path / "noise.png"
    for limit in (None, 20_000):
        save_picture(picture, path, limit)
        np.testing.assert_array_equal(np.asarray(Image.open(path).convert("RGB")), noise)
    save_picture(picture, path, 10_000)
    assert path.stat().st_size < 10_000
