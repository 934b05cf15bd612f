"""Train and evaluate the tasks of a table; finished parts are kept and stopped ones continue."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from adautomix.evaluation.evaluate import evaluate
from adautomix.evaluation.load_target import EvalOptions, load_target
from adautomix.evaluation.record import read_evaluation
from adautomix.tables.tasks import Task
from adautomix.training.compare import parallel_jobs
from adautomix.training.engines import EngineChoice, Job
from adautomix.training.jobs import Failure, run_jobs
from adautomix.training.run import train


def execute(
    tasks: Sequence[Task],
    *,
    engine: EngineChoice | None = None,
    folder: Path,
    quiet: bool = False,
    command: str = "",
) -> list[Failure]:
    """Do all tasks; one that fails does not stop the others.

    Args:
        tasks: what `expand` returned.
        engine: what computes the runs; None trains on this machine.
        folder: where an engine may keep logs.
        quiet: show no progress.
        command: the command line, for the summaries.

    Returns:
        The tasks that failed, with their reasons.

    Raises:
        StoppedError: a signal stopped the table; the same command continues.
    """
    engine = engine or EngineChoice()
    failures = []
    # Runs that start from the weights of others come after these.
    for wave in ([t for t in tasks if t.start is None], [t for t in tasks if t.start is not None]):
        if wave:
            jobs = [task_job(task, command) for task in wave]
            parallel = parallel_jobs(engine, wave[0].settings())
            failures += run_jobs(jobs, engine, parallel, folder, quiet=quiet)
    return failures


def task_job(task: Task, command: str) -> Job:
    """Return the job that trains and evaluates a task."""
    name, epochs = f"{task.name} s{task.seed}", task.settings().epochs
    return Job(name, task.folder, epochs, partial(do_task, task, command=command))


def do_task(task: Task, *, quiet: bool, command: str) -> None:
    """Train a task, or continue it, then run the suites that it was not evaluated with yet."""
    train(task.config(), quiet=quiet, command=command)
    evaluate_task(task)


def evaluate_task(task: Task) -> None:
    """Run the suites of a task that its run was not evaluated with yet."""
    stored = read_evaluation(task.folder)
    missing = [name for name in task.evaluate if stored is None or name not in stored.suites]
    if missing:
        options = EvalOptions({}, device=task.settings().device)
        evaluate(load_target(str(task.folder), options), missing, task.evaluate)
