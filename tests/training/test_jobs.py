"""Many jobs: failures are collected, and signals stop them so that all can be continued."""

import json
import signal
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import engine_jobs
import pytest

from adautomix.cli.options import engine_choice
from adautomix.errors import RunError, StoppedError, UsageError
from adautomix.runs.lock import LOCK
from adautomix.training.engines import Ended, EngineChoice, Job, open_engine
from adautomix.training.engines.base import perform
from adautomix.training.engines.local import death_of
from adautomix.training.engines.slurm import SlurmCall
from adautomix.training.job_display import JobDisplay, epochs_done
from adautomix.training.jobs import Failure, raise_failures, run_here, run_jobs, run_with
from adautomix.training.runtimes import StopRequest


def job(name: str, tmp_path: Path, work: object = engine_jobs.nothing) -> Job:
    return Job(name, tmp_path / name, 2, work)  # type: ignore[arg-type]


def silent(jobs: Sequence[Job]) -> JobDisplay:
    return JobDisplay(jobs, "local", 1, quiet=True)


class OneByOne:
    """An engine whose first job ends in each call, and which runs two at a time."""

    def __init__(self, reasons: dict[str, str], stop: StopRequest, signals: Sequence[int]) -> None:
        self.reasons, self.stop_request, self.signals = reasons, stop, list(signals)
        self.queue: list[Job] = []
        self.stops: list[bool] = []

    def start(self, jobs: Sequence[Job]) -> None:
        self.queue = list(jobs)

    def ended(self, seconds: float) -> list[Ended]:
        if self.stops and len(self.stops) < 2 and self.signals:
            self.stop_request.handle(self.signals.pop(0), None)  # while the runs are saving
            return []
        first = self.queue.pop(0)
        if not self.stops and self.signals:
            self.stop_request.handle(self.signals.pop(0), None)
        return [Ended(first, "stopped" if self.stops else self.reasons.get(first.name, ""))]

    def stop(self, *, now: bool) -> None:
        self.stops.append(now)
        self.queue = self.queue[:2]

    def busy(self) -> bool:
        return bool(self.queue)

    def close(self) -> None:
        pass


def test_failures_do_not_stop_the_others(tmp_path: Path) -> None:
    jobs = [job(name, tmp_path) for name in "abc"]
    stop = StopRequest()
    failures = run_with(OneByOne({"a": "no disk"}, stop, []), jobs, stop, silent(jobs))
    assert failures == [Failure(jobs[0], "no disk")]
    with pytest.raises(RunError, match=r"1 of 3 runs failed: .*/a: no disk"):
        raise_failures(failures, 3)
    raise_failures([], 3)


@pytest.mark.parametrize("count", [1, 2])
def test_signals_stop_all_jobs(count: int, tmp_path: Path) -> None:
    jobs = [job(name, tmp_path) for name in "abcde"]
    stop = StopRequest()
    engine = OneByOne({}, stop, [signal.SIGINT] * count)
    message = "stopped by SIGINT with 1 of 5 runs done; continue with the same command"
    with pytest.raises(StoppedError, match=message):
        run_with(engine, jobs, stop, silent(jobs))
    assert engine.stops == [False, True][:count]


def test_a_signal_after_the_last_job_stops_nothing(tmp_path: Path) -> None:
    jobs = [job("a", tmp_path)]
    stop = StopRequest()
    assert run_with(OneByOne({}, stop, [signal.SIGTERM]), jobs, stop, silent(jobs)) == []


def test_jobs_in_this_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(*, quiet: bool) -> None:
        raise StoppedError("stopped by SIGINT at step 3 of 8; continue with `adautomix resume a`")

    done = tmp_path / "done"
    works = (engine_jobs.fail, engine_jobs.crash, partial(engine_jobs.write, done))
    jobs = [job(str(number), tmp_path, work) for number, work in enumerate(works)]
    reasons = [failure.reason for failure in run_here(jobs, quiet=False)]
    assert reasons == ["the loss became NaN", "ZeroDivisionError: division by zero"]
    assert done.read_text() == "done"
    assert capsys.readouterr().err.splitlines() == [
        "[1 of 3] 0",
        "0 failed: the loss became NaN",
        "[2 of 3] 1",
        "1 failed: ZeroDivisionError: division by zero",
        "[3 of 3] 2",
    ]
    done.unlink()
    with pytest.raises(StoppedError, match="resume a`, or all 2 with the same command"):
        run_here([job("s", tmp_path, stopped), jobs[2]], quiet=True)
    assert not done.exists()


def test_a_job_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert (
        perform(job("a", tmp_path, partial(engine_jobs.write, Path("here"))), str(tmp_path)) == ""
    )
    assert (tmp_path / "here").exists()
    assert perform(job("a", tmp_path, engine_jobs.fail), str(tmp_path)) == "the loss became NaN"
    with pytest.raises(ZeroDivisionError):
        perform(job("a", tmp_path, engine_jobs.crash), str(tmp_path))
    missing = perform(job("a", tmp_path), str(tmp_path / "missing"))
    assert missing.endswith("use a shared file system")


def test_a_preempted_slurm_job_is_the_same_job(tmp_path: Path) -> None:
    one = job("a", tmp_path, partial(engine_jobs.write, tmp_path / "done"))
    again = SlurmCall(str(tmp_path)).checkpoint(one)
    assert again.result() == ""
    assert (tmp_path / "done").exists()


def test_deaths_are_named() -> None:
    assert death_of(-9) == "its process was ended by SIGKILL"
    assert death_of(3) == "its process ended with exit status 3"


def test_progress_of_jobs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jobs = [job("a", tmp_path), job("b", tmp_path)]
    (tmp_path / "a").mkdir()
    metrics = tmp_path / "a" / "metrics.jsonl"
    assert epochs_done(metrics) == 0
    rows = [json.dumps({"epoch": epoch, "text": "x" * 3000}) + "\n" for epoch in (0.5, 1.5)]
    metrics.write_text("".join(rows))
    assert epochs_done(metrics) == 1.5
    metrics.write_text(rows[0] + '{"epoch": 1')  # just being written
    assert epochs_done(metrics) == 0
    with JobDisplay(jobs, "local", 2) as display:
        display.refresh()
        (tmp_path / "a" / LOCK).touch()
        display.refresh()
        display.refresh()
        display.failed(jobs[0], "no disk")
        display.stopping("SIGTERM")
    assert capsys.readouterr().err.splitlines() == [
        "2 runs, 2 at a time, engine local",
        "started a",
        "a failed: no disk",
        "SIGTERM: each run saves after its step and stops; once more ends them at once",
    ]


def test_options_of_engines(tmp_path: Path) -> None:
    choice = engine_choice("slurm", ["timeout_min=60", "slurm_partition=gpu"], 3)
    assert choice == EngineChoice("slurm", 3, {"timeout_min": 60, "slurm_partition": "gpu"})
    with pytest.raises(UsageError, match="--engine-option num_gpus has no value"):
        engine_choice("ray", ["num_gpus"], None)
    with pytest.raises(UsageError, match="the local engine has no option num_gpus"):
        engine_choice("local", ["num_gpus=1"], None)
    with pytest.raises(UsageError, match="--engine slurm: "):
        open_engine(EngineChoice("slurm"), 0, tmp_path)  # there is no Slurm on this machine


@pytest.mark.slow
def test_processes_of_this_machine(tmp_path: Path) -> None:
    done = [tmp_path / "first", tmp_path / "last"]
    works = [
        partial(engine_jobs.write, done[0]),
        engine_jobs.die,
        engine_jobs.fail,
        engine_jobs.crash,
        partial(engine_jobs.write, done[1]),
    ]
    jobs = [job(str(number), tmp_path, work) for number, work in enumerate(works)]
    failures = run_jobs(jobs, EngineChoice(), 2, tmp_path, quiet=True)
    assert {failure.job.name: failure.reason for failure in failures} == {
        "1": "its process was ended by SIGKILL",
        "2": "the loss became NaN",
        "3": "ZeroDivisionError: division by zero",
    }
    assert [path.read_text() for path in done] == ["done"] * 2
