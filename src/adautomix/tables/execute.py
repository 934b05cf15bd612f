"""Train and evaluate the tasks of a table; finished parts are kept and stopped ones continue."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from adautomix.errors import AdAutoMixError, StoppedError
from adautomix.evaluation.evaluate import evaluate
from adautomix.evaluation.load_target import EvalOptions, load_target
from adautomix.evaluation.record import read_evaluation
from adautomix.tables.tasks import Task
from adautomix.training.run import train

TaskProgress = Callable[[Task, int, int], None]
"""Progress callback, called with (next task, tasks done, tasks in total)."""


@dataclass(frozen=True)
class Failure:
    """A task that could not be done.

    Attributes:
        task: the task.
        reason: the error, in one line.
    """

    task: Task
    reason: str


def execute(
    tasks: Sequence[Task], *, on_progress: TaskProgress, quiet: bool = False, command: str = ""
) -> list[Failure]:
    """Do all tasks one after another; one that fails does not stop the others.

    Args:
        tasks: what `expand` returned.
        on_progress: called before each task.
        quiet: show no progress of single runs.
        command: the command line, for the summaries.

    Returns:
        The tasks that failed, with their reasons.

    Raises:
        StoppedError: a signal asked the run to stop; the same command continues.
    """
    failures = []
    for done, task in enumerate(tasks):
        on_progress(task, done, len(tasks))
        try:
            train(task.config(), quiet=quiet, command=command)
            evaluate_task(task)
        except StoppedError:
            raise
        except AdAutoMixError as error:
            failures.append(Failure(task, str(error)))
    return failures


def evaluate_task(task: Task) -> None:
    """Run the suites of a task that its run was not evaluated with yet."""
    stored = read_evaluation(task.folder)
    missing = [name for name in task.evaluate if stored is None or name not in stored.suites]
    if missing:
        options = EvalOptions({}, device=task.settings().device)
        evaluate(load_target(str(task.folder), options), missing, task.evaluate)
