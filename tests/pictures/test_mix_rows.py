"""Rows of mixes: which are chosen, and how they are drawn."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from mix_positions import MixPositions
from PIL import Image

from adautomix.errors import UsageError
from adautomix.methods import Mixed
from adautomix.pictures.image_grid import GAP, LINE, TILE, heat_map
from adautomix.pictures.mix_rows import MixRow, informative_mixes, merge_sources, mix_grid
from adautomix.rng import generator_at


def mix_row(ways: int, size: int = 32, masks: bool = True, **changes: Any) -> MixRow:
    generator = generator_at(0, ways, "picture")
    images = torch.randint(0, 256, (ways + 1, 3, size, size), generator=generator).to(torch.uint8)
    weights = torch.rand(ways, size, size, generator=generator).softmax(0)
    row = MixRow(
        method=f"method{ways}",
        sources=images[:ways],
        masks=weights if masks else None,
        mixed=images[ways],
        lam=tuple(weights.mean((1, 2)).tolist()),
        labels=tuple(f"class {n}" for n in range(ways)),
    )
    return replace(row, **changes)


def draw(rows: list[MixRow], folder: Path) -> npt.NDArray[np.uint8]:
    return np.asarray(Image.open(mix_grid(rows, folder / "new" / "grid.png")))


def tile_at(picture: npt.NDArray[np.uint8], x: int, y: int, factor: int) -> npt.NDArray[np.uint8]:
    """Return the image at (x, y), reading each enlarged pixel at its center."""
    half = factor // 2
    return picture[y + half : y + TILE : factor, x + half : x + TILE : factor]


# --- choice ----------------------------------------------------------------------------------


def test_the_most_informative_mixes_are_chosen() -> None:
    """Six images that are two: pairs of one image, nearly one, both, with flat masks or not."""
    perm = torch.tensor([[0, 2], [0, 1], [2, 3], [1, 4], [5, 0]])
    lam = torch.tensor([[0.5, 0.5], [0.1, 0.9], [0.3, 0.7], [0.6, 0.4], [0.5, 0.5]])
    inside = torch.zeros(5, 2, 2)
    inside[1:4, 0, 0] = 1
    masks = torch.stack([1 - inside, inside], dim=1)
    mixed = Mixed(torch.zeros(5, 3, 2, 2), torch.zeros(5, 2), lam, perm, masks)
    assert [informative_mixes(mixed, 2, count) for count in (1, 2, 3, 4)] == [
        [2],
        [2, 3],
        [1, 2, 3],
        [1, 2, 3, 4],
    ]
    weights, merged = merge_sources(mixed, 3, 2)
    assert weights == pytest.approx({1: 0.6, 0: 0.4})
    assert merged is not None
    assert torch.equal(merged, masks[3])
    weights, merged = merge_sources(mixed, 0, 2)
    assert weights == {0: 1.0}
    assert merged is not None
    assert torch.equal(merged, torch.ones(1, 2, 2))


# --- picture ---------------------------------------------------------------------------------


def test_the_grid_shows_every_pixel(tmp_path: Path) -> None:
    rows = [mix_row(3), mix_row(1, masks=False), mix_row(4)]
    picture = draw(rows, tmp_path)
    at = MixPositions(ways=4, rows=3)
    assert picture.shape == (at.size[1], at.size[0], 3)
    for index, row in enumerate(rows):
        y = at.y(index)
        mixed = row.mixed.permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(tile_at(picture, at.x(at.columns.mix), y, 4), mixed)
        for n, source in enumerate(row.sources):
            drawn = tile_at(picture, at.x(at.columns.source(n)), y, 4)
            np.testing.assert_array_equal(drawn, source.permute(1, 2, 0).numpy())
        for n, mask in enumerate([] if row.masks is None else row.masks):
            drawn = tile_at(picture, at.x(at.columns.mask(n)), y, 4)
            np.testing.assert_array_equal(drawn, heat_map(mask.numpy()))


@pytest.mark.slow
def test_many_rows_are_drawn_in_stacks(tmp_path: Path) -> None:
    rows = [mix_row(2) for _ in range(17)]
    picture = draw(rows, tmp_path)
    at = MixPositions(ways=2, rows=17)
    assert at.height == 9
    assert picture.shape == (at.size[1], at.size[0], 3)
    for index in (0, 8, 9, 16):
        drawn = tile_at(picture, at.x(at.columns.mix, index), at.y(index), 4)
        np.testing.assert_array_equal(drawn, rows[index].mixed.permute(1, 2, 0).numpy())


def test_the_grid_enlarges_images_to_square_pixels(tmp_path: Path) -> None:
    row = mix_row(1, size=8)
    picture = draw([row], tmp_path)
    at = MixPositions(ways=1, rows=1)
    x, y = at.x(at.columns.mix), at.y(0)
    assert (picture[y : y + 16, x : x + 16] == row.mixed[:, 0, 0].numpy()).all()


def test_the_grid_shrinks_large_images_into_their_tile(tmp_path: Path) -> None:
    large = torch.full((1, 3, 300, 200), 77, dtype=torch.uint8)
    picture = draw([mix_row(1, sources=large, mixed=large[0], masks=False)], tmp_path)
    at = MixPositions(ways=1, rows=1)
    x, y = at.x(at.columns.mix), at.y(0)
    assert (picture[y : y + TILE, x : x + TILE * 2 // 3] == 77).all()
    assert (picture[y : y + TILE, x + TILE * 2 // 3 + 1 : x + TILE] == 255).all()


def test_long_labels_stay_in_their_column(tmp_path: Path) -> None:
    row = mix_row(2, labels=("W" * 60, "W" * 60), method="W" * 60)
    picture = draw([row], tmp_path)
    at = MixPositions(ways=2, rows=1)
    body = picture[at.layout.header + 2 :]
    captions = picture[at.y(0) + TILE : at.y(0) + TILE + LINE]
    sources = [at.x(at.columns.source(n)) for n in range(2)]
    for x in sources:
        end = x + TILE
        assert (captions[:, x:end] < 128).any()
        assert (body[:, end + 1 : end + GAP] == 255).all()
    assert (body[:, sources[0] - GAP + 1 : sources[0]] == 255).all()
    assert (body[:, -GAP + 1 :] == 255).all()


def test_the_weights_of_equal_classes_are_added(tmp_path: Path) -> None:
    """Two sources of one class make one line of the label, two classes make two."""
    inked = []
    for labels in (("cat", "cat"), ("cat", "dog")):
        picture = draw([mix_row(2, labels=labels)], tmp_path)
        at = MixPositions(ways=2, rows=1)
        top = at.y(0) + 2 * LINE
        inked.append(bool((picture[top : top + LINE, at.x(at.columns.label) :] < 128).any()))
    assert inked == [False, True]


def test_rows_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="at least one row"):
        mix_grid([], tmp_path / "grid.png")
    with pytest.raises(UsageError, match="2 sources, 2 masks, 1 λ, 2 labels"):
        mix_grid([mix_row(2, lam=(1.0,))], tmp_path / "grid.png")
