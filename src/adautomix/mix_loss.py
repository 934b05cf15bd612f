"""Any method inside somebody else's training loop.

method = adautomix.create_method("adautomix", model=model, num_classes=100, steps=10_000)
optimizer = torch.optim.SGD([*model.parameters(), *method.parameters()], lr=0.1)
for images, labels in batches:
loss = method(images, labels)
optimizer.zero_grad(); loss.backward(); optimizer.step()
method.after_step()
method.teacher   # the moving average of the model, ready to be evaluated
"""

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn

from adautomix.config import TeacherSettings
from adautomix.ema import Teacher, momentum_schedule
from adautomix.methods import Method, find_method
from adautomix.mixing.schedule import MixSettings
from adautomix.rng import seed_at
from adautomix.validation import one_line_errors, setting_names


class MixLoss(nn.Module):
    """A method with its teacher and its step counter; call it for the loss of a batch.

    `parameters()` are what the method learns besides the model; `state_dict()` holds these, the
    teacher and the counter.
    """

    def __init__(
        self, method: Method, model: nn.Module, teacher: Teacher[nn.Module], momentum: list[float]
    ) -> None:
        super().__init__()
        self.method = method
        self.teacher = teacher.model
        self.step = 0
        self.parts: dict[str, Tensor] = {}
        self._average = teacher
        self._momentum = momentum
        self._model = [model]  # in a list: the model belongs to the caller, not to this module

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch; its named parts are then in `parts`, detached.

        Args:
            images: normalized, `[B, C, H, W]`.
            labels: class indices `[B]` or soft `[B, K]`.
        """
        self.parts = self.method.losses(images, labels, self._model[0], self.teacher, self.step)
        return self.parts.pop("loss")

    def after_step(self) -> None:
        """Move the teacher; call it after every step of the optimizer."""
        momentum = self._momentum[min(self.step, len(self._momentum) - 1)]
        self._average.update(self._model[0], momentum)
        self.method.after_step(self.step)
        self.step += 1

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """What the method learns; the teacher is averaged, not learned."""
        return self.method.named_parameters(prefix, recurse, remove_duplicate)

    def train(self, mode: bool = True) -> "MixLoss":
        """The teacher keeps its own mode, whatever the loop does."""
        self.training = mode
        return self

    def get_extra_state(self) -> dict[str, int]:
        """The step counter."""
        return {"step": self.step}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Go on from a saved counter."""
        self.step = state["step"]


def process_rank() -> int:
    """Which of several processes this one is: PyTorch's answer, or what its launcher says."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank()
    return int(os.environ.get("RANK", "0"))


def create_method(
    name: str,
    *,
    model: nn.Module,
    num_classes: int,
    steps: int,
    seed: int = 0,
    rank: int | None = None,
    label_smoothing: float = 0.0,
    teacher: TeacherSettings | None = None,
    mix_schedule: MixSettings | Mapping[str, Any] | None = None,
    **settings: Any,
) -> MixLoss:
    """A method for a loop of your own.

    Args:
        name: one of `adautomix methods`.
        model: the network to train; methods that look inside it need one of `build_model`.
        num_classes: K.
        steps: optimizer steps of the whole training, for the teacher's momentum and the schedule.
        seed: names every random number that the method draws.
        rank: whose random numbers they are, so that each of several processes mixes its own way;
            none: those of this process. The same number in all gives all the same mixes.
        label_smoothing: share of each target spread over all classes.
        teacher: settings of the moving average.
        mix_schedule: when to mix, for example `{"prob": 0.5, "stop": 0.75}`; none: at every step.
        settings: the method's own settings.

    Raises:
        UsageError: unknown method or setting, value out of range.
    """
    cls = find_method(name)
    average = teacher or TeacherSettings()
    with one_line_errors(name, lambda: setting_names(f"{name}.", cls.Settings)):
        options = cls.Settings(**settings)
    rank = process_rank() if rank is None else rank
    method = cls(
        options,
        num_classes=num_classes,
        seed=seed_at(seed, rank, "process") if rank else seed,
        label_smoothing=label_smoothing,
        model=model,
    )
    with one_line_errors("mix_schedule", lambda: setting_names("mix_schedule.", MixSettings)):
        mix = MixSettings.model_validate(mix_schedule or {})
    # Processes agree on which steps mix, and each draws for the images of its own batch.
    method.plan(steps, mix, method.seed if mix.per_sample else seed)
    momentum = momentum_schedule(
        steps,
        start=average.momentum,
        end=average.momentum_end,
        constant_share=average.constant_share,
    )
    return MixLoss(method, model, Teacher(model, average.buffers), momentum)
