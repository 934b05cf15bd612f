"""Load the networks of a run folder to predict with them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from adautomix.config import TrainConfig
from adautomix.data.picture_sources import find_pictures
from adautomix.data.preparation import recorded_preparation
from adautomix.device import pick_device
from adautomix.errors import UsageError
from adautomix.inputs import check_images
from adautomix.methods import Method
from adautomix.models import Classifier
from adautomix.models.memory import fitting_batch, forward_bytes, one_image
from adautomix.runs.build import build_networks
from adautomix.runs.checkpoint import (
    Checkpoint,
    checkpoint_names,
    newest_checkpoint,
    read_checkpoint,
)
from adautomix.runs.folder import RunFolder
from adautomix.runs.predictor import FilePrediction, Predictor, Views
from adautomix.runs.schema import NetworkName
from adautomix.runs.temperature import fitted_temperature


@dataclass(frozen=True)
class TrainedRun:
    """The networks of a run folder, in evaluation mode.

    Attributes:
        folder: the run folder.
        config: the settings of the run.
        data_info: the content of `data.json`: classes, image size and normalization.
        networks: the networks "student" and "teacher".
        method: the mixing method with its trained parameters.
        step: optimizer steps after which the weights were saved.
        device: where the networks are.
    """

    folder: Path
    config: TrainConfig
    data_info: dict[str, Any]
    networks: dict[str, Classifier]
    method: Method
    step: int
    device: torch.device

    @property
    def classes(self) -> list[str]:
        """The class names, in the order of the outputs."""
        return list(self.data_info["classes"])

    @property
    def multi_label(self) -> bool:
        """Whether an image may have several labels, each with a probability of its own."""
        return bool(self.data_info.get("multi_label", False))

    @property
    def student(self) -> Classifier:
        """The trained network."""
        return self.networks["student"]

    @property
    def teacher(self) -> Classifier:
        """The moving average of the trained network."""
        return self.networks["teacher"]

    def split_files(self, split: str) -> list[str]:
        """Return the image files of a split, "train", "val" or "test", as the run recorded them.

        Raises:
            UsageError: the run recorded no files, images have vanished or changed, or there is no
                such split.
        """
        record = RunFolder(self.folder).splits()
        if record is None:
            raise UsageError(f"{self.folder} recorded no splits: name image files")
        return record.files(split)

    def predict(
        self,
        images: Tensor | Sequence[Path | str] | Path | str,
        network: NetworkName = "teacher",
        *,
        batch_size: int = 100,
        tta: Views = "none",
        calibrated: bool = True,
    ) -> Tensor:
        """Compute class probabilities; see `predict_files` for files that may be damaged.

        Args:
            images: image files, folders (with their subfolders) and patterns such as `a/*.jpg`; or
                normalized images, float `[n, 3, H, W]`.
            network: "teacher" or "student".
            batch_size: images per forward pass; fewer if they would take more memory than the
                setting `max_memory` allows.
            tta: "flip" averages over each image and its mirror image.
            calibrated: divide the logits by the temperature that `evaluate` fitted to these
                weights with the calibration suite, if it did.

        Returns:
            Float32 `[n, K]` on the CPU; each row sums to 1, unless the network was trained on
            images with several labels: then each class has a probability of its own.

        Raises:
            UsageError: a file is missing or is not an image, a folder holds no image, or a tensor
                has the wrong shape.
        """
        if isinstance(images, Tensor):
            check_images(images)
            predictor = self.predictor(network, batch_size, tta, calibrated)
            return torch.cat(list(predictor.tensors(images)))
        rows = []
        for one in self.predict_files(
            images, network, batch_size=batch_size, tta=tta, calibrated=calibrated
        ):
            if one.probabilities is None:
                raise UsageError(one.problem)
            rows.append(one.probabilities)
        return torch.stack(rows)

    def predict_files(
        self,
        images: Sequence[Path | str] | Path | str,
        network: NetworkName = "teacher",
        *,
        batch_size: int = 100,
        tta: Views = "none",
        calibrated: bool = True,
    ) -> Iterator[FilePrediction]:
        """Yield the prediction for each image file, or why it cannot be read.

        Args:
            images: see `predict`.
            network: see `predict`.
            batch_size: see `predict`.
            tta: see `predict`.
            calibrated: see `predict`.

        Raises:
            UsageError: there is no file, a folder holds no image, or a pattern matches nothing.
        """
        paths = find_pictures([images] if isinstance(images, Path | str) else images)
        if not paths:
            raise UsageError("predict got no images: pass at least one file")
        yield from self.predictor(network, batch_size, tta, calibrated).files(paths)

    def predictor(
        self, network: NetworkName, batch_size: int, tta: Views, calibrated: bool
    ) -> Predictor:
        """Return the predictor of one network; for the arguments see `predict`."""
        if tta not in get_args(Views):
            raise UsageError(f"unknown test-time augmentation {tta!r}: none or flip")
        info = self.data_info
        return Predictor(
            self.networks[network],
            self.method.eval_head,
            self.device,
            info["image_size"],
            tuple(info["mean"]),
            tuple(info["std"]),
            recorded_preparation(info),
            self.config.max_pixels,
            self._fitting_batch(batch_size),
            self.multi_label,
            tta,
            (self.temperature(network) or 1.0) if calibrated else 1.0,
        )

    def temperature(self, network: NetworkName) -> float | None:
        """Return the temperature that `evaluate` fitted to these weights; None if it did not."""
        return None if self.multi_label else fitted_temperature(self.folder, network, self.step)

    def _fitting_batch(self, requested: int) -> int:
        """The number of images per forward pass, such that it stays within `max_memory`."""
        image = one_image(self.data_info["image_size"], self.device)
        size = forward_bytes(self.student, image, head=self.method.eval_head)
        return fitting_batch(requested, size, self.config.max_memory)


def load_trained(path: Path | str, *, checkpoint: str = "last", device: str = "auto") -> TrainedRun:
    """Load the networks of a run, finished or not.

    Args:
        path: the run folder.
        checkpoint: "last", the newest checkpoint; "previous", the one before it; "best", the one of
            the best evaluation; or the name of one that was kept, such as "epoch-0005".
        device: where to put the networks: "cpu", "cuda" or "auto".

    Raises:
        UsageError: there is no run at `path`, it has no checkpoint of that name, or its settings
            are not those it was trained with.
        RunError: the checkpoint is damaged.
    """
    folder = RunFolder.open(Path(path))
    saved = find_checkpoint(folder.path, checkpoint)
    config, info = folder.config(), folder.data_info()
    folder.check_unchanged(saved)
    where = pick_device(device)
    # Whoever trains the loaded networks further decides again what to freeze.
    student, method, teacher = build_networks(
        config.model_copy(update={"freeze": None}),
        num_classes=len(info["classes"]),
        image_size=info["image_size"],
        device=where,
        from_checkpoint=True,
    )
    networks = {"student": student, "teacher": teacher.model}
    for name, network in networks.items():
        network.load_state_dict(saved.part(name))
        network.eval()
    method.load_state_dict(saved.part("method"))
    return TrainedRun(folder.path, config, info, networks, method.eval(), saved.step, where)


def find_checkpoint(run: Path, name: str) -> Checkpoint:
    """Read a checkpoint of a run by its name.

    Raises:
        UsageError: there is none of that name; the message lists the others.
        RunError: the checkpoint is damaged.
    """
    if name == "last":
        return newest_checkpoint(run)
    if name not in (names := checkpoint_names(run)):
        available = ", ".join(names) or "none yet"
        raise UsageError(f"{run} has no checkpoint {name!r}; it has {available}")
    return read_checkpoint(run / "checkpoints" / name)


def check_network(name: str) -> NetworkName:
    """Check the name of a network.

    Raises:
        UsageError: it is neither "student" nor "teacher".
    """
    if name == "student":
        return "student"
    if name == "teacher":
        return "teacher"
    raise UsageError(f"unknown network {name!r}: student or teacher (the moving average)")
