"""Any mixing method in a training loop of your own.

method = adautomix.create_method("adautomix", model=model, num_classes=100, steps=10_000)
optimizer = torch.optim.SGD([*model.parameters(), *method.parameters()], lr=0.1)
for images, labels in loader:
loss = method(images, labels)
optimizer.zero_grad()
loss.backward()
optimizer.step()
method.after_step()
method.teacher  # the moving average of the model, ready to be evaluated
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adautomix.config import TeacherSettings
from adautomix.ema import Teacher, momentum_schedule
from adautomix.errors import UsageError
from adautomix.inputs import check_batch
from adautomix.methods import Method, find_method
from adautomix.methods.base import LossName
from adautomix.mixing.settings import MixSettings
from adautomix.models.parallel import SHARDED, find_ddp, is_sharded, unwrap
from adautomix.models.wrap import WrappedClassifier, wrap_model
from adautomix.rng import seed_at
from adautomix.validation import one_line_errors, setting_names


class MixLoss(nn.Module):
    """A mixing method with its teacher and step counter; call it for the loss of a batch.

    `parameters()` yields what has to be optimized besides the model: the method's own parameters
    (a mask generator, for example) and the second head, where `create_method` added one.
    `state_dict()` holds these, the teacher and the step counter.

    Attributes:
        method: the method itself.
        step: number of optimizer steps that `after_step` has counted.
        parts: named parts of the latest loss, detached.
    """

    def __init__(
        self,
        method: Method,
        model: nn.Module,
        *,
        own_heads: nn.Module | None = None,
        teacher: Teacher[nn.Module] | None = None,
        momentum: list[float] | None = None,
        rank: int | None = None,
    ) -> None:
        super().__init__()
        self.method = method
        self.heads = own_heads
        if teacher is not None:
            self._modules["teacher"] = teacher.model  # read through the property below
        self.step = 0
        self.parts: dict[str, Tensor] = {}
        self._average, self._momentum = teacher, momentum or []
        self._model = [model]  # in a list: the model belongs to the caller, not to this module
        self._rank, self._started = rank, False

    @property
    def teacher(self) -> nn.Module:
        """The moving average of the model.

        Raises:
            UsageError: the method needs no teacher and none was asked for.
        """
        if self._average is None:
            raise UsageError(
                f"{self.method.name} keeps no moving average of the model: pass "
                "teacher=TeacherSettings() to create_method if you want one"
            )
        return self._average.model

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Compute the loss of a batch.

        Args:
            images: normalized, float `[B, C, H, W]`.
            labels: class indices `[B]` or soft labels `[B, K]`. Their values are checked on the
                CPU only, because reading them on a GPU would stall it.

        Returns:
            A scalar; its backward pass gives the model and the method their gradients.

        Raises:
            UsageError: an input has the wrong shape, type or range.
        """
        multi_label = self.method.loss_name == "bce"
        check_batch(images, labels, self.method.num_classes, multi_label=multi_label)
        model = self._model[0]
        if not self._started:
            self._seed_by_rank()
            self._share_start(model)
            self._started = True
        if isinstance(model, WrappedClassifier):
            model.begin_step()
        # A method that needs no teacher ignores this argument.
        teacher = model if self._average is None else self.teacher
        self.parts = self.method.losses(images, labels, model, teacher, self.step)
        return self.parts.pop("loss")

    def average_gradients(self) -> None:
        """Average the gradients of `parameters()` over all processes; call it after the backward.

        `DistributedDataParallel` does this for the model's parameters only. A parameter that only
        some processes used counts as zero in the others; one that none used keeps no gradient.
        Without several processes nothing happens.
        """
        if not has_several_processes():
            return
        parameters = list(self.parameters())
        if not parameters:
            return
        # All processes must make the same calls, so they first agree on what was used anywhere.
        used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32)
        used = used.to(parameters[0].device)
        dist.all_reduce(used, dist.ReduceOp.MAX)
        for parameter, is_used in zip(parameters, used.tolist(), strict=True):
            if is_used:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)
                parameter.grad /= dist.get_world_size()

    def after_step(self) -> None:
        """Update the teacher; call it after every step of the optimizer."""
        if self._average is not None:
            momentum = self._momentum[min(self.step, len(self._momentum) - 1)]
            self._average.update(self._model[0], momentum)
        self.method.after_step(self.step)
        self.step += 1

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield what is learned here; the teacher is averaged, not learned."""
        yield from self.method.named_parameters(prefix, recurse, remove_duplicate)
        if self.heads is not None:
            place = f"{prefix}.heads" if prefix else "heads"
            yield from self.heads.named_parameters(place, recurse, remove_duplicate)

    def train(self, mode: bool = True) -> "MixLoss":
        """Leave the teacher in its own mode, whatever the loop does."""
        self.training = mode
        return self

    def get_extra_state(self) -> dict[str, int]:
        """The step counter."""
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Restore the step counter."""
        self.step = state["step"]

    def _share_start(self, model: nn.Module) -> None:
        """Start every process with the same generator, second head and teacher.

        DDP itself does this for the model. Processes may have seeded PyTorch differently.
        """
        if not has_several_processes() or not is_distributed(model):
            return
        average = [] if self._average is None else list(self._average.model.parameters())
        for parameter in [*self.parameters(), *average]:
            dist.broadcast(parameter.detach(), src=0)

    def _seed_by_rank(self) -> None:
        """Give each process random numbers of its own, once it is known which one this is."""
        rank = process_rank() if self._rank is None else self._rank
        if rank:
            self.method.seed = seed_at(self.method.seed, rank, "process")
            # All processes agree on which steps mix; each decides for the images of its own batch.
            schedule = self.method.schedule
            if schedule is not None and schedule.settings.per_sample:
                self.method.schedule = replace(schedule, seed=self.method.seed)


def has_several_processes() -> bool:
    """Whether PyTorch runs in a group of several processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def process_rank() -> int:
    """Rank of this process, from PyTorch or else from its launcher's environment."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0"))


def create_method(
    name: str,
    *,
    model: nn.Module,
    num_classes: int,
    steps: int | None = None,
    seed: int = 0,
    rank: int | None = None,
    label_smoothing: float = 0.0,
    class_weights: Tensor | None = None,
    loss: LossName = "cross_entropy",
    teacher: TeacherSettings | None = None,
    mix_schedule: MixSettings | Mapping[str, Any] | None = None,
    **settings: Any,
) -> MixLoss:
    """Create a mixing method for a training loop of your own.

    Args:
        name: a name that `adautomix methods` lists, such as "adautomix" or "cutmix".
        model: the network to train: a timm network, a torchvision ResNet, ConvNeXt, Swin or ViT,
            any other module after `wrap_model`, or one of `build_model`; also inside DDP or
            `torch.compile`. For FSDP, create the method first and then call `fully_shard(model)`.
            Its own classification layer stays in use. Methods that need a second head add one,
            which `method.parameters()` includes.
        num_classes: number of classes, K.
        steps: optimizer steps of the whole training. Required where a teacher is kept, because its
            momentum rises over the training, and for schedules of mixing.
        seed: random seed of everything that the method draws.
        rank: which process's random numbers to use; default: this process's rank, read at the
            first batch, so that each process mixes differently.
        label_smoothing: label smoothing of the cross-entropy, 0 to 1.
        class_weights: weight of each class in the cross-entropy, `[K]`; default: all alike. The
            loss is divided by the number of images whether labels are mixed or not, unlike
            PyTorch's for class indices.
        loss: "cross_entropy", or "bce", the binary cross-entropy, with which a row of soft labels
            may name several classes or none. Only methods that mix nothing but the input have it.
        teacher: settings of the moving average. Methods that need no teacher keep one only if
            this is given.
        mix_schedule: when to mix, for example `{"prob": 0.5, "stop": 0.75}`; default: every step.
            `{"decouple": 0.1}` adds the decoupled regularizer to the loss of mixes.
        settings: the method's own settings, such as `alpha=0.2`.

    Returns:
        A module that is called with images and labels and returns the loss.

    Raises:
        UsageError: unknown method or setting, a value out of range, or a network that the method
            cannot use.
    """
    cls = find_method(name)
    with one_line_errors(name, lambda: setting_names(f"{name}.", cls.Settings)):
        options = cls.Settings(**settings)
    if cls.needs_float32:
        require_float32(name, model)
    student, own_heads = network_for(cls, model, num_classes)
    method = cls(
        options,
        num_classes=num_classes,
        seed=seed,
        label_smoothing=label_smoothing,
        model=student,
    )
    method.use_loss(loss)
    if class_weights is not None:
        method.weigh_classes(class_weights.to(next(model.parameters()).device))
    plan_mixing(method, mix_schedule, steps)
    average = momentum = None
    if cls.uses_teacher or teacher is not None:
        if is_sharded(model):
            raise UsageError(SHARDED)
        momentum = teacher_momentum(name, teacher or TeacherSettings(), steps)
        source = unwrap(student) if not isinstance(student, WrappedClassifier) else student
        average = Teacher(source, (teacher or TeacherSettings()).buffers)
    return MixLoss(
        method, student, own_heads=own_heads, teacher=average, momentum=momentum, rank=rank
    )


def require_float32(name: str, model: nn.Module) -> None:
    """Check that the parameters of a network are float32.

    Raises:
        UsageError: some are not.
    """
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()} - {torch.float32}
    if dtypes:
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise UsageError(
            f"{name} needs a network with float32 parameters, and some are {found}: call "
            "model.float(), and use torch.autocast for lower precision"
        )


def network_for(
    cls: type[Method], model: nn.Module, num_classes: int
) -> tuple[nn.Module, nn.Module | None]:
    """The network as the method needs it, and the heads that were added for it.

    Raises:
        UsageError: the network has another number of classes.
    """
    if hasattr(model, "tap_shape"):
        student: nn.Module = model  # has the interface of Classifier already
    elif cls.requires or cls.heads != ("clean",):
        student = wrap_model(model, heads=cls.heads)
    else:
        return model, None
    if getattr(student, "num_classes", num_classes) != num_classes:
        raise UsageError(
            f"num_classes={num_classes}, but the model's classification layer has "
            f"{student.num_classes} outputs: build it with num_classes={num_classes}"
        )
    return student, None if student is model else getattr(student, "extra_heads", None)


def plan_mixing(
    method: Method, schedule: MixSettings | Mapping[str, Any] | None, steps: int | None
) -> None:
    """Tell the method how long training is and when to mix.

    Raises:
        UsageError: a setting is wrong, or the number of steps is needed and not given.
    """
    if schedule is None and steps is None:
        return
    with one_line_errors("mix_schedule", lambda: setting_names("mix_schedule.", MixSettings)):
        mix = MixSettings.model_validate(schedule or {})
    if steps is None and (mix.start, mix.ramp, mix.stop) != (0, 0, 1):
        raise UsageError(
            "mix_schedule starts or stops mixing at a fraction of the training: pass steps=, its "
            "number of optimizer steps"
        )
    method.plan(steps, mix, method.seed)


def is_distributed(model: nn.Module) -> bool:
    """Whether a network is called through `DistributedDataParallel` or sharded by FSDP."""
    caller = model.caller if isinstance(model, WrappedClassifier) else model
    return find_ddp(caller) is not None or is_sharded(model)


def teacher_momentum(name: str, teacher: TeacherSettings, steps: int | None) -> list[float]:
    """Momentum of the teacher at every step.

    Raises:
        UsageError: the number of steps is needed and not given.
    """
    if steps is None:
        raise UsageError(
            f"{name} keeps a moving average of the model: pass steps=, the number of optimizer "
            "steps of the whole training, over which its momentum rises"
        )
    return momentum_schedule(
        steps,
        start=teacher.momentum,
        end=teacher.momentum_end,
        constant_share=teacher.constant_share,
    )
