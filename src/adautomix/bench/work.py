"""The arithmetic of a step, and how much of what the machine can do of it a step gets done.

Counted are the multiplications and additions of matrix products, convolutions and attention, as
they are done in a real step, forward and backward. The machine's peak is measured, not looked up:
a large matrix product or convolution in the precision of the networks, whichever is faster, as the
two have libraries of their own.
"""

import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from adautomix.bench.steps import Timing
from adautomix.bench.workload import Row, Workload, cycle, name_of, real_step, time_call
from adautomix.config import TrainConfig
from adautomix.data import ImageData
from adautomix.device import DTYPES

PEAK_ROUNDS = 5
SIDES = {"cpu": 2048, "cuda": 8192}  # of matrices that keep every unit busy for a while


def count_flops(config: TrainConfig, data: ImageData) -> float:
    """Floating-point operations of a real step, the mean over the kinds of step there are.

    They are counted in the eager step, whichever way it is to be run.
    """
    step, steps = real_step(config.model_copy(update={"runtime": "eager"}), data), cycle(config)
    # Attention is counted as the plain products that it stands for, on every device alike.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for _ in range(steps):
            step()
    return int(counter.get_total_flops()) / steps


def measured_peak(device: torch.device, precision: str, side: int | None = None) -> float:
    """Floating-point operations a second of a large matrix product or convolution, if faster.

    Each is the median of a few.

    Args:
        device: the CPU or a GPU.
        precision: fp32, bf16 or fp16. On a GPU single precision is rounded as convolutions are
            allowed to round it, which is to TF32 unless the user said otherwise.
        side: rows and columns of the matrices; none: suits the device.
    """
    side = side or SIDES.get(device.type, SIDES["cpu"])
    dtype = DTYPES[precision]
    a, b = torch.randn(2, side, side, device=device, dtype=dtype)
    maps = torch.randn(side // 16, 256, 16, 16, device=device, dtype=dtype)
    filters = torch.randn(256, 256, 3, 3, device=device, dtype=dtype)
    calls: dict[int, Callable[[], Tensor]] = {
        2 * side**3: lambda: a @ b,
        2 * maps.numel() * filters[0].numel(): lambda: F.conv2d(maps, filters, padding=1),
    }
    cudnn: Any = torch.backends.cudnn  # made at run time: it has more than its types tell
    products = torch.backends.cuda.matmul
    before, products.fp32_precision = products.fp32_precision, cudnn.conv.fp32_precision
    try:
        return max(
            flops / statistics.median([time_call(call, device) for _ in range(1 + PEAK_ROUNDS)][1:])
            for flops, call in calls.items()
        )
    finally:
        products.fp32_precision = before


def work_rows(work: Workload, timings: Sequence[Timing]) -> list[Row]:
    """The work of each method and its share of the machine's peak, as rows of data.

    Args:
        work: what was measured.
        timings: of its methods; any others are passed over.
    """
    configs, data = work.configs(), work.images()
    seconds = {timing.method: timing.median for timing in timings}
    flops = {name_of(config): count_flops(config, data) for config in configs}
    peak = measured_peak(work.device(), configs[0].precision)
    return [
        {
            "method": method,
            "flops": count,
            "times": count / flops[name_of(configs[0])],
            "flops_per_second": count / seconds[method],
            "peak_flops_per_second": peak,
            "share_of_peak": count / (seconds[method] * peak),
        }
        for method, count in flops.items()
    ]
