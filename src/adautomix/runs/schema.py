"""What `metrics.jsonl` and `summary.json` hold: one class per kind of record.

Every record carries a `schema_version`. Records of version 1, which did not name their version, are
converted by `upgrade_row` and `upgrade_summary`. To change the layout, raise `SCHEMA_VERSION` and
extend these two functions; `runs/records.py` is the only module that reads and writes the files.
"""

from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PositiveFloat,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    model_serializer,
)

from adautomix.class_results import ClassResults
from adautomix.metrics import Scores

SCHEMA_VERSION: Final = 2

NetworkName = Literal["student", "teacher"]
SplitName = Literal["test", "val"]


# pydantic reads a named tuple from a dictionary but would write it as a list.
ScoreFields = Annotated[Scores, PlainSerializer(Scores.present)]
NetworkScores = dict[NetworkName, ScoreFields]


class Record(BaseModel):
    """Base of everything that is written to a run folder; fields that are not declared fail."""

    # NaN and infinity are written as Python's json does; the default would turn them into null.
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_inf_nan="constants")

    schema_version: Literal[2] = SCHEMA_VERSION


class MetricsRow(Record):
    """What the two kinds of lines of `metrics.jsonl` have in common.

    Attributes:
        kind: "train" or "epoch".
        step: optimizer steps done.
        epoch: epochs done; a fraction for a "train" line.
        loss: mean training loss since the line before of the same kind.
        mixture_accuracy: mean fraction of the true label mixture that the student predicts, 0 to 1;
            None for a method that does not report it.
        parts: mean of each named part of the loss.
        seconds: wall-clock training time since the start, including the time before a resume.
        images_per_second: training speed since the line before of the same kind.
    """

    kind: Literal["train", "epoch"]
    step: int
    epoch: float
    loss: float
    mixture_accuracy: float | None = None
    parts: dict[str, float] = {}
    seconds: float
    images_per_second: float

    def without_timing(self) -> dict[str, Any]:
        """The fields that do not depend on the clock: equal for two equal runs."""
        return self.model_dump(mode="json", exclude={"seconds", "images_per_second"})


class TrainRow(MetricsRow):
    """A line of `metrics.jsonl` written every `log_every` steps.

    Attributes:
        lr: learning rate of the student at the last step.
        teacher_momentum: momentum of the teacher's moving average at the last step.
    """

    kind: Literal["train"] = "train"
    lr: float
    teacher_momentum: float


class EpochRow(MetricsRow):
    """A line of `metrics.jsonl` written after each epoch.

    Attributes:
        epoch: epochs done.
        student: test scores of the student; None if this epoch was not evaluated.
        teacher: test scores of the teacher; None if this epoch was not evaluated.
        val: scores of both on the held-out images; None without such images.
        probe: accuracy of the student on a sample of unmixed training images, 0 to 1.
    """

    kind: Literal["epoch"] = "epoch"
    epoch: int
    student: ScoreFields | None = None
    teacher: ScoreFields | None = None
    val: NetworkScores | None = None
    probe: float | None = None


Row = TrainRow | EpochRow
row_adapter: TypeAdapter[Row] = TypeAdapter(Annotated[Row, Field(discriminator="kind")])


class BestEpoch(BaseModel):
    """The best evaluation of a run.

    Attributes:
        epoch: the epoch after which it was made.
        network: the network that was best.
        top1: its top-1 accuracy, 0 to 1.
        map: its mean average precision, 0 to 1; None unless images have several labels.
        split: the split it was chosen on: "val" if images were held out, else "test".
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    epoch: int
    network: NetworkName
    top1: float
    map: float | None = None
    split: SplitName

    @model_serializer(mode="wrap")
    def _present(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The fields without `map` where it is None, as `Scores.present` has it."""
        return {name: value for name, value in handler(self).items() if value is not None}

    @property
    def main(self) -> float:
        """The score that made it the best, see `Scores.main`."""
        return self.top1 if self.map is None else self.map


class EarlyStop(BaseModel):
    """Why a run ended before its last epoch.

    Attributes:
        planned_epochs: epochs that the settings ask for.
        patience: evaluations in a row that brought no better validation score.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    planned_epochs: int
    patience: int


class DataInfo(BaseModel):
    """The content of `data.json`: what prediction needs to know about the data, and its size.

    Attributes:
        classes: class names in the order of the outputs.
        image_size: side of the input images in pixels.
        mean: mean of each channel, for pixels from 0 to 1.
        std: standard deviation of each channel, for pixels from 0 to 1.
        train_images: number of training images.
        test_images: number of test images.
        bad_files: image files that could not be read and were left out.
        multi_label: whether an image may have several labels.
        preparation: how an image file becomes an input, see `data.preparation`; None in runs of
            before it was recorded.
    """

    # Later versions may add facts.
    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    classes: list[str] = Field(min_length=1)
    image_size: int = Field(ge=1)
    mean: tuple[float, float, float]
    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat]
    train_images: int
    test_images: int
    bad_files: list[str] = []
    multi_label: bool = False
    preparation: dict[str, Any] | None = None


class Summary(Record):
    """The content of `summary.json`, which is written when a run has finished.

    Attributes:
        method: name of the mixing method.
        data: the data set, as the setting names it.
        model: the architecture, as timm names it.
        width: width multiplier of the network.
        seed: random seed.
        device: the hardware the run was computed on.
        processes: number of processes that trained together.
        runtime: how steps were run: "eager", "compile" or "graph".
        precision: "fp32", "bf16" or "fp16".
        epochs: epochs trained.
        steps: optimizer steps trained.
        seconds: wall-clock time of the run, including the time before a resume.
        command: the command line, "" if the run was started from Python.
        versions: versions of Python and of the libraries.
        classes: class names in the order of the outputs.
        image_size: side of the input images in pixels.
        mean: mean of each channel, for pixels from 0 to 1.
        std: standard deviation of each channel, for pixels from 0 to 1.
        train_images: number of training images.
        test_images: number of test images.
        bad_files: image files that could not be read and were left out.
        multi_label: whether an image may have several labels.
        preparation: how an image file becomes an input; None in runs of before it was recorded.
        final: test scores of both networks after the last epoch.
        results: results per class of both networks after the last epoch; None in a summary of an
            older version, and in rows of reports.
        best: the best evaluation of the run.
        early_stop: why it ended before its last epoch; None if it did not.
        parameters: number of parameters of the student.
        peak_memory_mib: peak memory: of the GPU, or of the process on the CPU.
        predictions: SHA-256 of `predictions.safetensors`; None in a summary of an older version.
    """

    method: str
    data: str
    model: str
    width: float
    seed: int
    device: str
    processes: int
    runtime: str
    precision: str
    epochs: int
    steps: int
    seconds: float
    command: str
    versions: dict[str, str]
    classes: list[str]
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    train_images: int
    test_images: int
    bad_files: list[str]
    multi_label: bool = False
    preparation: dict[str, Any] | None = None
    final: NetworkScores
    results: dict[NetworkName, ClassResults] | None = None
    best: BestEpoch | None
    early_stop: EarlyStop | None = None
    parameters: int
    peak_memory_mib: float
    predictions: str | None = None


def upgrade_row(row: dict[str, Any]) -> dict[str, Any]:
    """Convert a line of `metrics.jsonl` of version 1, in which the mixture accuracy was "captured".

    Returns:
        The fields of a current `TrainRow` or `EpochRow`, to be validated.
    """
    return {{"captured": "mixture_accuracy"}.get(name, name): value for name, value in row.items()}


def upgrade_summary(summary: dict[str, Any]) -> dict[str, Any]:
    """Convert a `summary.json` of version 1.

    The earliest ones lack `processes` and `runtime`, which could only be 1 and "eager" then.

    Returns:
        The fields of a current `Summary`, to be validated.
    """
    return {"processes": 1, "runtime": "eager", **summary}
