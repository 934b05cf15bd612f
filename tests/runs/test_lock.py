"""One process writes a run folder at a time, and a dead one blocks nobody."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import SMALL_NET, Command
from targets import make_target, random_images

from adautomix.errors import UsageError
from adautomix.evaluation.evaluate import evaluate
from adautomix.reporting.page import update_page
from adautomix.runs.lock import LOCK, run_lock

HOLDS = """
import sys, time
from pathlib import Path
from adautomix.runs.lock import run_lock

with run_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock of `tmp_path / "run"`."""
    words = [sys.executable, "-c", HOLDS, str(tmp_path / "run")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_the_second_process_gets_one_line(
    holder: subprocess.Popen[str], tmp_path: Path, photos: Path, command: Command
) -> None:
    run = tmp_path / "run"
    owner = json.loads((run / LOCK).read_text())
    assert owner["pid"] == holder.pid
    line = (
        f"{run} is being written by process {holder.pid} on {owner['host']} since "
        f"{owner['started']}: wait until it ends, or stop it"
    )
    with pytest.raises(UsageError) as error, run_lock(run):
        pass
    assert str(error.value) == line
    args = ("--data", photos, *SMALL_NET, "--batch-size", 6, "--epochs", 1)
    outcome = command("train", *args, "--out", run)
    assert (outcome.status, outcome.err) == (2, f"adautomix: {line}\n")
    assert [path.name for path in run.iterdir()] == [LOCK]


def test_the_lock_of_a_killed_process_is_free(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    holder.wait()
    assert (tmp_path / "run" / LOCK).exists()
    with run_lock(tmp_path / "run"):
        assert json.loads((tmp_path / "run" / LOCK).read_text())["pid"] == os.getpid()


def test_nothing_is_left_of_a_lock(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with run_lock(run):
        (run / "file").touch()
    assert [path.name for path in run.iterdir()] == ["file"]
    with run_lock(tmp_path / "empty"):
        pass
    assert not (tmp_path / "empty").exists()


def test_a_lock_is_not_taken_twice_in_one_process(tmp_path: Path) -> None:
    with (
        run_lock(tmp_path),
        pytest.raises(UsageError, match="is being written by process"),
        run_lock(tmp_path),
    ):
        pass
    with run_lock(tmp_path):
        pass


@pytest.mark.slow
def test_evaluate_is_a_writer_too(tmp_path: Path) -> None:
    target = make_target(random_images(8, 4), tmp_path / "run")
    refused = pytest.raises(UsageError, match="is being written by process")
    with run_lock(target.folder):
        with refused:
            evaluate(target, ["accuracy"], {})
        with refused:
            update_page(target)
        assert [path.name for path in target.folder.iterdir()] == [LOCK]
    evaluate(target, ["accuracy"], {})
    update_page(target)
    names = {path.name for path in target.folder.iterdir()}
    assert names == {"evaluation", "evaluation.json", "report.html"}


def test_an_unreadable_owner_is_another_process(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    (tmp_path / "run" / LOCK).write_text("[]")
    refused = pytest.raises(UsageError, match="is being written by another process")
    with refused, run_lock(tmp_path / "run"):
        pass


PARENT = """
import multiprocessing, sys, time
from concurrent.futures import ProcessPoolExecutor
from adautomix.training.engines.local import start_worker

def task():
    import os
    print(os.getpid(), flush=True)
    time.sleep(60)
    print("still alive", flush=True)

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, start_worker, (1,)) as pool:
        pool.submit(task).result()
"""


def test_the_workers_of_a_killed_comparison_end_too(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    words = [sys.executable, str(script)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        worker = int(parent.stdout.readline())
        parent.kill()
        parent.wait()
        # The pipe is closed when the worker, which shares it, has ended.
        assert parent.stdout.read() == ""
    assert worker != parent.pid
