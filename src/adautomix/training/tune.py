"""Search for the method and settings that suit a data set, within a time budget.

Trials train on a part of the training images and are scored on the rest; they never see a test
image. Optuna proposes their settings (TPE) and stops weak ones early (ASHA, Li et al., MLSys 2020).
At the end plain training and the winner are trained on all training images and tested.
"""

import json
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal

from adautomix.config import TrainConfig, make_config, merge
from adautomix.errors import UsageError
from adautomix.runs.build import data_info, load_images
from adautomix.runs.folder import RunFolder
from adautomix.runs.schema import EpochRow
from adautomix.training.compare import compare
from adautomix.training.loop import Trainer
from adautomix.training.search_space import PLAIN, first_choices, nested, suggest

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

HELD_OUT = 0.2  # fraction of the training images that trials are scored on, if none is set
RUNGS = 9  # evaluations of a trial; weak ones end after the first, third or ninth
REDUCTION = 3  # one trial of so many goes on from each rung

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
    """

    values: Mapping[str, Any]
    methods: Sequence[str]
    out: Path
    budget: float
    metric: Metric = "top1"
    final_seeds: int = 2
    trials: int | None = None

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
    """

    candidates: list[Candidate]
    winner: dict[str, Any]
    final: list[Path]


def tune(search: Search, *, quiet: bool = False, command: str = "") -> TuneResult:
    """Search until the budget leaves just enough for the final runs, then train and test those.

    A search in a folder that holds one already continues it: earlier trials count, and so does the
    time they took.

    Raises:
        UsageError: Optuna is not installed, a setting is wrong, or the budget is too small.
        RunError: a signal stopped the search, or a run could not continue.
    """
    study = open_study(search)
    while not_over(study, search):
        run_trial(study, search)
    found = candidates(study, search)
    if not found or found[0].score is None:
        raise UsageError("the budget ended before any trial did: raise --budget or lower --epochs")
    winner = found[0].settings
    variants = {"plain": {"method": PLAIN}, "tuned": nested(winner)}
    if winner["method"] == PLAIN:
        del variants["tuned"]
    final = compare(
        dict(search.values),
        variants={name: merge(own, {"label": name}) for name, own in variants.items()},
        seeds=range(search.final_seeds),
        out=search.out / "final",
        jobs=1,
        quiet=quiet,
        command=command,
    )
    return TuneResult(found, winner, final)


# ---------------------------------------------------------------------- study


def open_study(search: Search) -> "Study":
    """Create the study of a search, or load it; trials that were cut off are marked as failed.

    Raises:
        UsageError: Optuna is not installed, or a setting is wrong.
    """
    try:
        import optuna
    except ImportError:
        raise UsageError("tune needs Optuna: pip install 'adautomix[tune]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    methods = methods_of(search)
    configs = [trial_config(search, first_choices(method), 0) for method in methods]
    search.out.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        storage=f"sqlite:///{search.out / 'study.db'}",
        study_name="tune",
        direction=search.direction,
        sampler=optuna.samplers.TPESampler(seed=configs[0].seed),
        pruner=optuna.pruners.SuccessiveHalvingPruner(
            min_resource=configs[0].eval_every, reduction_factor=REDUCTION
        ),
        load_if_exists=True,
    )
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    if not study.get_trials():
        # Plain training comes first: the budget of the final runs needs its time.
        for method in methods:
            study.enqueue_trial(first_choices(method))
    return study


def methods_of(search: Search) -> list[str]:
    """Return the methods to try, plain training first."""
    return list(dict.fromkeys((PLAIN, *search.methods)))


def trial_config(search: Search, settings: Mapping[str, Any], number: int) -> TrainConfig:
    """Return the settings of a trial; `number` seeds the repetition of the same settings."""
    values = merge(search.values, nested(settings))
    config = make_config(merge(values, {"val_fraction": search.held_out}))
    own = {
        "seed": config.seed + number,
        "eval_every": min(config.eval_every, max(1, config.epochs // RUNGS)),
        "checkpoint_every": config.epochs,
        "out": search.out / "trial",
    }
    return config.model_copy(update=own)


def not_over(study: "Study", search: Search) -> bool:
    """Whether another trial may start."""
    done = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
    if search.trials is not None and done >= search.trials:
        return False
    return spent(study) + reserve(study, search) < search.budget


def spent(study: "Study") -> float:
    """Seconds of all trials so far, in earlier calls too."""
    return float(sum(trial.user_attrs.get("seconds", 0.0) for trial in study.get_trials()))


def reserve(study: "Study", search: Search) -> float:
    """Seconds to keep for the final runs: of plain training and of the slowest finished trial."""
    found = [one for one in candidates(study, search) if one.scores]
    plain = sum(one.seconds for one in found if one.settings["method"] == PLAIN)
    slowest = max((one.seconds for one in found), default=0.0)
    return search.final_seeds * (plain + slowest) / (1 - search.held_out)


# ---------------------------------------------------------------------- trials


def run_trial(study: "Study", search: Search) -> None:
    """Train one trial to its end, or until it is pruned or the budget ends.

    Raises:
        RunError: a signal stopped it, or its loss diverged; it counts as failed.
    """
    from optuna import TrialPruned
    from optuna.trial import TrialState

    trial = study.ask()
    settings = suggest(methods_of(search), trial.suggest_categorical)
    same = sum(params_of(other) == settings for other in study.get_trials()) - 1
    started, before, kept = time.monotonic(), spent(study), reserve(study, search)

    def watch(row: EpochRow) -> None:
        if (score := held_out_score(row, search)) is None:
            return
        trial.report(score, row.epoch)
        over = before + kept + time.monotonic() - started > search.budget
        if trial.should_prune() or over:
            raise TrialPruned

    value, state = None, TrialState.FAIL
    try:
        value = held_out_score(train_trial(trial_config(search, settings, same), watch), search)
        state = TrialState.COMPLETE
    except TrialPruned:
        state = TrialState.PRUNED
    finally:
        trial.set_user_attr("seconds", time.monotonic() - started)
        study.tell(trial, value, state=state)


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
    folder = RunFolder.create(config)
    folder.write_data_info(data_info(data))
    trainer = Trainer(config, data, folder, quiet=True)
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
    for trial in study.get_trials(deepcopy=False):
        if trial.state.is_finished() and trial.params:
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
