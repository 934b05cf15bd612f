"""TensorBoard, Weights & Biases and MLflow hold what metrics.jsonl holds."""

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from every import trainer_of
from records import epoch_fields, train_fields
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from adautomix.config import make_config
from adautomix.errors import UsageError
from adautomix.runs.folder import LOGGER_IDS
from adautomix.runs.schema import EpochRow, TrainRow
from adautomix.training.loggers.base import flat_settings, numbers, scalars
from adautomix.training.loggers.mlflow import MlflowLogger
from adautomix.training.loggers.open import Loggers, logger_names, open_loggers
from adautomix.training.loggers.tensorboard import EventWriter
from adautomix.training.loggers.wandb import WandbLogger

SCORES = {"top1": 0.5, "top5": 0.75, "nll": 1.5, "ece": 0.1}


def train_row(step: int, loss: float = 1.0) -> TrainRow:
    return TrainRow(**train_fields(step, loss=loss))


def epoch_row(step: int) -> EpochRow:
    return EpochRow(**epoch_fields(step, student=SCORES, teacher=SCORES))


def read(folder: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(folder))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


# ---------------------------------------------------------------------- what is logged


def test_scalars_are_named_by_their_path() -> None:
    row = {
        "loss": 0.5,
        "teacher": {"top1": 0.25},
        "mixture_accuracy": None,
    }
    assert dict(scalars(row)) == {"loss": 0.5, "teacher/top1": 0.25}
    assert numbers(epoch_row(4))["epoch/teacher/top1"] == 0.5
    assert numbers(train_row(4, 0.25))["train/loss"] == 0.25
    assert "train/step" not in numbers(train_row(4))


def test_settings_are_flat_with_dotted_names() -> None:
    nested = {"lr": 0.1, "teacher": {"momentum": None}, "no_decay": ["a"]}
    assert flat_settings(nested) == {"lr": 0.1, "teacher.momentum": None, "no_decay": ["a"]}


def test_loggers_are_named_by_a_list_or_by_the_switch_for_tensorboard() -> None:
    assert logger_names(make_config({})) == []
    assert logger_names(make_config({"tensorboard": True})) == ["tensorboard"]
    both = make_config({"log": "tensorboard, mlflow", "tensorboard": True})
    assert logger_names(both) == ["tensorboard", "mlflow"]
    assert both.resolved()["log"] == ["tensorboard", "mlflow"]
    assert make_config(both.resolved()).log == both.log
    with pytest.raises(UsageError, match="log"):
        make_config({"log": "neptune"})


def test_a_logger_that_fails_is_left_out_and_the_others_go_on() -> None:
    said: list[str] = []
    added: list[int] = []

    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("no\nroute")

    def close(*, finished: bool) -> None:
        added.append(-1)

    loggers: Any = Loggers(said.append)
    loggers["mlflow"] = SimpleNamespace(add=fail, close=fail)
    loggers["tensorboard"] = SimpleNamespace(add=lambda row: added.append(row.step), close=close)
    for step in (1, 2):
        loggers.add(train_row(step))
    assert added == [1, 2]
    assert said == ["mlflow failed and is left out (ConnectionError: no route)"]
    loggers.close(finished=True)
    assert added == [1, 2, -1]
    assert len(said) == 1, "it was left out, so it is not closed"


# ---------------------------------------------------------------------- TensorBoard


def test_events_of_a_run_cut_off_are_purged(tmp_path: Path) -> None:
    first = EventWriter(tmp_path)
    for step in (1, 2, 3):
        first.add(train_row(step, float(step)))
    EventWriter(tmp_path, step=2).add(train_row(3, 30.0))
    assert read(tmp_path, "train/loss") == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_a_run_logs_the_rows_of_its_metrics(tmp_path: Path) -> None:
    trainer = trainer_of("vanilla", tmp_path, epochs=1, log="tensorboard")
    trainer.fit()
    rows = trainer.folder.rows()
    losses = [(row.step, row.loss) for row in rows if isinstance(row, TrainRow)]
    assert len(losses) == 4
    found = read(tmp_path / "tensorboard", "train/loss")
    assert [step for step, _ in found] == [step for step, _ in losses]
    assert [value for _, value in found] == pytest.approx([value for _, value in losses])
    (last,) = (row for row in rows if isinstance(row, EpochRow))
    assert last.teacher is not None
    ((step, value),) = read(tmp_path / "tensorboard", "epoch/teacher/top1")
    assert step == 4
    assert value == pytest.approx(last.teacher.top1)


@pytest.mark.parametrize(
    ("name", "module", "remedy"),
    [
        ("tensorboard", "torch.utils.tensorboard", "pip install tensorboard"),
        ("wandb", "wandb", "pip install wandb"),
        ("mlflow", "mlflow", "pip install mlflow-skinny"),
    ],
)
def test_without_its_package_the_remedy_is_named(
    name: str, module: str, remedy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    config = make_config({"log": name})
    with (
        pytest.raises(UsageError, match=f"log = {name}, but .* is not installed: {remedy}"),
        open_loggers(config, tmp_path, 0, print),
    ):
        pass


# ---------------------------------------------------------------------- Weights & Biases


class FakeWandb(ModuleType):
    """Records the calls that reach the package."""

    def __init__(self, refuses: str = "") -> None:
        super().__init__("wandb")
        self.refuses, self.inits, self.logged = refuses, list[dict[str, Any]](), list[Any]()
        self.ended: list[int] = []
        self.errors = SimpleNamespace(Error=RuntimeError)

    def init(self, **options: Any) -> Any:
        if self.refuses:
            raise RuntimeError(self.refuses)
        self.inits.append(options)
        return SimpleNamespace(
            id=options["id"] or "ab12",
            log=lambda values, step: self.logged.append((step, values)),
            finish=lambda exit_code: self.ended.append(exit_code),
        )


def test_wandb_gets_every_row_and_a_resume_continues_its_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setenv("WANDB_PROJECT", "photos")
    first = WandbLogger(tmp_path, {"lr": 0.1})
    first.add(train_row(3, 0.25))
    first.add(epoch_row(4))
    first.close(finished=False)
    assert fake.logged == [(3, numbers(train_row(3, 0.25))), (4, numbers(epoch_row(4)))]
    assert fake.ended == [1]
    start = {"project": "photos", "name": tmp_path.name, "dir": str(tmp_path)}
    assert fake.inits == [start | {"id": None, "resume": None, "config": {"lr": 0.1}}]
    assert json.loads((tmp_path / LOGGER_IDS).read_text()) == {"wandb": "ab12"}
    WandbLogger(tmp_path, {}).close(finished=True)
    assert fake.inits[1]["id"] == "ab12"
    assert fake.inits[1]["resume"] == "allow"
    assert fake.ended == [1, 0]


def test_wandb_without_login_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb("no\nAPI key"))
    with pytest.raises(UsageError, match="log = wandb: no API key: log in with `wandb login`"):
        WandbLogger(tmp_path, {})


def test_a_damaged_file_of_names_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", FakeWandb())
    for content in ('{"wandb": "../up"}', '{"wandb": 3}', "{"):
        (tmp_path / LOGGER_IDS).write_text(content)
        with pytest.raises(UsageError, match="delete the file"):
            WandbLogger(tmp_path, {})


# ---------------------------------------------------------------------- MLflow


@pytest.mark.slow
def test_mlflow_gets_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a real database: what a resumed run repeats is logged once."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "photos")
    folder = tmp_path / "pets"
    folder.mkdir()
    settings = make_config({"lr": 0.25, "adautomix": {"beta": 0.3}}).resolved()
    first = MlflowLogger(folder, settings)
    for step in (1, 2, 3):
        first.add(train_row(step, float(step)))
    first.add(epoch_row(3))
    first.close(finished=False)
    (name,) = json.loads((folder / LOGGER_IDS).read_text()).values()
    client = MlflowClient(uri)
    assert client.get_run(name).info.status == "KILLED"

    again = MlflowLogger(folder, settings)
    assert client.get_run(name).info.status == "RUNNING"
    for step in (3, 4):
        again.add(train_row(step, float(step)))
    again.add(epoch_row(3))
    again.close(finished=True)
    run = client.get_run(name)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "pets"
    assert client.get_experiment(run.info.experiment_id).name == "photos"
    assert run.data.params["lr"] == "0.25"
    assert run.data.params["adautomix.beta"] == "0.3"
    assert len(run.data.params) == len(flat_settings(settings))
    history = client.get_metric_history(name, "train/loss")
    assert [(value.step, value.value) for value in history] == [(n, float(n)) for n in (1, 2, 3, 4)]
    (score,) = client.get_metric_history(name, "epoch/teacher/top1")
    assert (score.step, score.value) == (3, 0.5)


@pytest.mark.slow
def test_mlflow_without_a_server_says_what_to_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    def refuse() -> Any:
        raise MlflowException("no\nserver")

    monkeypatch.setattr("mlflow.MlflowClient", refuse)
    with pytest.raises(UsageError, match="log = mlflow: no server: check MLFLOW_TRACKING_URI"):
        MlflowLogger(tmp_path, {})
