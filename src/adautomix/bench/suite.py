"""Everything that one call of the benchmark was asked to measure, by kind."""

from collections.abc import Sequence

from adautomix.bench.mixing import MixTiming, time_mixing
from adautomix.bench.peers import require_peer
from adautomix.bench.phases import require_seams, time_phases
from adautomix.bench.steps import side_by_side, step_rows, time_steps
from adautomix.bench.work import work_rows
from adautomix.bench.workload import ProgressCallback, Row, Workload

MIXED = ("mixup", "cutmix")  # what other libraries mix with too


def run_suite(
    asked: Workload,
    *,
    peers: Sequence[str] = (),
    phases: bool = False,
    work: bool = False,
    mixing: bool = False,
    on_progress: ProgressCallback = lambda done: None,
) -> dict[str, list[Row]]:
    """Measure, and return rows of data by kind: "steps", "peers", "phases", "work", "mixing".

    Args:
        asked: what to measure.
        peers: "openmixup" joins the steps, any other the mixing.
        phases: also where the time of a step goes.
        work: also the operations of a step and the machine's peak.
        mixing: mixing alone and no steps, against the named peers or all that are installed.
        on_progress: called with the number of rounds of steps done.

    Raises:
        UsageError: a setting is wrong, or a peer is not installed.
    """
    for peer in peers:
        require_peer(peer)
    if phases:
        require_seams(asked)
    libraries = [peer for peer in peers if peer != "openmixup"]
    if mixing:
        return {"mixing": measure_mixing(asked, libraries)}
    openmixup = "openmixup" in peers
    timings = time_steps(asked, vs_openmixup=openmixup, on_progress=on_progress)
    results = {"steps": step_rows(timings)}
    if openmixup:
        results["peers"] = side_by_side(timings)
    if phases:
        results["phases"] = time_phases(asked)
    if work:
        results["work"] = work_rows(asked, timings)
    if libraries:
        results["mixing"] = measure_mixing(asked, libraries)
    return results


def measure_mixing(asked: Workload, libraries: Sequence[str]) -> list[Row]:
    """Mixing alone, by those of the methods that the libraries share, or by all of them."""
    config, *_ = asked.configs()
    timings = time_mixing(
        [method for method in asked.methods if method in MIXED] or MIXED,
        ["adautomix", *libraries] if libraries else None,
        batch=config.batch_size,
        size=asked.size,
        rounds=asked.steps,
        device=asked.device(),
    )
    ours = {(t.method, t.mode): t.median for t in timings if t.library == "adautomix"}
    return [mix_row(timing, ours[timing.method, timing.mode]) for timing in timings]


def mix_row(timing: MixTiming, ours: float) -> Row:
    """One mixer's timing as a row of data; `times_ours` is its median over ours."""
    return {
        "method": timing.method,
        "mode": timing.mode,
        "library": timing.library,
        "batch_size": timing.batch,
        "image_size": timing.size,
        "seconds": timing.median,
        "quartiles": timing.quartiles,
        "times_ours": timing.median / ours,
    }
