"""The examples for clusters: valid for what reads them, with commands of this package."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import assert_same_run
from kubeflow_trainer_api.models.trainer_v1alpha1_train_job import TrainerV1alpha1TrainJob

import adautomix
from adautomix.config import load_config

CLUSTER = Path(__file__).parents[1] / "examples" / "cluster"
SKYPILOT = {"name", "resources", "num_nodes", "workdir", "file_mounts", "setup", "run", "envs"}


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text(encoding="utf-8"))


def check_command(words: list[str]) -> None:
    """Check that a torchrun command trains, with settings that exist."""
    assert words[0] == "torchrun"
    assert "--max-restarts=3" in words
    start = words.index("-m")
    assert words[start : start + 3] == ["-m", "adautomix", "train"]
    given = " ".join(words[start + 3 :]).replace("=", " ").split()
    flags = dict(zip(given[::2], given[1::2], strict=True))
    recipe = flags.pop("--recipe", None)
    named = {name.lstrip("-").replace("-", "_"): value for name, value in flags.items()}
    assert "out" in named, "only a run with --out is continued"
    load_config(recipe=recipe, flags=named)


def test_kubeflow() -> None:
    job = read("kubeflow.yaml")
    model = TrainerV1alpha1TrainJob.from_dict(job)
    assert model is not None
    assert model.to_dict() == job, "the API does not know a field"
    assert (job["apiVersion"], job["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert job["spec"]["runtimeRef"]["name"] == "torch-distributed"
    trainer = job["spec"]["trainer"]
    check_command([*trainer["command"], *trainer["args"]])


def test_skypilot() -> None:
    task = read("skypilot.yaml")
    assert set(task) <= SKYPILOT
    assert task["file_mounts"]["/runs"]["mode"] == "MOUNT"
    command = task["run"].split("torchrun", 1)[1].replace("\\\n", " ")
    check_command(["torchrun", *shlex.split(re.sub(r"\$\([^)]*\)", "HEAD", command))])


def test_slurm() -> None:
    text = (CLUSTER / "slurm.sbatch").read_text(encoding="utf-8")
    checked = subprocess.run(["bash", "-n", "-"], input=text, text=True, capture_output=True)
    assert checked.returncode == 0, checked.stderr
    assert "#SBATCH --requeue" in text
    command = text.split("srun ", 1)[1].replace("\\\n", " ").replace('"$@"', "")
    check_command(shlex.split(command))


@pytest.mark.slow
def test_ray_train(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers of Ray Train end with the weights of two processes of torchrun."""
    source = Path(adautomix.__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", str(source))
    settings = ["model=resnet18", "width=0.125", "image_size=16", "batch_size=8", "epochs=1"]
    settings += [f"data={photos}", "method=mixup", "workers=1"]
    words = ["--workers", "2", "--cpu", "--storage", str(tmp_path / "ray"), *settings]
    script = [sys.executable, str(CLUSTER / "ray_train.py"), *words, f"out={tmp_path / 'ray_run'}"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    flags = [f"--{one.replace('_', '-')}" for one in settings]
    own = ["-m", "adautomix", "train", *flags, f"--out={tmp_path / 'torchrun'}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *own], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert_same_run(tmp_path / "ray_run", tmp_path / "torchrun")
