"""The transfer suite: how useful the features of a trained network are, for its own or other data.

There are three measurements, all of top-1 accuracy on the test images, the cheapest first:

- k-NN: a vote of the nearest training images, by cosine similarity of the pooled features.
- Linear probe: logistic regression on the pooled features, standardized to mean 0 and deviation 1.
  Its regularization C is chosen from `C_GRID` on a held-out fifth of the training images of each
  class; of equal scores the strongest regularization wins. The probe is then fitted on all of them.
- Fine-tuning: the whole network is trained further from its backbone, with a new head. The paper's
  Table 3 does this with ImageNet networks on CUB-200 and Cars for 100 epochs: `finetune: 100`.

For the first two, images are resized to the input size of the network and normalized as in its own
training. Fine-tuning is an ordinary run, normalized with the colors of the new data set.
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
from adautomix.evaluation.target import EvalTarget, PixelNetwork, take_sample
from adautomix.methods import find_method
from adautomix.models import evaluating
from adautomix.runs.build import load_images
from adautomix.runs.folder import RunFolder
from adautomix.training.run import train

C_GRID = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Candidate values of C, the inverse regularization strength, from strong to weak."""
HELD_OUT = 0.2
"""Fraction of the training images on which C is chosen."""


class TransferSettings(SuiteSettings):
    """The data set to transfer to, and the measurements to take."""

    data: str | None = Field(
        None, description="another data set, by name or folder; none: the network's own"
    )
    data_root: Path | None = Field(None, description="folder of downloaded data sets")
    probe: bool = Field(True, description="fit a linear classifier on the pooled features")
    knn: int = Field(5, ge=0, description="number of neighbors that vote; 0 turns k-NN off")
    images: int | None = Field(
        10_000,
        ge=2,
        description="maximum number of training images for probe and k-NN; none: all",
    )
    finetune: int = Field(
        0,
        ge=0,
        description="epochs of training the whole network on `data`; 0 turns it off; takes long",
    )
    method: str = Field(
        "vanilla", description="mixing method for fine-tuning, one of `adautomix methods`"
    )
    lr: float = Field(0.01, gt=0, description="learning rate for fine-tuning")
    batch_size: int = Field(100, ge=2, description="images per step of fine-tuning")

    @model_validator(mode="after")
    def _check(self) -> Self:
        find_method(self.method)
        if self.finetune and self.data is None:
            raise UsageError(
                "transfer.finetune needs another data set: pass --transfer.data with a folder of "
                "images, digits or cifar100"
            )
        return self


class Probe(BaseModel):
    """Result of a linear probe: top-1 accuracy, 0 to 1, and the C it was fitted with."""

    top1: float
    c: float


class NetworkTransfer(BaseModel):
    """Results of one network; None for measurements that were not requested.

    Attributes:
        probe: result of the linear probe.
        knn: top-1 accuracy of k-NN, 0 to 1.
        finetuned: `Scores` after the last epoch of "student", the fine-tuned network, and of
            "teacher", its moving average.
    """

    probe: Probe | None = None
    knn: float | None = None
    finetuned: dict[str, dict[str, float]] | None = None


class TransferResult(SuiteResult):
    """Results of each network on one data set.

    Attributes:
        data: name of the data set.
        train_images: number of training images for probe and k-NN.
        test_images: number of test images.
        networks: results by network name.
    """

    data: str
    train_images: int
    test_images: int
    networks: dict[str, NetworkTransfer]


class Features(NamedTuple):
    """Pooled features, float64 `[n, D]`, and labels `[n]`, on the CPU."""

    pooled: Tensor
    labels: Tensor

    def select(self, rows: Tensor) -> "Features":
        """Return the features and labels of some images."""
        return Features(self.pooled[rows], self.labels[rows])


@dataclass(frozen=True)
class FeatureClassifiers:
    """Classifiers on the features of one network, which are computed once, on first use."""

    target: EvalTarget
    network: PixelNetwork
    data: ImageData

    @cached_property
    def train(self) -> Features:
        """Features of the training images."""
        return compute_features(self.target, self.network, self.data.train)

    @cached_property
    def test(self) -> Features:
        """Features of the test images."""
        return compute_features(self.target, self.network, self.data.test)

    def probe(self) -> dict[str, float]:
        """Return the result of the linear probe, as the fields of a `Probe`."""
        return linear_probe(self.train, self.test, self.target.seed).model_dump()

    def knn(self, neighbors: int) -> float:
        """Return the top-1 accuracy of k-NN, 0 to 1."""
        return nearest_neighbors(self.train, self.test, neighbors)


def run_transfer(
    target: EvalTarget, settings: TransferSettings, cache: ResultCache
) -> TransferResult:
    """Measure each network on the data set."""
    data = load_transfer_data(target, settings)
    requested = (settings.probe, settings.knn > 0, settings.finetune > 0)
    cache.set_total(sum(requested) * len(target.networks))
    return TransferResult(
        data=data.name,
        train_images=len(data.train),
        test_images=len(data.test),
        networks={
            name: transfer_network(target, name, data, settings, cache) for name in target.networks
        },
    )


def load_transfer_data(target: EvalTarget, settings: TransferSettings) -> ImageData:
    """Return the data set to transfer to, with a sample of its training images.

    Raises:
        UsageError: there is no such data set, or its sample has images of one class only.
    """
    data = target.data
    if settings.data is not None:
        config = make_run_config(target, settings, image_size=target.data.image_size)
        data = load_images(config, progress=False)
    if not len(data.train):
        raise UsageError(
            f"{data.name} has test images only and transfer trains on a part: name a data set "
            "with --transfer.data"
        )
    train = take_sample(data.train, settings.images, target.generator("transfer/images"))
    if len(train.labels.unique()) < 2:
        raise UsageError(
            f"the {len(train)} training images of {data.name} are all of one class: raise "
            "transfer.images"
        )
    return replace(data, train=train)


def make_run_config(target: EvalTarget, settings: TransferSettings, **more: Any) -> TrainConfig:
    """Return the settings of a run on the data set, with the method for fine-tuning."""
    return make_config(
        {
            "method": settings.method,
            "data": settings.data,
            "data_root": settings.data_root,
            "seed": target.seed,
            **more,
        }
    )


def transfer_network(
    target: EvalTarget, name: str, data: ImageData, settings: TransferSettings, cache: ResultCache
) -> NetworkTransfer:
    """Return the results of one network; each measurement is one task of the cache."""
    classifiers = FeatureClassifiers(target, target.networks[name], data)

    def measure(requested: bool, title: str, compute: Callable[[], Any]) -> Any:
        return cache.get(f"{title} of {name}", compute) if requested else None

    return NetworkTransfer(
        probe=measure(settings.probe, "probe", classifiers.probe),
        knn=measure(settings.knn > 0, "k-NN", lambda: classifiers.knn(settings.knn)),
        finetuned=measure(
            settings.finetune > 0, "fine-tuning", lambda: finetune(target, name, settings, cache)
        ),
    )


def compute_features(target: EvalTarget, network: PixelNetwork, split: Split) -> Features:
    """Return the pooled features of a split of any data set, at the network's input size."""
    pooled, labels = [], []
    with evaluating(network):
        for pixels, batch_labels in target.batches(split):
            pooled.append(network.pooled(pixels).cpu())
            labels.append(batch_labels.cpu())
    return Features(torch.cat(pooled).double(), torch.cat(labels))


def linear_probe(train: Features, test: Features, seed: int) -> Probe:
    """Return the top-1 accuracy of logistic regression, with C chosen on held-out images."""
    rows = partition(
        train.labels,
        {"all": torch.arange(len(train.labels))},
        per_class=None,
        test_fraction=HELD_OUT,
        val_fraction=0,
        seed=seed,
    )
    fitted, held_out = train.select(rows["train"]), train.select(rows["test"])
    c = max(C_GRID, key=lambda c: logistic_regression(fitted, held_out, c))
    return Probe(top1=logistic_regression(train, test, c), c=c)


def logistic_regression(train: Features, test: Features, c: float) -> float:
    """Return the top-1 accuracy on `test`, 0 to 1, of logistic regression fitted on `train`."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    model = make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000))
    return fit_and_score(model, train, test)


def nearest_neighbors(train: Features, test: Features, neighbors: int) -> float:
    """Return the top-1 accuracy on `test`, 0 to 1, of an unweighted vote of the nearest images."""
    from sklearn.neighbors import KNeighborsClassifier

    count = min(neighbors, len(train.labels))
    return fit_and_score(KNeighborsClassifier(count, metric="cosine"), train, test)


def fit_and_score(model: Any, train: Features, test: Features) -> float:
    """Return the top-1 accuracy on `test`, 0 to 1, of a scikit-learn model fitted on `train`."""
    model.fit(train.pooled.numpy(), train.labels.numpy())
    return float(model.score(test.pooled.numpy(), test.labels.numpy()))


def finetune(
    target: EvalTarget, name: str, settings: TransferSettings, cache: ResultCache
) -> dict[str, dict[str, float]]:
    """Train further from a network's backbone; an interrupted run is resumed.

    Returns:
        `Scores` of the run's "student" and "teacher" after the last epoch.
    """
    # The name of the run folder contains the digest, so other weights or settings start a new run.
    folder = cache.output_path(f"{name}-{cache.digest}")
    start = folder.with_suffix(".safetensors")
    state = target.networks[name].backbone.state_dict()
    save_file({key: value.cpu().contiguous() for key, value in state.items()}, start)
    config = make_run_config(
        target,
        settings,
        **target.architecture,
        init=start,
        # What the weights were trained with; the file of weights does not say it.
        normalize=",".join(map(repr, target.networks[name].normalization)),
        epochs=settings.finetune,
        lr=settings.lr,
        batch_size=settings.batch_size,
        eval_batch_size=target.batch_size,
        device=str(target.device),
        out=folder,
    )
    train(config, quiet=True)
    start.unlink()
    summary = RunFolder.open(folder).summary()
    assert summary is not None
    return {name: scores.present() for name, scores in summary.final.items()}


SUITE = Suite(
    name="transfer",
    summary="linear probe, k-NN and fine-tuning on another data set, or on the network's own",
    run=run_transfer,
    Result=TransferResult,
    Settings=TransferSettings,
)
