"""What is evaluated: networks that take pixels, and the images they are tried on."""

from collections.abc import Iterator, Mapping, Sequence
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
    """A classifier of pixels in [0, 1]: normalization is inside, so attacks see pixels.

    Args:
        model: a `Classifier` or any timm network; takes normalized images `[B, 3, H, W]`.
        mean: of every channel, for pixels in [0, 1].
        std: likewise.
        head: of a `Classifier`, the head that is asked; others have one.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Color, std: Color, head: str | None = None) -> None:
        super().__init__()
        self.model: Any = model
        self.head = head
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def normalize(self, pixels: Tensor) -> Tensor:
        """What the network inside is given for pixels `[B, 3, H, W]` in [0, 1]."""
        normalized = (pixels - self.mean) / self.std
        return normalized.contiguous(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> Tensor:
        """Float32 logits `[B, K]` for pixels `[B, 3, H, W]` in [0, 1]."""
        images = self.normalize(pixels)
        logits = self.model(images) if self.head is None else self.model(images, head=self.head)
        return cast(Tensor, logits).float()

    def pooled(self, pixels: Tensor) -> Tensor:
        """The pooled last features `[B, D]` that a linear head sees, float32."""
        images = self.normalize(pixels)
        if isinstance(self.model, Classifier):
            return self.model.features(images).pooled.float()
        features = self.model.forward_features(images)
        return cast(Tensor, self.model.forward_head(features, pre_logits=True)).float()

    @property
    def backbone(self) -> nn.Module:
        """The timm network inside, without the heads of a `Classifier`."""
        return cast(nn.Module, getattr(self.model, "backbone", self.model))


@dataclass(frozen=True)
class EvalTarget:
    """Networks under evaluation and the images they are tried on.

    Attributes:
        name: what it is called in tables.
        folder: where `evaluation.json` and pictures go.
        networks: "student" and "teacher" of a run, one "network" otherwise; in evaluation mode.
        data: `test` is what is scored, already cut to the images asked for; `val`, where there
            is one, is for fitting (temperature); `train` is for probes.
        device: where the networks are; splits are moved batch by batch.
        batch_size: images a forward.
        seed: of every random number in the suites.
        source: where the weights come from (run, checkpoint, step, …), for the record.
        architecture: settings of a `TrainConfig` that build these networks anew.
        run: the run folder's own path; None for a network from elsewhere.
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
        """Class names, in the order of the outputs."""
        return self.data.classes

    def batches(
        self, split: Split | None = None, batch_size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Pixels float32 `[B, 3, H, W]` in [0, 1] and labels `[B]` of a split; none: the test."""
        return pixel_batches(
            self.data.test if split is None else split,
            self.data,
            batch_size=batch_size or self.batch_size,
            device=self.device,
        )

    def logits(self, split: Split | None = None) -> tuple[dict[str, Tensor], Tensor]:
        """Logits `[n, K]` of each network on a split, and the labels `[n]`; on the CPU."""
        outputs: dict[str, list[Tensor]] = {name: [] for name in self.networks}
        labels = []
        with evaluating(*self.networks.values()):
            for pixels, batch_labels in self.batches(split):
                labels.append(batch_labels.cpu())
                for name, network in self.networks.items():
                    outputs[name].append(network(pixels).cpu())
        return {name: torch.cat(parts) for name, parts in outputs.items()}, torch.cat(labels)

    def generator(self, stream: str) -> torch.Generator:
        """A CPU generator for one purpose, the same at every call."""
        return generator_at(self.seed, 0, f"evaluation/{stream}")

    def fingerprint(self) -> str:
        """Names the weights and what they are tried on: equal where results must be equal."""
        digest = blake2b(digest_size=8)
        for name, network in self.networks.items():
            digest.update(name.encode())
            for key, value in sorted(network.state_dict().items()):
                digest.update(key.encode())
                digest.update(value.detach().cpu().contiguous().view(-1).numpy().tobytes())
        data = self.data
        digest.update(f"{data.name}/{data.image_size}/{self.seed}".encode())
        for name, split in data.splits().items():
            digest.update(name.encode())
            digest.update(split.labels.cpu().numpy().tobytes())
        return digest.hexdigest()


def cut(split: Split, images: int | None, generator: torch.Generator) -> Split:
    """At most so many images of a split, chosen at random and kept in their order."""
    if images is None or images >= len(split):
        return split
    rows = torch.randperm(len(split), generator=generator)[:images]
    return split.subset(rows.sort().values)


def accuracy(logits: Mapping[str, Tensor], labels: Tensor) -> dict[str, float]:
    """Top-1 accuracy, 0 to 1, of each network's logits `[n, K]`."""
    return {name: float((z.argmax(dim=1) == labels).double().mean()) for name, z in logits.items()}
