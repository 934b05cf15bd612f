"""Settings of a run: typed, complete, and strict about unknown names.

A run's settings come from defaults, a recipe, a YAML file and flags; each source overrides the one
before it. The settings of a method live in a group of the method's name (`--adautomix.beta 0.3`)
and are declared by the method itself.

PyTorch is not imported until a configuration is validated, so that help and shell completion
answer at once.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    model_validator,
)

from adautomix.config.files import read_yaml
from adautomix.config.presets import Preset, apply_preset
from adautomix.errors import UsageError
from adautomix.files import read_json
from adautomix.mixing.settings import MixSettings
from adautomix.validation import (
    check_path,
    one_line_errors,
    setting_names,
    split_commas,
    unknown_setting,
)

if TYPE_CHECKING:
    from adautomix.methods import MethodSettings
    from adautomix.models import Stem

PATHS = ("data", "data_root", "class_names", "init", "out")
"""Settings that name files and folders; `data` may be another name."""

ARCHITECTURE = ("model", "stem", "width", "model_options", "image_size")
"""The settings that determine which network a set of weights belongs to."""


def split_names(value: Any) -> Any:
    """Return comma-separated names as a tuple; any other value is left to pydantic."""
    return () if value is None else split_commas(value)


_NUMBER = r"-?\d*\.?\d+"


def _text_or_off(value: Any) -> str:
    """Text as it is written on the command line; YAML reads `off` as false."""
    return "off" if value is False else str(value)


def _joined(value: Any) -> str:
    """A list of numbers as it is written on the command line."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _local_path(value: Any) -> Any:
    """Return what timm calls `local-dir:FOLDER` as the path of the folder."""
    return value.removeprefix("local-dir:") if isinstance(value, str) else value


class SettingsGroup(BaseModel):
    """A titled group of settings. Groups are immutable and documented by their fields."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


class MethodChoice(SettingsGroup, title="Method"):
    """Which mixing method trains the network."""

    method: str = Field(
        "adautomix",
        description="Mixing method to train with; `adautomix methods` lists them. Without it, "
        "--preset auto chooses: CutMix to fine-tune, AdAutoMix from scratch.",
    )
    preset: Preset | None = Field(
        None,
        description="When and how to mix, see docs/findings.md: finetune, scratch, published, or "
        "auto: finetune from pretrained weights, else scratch. Other settings override it; none: "
        "as published if a method is named, else auto.",
    )


class DataSettings(SettingsGroup, title="Data"):
    """Which images are used, and how they are split and read."""

    data: Annotated[str, BeforeValidator(str)] = Field(
        "digits",
        description="Data set: a name that `adautomix datasets` lists, or the path of a folder of "
        "images or of a list file.",
    )
    data_root: Path | None = Field(
        None,
        description="Folder that holds published data sets, or that one is downloaded to; none: "
        "./data. The paths of a list file start from it.",
    )
    download: bool = Field(
        False,
        description="Download a missing data set that has a public address, instead of stopping.",
    )
    class_level: Literal["auto", "top", "leaf"] = Field(
        "auto",
        description="Folders that are classes: the first level, or every folder with images "
        "(leaf). auto: the list files of the folder if there are some, else top.",
    )
    class_names: Path | None = Field(
        None,
        description="File with the names of the numbered classes of a list file; none: such a "
        "file beside the list, else the numbers.",
    )
    image_size: int | None = Field(
        None,
        ge=8,
        description="Side of the network's input in pixels; cost grows with its square. "
        "none: the size of the images if they are small and square, else 224.",
    )
    per_class: int | None = Field(
        None,
        ge=1,
        description="Maximum number of training images per class, chosen by the seed; none: all.",
    )
    test_fraction: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="Fraction of each class used for testing, if the data set has no test split.",
    )
    val_fraction: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Fraction of each class's training images held out for validation; raising it "
        "leaves fewer to train on.",
    )
    sampler: Literal["shuffle", "balanced"] = Field(
        "shuffle",
        description="Training images of an epoch: each once, in random order; or drawn so that "
        "all classes are equally frequent, which shows images of small classes more often.",
    )
    skip_bad: bool = Field(
        False, description="Skip and list unreadable images, instead of stopping at the first."
    )
    workers: int | None = Field(
        None, ge=0, description="Number of processes that decode images; none: one per CPU core."
    )
    cache: Annotated[str, BeforeValidator(_text_or_off)] = Field(
        "exact",
        pattern=r"^(exact|off|[1-9]\d*)$",
        description="Keep decoded pictures: exact, at full size if all fit into 4 GiB; a number, "
        "with the shorter side shrunk to so many pixels; off: decode at every reading.",
    )
    max_pixels: int = Field(
        178_956_970,
        ge=1,
        description="Number of pixels above which a picture is refused; raising it needs more "
        "memory.",
    )
    normalize: Annotated[str, BeforeValidator(_joined)] = Field(
        "auto",
        pattern=rf"^(auto|model|data|{_NUMBER}(,{_NUMBER}){{5}})$",
        description="Mean and standard deviation that images are normalized with: of the model's "
        "weights, of the training images (data), or six numbers for pixels from 0 to 1. auto: "
        "those of the weights if it starts from any, else data.",
    )


class AugmentationSettings(SettingsGroup, title="Augmentation"):
    """What happens to a training image before it is mixed."""

    crop: Literal["auto", "pad", "resized", "off"] = Field(
        "auto",
        description="Random crop of training images: shifted within reflection padding, or "
        "resized from a random box. auto: pad up to 96 pixels, else resized.",
    )
    pad: int | None = Field(
        None,
        ge=0,
        description="Reflection padding in pixels for crop=pad; more padding allows larger "
        "shifts. none: 1/8 of the image side (digits: 1/16).",
    )
    flip: bool | None = Field(
        None,
        description="Flip half of the training images left to right; none: on, except for digits.",
    )
    scale_min: float = Field(
        0.08,
        gt=0,
        le=1,
        description="Minimum area of a resized crop, as a fraction of the image; raising it "
        "weakens the augmentation.",
    )
    interpolation: Literal["auto", "bicubic", "bilinear"] = Field(
        "auto",
        description="Filter of resized crops and of evaluation, with antialiasing. auto: that of "
        "the model's weights if it starts from any, else bicubic.",
    )
    crop_fraction: float | None = Field(
        None,
        gt=0,
        le=1,
        description="Side of the center crop of evaluation as a fraction of the resized shorter "
        "side, above 96 pixels; none: that of the model's weights if it starts from any, else "
        "0.875.",
    )
    augment: Literal["randaugment", "trivialaugment", "autoaugment", "colorjitter"] | None = Field(
        None, description="Automatic augmentation after crop and flip; none: off."
    )
    random_erasing: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Probability of erasing a box of a training image; raising it regularizes "
        "more.",
    )
    erasing_fill: Literal["const", "rand", "pixel"] = Field(
        "pixel",
        description="What erased boxes are filled with: the mean color (const), or normal noise "
        "per box (rand) or per pixel.",
    )
    repeats: int = Field(
        1,
        ge=1,
        description="Repeated augmentation: how often an image comes in a row, augmented anew; "
        "raising it shows fewer images per epoch.",
    )


class RandAugmentSettings(BaseModel):
    """RandAugment; the defaults are timm's rand-m9-mstd0.5-inc1, as Swin, DeiT and ConvNeXt use."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="RandAugment")

    space: Literal["timm", "torchvision", "openmixup"] = Field(
        "timm", description="Whose operations and ranges are drawn from."
    )
    operations: int = Field(
        2, ge=1, le=16, description="Operations per image; raising it augments more."
    )
    magnitude: float = Field(
        9.0,
        ge=0,
        le=30,
        description="Strength of the operations, 0 to 10; 0 to 30 for torchvision.",
    )
    std: float = Field(
        0.5, ge=0, description="Standard deviation of the magnitude; torchvision has none."
    )
    probability: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Probability of each operation; torchvision always applies them.",
    )


class AutoAugmentSettings(BaseModel):
    """AutoAugment."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="AutoAugment")

    policy: Literal["imagenet", "cifar10"] = Field(
        "imagenet", description="Data set that the pairs of operations were learned for."
    )


class ColorJitterSettings(BaseModel):
    """Color jitter."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="Color jitter")

    brightness: float = Field(0.4, ge=0, description="Factors are drawn from 1 ± brightness.")
    contrast: float = Field(0.4, ge=0, description="Factors are drawn from 1 ± contrast.")
    saturation: float = Field(0.4, ge=0, description="Factors are drawn from 1 ± saturation.")
    hue: float = Field(
        0.0, ge=0, le=0.5, description="Maximum shift of the hue, as a fraction of the circle."
    )


class ModelSettings(SettingsGroup, title="Model"):
    """Which network is trained, and from which weights."""

    model: str = Field("resnet18", description="Backbone: the name of any timm model.")
    stem: Literal["auto", "standard", "cifar"] = Field(
        "auto",
        description="First layers: timm's own, or a 3x3 convolution of stride 1 (cifar). "
        "auto: cifar for images up to 64 pixels, unless pretrained.",
    )
    width: float = Field(
        1.0,
        gt=0,
        le=4,
        description="Multiplier of the backbone's channels; cost grows with its square.",
    )
    pretrained: bool = Field(False, description="Start from timm's pretrained weights.")
    init: Annotated[Path | None, BeforeValidator(_local_path)] = Field(
        None,
        description="Start from the backbone of a run (its teacher), an exported folder, a file of "
        "weights (.safetensors, .pth), local-dir:FOLDER or hf-hub:NAME; the architecture of a run "
        "or folder is the default for this run.",
    )
    freeze: str | None = Field(
        None,
        description="Keep everything up to and including this part of the network as it is, named "
        "as timm names it: layer3 (ResNet), blocks.5 (ViT), stages.1 (ConvNeXt); backbone trains "
        "only the heads (linear probing); none: train everything.",
    )
    drop_path: float = Field(
        0.0, ge=0, lt=1, description="Stochastic depth rate; raising it regularizes more."
    )
    model_options: dict[str, Any] = Field(
        {}, description="Options passed to timm.create_model, such as patch_size."
    )


class OptimizationSettings(SettingsGroup, title="Optimization"):
    """How long, in which batches and with which optimizer the network is trained."""

    epochs: int = Field(
        100,
        ge=1,
        description="Number of passes over the training images; training time grows with it.",
    )
    probe_epochs: int = Field(
        0,
        ge=0,
        description="Epochs at the start in which only the heads are trained, at the maximum "
        "learning rate; warm-up and cosine begin after them. 0: train everything from the start.",
    )
    batch_size: int = Field(
        100,
        ge=1,
        description="Images per optimizer step, over all processes; raising it needs more memory "
        "and takes fewer steps per epoch.",
    )
    drop_last: bool = Field(
        True, description="Leave out the last batch of an epoch if it is incomplete."
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="Number of equal parts a batch is split into (gradient accumulation); raising "
        "it saves memory.",
    )
    optimizer: Literal["sgd", "adamw"] = Field(
        "sgd", description="Optimizer: SGD with momentum, or AdamW."
    )
    lr: float = Field(
        0.1,
        gt=0,
        description="Maximum learning rate, reached after the warm-up; if it is too high, the "
        "loss diverges.",
    )
    min_lr: float = Field(0.0, ge=0, description="Learning rate at the end of the cosine schedule.")
    lr_update: Literal["step", "epoch"] = Field(
        "step",
        description="When the learning rate follows the cosine: at every step, or once per epoch "
        "as in the published ResNet recipes. The warm-up always rises at every step.",
    )
    warmup_epochs: float = Field(
        0.0,
        ge=0,
        description="Epochs over which the learning rate rises linearly from 0; 0: no warm-up.",
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Factor of the learning rate from each layer to the one before it, by timm's "
        "groups of layers; lowering it changes the first layers less. 1: the same rate everywhere.",
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="SGD momentum, or AdamW β₁.")
    nesterov: bool = Field(False, description="Use Nesterov momentum with SGD.")
    weight_decay: float = Field(
        1e-4,
        ge=0,
        description="Weight decay of the network and of the method's own weights; raising it "
        "regularizes more.",
    )
    decay_1d: bool = Field(
        True, description="Also apply weight decay to biases and normalization weights."
    )
    no_decay: Annotated[tuple[str, ...], BeforeValidator(split_names)] = Field(
        (),
        description="Parameters without weight decay, by parts of their names, comma-separated, "
        "such as cls_token,pos_embed.",
    )
    clip_grad: float | None = Field(
        None,
        gt=0,
        description="Maximum gradient norm; larger gradients are scaled down to it. none: off.",
    )
    label_smoothing: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Fraction of each label spread evenly over all classes; raising it makes "
        "predictions less confident.",
    )
    loss: Literal["cross_entropy", "bce"] | None = Field(
        None,
        description="Loss: cross-entropy, or binary cross-entropy, which treats each class as a "
        "question of its own. none: bce where images have several labels, else cross_entropy.",
    )
    class_weights: Literal["balanced", "effective"] | None = Field(
        None,
        description="Weight of each class in the loss: balanced, inverse to its number of "
        "training images; effective, inverse to its effective number of images, a milder "
        "correction; none: equal.",
    )
    class_weight_beta: float = Field(
        0.999,
        gt=0,
        lt=1,
        description="β of class_weights=effective; raising it weighs small classes more.",
    )


class RuntimeSettings(SettingsGroup, title="Runtime"):
    """Where and in which arithmetic the run is computed."""

    seed: int = Field(0, ge=0, description="Random seed of the data split, weights and batches.")
    device: str = Field(
        "auto",
        description="Device: cpu, cuda, cuda:1 or mps (the GPU of a Mac); auto: a CUDA GPU if "
        "there is one, else cpu.",
    )
    precision: Literal["fp32", "bf16", "fp16"] = Field(
        "fp32", description="Floating-point type of forward and backward passes (autocast)."
    )
    runtime: Literal["auto", "eager", "compile", "graph"] = Field(
        "auto",
        description="How a step runs: eagerly, with torch.compile, or as a CUDA graph; auto: "
        "eager.",
    )
    channels_last: bool = Field(
        True, description="Store images and weights channels-last, which most devices prefer."
    )
    sync_bn: bool = Field(
        True, description="Share batch-norm statistics between processes (SyncBatchNorm)."
    )


class EvaluationSettings(SettingsGroup, title="Evaluation"):
    """How often the networks are tested during training."""

    eval_every: int = Field(
        1,
        ge=1,
        description="Epochs between evaluations; raising it saves time. The last epoch is always "
        "evaluated.",
    )
    patience: int | None = Field(
        None,
        ge=1,
        description="Stop after that many evaluations in a row without a better score on the "
        "validation images (early stopping); needs such images, say --val-fraction 0.1. none: "
        "train all epochs.",
    )
    eval_batch_size: int = Field(
        500,
        ge=1,
        description="Images per forward pass in evaluation; raising it needs more memory.",
    )
    max_memory: float = Field(
        1.0,
        gt=0,
        description="Bound on the memory of a forward pass in evaluation and prediction, in GiB; "
        "if eval_batch_size would need more, fewer images are taken at a time.",
    )


class LoggingSettings(SettingsGroup, title="Logging and checkpoints"):
    """Where a run is written, and how often."""

    out: Path | None = Field(
        None, description="Folder to write the run to; none: runs/<data>-<method>-s<seed>."
    )
    label: str | None = Field(
        None, description="Name of the run in tables and reports; none: the method's name."
    )
    recipe: str | None = Field(
        None, description="Recipe that the settings started from, which the ledger compares with."
    )
    log_every: int = Field(50, ge=1, description="Optimizer steps between lines of metrics.jsonl.")
    checkpoint_every: int = Field(
        1, ge=1, description="Epochs between checkpoints; raising it risks losing more work."
    )
    keep_every: int | None = Field(
        None,
        ge=1,
        description="Epochs between checkpoints that are never overwritten; none: keep only the "
        "last and the best.",
    )
    log: Annotated[
        tuple[Literal["tensorboard", "wandb", "mlflow"], ...], BeforeValidator(split_names)
    ] = Field(
        (),
        description="Where else metrics are logged, comma-separated: tensorboard (event files), "
        "wandb (Weights & Biases) or mlflow; none: only metrics.jsonl.",
    )
    tensorboard: bool = Field(False, description="The same as log = tensorboard.")


class TeacherSettings(BaseModel):
    """The teacher: an exponential moving average of the student, kept for every method."""

    model_config = ConfigDict(extra="forbid", frozen=True, title="Teacher")

    momentum: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Teacher momentum at the start of training; closer to 1 averages over more "
        "steps. none: 1 - 100/steps, at most 0.999.",
    )
    momentum_end: float = Field(
        0.999999,
        ge=0,
        le=1,
        description="Teacher momentum at the end of training; closer to 1 averages over more "
        "steps.",
    )
    constant_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Fraction of training during which the teacher momentum stays constant, before "
        "it rises to momentum_end.",
    )
    buffers: Literal["average", "copy", "own"] = Field(
        "average",
        description="The teacher's batch-norm statistics: averaged like its weights, copied from "
        "the student, or updated by its own forward passes.",
    )


class TrainConfig(
    # Pydantic orders fields from the last base to the first.
    LoggingSettings,
    EvaluationSettings,
    RuntimeSettings,
    OptimizationSettings,
    ModelSettings,
    AugmentationSettings,
    DataSettings,
    MethodChoice,
    title="Settings of a run",
):
    """All settings of a run. Unknown names raise an error, as do values out of range.

    Besides the fields below, a group of settings named after a method is accepted, for example
    `TrainConfig(method="adautomix", adautomix={"beta": 0.3})`.
    """

    model_config = ConfigDict(extra="allow")

    mix: MixSettings = Field(MixSettings(), description="When to mix.")
    teacher: TeacherSettings = Field(
        TeacherSettings(), description="The moving average of the student."
    )
    randaugment: RandAugmentSettings = Field(
        RandAugmentSettings(), description="Settings of augment = randaugment."
    )
    autoaugment: AutoAugmentSettings = Field(
        AutoAugmentSettings(), description="Settings of augment = autoaugment."
    )
    colorjitter: ColorJitterSettings = Field(
        ColorJitterSettings(), description="Settings of augment = colorjitter."
    )

    @model_validator(mode="wrap")
    @classmethod
    def _apply_preset(cls, values: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        if not isinstance(values, Mapping):
            return validate(values)
        config = validate(apply_preset(values))
        # What only the preset sets does not count as set: a comparison leaves it out.
        config.model_fields_set.intersection_update(values)
        return config

    @model_validator(mode="before")
    @classmethod
    def _inherit_architecture(cls, values: Any) -> Any:
        """Take the architecture from `init`, unless the configuration states all of it."""
        if not isinstance(values, Mapping) or not isinstance(values.get("init"), str | Path):
            return values
        if values.keys() >= set(ARCHITECTURE):
            return values
        return architecture_of(Path(_local_path(values["init"]))) | dict(values)

    @model_validator(mode="before")  # pydantic calls the last one first
    @classmethod
    def _check_paths(cls, values: Any) -> Any:
        for name in PATHS if isinstance(values, Mapping) else ():
            if isinstance(values.get(name), str | Path):
                check_path(name, values[name])
        return values

    @model_validator(mode="after")
    def _check(self) -> Self:
        from adautomix.methods import find_method

        cls = find_method(self.method)
        for name, options in (self.model_extra or {}).items():
            check_group(name, options)
        cls.check_schedule(self.mix)
        if self.teacher.buffers == "own" and not cls.supports_own_teacher_buffers:
            raise UsageError(
                f"teacher.buffers = own: {self.method} never runs the teacher, so its statistics "
                "would keep their initial values; use average or copy"
            )
        if self.init and self.pretrained:
            raise UsageError("init and pretrained both say where the weights start: leave out one")
        if self.sampler == "balanced" and self.class_weights:
            raise UsageError(
                f"sampler = balanced and class_weights = {self.class_weights} both correct for "
                "classes of unequal size, which corrects twice: use one of them"
            )
        if self.probe_epochs >= self.epochs:
            raise UsageError(
                f"probe_epochs = {self.probe_epochs} leaves none of the {self.epochs} epochs to "
                "train the whole network: lower it, or train only the heads with freeze = backbone"
            )
        if self.batch_size % self.accumulate:
            raise UsageError(
                f"accumulate = {self.accumulate} does not divide batch_size = {self.batch_size}"
            )
        return self

    @property
    def method_settings(self) -> "MethodSettings":
        """The settings of this run's method, with its defaults filled in."""
        from adautomix.methods import find_method

        return find_method(self.method).Settings(**(self.model_extra or {}).get(self.method, {}))

    def stem_for(self, image_size: int) -> "Stem":
        """The stem for images of this side in pixels, with "auto" resolved."""
        from adautomix.models import default_stem

        if self.stem != "auto":
            return self.stem
        # Published weights fit only the stem they were trained with.
        return "standard" if self.pretrained else default_stem(self.model, image_size)

    def resolved(self) -> dict[str, Any]:
        """Every setting and its value as plain data: the content of `config.yaml`."""
        plain: dict[str, Any] = self.model_dump(mode="json", exclude=set(self.model_extra or {}))
        settings = self.method_settings.model_dump(mode="json")
        return {**plain, self.method: settings} if settings else plain


def check_group(name: str, options: Any) -> None:
    """Check that a group of settings belongs to a method and that the method knows them all.

    Raises:
        UsageError: the group or one of its settings is unknown or out of range.
    """
    from adautomix.methods import METHODS

    if name not in METHODS:
        raise UsageError(unknown_setting(name, [*TrainConfig.model_fields, *METHODS]))
    settings = METHODS[name].Settings
    with one_line_errors(name, lambda: setting_names(f"{name}.", settings)):
        settings.model_validate(options)


def architecture_of(path: Path) -> dict[str, Any]:
    """Return the settings that rebuild the network stored at `path`; none for a plain file.

    Args:
        path: A run folder, a folder written by `adautomix export` or in the format of timm on the
            Hugging Face Hub, or a file of weights. Nothing is downloaded for `hf-hub:NAME`.

    Raises:
        UsageError: The folder does not describe its network.
    """
    try:
        if (path / "config.yaml").is_file():
            run = make_config(read_yaml(path / "config.yaml"))
            size = int(read_json(path / "data.json")["image_size"])
            stem = {"image_size": size, "stem": run.stem_for(size)}
            return {name: getattr(run, name) for name in ARCHITECTURE} | stem
        if (path / "config.json").is_file():
            known = read_json(path / "config.json")
            if "architecture" in known and "stem" not in known:
                return _timm_architecture(known)
            sizes = {name: known[name] for name in ("stem", "width", "image_size")}
            return {"model": known["architecture"], **sizes}
    except (AttributeError, LookupError, TypeError, ValueError, UsageError) as error:
        raise UsageError(f"{path} does not say which network it holds: {error}") from None
    return {}


def _timm_architecture(known: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a network that a `config.json` in timm's format describes."""
    size = int(known.get("pretrained_cfg", known)["input_size"][-1])
    options = dict(known.get("model_args") or {})
    return {"model": known["architecture"], "model_options": options, "image_size": size}


def make_config(values: Mapping[str, Any]) -> TrainConfig:
    """Return the checked configuration for nested plain values.

    Raises:
        UsageError: One line that names the setting and says what would be right.
    """
    with one_line_errors(known=_all_setting_names):
        return TrainConfig.model_validate(values)


def _all_setting_names() -> list[str]:
    """Names of all settings: those of every run, and those of each method in its group."""
    from adautomix.methods import METHODS

    names = setting_names("", TrainConfig)
    for name, cls in METHODS.items():
        names += setting_names(f"{name}.", cls.Settings)
    return names
