"""Figures of the running training, kept on the device until somebody reads them."""

import time
from typing import Any

import torch
from torch import Tensor

NEVER = 2**62


class Meters:
    """Running means of named scalars; adding costs no wait for the device, reading one."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, int] = {}
        self.restart_clock()

    def restart_clock(self) -> None:
        """Measure the rate from here on."""
        self._since, self._adds = time.perf_counter(), 0

    def rate(self) -> float:
        """Additions a second since the clock was last restarted."""
        return self._adds / max(time.perf_counter() - self._since, 1e-9)

    def add(self, values: dict[str, Tensor]) -> None:
        """Count one value of each name."""
        self._adds += 1
        for name, value in values.items():
            value = value.detach().double()
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
        """Forget everything and restart the clock."""
        self._sums, self._counts = {}, {}
        self.restart_clock()

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts."""
        return {"sums": dict(self._sums), "counts": dict(self._counts)}

    def load_state_dict(self, state: dict[str, Any], device: torch.device) -> None:
        """Go on from saved sums and counts."""
        self._sums = {name: value.to(device) for name, value in state["sums"].items()}
        self._counts = dict(state["counts"])


class FiniteWatch:
    """Remembers the first step whose loss was not finite, without waiting for the device."""

    def __init__(self, device: torch.device) -> None:
        self._first_bad = torch.tensor(NEVER, device=device)

    def check(self, loss: Tensor, step: int) -> None:
        """Note the step if its loss is not finite."""
        here = torch.where(torch.isfinite(loss.detach()), NEVER, step)
        self._first_bad = torch.minimum(self._first_bad, here)

    def first_bad(self) -> int:
        """The first such step, or NEVER; waits for the device."""
        return int(self._first_bad)
