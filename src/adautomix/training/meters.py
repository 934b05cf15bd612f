"""Running figures of the training, kept on the device until they are read."""

import time
from typing import Any, TypedDict

import torch
from torch import Tensor

from adautomix.device import exact

NEVER = 2**62  # the first bad step of a run that has none


class Figures(TypedDict):
    """What a progress bar and a row of `metrics.jsonl` show, see `MetricsRow`."""

    loss: float
    mixture_accuracy: float | None
    parts: dict[str, float]
    seconds: float
    images_per_second: float


class Meters:
    """Running means of named scalars. Only `read` waits for the device."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measure the rate from now on."""
        self._since, self._adds = time.perf_counter(), 0

    def rate(self) -> float:
        """Calls of `add` per second since the clock was last restarted."""
        return self._adds / max(time.perf_counter() - self._since, 1e-9)

    def add(self, values: dict[str, Tensor]) -> None:
        """Add one scalar tensor of each name, in float64 where the device has it."""
        self._adds += 1
        for name, value in values.items():
            value = exact(value.detach())
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()
            self._counts[name] = self._counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        """The mean of each name since the last reset."""
        if not self._sums:
            return {}
        sums = torch.stack(list(self._sums.values())).tolist()
        return {
            name: total / self._counts[name] for name, total in zip(self._sums, sums, strict=True)
        }

    def reset(self) -> None:
        """Clear all means and restart the clock."""
        self._sums, self._counts = {}, {}
        self.restart_clock()

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts, for a checkpoint."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Restore saved sums and counts."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])


class FiniteWatch:
    """Remembers the first step whose loss was not finite, without waiting for the device."""

    def __init__(self, device: torch.device) -> None:
        self._first_bad = torch.tensor(NEVER, device=device)

    def check(self, loss: Tensor, step: int) -> None:
        """Record the step if its loss is NaN or infinite."""
        bad_step = torch.where(torch.isfinite(loss.detach()), NEVER, step)
        self._first_bad = torch.minimum(self._first_bad, bad_step)

    def first_bad(self) -> int:
        """The first recorded step, or `NEVER`. Waits for the device."""
        return int(self._first_bad)
