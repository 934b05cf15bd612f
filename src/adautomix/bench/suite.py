"""Everything that one call of `adautomix bench` measures, by kind."""

from adautomix.bench.phases import require_seams, time_phases
from adautomix.bench.steps import step_rows, time_steps
from adautomix.bench.work import work_rows
from adautomix.bench.workload import ProgressCallback, Row, Workload


def run_suite(
    workload: Workload,
    *,
    phases: bool = False,
    work: bool = False,
    on_progress: ProgressCallback = lambda done: None,
) -> dict[str, list[Row]]:
    """Measure, and return rows of data by kind: "steps", "phases", "work".

    Args:
        workload: the methods, settings and images to measure.
        phases: also measure where the time of a step goes.
        work: also count the operations of a step and measure the peak of the machine.
        on_progress: called with the number of rounds of steps that are done.

    Raises:
        UsageError: a setting is wrong.
    """
    if phases:
        require_seams(workload)
    timings = time_steps(workload, on_progress=on_progress)
    results = {"steps": step_rows(timings)}
    if phases:
        results["phases"] = time_phases(workload)
    if work:
        results["work"] = work_rows(workload, timings)
    return results
