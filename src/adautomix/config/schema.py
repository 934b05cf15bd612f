"""Settings of a run: typed, complete, and strict about what it does not know.

A run's settings come from defaults, a recipe, a YAML file and flags, each winning over the one
before. Settings of a method live in a group of the method's name (`--adautomix.beta 0.3`); the
method declares them itself.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from adautomix.config.files import read_yaml
from adautomix.ema import TeacherSettings
from adautomix.errors import UsageError
from adautomix.methods import METHODS, MethodSettings, find_method
from adautomix.mixing.schedule import MixSettings
from adautomix.models import Stem, suited_stem
from adautomix.validation import one_line_errors, setting_names, unknown_setting

ARCHITECTURE = ("model", "stem", "width", "model_options", "image_size")
"""The settings that say which network weights belong to."""


class TrainConfig(BaseModel):
    """Everything that decides a run. Unknown names raise; so do values out of range.

    Besides the fields below, a group of settings named after a method is accepted, for example
    `TrainConfig(method="adautomix", adautomix={"beta": 0.3})`.
    """

    model_config = ConfigDict(extra="allow", frozen=True, protected_namespaces=())

    method: str = Field("adautomix", description="one of `adautomix methods`")
    data: Annotated[str, BeforeValidator(str)] = Field(
        "digits", description="digits, cifar10, cifar100 or a folder of images"
    )
    data_root: Path | None = Field(None, description="folder of downloaded data sets")
    download: bool = Field(False, description="fetch a known data set that is not there")
    image_size: int | None = Field(None, ge=8, description="pixels a side; none: suits the data")
    per_class: int | None = Field(None, ge=1, description="at most so many training images a class")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="where a set has no test split")
    val_fraction: float = Field(0.0, ge=0, lt=1, description="of the training images, held out")
    skip_bad: bool = Field(False, description="go on without unreadable images, and list them")
    workers: int | None = Field(None, ge=0, description="decoding processes; none: all cores")
    crop: Literal["auto", "pad", "resized", "off"] = Field(
        "auto", description="training crop: shifted with reflect padding, or random-resized"
    )
    pad: int | None = Field(None, ge=0, description="pixels of padding; none: suits the data")
    flip: bool | None = Field(None, description="mirror half of the images; none: suits the data")
    scale_min: float = Field(0.08, gt=0, le=1, description="smallest area of a resized crop")
    drop_last: bool = Field(True, description="leave out the last short batch of an epoch")

    model: str = Field("resnet18", description="any timm backbone")
    stem: Literal["auto", "standard", "cifar"] = Field(
        "auto", description="cifar: 3×3, stride 1; auto: that for images up to 64 pixels"
    )
    width: float = Field(1.0, gt=0, le=4, description="factor on the channels of the backbone")
    pretrained: bool = Field(False, description="start from timm's weights")
    init: Path | None = Field(
        None,
        description="start from the backbone of this run (its teacher), exported folder or "
        "safetensors file, and be that network where not told otherwise",
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="stochastic depth rate")
    model_options: dict[str, Any] = Field({}, description="passed on to timm.create_model")

    epochs: int = Field(100, ge=1, description="passes over the training images")
    batch_size: int = Field(100, ge=1, description="images an optimizer step")
    accumulate: int = Field(1, ge=1, description="process a batch in so many equal parts")
    optimizer: Literal["sgd", "adamw"] = Field("sgd", description="SGD with momentum, or AdamW")
    lr: float = Field(0.1, gt=0, description="learning rate after warm-up")
    min_lr: float = Field(0.0, ge=0, description="learning rate at the end of the cosine")
    warmup_epochs: float = Field(0.0, ge=0, description="linear rise of the learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD; β₁ of AdamW")
    nesterov: bool = Field(False, description="Nesterov momentum for SGD")
    weight_decay: float = Field(1e-4, ge=0, description="on all weights")
    decay_1d: bool = Field(True, description="decay biases and norm weights too")
    clip_grad: float | None = Field(None, gt=0, description="largest norm of the gradient")
    label_smoothing: float = Field(0.0, ge=0, lt=1, description="share spread over all classes")

    precision: Literal["fp32", "bf16", "fp16"] = Field("fp32", description="of the networks")
    device: str = Field("auto", description="cpu, cuda, cuda:1 …; auto: a GPU where there is one")
    channels_last: bool = Field(True, description="memory layout of images and weights")
    runtime: Literal["auto", "eager", "compile", "graph"] = Field(
        "auto", description="of the step: plain, torch.compile, or a CUDA graph; auto: eager"
    )
    sync_bn: bool = Field(True, description="several processes share their batch statistics")
    seed: int = Field(0, ge=0, description="names every random number of the run")

    eval_batch_size: int = Field(500, ge=1, description="images a forward in evaluation")
    eval_every: int = Field(1, ge=1, description="epochs between evaluations")
    log_every: int = Field(50, ge=1, description="steps between lines of metrics.jsonl")
    checkpoint_every: int = Field(1, ge=1, description="epochs between checkpoints")
    keep_every: int | None = Field(
        None, ge=1, description="epochs between checkpoints that are kept; none: only last and best"
    )
    tensorboard: bool = Field(False, description="write TensorBoard events too")
    out: Path | None = Field(None, description="run folder; none: runs/<data>-<method>-s<seed>")
    label: str | None = Field(None, description="name in tables; none: the method's")

    mix: MixSettings = Field(MixSettings(), description="when to mix")
    teacher: TeacherSettings = Field(TeacherSettings(), description="the moving average")

    @model_validator(mode="before")
    @classmethod
    def _as_init_says(cls, values: Any) -> Any:
        """Which network it is: a complete configuration says so itself and needs no `init`."""
        if not isinstance(values, Mapping) or not values.get("init"):
            return values
        if values.keys() >= set(ARCHITECTURE):
            return values
        return architecture_of(Path(values["init"])) | dict(values)

    @model_validator(mode="after")
    def _check(self) -> Self:
        cls = find_method(self.method)
        for name, options in (self.model_extra or {}).items():
            check_group(name, options)
        cls.check_schedule(self.mix)
        if self.teacher.buffers == "own" and not cls.supports_own_teacher_buffers:
            raise UsageError(
                f"teacher.buffers = own: {self.method} never runs the teacher, so its statistics "
                "would stay at their start; use average or copy"
            )
        if self.init and self.pretrained:
            raise UsageError("init and pretrained both say where the weights start: leave out one")
        if self.batch_size % self.accumulate:
            raise UsageError(
                f"accumulate = {self.accumulate} does not divide batch_size = {self.batch_size}"
            )
        return self

    @property
    def method_settings(self) -> MethodSettings:
        """The settings of this run's method, with its defaults filled in."""
        return find_method(self.method).Settings(**(self.model_extra or {}).get(self.method, {}))

    def stem_for(self, image_size: int) -> Stem:
        """The stem for images of this side in pixels, "auto" made up."""
        if self.stem != "auto":
            return self.stem
        # Published weights fit only the stem they were trained with.
        return "standard" if self.pretrained else suited_stem(self.model, image_size)

    def resolved(self) -> dict[str, Any]:
        """Every setting with its value, as plain data: what `config.yaml` holds."""
        plain: dict[str, Any] = self.model_dump(mode="json", exclude=set(self.model_extra or {}))
        settings = self.method_settings.model_dump(mode="json")
        return {**plain, self.method: settings} if settings else plain


def check_group(name: str, options: Any) -> None:
    """Accept a group of settings only if it is a method's and the method knows them all.

    Raises:
        UsageError: with the nearest name.
    """
    if name not in METHODS:
        raise UsageError(unknown_setting(name, [*TrainConfig.model_fields, *METHODS]))
    settings = METHODS[name].Settings
    with one_line_errors(name, lambda: setting_names(f"{name}.", settings)):
        settings.model_validate(options)


def architecture_of(path: Path) -> dict[str, Any]:
    """The settings that build the network whose weights lie at `path`; none of a plain file.

    Args:
        path: a run folder, a folder of `adautomix export`, or a file of weights.

    Raises:
        UsageError: the folder does not say.
    """
    try:
        if (path / "config.yaml").is_file():
            run = make_config(read_yaml(path / "config.yaml"))
            size = json.loads((path / "data.json").read_text())["image_size"]
            stem = {"image_size": size, "stem": run.stem_for(size)}
            return {name: getattr(run, name) for name in ARCHITECTURE} | stem
        if (path / "config.json").is_file():
            known = json.loads((path / "config.json").read_text(encoding="utf-8"))
            sizes = {name: known[name] for name in ("stem", "width", "image_size")}
            return {"model": known["architecture"], **sizes}
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"{path} does not say which network it holds: {error}") from None
    return {}


def make_config(values: Mapping[str, Any]) -> TrainConfig:
    """A checked configuration from nested plain values.

    Raises:
        UsageError: one line that names the setting and what would be right.
    """
    with one_line_errors(known=_all_setting_names):
        return TrainConfig.model_validate(values)


def _all_setting_names() -> list[str]:
    """Names of all settings: those of every run, and those of each method in its group."""
    names = setting_names("", TrainConfig)
    for name, cls in METHODS.items():
        names += setting_names(f"{name}.", cls.Settings)
    return names
