"""Transfer: what the features of a trained network are worth, on its own images or another set.

Three readings of the top-1 accuracy on the test images, the cheapest first:

- k-NN: the nearest training images vote, by the cosine between pooled features;
- linear probe: a logistic regression on the pooled features, brought to mean 0 and deviation 1.
  Its regularization C is the one of `GRID` that does best on a fifth of the training images of
  each class, held out (the strongest of equals); it is then fitted to all of them;
- fine-tuning: the whole network goes on from its backbone with a new head. The paper's Table 3
  does this with ImageNet networks on CUB-200 and Cars for 100 epochs: `finetune: 100`.

For the first two, images are brought to the size that the network knows and normalized as in its
own training; fine-tuning is a run like any other, normalized with the colors of the new set.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from pydantic import BaseModel, Field, model_validator
from safetensors.torch import save_file
from torch import Tensor

from adautomix.config import TrainConfig, make_config
from adautomix.data import ImageData, Split
from adautomix.data.partition import partition
from adautomix.errors import UsageError
from adautomix.evaluation.suite import ResultCache, Suite, SuiteResult, SuiteSettings
from adautomix.evaluation.target import EvalTarget, PixelNetwork, cut
from adautomix.methods import find_method
from adautomix.models import evaluating
from adautomix.runs.build import load_images
from adautomix.runs.folder import RunFolder
from adautomix.training.compare import train_or_resume

GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
HELD_OUT = 0.2


class TransferSettings(SuiteSettings):
    """What the networks are tried on, and how."""

    data: str | None = Field(
        None, description="another data set, by name or folder; none: the network's own"
    )
    data_root: Path | None = Field(None, description="folder of downloaded data sets")
    probe: bool = Field(True, description="a linear classifier on the pooled features")
    knn: int = Field(5, ge=0, description="neighbors that vote; 0: no k-NN")
    images: int | None = Field(
        10_000, ge=2, description="training images for probe and k-NN, at most; none: all"
    )
    finetune: int = Field(
        0, ge=0, description="epochs of training the whole network on `data`; 0: off, it is long"
    )
    method: str = Field("vanilla", description="of fine-tuning, one of `adautomix methods`")
    lr: float = Field(0.01, gt=0, description="learning rate of fine-tuning")
    batch_size: int = Field(100, ge=2, description="images a step of fine-tuning")

    @model_validator(mode="after")
    def _check(self) -> Self:
        find_method(self.method)
        if self.finetune and self.data is None:
            raise UsageError(
                "transfer.finetune needs another data set: --transfer.data a folder, digits, …"
            )
        return self


class Probe(BaseModel):
    """What a linear probe gave: top-1, 0 to 1, and the C it was fitted with."""

    top1: float
    c: float


class Transferred(BaseModel):
    """What one network gave; None where it was not asked for.

    Attributes:
        probe: of the linear probe.
        knn: top-1 of the nearest neighbors, 0 to 1.
        finetuned: `Scores` after the last epoch of "student", the fine-tuned network, and of
            "teacher", its moving average.
    """

    probe: Probe | None = None
    knn: float | None = None
    finetuned: dict[str, dict[str, float]] | None = None


class TransferResult(SuiteResult):
    """What each network gave on one data set.

    Attributes:
        data: its name.
        train_images: for probe and k-NN.
        test_images: for all.
        networks: by name.
    """

    data: str
    train_images: int
    test_images: int
    networks: dict[str, Transferred]


class Features(NamedTuple):
    """Pooled features float64 `[n, D]` and labels `[n]`, on the CPU."""

    pooled: Tensor
    labels: Tensor

    def at(self, rows: Tensor) -> "Features":
        """Those of some images."""
        return Features(self.pooled[rows], self.labels[rows])


@dataclass(frozen=True)
class Tried:
    """One network on one data set; its features are computed once, when first needed."""

    subject: EvalTarget
    network: PixelNetwork
    data: ImageData

    @cached_property
    def train(self) -> Features:
        """Of the training images."""
        return features(self.subject, self.network, self.data.train)

    @cached_property
    def test(self) -> Features:
        """Of the test images."""
        return features(self.subject, self.network, self.data.test)

    def probe(self) -> dict[str, float]:
        """The linear probe, as `Probe`."""
        return linear_probe(self.train, self.test, self.subject.seed).model_dump()

    def knn(self, neighbors: int) -> float:
        """Top-1 of the nearest neighbors, 0 to 1."""
        return nearest_neighbors(self.train, self.test, neighbors)


def run_transfer(
    subject: EvalTarget, settings: TransferSettings, parts: ResultCache
) -> TransferResult:
    """Try each network on the data set."""
    data = images_of(subject, settings)
    readings = (settings.probe, settings.knn > 0, settings.finetune > 0)
    parts.expect(sum(readings) * len(subject.networks))
    return TransferResult(
        data=data.name,
        train_images=len(data.train),
        test_images=len(data.test),
        networks={
            name: transfer(subject, name, data, settings, parts) for name in subject.networks
        },
    )


def images_of(subject: EvalTarget, settings: TransferSettings) -> ImageData:
    """The data set to try the networks on, its training images cut to those asked for.

    Raises:
        UsageError: there is no such set, or one class is left to learn.
    """
    data = subject.data
    if settings.data is not None:
        size = subject.data.image_size
        data = load_images(run_settings(subject, settings, image_size=size), progress=False)
    train = cut(data.train, settings.images, subject.generator("transfer/images"))
    if len(train.labels.unique()) < 2:
        raise UsageError(f"{len(train)} training images of {data.name} are of one class: use more")
    return replace(data, train=train)


def run_settings(subject: EvalTarget, settings: TransferSettings, **more: Any) -> TrainConfig:
    """The settings of a run on the data set, with the method of fine-tuning."""
    return make_config(
        {
            "method": settings.method,
            "data": settings.data,
            "data_root": settings.data_root,
            "seed": subject.seed,
            **more,
        }
    )


def transfer(
    subject: EvalTarget, name: str, data: ImageData, settings: TransferSettings, parts: ResultCache
) -> Transferred:
    """What one network gives, each reading a part."""
    tried = Tried(subject, subject.networks[name], data)

    def part(wanted: bool, what: str, compute: Callable[[], Any]) -> Any:
        return parts.get(f"{what} of {name}", compute) if wanted else None

    return Transferred(
        probe=part(settings.probe, "probe", tried.probe),
        knn=part(settings.knn > 0, "k-NN", lambda: tried.knn(settings.knn)),
        finetuned=part(
            settings.finetune > 0, "fine-tuning", lambda: finetune(subject, name, settings, parts)
        ),
    )


def features(subject: EvalTarget, network: PixelNetwork, split: Split) -> Features:
    """The pooled features of a split, of any data set, at the size that the network knows."""
    pooled, labels = [], []
    with evaluating(network):
        for pixels, batch_labels in subject.batches(split):
            pooled.append(network.pooled(pixels).cpu())
            labels.append(batch_labels.cpu())
    return Features(torch.cat(pooled).double(), torch.cat(labels))


def linear_probe(train: Features, test: Features, seed: int) -> Probe:
    """Top-1 of a logistic regression whose C was chosen on held-out training images."""
    rows = partition(
        train.labels,
        {"all": torch.arange(len(train.labels))},
        per_class=None,
        test_fraction=HELD_OUT,
        val_fraction=0,
        seed=seed,
    )
    fitted, held_out = train.at(rows["train"]), train.at(rows["test"])
    c = max(GRID, key=lambda c: regression(fitted, held_out, c))
    return Probe(top1=regression(train, test, c), c=c)


def regression(train: Features, test: Features, c: float) -> float:
    """Top-1 on `test`, 0 to 1, of a logistic regression fitted to `train`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
    return scored(model, train, test)


def nearest_neighbors(train: Features, test: Features, neighbors: int) -> float:
    """Top-1 on `test`, 0 to 1, where the nearest of `train` by cosine vote, one voice each."""
    from sklearn.neighbors import KNeighborsClassifier

    count = min(neighbors, len(train.labels))
    return scored(KNeighborsClassifier(count, metric="cosine"), train, test)


def scored(model: Any, train: Features, test: Features) -> float:
    """Top-1 on `test`, 0 to 1, of a scikit-learn classifier fitted to `train`."""
    model.fit(train.pooled.numpy(), train.labels.numpy())
    return float(model.score(test.pooled.numpy(), test.labels.numpy()))


def finetune(
    subject: EvalTarget, name: str, settings: TransferSettings, parts: ResultCache
) -> dict[str, dict[str, float]]:
    """Train on from a network's backbone; the run folder stays, and a stopped run goes on.

    Returns:
        `Scores` of the run's "student" and "teacher" after the last epoch.
    """
    # The folder is that of these weights and settings: others begin another run.
    folder = parts.picture(f"{name}-{parts.name.rpartition('/')[2]}")
    start = folder.with_suffix(".safetensors")
    state = subject.networks[name].backbone.state_dict()
    save_file({key: value.cpu().contiguous() for key, value in state.items()}, start)
    config = run_settings(
        subject,
        settings,
        **subject.architecture,
        init=start,
        epochs=settings.finetune,
        lr=settings.lr,
        batch_size=settings.batch_size,
        eval_batch_size=subject.batch_size,
        device=str(subject.device),
        out=folder,
    )
    train_or_resume(config, quiet=True, command="")
    start.unlink()
    summary = RunFolder.open(folder).summary()
    assert summary is not None
    return {name: scores._asdict() for name, scores in summary.final.items()}


TRANSFER = Suite(
    name="transfer",
    summary="linear probe, k-NN and fine-tuning on another data set, or on its own",
    run=run_transfer,
    Result=TransferResult,
    Settings=TransferSettings,
)
