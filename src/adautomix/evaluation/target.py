"""What is evaluated: networks that take pixels, and the images they are evaluated on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from adautomix.data import ImageData, Split, pixel_batches
from adautomix.data.color import Color
from adautomix.models import Classifier, evaluating
from adautomix.rng import generator_at


class PixelNetwork(nn.Module):
    """A classifier of pixels in [0, 1].

    It normalizes its input itself, so that attacks and occlusions operate on pixels.

    Args:
        model: a `Classifier` or any timm model; takes normalized images `[B, 3, H, W]`.
        mean: mean of each channel, for pixels in [0, 1].
        std: standard deviation of each channel, for pixels in [0, 1].
        head: name of the head of a `Classifier` to evaluate; None for other models.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Color, std: Color, head: str | None = None) -> None:
        super().__init__()
        self.model: Any = model
        self.head = head
        self.normalization = (*mean, *std)
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def normalize(self, pixels: Tensor) -> Tensor:
        """Return the input of the inner model for pixels `[B, 3, H, W]` in [0, 1]."""
        normalized = (pixels - self.mean) / self.std
        return normalized.contiguous(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return float32 logits `[B, K]` for pixels `[B, 3, H, W]` in [0, 1]."""
        images = self.normalize(pixels)
        logits = self.model(images) if self.head is None else self.model(images, head=self.head)
        return cast(Tensor, logits).float()

    def pooled(self, pixels: Tensor) -> Tensor:
        """Return the pooled features `[B, D]`, float32, which are the input of the last layer."""
        images = self.normalize(pixels)
        if isinstance(self.model, Classifier):
            return self.model.features(images).pooled.float()
        features = self.model.forward_features(images)
        return cast(Tensor, self.model.forward_head(features, pre_logits=True)).float()

    @property
    def backbone(self) -> nn.Module:
        """The timm model inside, without the heads of a `Classifier`."""
        return cast(nn.Module, getattr(self.model, "backbone", self.model))


@dataclass(frozen=True)
class EvalTarget:
    """The networks under evaluation and the images they are evaluated on.

    Attributes:
        name: name in tables.
        folder: where `evaluation.json` and pictures are written.
        networks: "student" and "teacher" of a run, otherwise one "network"; in evaluation mode.
        data: the data set. `test` is scored and already reduced to the requested number of
            images; `val`, if there is one, is used for fitting (a temperature); `train` is used
            by linear probes and k-NN.
        device: the device of the networks; splits are moved there batch by batch.
        batch_size: images per forward pass.
        seed: random seed of the suites.
        source: where the weights come from (run, checkpoint, step, …), for the record.
        architecture: settings of a `TrainConfig` that build these networks again.
        run: the run folder; None for a network that is not from a run.
    """

    name: str
    folder: Path
    networks: dict[str, PixelNetwork]
    data: ImageData
    device: torch.device
    batch_size: int
    seed: int
    source: dict[str, Any]
    architecture: dict[str, Any] = field(default_factory=dict)
    run: Path | None = None

    @property
    def classes(self) -> Sequence[str]:
        """Class names, in the order of the logits."""
        return self.data.classes

    def batches(
        self, split: Split | None = None, batch_size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels and labels of a split, batch by batch.

        Args:
            split: the split to read; None reads the test split.
            batch_size: images per batch; None uses the target's batch size.

        Yields:
            Pixels, float32 `[B, 3, H, W]` in [0, 1], and labels, int64 `[B]`.
        """
        return pixel_batches(
            self.data.test if split is None else split,
            self.data,
            batch_size=batch_size or self.batch_size,
            device=self.device,
        )

    def logits(self, split: Split | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Return the logits `[n, K]` of each network on a split and the labels `[n]`, on the CPU.

        Args:
            split: the split to read; None reads the test split.
        """
        outputs: dict[str, list[Tensor]] = {name: [] for name in self.networks}
        labels = []
        with evaluating(*self.networks.values()):
            for pixels, batch_labels in self.batches(split):
                labels.append(batch_labels.cpu())
                for name, network in self.networks.items():
                    outputs[name].append(network(pixels).cpu())
        return {name: torch.cat(batches) for name, batches in outputs.items()}, torch.cat(labels)

    def generator(self, stream: str) -> torch.Generator:
        """Return a CPU generator for one purpose, in the same state at every call."""
        return generator_at(self.seed, 0, f"evaluation/{stream}")

    def fingerprint(self) -> str:
        """Return a hash of the weights and the images; equal where results must be equal."""
        digest = blake2b(digest_size=8)
        for name, network in self.networks.items():
            digest.update(name.encode())
            for key, value in sorted(network.state_dict().items()):
                digest.update(key.encode())
                digest.update(value.detach().cpu().contiguous().view(-1).numpy().tobytes())
        data = self.data
        digest.update(f"{data.name}/{data.image_size}/{self.seed}".encode())
        if data.record is not None:
            digest.update(data.record.digest().encode())
        for name, split in data.splits().items():
            digest.update(name.encode())
            digest.update(split.labels.cpu().numpy().tobytes())
        return digest.hexdigest()


def take_sample(split: Split, images: int | None, generator: torch.Generator) -> Split:
    """Return a random sample of a split, in the order of the split.

    Args:
        split: the split to sample from.
        images: size of the sample; None, or more than the split holds, returns the whole split.
        generator: CPU random number generator.
    """
    if images is None or images >= len(split):
        return split
    rows = torch.randperm(len(split), generator=generator)[:images]
    return split.subset(rows.sort().values)
