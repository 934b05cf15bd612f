"""The search for a method: what trials see, what is kept, and what is tested at the end.

No test depends on a clock: the number of trials ends a search, or its budget is nothing.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from optuna.trial import Trial

from adautomix.cli.tuning import command_of, seconds_of
from adautomix.config import TrainConfig
from adautomix.data import ImageData
from adautomix.errors import DiskFullError, RunError, UsageError
from adautomix.runs.folder import RunFolder
from adautomix.runs.lock import run_lock
from adautomix.runs.schema import EpochRow
from adautomix.training import tune as tuning
from adautomix.training.engines import EngineChoice
from adautomix.training.loop import Trainer
from adautomix.training.search_space import METHODS, choices_of, first_choices, nested, suggest
from adautomix.training.tune import Candidate, Search, trial_config, tune

NET = {"model": "resnet18", "stem": "cifar", "width": 0.125, "batch_size": 10, "image_size": 16}
DIGITS = {"data": "digits", "per_class": 5, "epochs": 2, "eval_batch_size": 500}


def search_in(folder: Path, **changes: Any) -> Search:
    search = Search({**NET, **DIGITS}, ["mixup"], folder, 1e9, final_seeds=1, trials=2)
    return replace(search, **changes)


@pytest.mark.slow
def test_a_search_ends_with_a_tested_winner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[ImageData] = []
    fit = Trainer.fit

    def noted(self: Trainer, until: int | None = None) -> None:
        seen.append(self.data)
        fit(self, until)

    monkeypatch.setattr(Trainer, "fit", noted)
    result = tune(search_in(tmp_path, metric="nll"), quiet=True)
    tried = [one.settings for one in result.candidates]
    assert sorted(one["method"] for one in tried) == ["mixup", "vanilla"]
    scores = [one.score for one in result.candidates]
    finished = [score for score in scores if score is not None]
    assert scores == sorted(finished) + [None] * (len(scores) - len(finished))
    assert result.winner == tried[0]
    # Trials train on 4 of 5 images per class and look at the fifth; final runs use all five.
    trials, final = seen[:2], seen[2:]
    assert [(len(data.train), len(data.test), data.val) for data in trials] == [(40, 10, None)] * 2
    assert [len(data.train) for data in final] == [50] * len(final)
    assert min(len(data.test) for data in final) > 1000
    names = ["plain"] if result.winner["method"] == "vanilla" else ["plain", "tuned"]
    assert [run.name for run in result.final] == [f"{name}-s0" for name in names]
    assert all(RunFolder.open(run).summary() is not None for run in result.final)
    # The same search again has nothing left to do.
    seen.clear()
    again = tune(search_in(tmp_path, metric="nll"), quiet=True)
    assert seen == []
    assert again.candidates == result.candidates


@pytest.mark.slow
def test_a_stopped_search_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(config: Any, watch: Any) -> EpochRow:
        raise KeyboardInterrupt

    search = search_in(tmp_path, trials=1)
    with monkeypatch.context() as patch:
        patch.setattr(tuning, "train_trial", stopped)
        with pytest.raises(KeyboardInterrupt):
            tune(search, quiet=True)
    result = tune(search, quiet=True)
    assert result.winner["method"] == "vanilla"
    study = tuning.open_study(search)
    states = [trial.state.name for trial in study.get_trials()]
    # The trial that was cut off does not count, and was done again with the same seed.
    assert states == ["FAIL", "FAIL", "COMPLETE", "WAITING"]
    assert [(one.trials, len(one.scores)) for one in result.candidates] == [(1, 1)]
    assert RunFolder(tmp_path / "trial-0").config().seed == 0


def test_trials_that_were_cut_off_are_queued_again(tmp_path: Path) -> None:
    search = search_in(tmp_path)
    study = tuning.open_study(search)
    cut_off = study.ask()
    suggest(["vanilla", "mixup"], cut_off.suggest_categorical)
    study = tuning.open_study(search)
    trials = study.get_trials()
    assert [trial.state.name for trial in trials] == ["FAIL", "FAIL", "WAITING", "WAITING"]
    again = [trial.system_attrs["fixed_params"]["method"] for trial in trials[2:]]
    assert again == ["vanilla", "mixup"]
    assert [tuning.attempts(trial) for trial in trials] == [[0], [1], [0, 2], [1, 3]]
    assert tuning.counted(study) == []
    assert [job.name for job in tuning.next_trials(study, search)] == ["trial 1"]


def test_a_search_killed_while_it_queues_its_first_trials(tmp_path: Path) -> None:
    tuning.open_study(search_in(tmp_path, methods=[]))
    study = tuning.open_study(search_in(tmp_path, methods=["mixup", "cutmix"]))
    queued = [trial.system_attrs["fixed_params"]["method"] for trial in study.get_trials()]
    assert queued == ["vanilla", "mixup", "cutmix"]


def test_a_journal_torn_by_a_kill_is_repaired(tmp_path: Path) -> None:
    search = search_in(tmp_path)
    tuning.open_study(search)
    journal = tmp_path / tuning.JOURNAL
    whole = journal.read_bytes()
    journal.write_bytes(whole + b'{"op_code":4,"wor')
    Path(f"{journal}.lock").symlink_to(journal)
    assert len(tuning.open_study(search).get_trials()) == 2
    assert journal.read_bytes().startswith(whole)
    assert all(json.loads(line) for line in journal.read_text().splitlines())
    assert not Path(f"{journal}.lock").is_symlink()


def test_a_full_disk_stops_a_search_with_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(config: Any, watch: Any) -> EpochRow:
        raise DiskFullError("no space left to write trial-0: free some, then resume it")

    search = search_in(tmp_path)
    monkeypatch.setattr(tuning, "train_trial", full)
    again = "free some, then repeat the command, which continues the search"
    with pytest.raises(DiskFullError) as error:
        tune(search, quiet=True)
    assert str(error.value) == f"no space left to write {tmp_path}: {again}"
    study = tuning.open_study(search)
    assert tuning.counted(study) == []


def test_one_process_searches_in_a_folder(tmp_path: Path) -> None:
    with run_lock(tmp_path), pytest.raises(UsageError, match="is being written by process"):
        tune(search_in(tmp_path), quiet=True)
    assert not (tmp_path / tuning.JOURNAL).exists()


def test_weak_trials_end_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = search_in(tmp_path)
    study = tuning.open_study(search)
    monkeypatch.setattr(Trial, "should_prune", lambda self: True)
    tuning.run_trial(study, search)
    (pruned, _) = study.get_trials()
    assert pruned.state.name == "PRUNED"
    assert list(pruned.intermediate_values) == [1]
    (candidate,) = tuning.candidates(study, search)
    assert (candidate.score, candidate.trials) == (None, 1)


def test_a_trial_that_fails_does_not_end_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_trial = tuning.train_trial

    def failing(config: TrainConfig, watch: Any) -> EpochRow:
        if config.method == "mixup":
            raise RunError("the loss became NaN")
        return train_trial(config, watch)

    monkeypatch.setattr(tuning, "train_trial", failing)
    result = tune(search_in(tmp_path), quiet=True)
    assert [(one.job.name, one.reason) for one in result.failures] == [
        ("trial 2", "the loss became NaN")
    ]
    assert result.winner["method"] == "vanilla"
    assert [run.name for run in result.final] == ["plain-s0"]


@pytest.mark.slow
def test_trials_side_by_side(tmp_path: Path) -> None:
    search = search_in(tmp_path, trials=3, engine=EngineChoice("ray", 2))
    study = tuning.open_study(search)
    assert [job.folder.name for job in tuning.next_trials(study, search)] == ["trial-0", "trial-1"]
    for job in tuning.next_trials(study, search):
        job.work(quiet=True)
    (last,) = tuning.next_trials(study, search)
    assert last.name == "trial 3"
    assert [trial.state.is_finished() for trial in study.get_trials()] == [True, True]
    seconds = [trial.user_attrs["seconds"] for trial in study.get_trials()]
    assert tuning.spent(study, search) == pytest.approx(sum(seconds) / 2)


def test_no_budget_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the budget ended before any trial did"):
        tune(search_in(tmp_path, budget=0.0), quiet=True)


def test_the_budget_keeps_time_for_the_final_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search = search_in(tmp_path, final_seeds=3)
    study = tuning.open_study(search)
    assert tuning.reserve(study, search) == 0
    found = [
        Candidate({"method": "vanilla"}, [0.5], 1, 8.0),
        Candidate({"method": "mixup"}, [0.4], 1, 16.0),
    ]
    monkeypatch.setattr(tuning, "candidates", lambda study, search: found)
    # Plain training and the slowest, three times each, on a quarter more images than a trial has.
    assert tuning.reserve(study, search) == pytest.approx(3 * 24 / 0.8)


def test_equal_settings_get_another_seed(tmp_path: Path) -> None:
    search, first = search_in(tmp_path), first_choices("mixup")
    seeds = [trial_config(search, first, number).seed for number in (0, 1)]
    assert seeds == [0, 1]
    config = trial_config(search_in(tmp_path, values={**NET, **DIGITS, "epochs": 27}), first, 0)
    assert (config.val_fraction, config.eval_every, config.mix.stop) == (0.2, 1, 0.75)


@pytest.mark.parametrize("method", ["vanilla", "fmix", *METHODS])
def test_every_choice_is_a_setting(method: str, tmp_path: Path) -> None:
    for name, some in choices_of(method).items():
        for value in some:
            settings = nested({**first_choices(method), name: value})
            trial_config(search_in(tmp_path), {}, 0).__class__.model_validate({**NET, **settings})


def test_the_chosen_command_repeats_what_was_given() -> None:
    flags, winner = {"data": "my photos"}, {"method": "cutmix", "mix.stop": 0.75, "flip": False}
    command = command_of(winner, None, Path("own.yaml"), flags)
    assert command == (
        "adautomix train --config own.yaml --data 'my photos' --method cutmix --mix.stop 0.75 "
        "--flip false"
    )


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("20m", 1200), ("1.5h", 5400)])
def test_a_budget_has_a_unit(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["20", "m", "0m", "2 days"])
def test_a_budget_that_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match="is no time; write 90s, 20m or 2h"):
        seconds_of(text)


@pytest.mark.slow
def test_the_command(tmp_path: Path, command: Command) -> None:
    words = [f"--{name.replace('_', '-')}={value}" for name, value in {**NET, **DIGITS}.items()]
    once = ("--trials", 2, "--budget", "9h", "--methods", "mixup", "--final-seeds", 1)
    told = command("tune", *words, *once, "--out", tmp_path)
    assert told.status == 0
    for text in ("held-out top1", "Chosen: adautomix train", "plain-s0", "mix.stop 0.75"):
        assert text in told.out
    found = json.loads(command("tune", *words, *once, "--out", tmp_path, "--json").out)
    assert [one["trials"] for one in found["candidates"]] == [1, 1]
    assert found["command"] in told.out
