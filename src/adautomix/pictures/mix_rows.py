"""Draw mixed samples of any method: the sources of each mix, their masks, the mix and its label."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from adautomix.data.batches import eval_batches
from adautomix.data.dataset import Color, ImageData
from adautomix.data.decoding.image_files import prepare_images
from adautomix.data.preparation import Preparation
from adautomix.errors import UsageError
from adautomix.methods import Method, Mixed
from adautomix.mixing.ops import soft_targets
from adautomix.pictures.image_grid import (
    PAPER,
    TILE,
    Cell,
    GridLayout,
    Text,
    TextLine,
    heat_tile,
    image_grid,
    image_tile,
    save_picture,
)
from adautomix.rng import generator_at

GRAY = (0.5, 0.5, 0.5)
EVEN_WEIGHT = 0.8  # mixes in which no image has more of the label count as equally balanced
FLAT_RANGE = 0.05  # a mask whose values differ by less than this is flat
_NAME_WIDTH, _LABEL_WIDTH = 140, 250


@dataclass(frozen=True)
class ImageBatch:
    """Images to mix, with everything that is needed to name and show them.

    Attributes:
        images: normalized, `[B, 3, H, W]`.
        labels: class indices `[B]`, or 0 and 1 for each class `[B, K]`.
        classes: class names.
        mean: mean of each channel, for pixels from 0 to 1.
        std: standard deviation of each channel, for pixels from 0 to 1.
    """

    images: Tensor
    labels: Tensor
    classes: Sequence[str]
    mean: Color
    std: Color

    def repeated(self, count: int) -> "ImageBatch":
        """Return the batch with its images repeated until there are at least `count`."""
        rows = torch.arange(max(count, len(self.images)), device=self.images.device)
        rows %= len(self.images)
        return replace(self, images=self.images[rows], labels=self.labels[rows])


@dataclass(frozen=True, eq=False)
class MixRow:
    """One mix to draw.

    Attributes:
        method: name on the left.
        sources: the N source images, uint8 `[N, 3, H, W]`.
        masks: weight of each source at each pixel, 0 to 1, `[N, H, W]`; None without masks.
        mixed: the mix, uint8 `[3, H, W]`.
        lam: the mixing coefficient λ of each source.
        labels: class name of each source.
        note: a remark below the name of the method.
    """

    method: str
    sources: Tensor
    masks: Tensor | None
    mixed: Tensor
    lam: tuple[float, ...]
    labels: tuple[str, ...]
    note: str = ""


# ---------------------------------------------------------------------- images


def batch_from_files(
    files: Sequence[Path],
    size: int,
    mean: Color = GRAY,
    std: Color = GRAY,
    preparation: Preparation | None = None,
) -> ImageBatch:
    """Read image files, of the classes that `classes_of_files` names.

    A single picture is mixed with its mirror image.

    Raises:
        UsageError: a file cannot be read.
    """
    images = prepare_images(files, image_size=size, mean=mean, std=std, preparation=preparation)
    names = classes_of_files(files)
    if len(files) == 1:
        images = torch.cat([images, images.flip(-1)])
        names = [*names, f"{names[0]}, mirrored"]
    classes = list(dict.fromkeys(names))
    labels = torch.tensor([classes.index(name) for name in names])
    return ImageBatch(images, labels, classes, mean, std)


def classes_of_files(files: Sequence[Path]) -> list[str]:
    """Return the class of each file: its folder's name, or its own if all share one folder."""
    folders = [path.absolute().parent.name for path in files]
    return folders if len(set(folders)) > 1 else [path.stem for path in files]


def batch_from_data(
    data: ImageData, seed: int, device: torch.device, count: int = 16
) -> ImageBatch:
    """Return `count` random test images; the seed decides which, so all methods mix the same."""
    rows = torch.randperm(len(data.test), generator=generator_at(seed, 0, "preview"))[:count]
    batches = eval_batches(data.test.subset(rows), data, batch_size=count, device=device)
    images, labels = next(batches)
    return ImageBatch(images, labels, data.classes, data.mean, data.std)


def to_pixels(images: Tensor, mean: Color, std: Color) -> Tensor:
    """Convert normalized images `[..., 3, H, W]` to uint8 on the CPU."""
    scale, shift = (torch.tensor(c, device=images.device)[:, None, None] for c in (std, mean))
    return ((images.float() * scale + shift) * 255).round().clamp(0, 255).byte().cpu()


# ---------------------------------------------------------------------- mixes


def mix_rows(
    method: Method,
    batch: ImageBatch,
    *,
    count: int,
    student: Any = None,
    teacher: Any = None,
    step: int = 0,
    candidates: int = 0,
    note: str = "",
) -> list[MixRow]:
    """Mix a batch and return `count` of the mixes.

    Args:
        method: the mixing method.
        batch: the images; they are repeated if there are fewer than the method needs.
        count: number of rows.
        student: the trained network, for methods that look inside it.
        teacher: its moving average, for methods that look inside it.
        step: the training step whose random parameters are used.
        candidates: make at least this many mixes and return the most informative ones; 0: return
            the first mixes.
        note: a remark below the name of the method.
    """
    distinct = len(batch.images)
    batch = batch.repeated(max(count, method.min_batch, candidates))
    params = method.params_for_step(batch.images.shape, step).to(batch.images.device)
    targets = soft_targets(batch.labels, len(batch.classes))
    with torch.no_grad():
        mixed = method.mix_batch(batch.images, targets, student, teacher, params)
    chosen = informative_mixes(mixed, distinct, count) if candidates else range(count)
    sources = to_pixels(batch.images[:distinct], batch.mean, batch.std)
    mixes = to_pixels(mixed.images, batch.mean, batch.std)
    rows = []
    for b in chosen:
        weights, masks = merge_sources(mixed, b, distinct)
        shown = list(weights)
        names = tuple(class_names(batch, source) for source in shown)
        lam = tuple(weights.values())
        rows.append(MixRow(method.name, sources[shown], masks, mixes[b], lam, names, note))
    return rows


def class_names(batch: ImageBatch, row: int) -> str:
    """The class of an image; several are joined, and "none" stands for an image without any."""
    label = batch.labels[row]
    if label.ndim == 0:
        return batch.classes[int(label)]
    return " + ".join(batch.classes[k] for k in label.nonzero()[:, 0].tolist()) or "none"


def merge_sources(mixed: Mixed, b: int, distinct: int) -> tuple[dict[int, float], Tensor | None]:
    """Count sources of mix `b` that show the same image as one.

    Args:
        mixed: the mixes of a batch that repeats its first `distinct` images.
        b: which mix.
        distinct: number of different images.

    Returns:
        The label weight of each image in the mix, and its mask `[N, H, W]` if there are masks.
        Images without any weight are left out.
    """
    perm, lam = (mixed.perm[b] % distinct).tolist(), mixed.lam[b].tolist()
    weights = dict.fromkeys(perm, 0.0)
    for image, weight in zip(perm, lam, strict=True):
        weights[image] += weight
    by_source = mixed.masks
    if by_source is None:
        return {image: weight for image, weight in weights.items() if weight > 0}, None
    masks = dict.fromkeys(perm, torch.zeros(()))
    for image, mask in zip(perm, by_source[b].cpu(), strict=True):
        masks[image] = masks[image] + mask
    used = [image for image in weights if weights[image] > 0 or masks[image].any()]
    return {image: weights[image] for image in used}, torch.stack([masks[i] for i in used])


def informative_mixes(mixed: Mixed, distinct: int, count: int) -> list[int]:
    """Return the indices of the mixes that show best what the method does.

    Mixes whose masks vary over the image come before those with flat masks. Among them, mixes in
    which no image has more than `EVEN_WEIGHT` of the label come first, then the more balanced.

    Args:
        mixed: the mixes of a batch that repeats its first `distinct` images.
        distinct: number of different images.
        count: number of mixes to choose.
    """
    weights = mixed.lam.new_zeros(len(mixed.lam), distinct)
    largest = weights.scatter_add(1, mixed.perm % distinct, mixed.lam).amax(dim=1)
    flat = torch.zeros_like(largest)
    masks = mixed.masks
    if masks is not None:
        low, high = masks.flatten(2).aminmax(dim=2)
        flat = ((high - low).amax(dim=1) < FLAT_RANGE).float()
    order = (flat + largest.clamp_min(EVEN_WEIGHT)).argsort(stable=True)
    return sorted(order[:count].tolist())


# ---------------------------------------------------------------------- picture


@dataclass(frozen=True)
class MixColumns:
    """Column numbers in a grid of mixes that have at most `ways` sources.

    From left to right: the method, the sources, a spacer, the masks, a spacer, the mix, its label.
    """

    ways: int
    method: int = 0

    @property
    def widths(self) -> tuple[int, ...]:
        """Width of each column in pixels."""
        images = self.ways * (TILE,)
        return (_NAME_WIDTH, *images, 0, *images, 0, TILE, _LABEL_WIDTH)

    def source(self, n: int) -> int:
        """Return the column of source `n`."""
        return 1 + n

    def mask(self, n: int) -> int:
        """Return the column of the mask of source `n`."""
        return 2 + self.ways + n

    @property
    def mix(self) -> int:
        """The column of the mix."""
        return 3 + 2 * self.ways

    @property
    def label(self) -> int:
        """The column of the label."""
        return 4 + 2 * self.ways

    @property
    def titles(self) -> dict[int, str]:
        """The title of each titled column."""
        return {
            self.method: "method",
            self.source(0): "originals",
            self.mask(0): "masks",
            self.mix: "mix",
            self.label: "label of the mix",
        }


def mix_grid(rows: Sequence[MixRow], path: Path) -> Path:
    """Write a PNG file with one row per mix, and return its path.

    Rows may have different numbers of sources and images of different sizes. Many rows are split
    into several stacks side by side, so that the picture is about square.

    Raises:
        UsageError: there is no row, or a row does not have one λ, label and mask per source.
    """
    if not rows:
        raise UsageError("no mix to draw: give at least one row")
    for row in rows:
        _check(row)
    columns = MixColumns(max(len(row.labels) for row in rows))
    height = stack_height(columns, len(rows))
    stacks = [
        image_grid(
            [[mix_cells(row, columns)] for row in rows[start : start + height]],
            columns.titles,
            widths=columns.widths,
            color_bar=columns.mask(0),
        )
        for start in range(0, len(rows), height)
    ]
    return save_picture(side_by_side(stacks), Path(path), max_bytes=None)


def _check(row: MixRow) -> None:
    counts = {
        "sources": len(row.sources),
        "masks": len(row.sources if row.masks is None else row.masks),
        "λ": len(row.lam),
        "labels": len(row.labels),
    }
    if len(set(counts.values())) > 1:
        text = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise UsageError(f"a row of {row.method} has {text}; give as many of each")


def stack_height(columns: MixColumns, rows: int) -> int:
    """Return the number of rows per stack that makes the picture about square."""
    width, height = GridLayout(columns.widths, rows * (1,)).size
    stacks = max(1, round(math.sqrt(height / width)))
    return math.ceil(rows / stacks)


def side_by_side(pictures: Sequence[Image.Image]) -> Image.Image:
    """Return one picture with all pictures from left to right, aligned at the top."""
    size = (sum(each.width for each in pictures), max(each.height for each in pictures))
    joined = Image.new("RGB", size, PAPER)
    x = 0
    for each in pictures:
        joined.paste(each, (x, 0))
        x += each.width
    return joined


def mix_cells(row: MixRow, columns: MixColumns) -> list[Cell]:
    """Return the cells of one mix."""
    cells: list[Cell] = [None] * len(columns.widths)
    for spacer in (columns.mask(0) - 1, columns.mix - 1):
        cells[spacer] = Text()
    cells[columns.method] = Text((TextLine(bold=row.method), TextLine(row.note, muted=True)))
    for n, (source, label) in enumerate(zip(row.sources, row.labels, strict=True)):
        cells[columns.source(n)] = image_tile(source.cpu().numpy(), label)
    if row.masks is None:
        cells[columns.mask(0)] = Text((TextLine("no mask", muted=True),))
    else:
        for n, mask in enumerate(row.masks.detach().cpu().float().numpy()):
            caption = f"mean {mask.mean():.2f}"
            cells[columns.mask(n)] = heat_tile(mask, caption, muted=True)
    cells[columns.mix] = image_tile(row.mixed.cpu().numpy())
    cells[columns.label] = label_text(row)
    return cells


def label_text(row: MixRow) -> Text:
    """Return λ, and below it the weight of each class in the soft label."""
    weights: dict[str, float] = {}
    for label, lam in zip(row.labels, row.lam, strict=True):
        weights[label] = weights.get(label, 0.0) + lam
    lam_line = TextLine("λ = " + ", ".join(f"{lam:.2f}" for lam in row.lam))
    classes = (TextLine(label, bold=f"{weight:.2f}") for label, weight in weights.items())
    return Text((lam_line, *classes))
