"""Search for the method and settings that suit a data set, within a time budget.

Trials train on a part of the training images and are scored on the rest; they never see a test
image. Optuna proposes their settings (TPE) and stops weak ones early (ASHA, Li et al., MLSys 2020).
At the end plain training and the winner are trained on all training images and tested.
"""

import errno
import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from adautomix.config import TrainConfig, make_config, merge
from adautomix.errors import DiskFullError, StoppedError, UsageError
from adautomix.files import atomic_write, explain_full_disk
from adautomix.runs.build import data_info, load_images
from adautomix.runs.folder import RunFolder
from adautomix.runs.lock import run_lock
from adautomix.runs.schema import EpochRow
from adautomix.training.compare import run_comparison
from adautomix.training.engines import EngineChoice, Job
from adautomix.training.jobs import Failure, raise_failures, run_jobs
from adautomix.training.loop import Trainer
from adautomix.training.progress import say
from adautomix.training.search_space import PLAIN, first_choices, nested, suggest

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.pruners import BasePruner
    from optuna.storages import BaseStorage
    from optuna.trial import FrozenTrial, TrialState

STUDY = "tune"  # name of the study in its storage
JOURNAL = "study.log"  # file of the study
FIRST, REPEATS = "first", "repeats"  # attributes of trials: first choices; attempts cut off
HELD_OUT = 0.2  # fraction of the training images that trials are scored on, if none is set
RUNGS = 9  # evaluations of a trial; weak ones end after the first, third or ninth
REDUCTION = 3  # one trial of so many goes on from each rung
TRIALS_AT_A_TIME = 4  # on a cluster, if nothing else is asked for
MAX_FAILURES = 10  # trials that fail before a search gives up

Metric = Literal["top1", "nll", "ece"]


@dataclass(frozen=True)
class Search:
    """What is searched, where and how long.

    Attributes:
        values: nested settings of all trials; what a trial varies overrides them.
        methods: methods to try; plain training is always among them.
        out: folder of the study, the trials and the final runs.
        budget: seconds for everything, the final runs included.
        metric: what the held-out images judge by.
        final_seeds: seeds that plain training and the winner are tested with.
        trials: largest number of trials; None: as many as the budget allows.
        engine: what computes the runs; on Ray and Slurm `engine.parallel` trials run at a time.
    """

    values: Mapping[str, Any]
    methods: Sequence[str]
    out: Path
    budget: float
    metric: Metric = "top1"
    final_seeds: int = 2
    trials: int | None = None
    engine: EngineChoice = field(default_factory=EngineChoice)

    @property
    def parallel(self) -> int:
        """Number of trials at the same time; more trials at a time learn less from one another."""
        return self.engine.parallel or (1 if self.engine.name == "local" else TRIALS_AT_A_TIME)

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Whether the metric is to be high or low, in Optuna's words."""
        return "maximize" if self.metric == "top1" else "minimize"

    @property
    def held_out(self) -> float:
        """Fraction of the training images that trials are scored on."""
        return float(self.values.get("val_fraction") or HELD_OUT)


@dataclass(frozen=True)
class Candidate:
    """Settings that were tried.

    Attributes:
        settings: flat settings, with the method first.
        scores: held-out score of each finished trial.
        trials: number of trials, with those that were stopped early.
        seconds: mean training time of the finished trials; 0 if there is none.
    """

    settings: dict[str, Any]
    scores: list[float] = field(default_factory=list)
    trials: int = 0
    seconds: float = 0.0

    @property
    def score(self) -> float | None:
        """Mean held-out score; None if every trial was stopped early."""
        return fmean(self.scores) if self.scores else None


@dataclass(frozen=True)
class TuneResult:
    """What a search found.

    Attributes:
        candidates: everything that was tried, the best first.
        winner: flat settings of the best.
        final: run folders of plain training and of the winner, if it is another.
        failures: trials and final runs that failed.
    """

    candidates: list[Candidate]
    winner: dict[str, Any]
    final: list[Path]
    failures: list[Failure] = field(default_factory=list)


def tune(search: Search, *, quiet: bool = False, command: str = "") -> TuneResult:
    """Search until the budget leaves just enough for the final runs, then train and test those.

    A search in a folder that holds one already continues it: earlier trials count, and so does the
    time they took. Trials that were cut off are done again.

    Raises:
        UsageError: Optuna is not installed, a setting is wrong, the budget is too small, or another
            process is searching in this folder.
        RunError: a signal stopped the search, a run could not continue, or the disk is full.
    """
    with explain_stop(search.out), run_lock(search.out):
        return search_and_test(search, quiet=quiet, command=command)


@contextmanager
def explain_stop(folder: Path) -> Iterator[None]:
    """Say in one line how to go on with a search that a full disk stopped.

    Raises:
        DiskFullError: the disk is full.
    """
    with explain_full_disk(folder, "repeat the command, which continues the search"):
        try:
            yield
        except DiskFullError as error:  # what a run says of itself is not how to continue a search
            raise OSError(errno.ENOSPC, str(error)) from None


def search_and_test(search: Search, *, quiet: bool, command: str) -> TuneResult:
    """Do a search whose folder no other process writes, see `tune`."""
    study = open_study(search)
    failures: list[Failure] = []
    while len(failures) < MAX_FAILURES and (wave := next_trials(study, search)):
        failures += run_jobs(wave, search.engine, search.parallel, search.out, quiet=quiet)
        show_best(study, search, quiet=quiet)
    found = candidates(study, search)
    if not found or found[0].score is None:
        raise_failures(failures, len(study.get_trials(deepcopy=False)))
        raise UsageError("the budget ended before any trial did: raise --budget or lower --epochs")
    winner = found[0].settings
    variants = {"plain": {"method": PLAIN}, "tuned": nested(winner)}
    if winner["method"] == PLAIN:
        del variants["tuned"]
    final, failed = run_comparison(
        dict(search.values),
        variants={name: merge(own, {"label": name}) for name, own in variants.items()},
        seeds=range(search.final_seeds),
        out=search.out / "final",
        engine=replace(search.engine, parallel=search.parallel),
        quiet=quiet,
        command=command,
    )
    return TuneResult(found, winner, final, failures + failed)


def show_best(study: "Study", search: Search, *, quiet: bool) -> None:
    """Say how many trials there were, what is best so far, and how much of the budget is left."""
    found = candidates(study, search)
    if not found:
        return
    best, left = found[0], search.budget - spent(study, search)
    score = "" if best.score is None else f"best {best.settings['method']} {best.score:.4f}, "
    trials = sum(one.trials for one in found)
    say(f"{trials} trials, {score}{max(0.0, left):.0f} s of the budget left", quiet=quiet)


# ---------------------------------------------------------------------- study


def open_study(search: Search) -> "Study":
    """Create the study of a search, or load it; trials that were cut off are queued again.

    Raises:
        UsageError: Optuna is not installed, or a setting is wrong.
    """
    try:
        import optuna
    except ImportError:
        raise UsageError("tune needs Optuna: pip install 'adautomix[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    methods = methods_of(search)
    for method in methods:
        trial_config(search, first_choices(method), 0)  # a wrong setting must stop us here
    search.out.mkdir(parents=True, exist_ok=True)
    repair_journal(search)
    study = optuna.create_study(
        storage=storage_in(search.out),
        study_name=STUDY,
        direction=search.direction,
        pruner=pruner_of(search),
        load_if_exists=True,
    )
    queue_again(study)
    # Plain training comes first: the budget of the final runs needs its time. A search that was
    # killed here has queued some of them.
    trials = study.get_trials(deepcopy=False)
    queued = [trial for trial in trials if FIRST in trial.user_attrs] or trials
    for method in methods[len(queued) :]:
        study.enqueue_trial(first_choices(method), user_attrs={FIRST: True})
    return study


def queue_again(study: "Study") -> None:
    """Mark trials that were cut off as failed, and queue their settings again, before all others.

    A kill at any moment leaves trials that the next call queues.
    """
    from optuna.trial import TrialState

    if not study.get_trials(states=[TrialState.RUNNING]):
        return
    # Optuna takes trials in the order in which they were queued, so those that wait move back.
    for _ in study.get_trials(states=[TrialState.WAITING]):
        study.ask()
    repeated = cut_off(study)
    for trial in sorted(study.get_trials(states=[TrialState.RUNNING]), key=attempts):
        if trial.number not in repeated:
            settings = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            study.enqueue_trial(settings, user_attrs={REPEATS: attempts(trial)})
        study.tell(trial.number, state=TrialState.FAIL)


def cut_off(study: "Study") -> set[int]:
    """Return the numbers of trials that were cut off and queued again, and so do not count."""
    trials = study.get_trials(deepcopy=False)
    return {number for trial in trials for number in attempts(trial)[:-1]}


def attempts(trial: "FrozenTrial") -> list[int]:
    """Return the numbers of the trials that were cut off before this one, and its own."""
    return [*trial.user_attrs.get(REPEATS, []), trial.number]


def counted(study: "Study") -> "list[FrozenTrial]":
    """Return the trials that have ended, without those cut off, in the order of first attempts."""
    repeated = cut_off(study)
    trials = study.get_trials(deepcopy=False, states=finished_states())
    return sorted((one for one in trials if one.number not in repeated), key=attempts)


def repair_journal(search: Search) -> None:
    """Remove what a killed process left in the journal: a half-written line, and its lock.

    Workers of this machine end with the search, so nothing holds the lock that is there.
    """
    journal = search.out / JOURNAL
    if search.engine.name != "local" or not journal.exists():
        return
    Path(f"{journal}.lock").unlink(missing_ok=True)
    content = journal.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with atomic_write(journal) as temporary:
            temporary.write_bytes(whole)


def pruner_of(search: Search) -> "BasePruner":
    """Return what ends weak trials: of each rung, one in `REDUCTION` goes on."""
    from optuna.pruners import SuccessiveHalvingPruner

    rung = trial_config(search, first_choices(PLAIN), 0).eval_every
    return SuccessiveHalvingPruner(min_resource=rung, reduction_factor=REDUCTION)


def storage_in(folder: Path) -> "BaseStorage":
    """Return the storage of the study in a folder.

    A journal works on the shared file systems of clusters, where SQLite does not. Studies of older
    versions are in SQLite.
    """
    from optuna.storages import JournalStorage, RDBStorage
    from optuna.storages.journal import JournalFileBackend

    old = folder / "study.db"
    if old.exists():
        return RDBStorage(f"sqlite:///{old}")
    return JournalStorage(JournalFileBackend(str(folder / JOURNAL)))


def methods_of(search: Search) -> list[str]:
    """Return the methods to try, plain training first."""
    return list(dict.fromkeys((PLAIN, *search.methods)))


def trial_config(
    search: Search, settings: Mapping[str, Any], number: int, folder: str = "trial"
) -> TrainConfig:
    """Return the settings of a trial.

    Args:
        search: the search.
        settings: flat settings that the trial varies.
        number: seeds the repetition of the same settings.
        folder: name of its run folder, which the next trial there replaces.
    """
    values = merge(search.values, nested(settings))
    config = make_config(merge(values, {"val_fraction": search.held_out}))
    own = {
        "seed": config.seed + number,
        "eval_every": min(config.eval_every, max(1, config.epochs // RUNGS)),
        "checkpoint_every": config.epochs,
        "out": search.out / folder,
    }
    return config.model_copy(update=own)


def next_trials(study: "Study", search: Search) -> list[Job]:
    """Return the trials that start next, side by side; none once the search is over."""
    started = len(counted(study))
    if spent(study, search) + reserve(study, search) >= search.budget:
        return []
    left = search.parallel if search.trials is None else search.trials - started
    epochs = trial_config(search, first_choices(PLAIN), 0).epochs
    return [
        Job(
            f"trial {started + slot + 1}",
            search.out / f"trial-{slot}",
            epochs,
            partial(do_trial, search, started + slot, f"trial-{slot}"),
        )
        for slot in range(min(search.parallel, left))
    ]


def finished_states() -> "tuple[TrialState, ...]":
    """Return the states of trials that have ended."""
    from optuna.trial import TrialState

    return tuple(state for state in TrialState if state.is_finished())


def spent(study: "Study", search: Search) -> float:
    """Seconds of all trials so far, in earlier calls too; trials side by side share theirs."""
    trials = study.get_trials(deepcopy=False)
    return float(sum(t.user_attrs.get("seconds", 0.0) for t in trials)) / search.parallel


def reserve(study: "Study", search: Search) -> float:
    """Seconds to keep for the final runs: of plain training and of the slowest finished trial."""
    found = [one for one in candidates(study, search) if one.scores]
    plain = sum(one.seconds for one in found if one.settings["method"] == PLAIN)
    slowest = max((one.seconds for one in found), default=0.0)
    return search.final_seeds * (plain + slowest) / (1 - search.held_out)


# ---------------------------------------------------------------------- trials


def do_trial(search: Search, number: int, folder: str, *, quiet: bool) -> None:
    """Train the next trial of the study in a process anywhere that sees its folder.

    Args:
        search: the search.
        number: number of the trial, which seeds what is proposed.
        folder: name of its run folder.
        quiet: unused: a trial shows nothing itself.

    Raises:
        RunError: see `run_trial`.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    seed = trial_config(search, first_choices(PLAIN), 0).seed
    with explain_stop(search.out):
        study = optuna.load_study(
            study_name=STUDY,
            storage=storage_in(search.out),
            sampler=optuna.samplers.TPESampler(seed=seed + number),
            pruner=pruner_of(search),
        )
        run_trial(study, search, folder)


def run_trial(study: "Study", search: Search, folder: str = "trial") -> None:
    """Train one trial to its end, or until it is pruned or the budget ends.

    Raises:
        RunError: its loss diverged; it counts as failed.
        StoppedError, DiskFullError: it was cut off; the same search does it again.
    """
    from optuna import TrialPruned
    from optuna.trial import TrialState

    trial = study.ask()
    settings = suggest(methods_of(search), trial.suggest_categorical)
    repeated = cut_off(study)
    others = [one for one in study.get_trials(deepcopy=False) if one.number not in repeated]
    same = sum(params_of(other) == settings for other in others) - 1
    started, before, kept = time.monotonic(), spent(study, search), reserve(study, search)

    def watch(row: EpochRow) -> None:
        if (score := held_out_score(row, search)) is None:
            return
        trial.report(score, row.epoch)
        over = before + kept + time.monotonic() - started > search.budget
        if trial.should_prune() or over:
            raise TrialPruned

    def end(state: TrialState, value: float | None = None) -> None:
        trial.set_user_attr("seconds", time.monotonic() - started)
        study.tell(trial, value, state=state)

    try:
        config = trial_config(search, settings, same, folder)
        value = held_out_score(train_trial(config, watch), search)
    except TrialPruned:
        end(TrialState.PRUNED)
    except (StoppedError, DiskFullError, OSError):
        raise  # still running in the study, so that the same search does it again
    except Exception:
        end(TrialState.FAIL)
        raise
    else:
        end(TrialState.COMPLETE, value)


def train_trial(config: TrainConfig, watch: Callable[[EpochRow], None]) -> EpochRow:
    """Train on a part of the training images, evaluate on the rest, and return the last epoch.

    Args:
        config: settings with a `val_fraction`.
        watch: called with the row of each epoch; what it raises ends the training.
    """
    assert config.out is not None
    shutil.rmtree(config.out, ignore_errors=True)
    data = load_images(config, progress=False)
    assert data.val is not None
    # The trainer tests on the held-out images: it cannot look at the test images.
    data = replace(data, test=data.val, val=None)
    with run_lock(config.out):
        folder = RunFolder.create(config)
        folder.write_data_info(data_info(data))
        # Trials are stopped by the search, which compares them.
        trial = config.model_copy(update={"patience": None})
        trainer = Trainer(trial, data, folder, quiet=True)
        trainer.on_epoch = watch
        trainer.fit()
    rows = [row for row in folder.rows() if isinstance(row, EpochRow)]
    return rows[-1]


def held_out_score(row: EpochRow, search: Search) -> float | None:
    """Score of the better network on the held-out images; None if the epoch was not evaluated."""
    if row.student is None or row.teacher is None:
        return None
    scores = [float(getattr(one, search.metric)) for one in (row.student, row.teacher)]
    return max(scores) if search.direction == "maximize" else min(scores)


def params_of(trial: "FrozenTrial | Trial") -> dict[str, Any]:
    """Return the flat settings of a trial."""
    return dict(trial.params)


def candidates(study: "Study", search: Search) -> list[Candidate]:
    """Return everything that was tried, with equal settings together, the best first."""
    grouped: dict[str, list[FrozenTrial]] = defaultdict(list)
    for trial in counted(study):
        if trial.params:
            grouped[json.dumps(trial.params)].append(trial)
    found = [candidate_of(trials) for trials in grouped.values()]
    sign = -1 if search.direction == "maximize" else 1
    return sorted(found, key=lambda one: (one.score is None, sign * (one.score or 0.0)))


def candidate_of(trials: "Sequence[FrozenTrial]") -> Candidate:
    """Summarize trials of the same settings."""
    finished = [trial for trial in trials if trial.state.name == "COMPLETE"]
    seconds = [trial.user_attrs["seconds"] for trial in finished]
    return Candidate(
        params_of(trials[0]),
        [trial.value for trial in finished if trial.value is not None],
        len(trials),
        fmean(seconds) if seconds else 0.0,
    )
