"""Six runs end the same on every engine, whatever happens to their processes."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import engine_jobs
import pytest
from conftest import SMALL_NET, assert_same_run, steps_in

import adautomix
from adautomix.config import make_config
from adautomix.errors import StoppedError
from adautomix.runs.folder import RunFolder
from adautomix.runs.lock import LOCK
from adautomix.training.compare import method_variants, run_comparison, train_job
from adautomix.training.engines import EngineChoice, Job, open_engine
from adautomix.training.job_display import JobDisplay
from adautomix.training.jobs import run_jobs, run_with
from adautomix.training.runtimes import StopRequest

pytestmark = pytest.mark.slow

METHODS, SEEDS = ("vanilla", "mixup"), (0, 1, 2)
NAMES = [f"{method}-s{seed}" for method in METHODS for seed in SEEDS]


def values(photos: Path, **changes: Any) -> dict[str, Any]:
    net = {"model": "resnet18", "stem": "cifar", "width": 0.125, "workers": 1, "log_every": 1}
    return {"data": str(photos), "epochs": 2, "batch_size": 6, **net, **changes}


def six_runs(photos: Path, out: Path, choice: EngineChoice) -> None:
    folders, failures = run_comparison(
        values(photos),
        variants=method_variants(METHODS),
        seeds=SEEDS,
        out=out,
        engine=choice,
        quiet=True,
    )
    assert failures == []
    assert [folder.name for folder in folders] == NAMES


@pytest.fixture(scope="module")
def local(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The six runs, trained one after another in this process."""
    out = tmp_path_factory.mktemp("local")
    six_runs(photos, out, EngineChoice(parallel=1))
    return out


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let processes of other programs import this package and the helpers."""
    source = Path(adautomix.__file__).parents[1]
    helpers = Path(engine_jobs.__file__).parent
    monkeypatch.setenv("PYTHONPATH", f"{source}{os.pathsep}{helpers}")


@pytest.fixture
def cluster(importable: None) -> Iterator[Any]:
    """A Ray cluster of two nodes with one core each."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def test_processes_of_this_machine(photos: Path, tmp_path: Path, local: Path) -> None:
    six_runs(photos, tmp_path, EngineChoice(parallel=2))
    for name in NAMES:
        assert_same_run(tmp_path / name, local / name)


def test_slurm(photos: Path, tmp_path: Path, local: Path, importable: None) -> None:
    six_runs(photos, tmp_path, EngineChoice("slurm", 2, {"cluster": "local"}))
    for name in NAMES:
        assert_same_run(tmp_path / name, local / name)
    assert list((tmp_path / "slurm").glob("*_log.out"))


def test_ray_with_a_worker_that_is_killed(
    photos: Path, tmp_path: Path, local: Path, cluster: Any
) -> None:
    jobs = []
    for name in NAMES:
        method, seed = name.split("-s")
        own = {"method": method, "seed": int(seed), "out": str(tmp_path / name)}
        config = make_config(values(photos, **own))
        jobs.append(train_job(config, ""))
    marker = tmp_path / "killed"
    killed = partial(engine_jobs.train_killed_once, make_config(values(photos, **own)), 6, marker)
    jobs[-1] = type(jobs[-1])(jobs[-1].name, jobs[-1].folder, 2, killed)
    assert run_jobs(jobs, EngineChoice("ray"), 0, tmp_path, quiet=True) == []
    assert marker.exists()
    for name in NAMES:
        assert_same_run(tmp_path / name, local / name)


class StopsOnceTraining(JobDisplay):
    """Requests a stop as soon as a job has trained a step."""

    def __init__(self, jobs: list[Job], stop: StopRequest) -> None:
        super().__init__(jobs, "", 0, quiet=True)
        self.jobs, self.stop_request = jobs, stop

    def refresh(self) -> None:
        if (self.jobs[0].folder / "metrics.jsonl").exists() and not self.stop_request:
            self.stop_request.handle(signal.SIGINT, None)


def test_ray_stops(photos: Path, tmp_path: Path, cluster: Any) -> None:
    """A running task saves and stops after its step, and one that is queued does not start."""
    configs = [
        make_config(values(photos, epochs=5000, seed=seed, out=str(tmp_path / f"s{seed}")))
        for seed in (0, 1, 2)
    ]
    jobs, stop = [train_job(config, "") for config in configs], StopRequest()
    engine = open_engine(EngineChoice("ray", 1), 1, tmp_path)
    with pytest.raises(StoppedError, match="stopped by SIGINT with 0 of 3 runs done"):
        run_with(engine, jobs, stop, StopsOnceTraining(jobs, stop))
    assert steps_in(tmp_path / "s0") == RunFolder(tmp_path / "s0").rows()[-1].step
    assert not (tmp_path / "s0" / LOCK).exists()
    assert not (tmp_path / "s1").exists()


INTERRUPTED = ("compare", *SMALL_NET, "--methods", "vanilla,mixup", "--batch-size", 6, "--jobs", 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda one: one.name)
def test_a_signal_stops_a_comparison(number: signal.Signals, photos: Path, tmp_path: Path) -> None:
    words = [*INTERRUPTED, "--data", photos, "--epochs", 5000, "--seeds", "0,1", "--out", tmp_path]
    process = subprocess.Popen(
        [sys.executable, "-m", "adautomix", *map(str, words)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # a process group, as a terminal makes for a command
    )
    assert process.stderr is not None
    begun = [tmp_path / name / "metrics.jsonl" for name in ("vanilla-s0", "mixup-s0")]
    while not all(path.exists() for path in begun):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
        os.killpg(process.pid, number)  # once more, before the first is dealt with
    else:
        process.send_signal(number)
    rest = process.stderr.read()  # ends when the last process that shares the pipe has ended
    assert process.wait() == 1
    assert "Traceback" not in rest
    assert rest.splitlines()[-1] == (
        f"adautomix: stopped by {number.name} with 0 of 4 runs done; continue with the same command"
    )
    assert not list(tmp_path.glob("*-s1"))  # what was queued did not start
    if number == signal.SIGTERM:  # the second Ctrl-C kills, perhaps before the first checkpoint
        assert all(steps_in(path.parent) > 0 for path in begun)
    assert alive_in_group(process.pid) == []


def alive_in_group(group: int) -> list[str]:
    """The processes of a group that have not ended; nobody may have waited for those that have.

    A process that is ending has no command line any more, which `ps` shows as a name in brackets.
    """
    words = ["ps", "-eo", "pgid=,stat=,args="]
    listed = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    fields = (line.split(maxsplit=2) for line in listed)
    alive = [args for pgid, state, args in fields if int(pgid) == group and state[0] != "Z"]
    return [args for args in alive if args[0] != "["]
