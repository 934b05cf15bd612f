"""Time one call of Mixup or CutMix in this package and in other libraries, in turns.

    python benchmarks/mixing_alone.py --batch 128 --size 224 --rows benchmarks/results/cpu.jsonl

A call covers the random parameters, the images and the labels. The libraries differ in three ways:

- timm mixes in place and gets a tensor of its own; the others leave their input unchanged.
- timm and torchvision pair each image with its mirror image in the batch or with its neighbor,
  which needs no gather; this package and kornia draw a permutation.
- kornia returns both classes and λ for each sample instead of soft labels.
"""

import argparse
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Literal, cast

import torch
from peers import PEERS, is_installed, require_peer
from torch import Tensor

import adautomix.functional
from adautomix.bench.rows import append
from adautomix.bench.workload import Measured, Row, time_call
from adautomix.device import pick_device
from adautomix.errors import UsageError

Mode = Literal["batch", "sample"]
Mixer = Callable[[Tensor, Tensor], object]

CLASSES = 1000
WARM_UP = 3


@dataclass(frozen=True)
class MixTiming(Measured):
    """Seconds of each measured call of one mixer.

    Attributes:
        library: "adautomix" or a peer.
        method: "mixup" or "cutmix".
        mode: one λ or box a "batch" or a "sample".
        batch: images per call.
        size: image side in pixels.
        seconds: one number a round.
    """

    library: str
    method: str
    mode: Mode
    batch: int
    size: int
    seconds: list[float]


def our_mixer(method: str, mode: Mode) -> Mixer:
    """The function of `adautomix.functional`."""
    mix = getattr(adautomix.functional, method)
    return lambda images, labels: mix(
        images, labels, num_classes=CLASSES, per_sample=mode == "sample"
    )


def timm_mixer(method: str, mode: Mode) -> Mixer:
    """`timm.data.Mixup` with one of its two methods switched off; in place."""
    mixer = import_module("timm.data").Mixup(
        mixup_alpha=float(method == "mixup"),
        cutmix_alpha=float(method == "cutmix"),
        mode="batch" if mode == "batch" else "elem",
        label_smoothing=0.0,
        num_classes=CLASSES,
    )
    return cast(Mixer, mixer)


def torchvision_mixer(method: str, mode: Mode) -> Mixer | None:
    """`MixUp` or `CutMix` of torchvision's transforms, which have no mode by sample."""
    if mode == "sample":
        return None
    v2 = import_module("torchvision.transforms.v2")
    transform = v2.MixUp if method == "mixup" else v2.CutMix
    return cast(Mixer, transform(num_classes=CLASSES))


def kornia_mixer(method: str, mode: Mode) -> Mixer:
    """`RandomMixUpV2` or `RandomCutMixV2`."""
    augmentation = import_module("kornia.augmentation")
    common = {"data_keys": ["input", "class"], "same_on_batch": mode == "batch"}
    if method == "mixup":
        return cast(Mixer, augmentation.RandomMixUpV2(**common))
    return cast(Mixer, augmentation.RandomCutMixV2(use_correct_lambda=True, **common))


MIXERS: dict[str, Callable[[str, Mode], Mixer | None]] = {
    "adautomix": our_mixer,
    "timm": timm_mixer,
    "torchvision": torchvision_mixer,
    "kornia": kornia_mixer,
}


def time_mixing(
    methods: Sequence[str] = ("mixup", "cutmix"),
    libraries: Sequence[str] | None = None,
    *,
    batch: int = 128,
    size: int = 224,
    rounds: int = 20,
    device: torch.device,
) -> list[MixTiming]:
    """Time `rounds` calls of each mixer, one of each a round, after a few to warm up.

    Whatever slows the machine for a while slows all of them alike, and as each round has an order
    of its own, none always follows the one that leaves caches and allocator at their worst.

    Args:
        methods: "mixup", "cutmix".
        libraries: names in `MIXERS`; those that are installed unless named.
        batch: images per call, an even number.
        size: image side in pixels.
        rounds: measured calls of each, at least 2.
        device: where the images, float32 `[batch, 3, size, size]`, and the labels lie.

    Raises:
        UsageError: a library is unknown or not installed, a method or number out of range.
    """
    if rounds < 2 or batch % 2:
        raise UsageError(f"rounds {rounds}, batch {batch}: use 2 rounds or more and an even batch")
    images = torch.randn(batch, 3, size, size, device=device)
    labels = torch.randint(CLASSES, (batch,), device=device)
    timings: list[MixTiming] = []
    calls: list[Callable[[], object]] = []
    for library, method, mode, mixer in chosen_mixers(methods, chosen_libraries(libraries)):
        own = images.clone() if library == "timm" else images
        timings.append(MixTiming(library, method, mode, batch, size, []))
        calls.append(partial(mixer, own, labels))
    orders = random.Random(0)
    for round_ in range(WARM_UP + rounds):
        pairs = list(zip(timings, calls, strict=True))
        for timing, call in orders.sample(pairs, len(pairs)):
            seconds = time_call(call, device)
            if round_ >= WARM_UP:
                timing.seconds.append(seconds)
    return timings


def chosen_libraries(libraries: Sequence[str] | None) -> Sequence[str]:
    """Those named, or all that can be imported."""
    if libraries is None:
        return [name for name in MIXERS if name not in PEERS or is_installed(name)]
    for name in libraries:
        if name not in MIXERS:
            raise UsageError(f"no mixing by {name!r}: use one of {', '.join(MIXERS)}")
        if name in PEERS:
            require_peer(name)
    return libraries


def chosen_mixers(
    methods: Sequence[str], libraries: Sequence[str]
) -> list[tuple[str, str, Mode, Mixer]]:
    """Library, method, mode and mixer of all that is to be timed."""
    modes: tuple[Mode, ...] = ("batch", "sample")
    for method in methods:
        if method not in ("mixup", "cutmix"):
            raise UsageError(f"no timing of mixing by {method!r}: use mixup or cutmix")
    return [
        (library, method, mode, mixer)
        for method in methods
        for mode in modes
        for library in libraries
        if (mixer := MIXERS[library](method, mode)) is not None
    ]


def mix_rows(timings: Sequence[MixTiming]) -> list[Row]:
    """One row per mixer; `times_ours` is its median divided by the median of this package."""
    ours = {(t.method, t.mode): t.median for t in timings if t.library == "adautomix"}
    return [mix_row(timing, ours[timing.method, timing.mode]) for timing in timings]


def mix_row(timing: MixTiming, ours: float) -> Row:
    """The timing of one mixer as a row of data."""
    return {
        "method": timing.method,
        "mode": timing.mode,
        "library": timing.library,
        "batch_size": timing.batch,
        "image_size": timing.size,
        "seconds": timing.median,
        "quartiles": timing.quartiles,
        "times_ours": timing.median / ours,
    }


def main() -> None:
    """Time, print, and write a row if asked."""
    arguments = parse_arguments()
    device = pick_device("auto")
    timings = time_mixing(
        arguments.methods.split(","),
        ["adautomix", *arguments.libraries.split(",")] if arguments.libraries else None,
        batch=arguments.batch,
        size=arguments.size,
        rounds=arguments.rounds,
        device=device,
    )
    figures = mix_rows(timings)
    for figure in figures:
        print(figure)
    if arguments.rows:
        libraries = {str(figure["library"]) for figure in figures} & set(PEERS)
        append(arguments.rows, "mixing", figures, device=device, libraries=sorted(libraries))


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", default="mixup,cutmix", help="comma-separated")
    parser.add_argument("--libraries", default="", help="comma-separated; default: all installed")
    parser.add_argument("--batch", type=int, default=128, help="images per call, an even number")
    parser.add_argument("--size", type=int, default=224, help="image height and width in pixels")
    parser.add_argument("--rounds", type=int, default=20, help="measured calls of each mixer")
    parser.add_argument("--rows", type=Path, help="file of rows to add to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
