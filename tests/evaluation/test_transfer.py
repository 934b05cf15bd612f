"""Probes and k-NN against scikit-learn, and runs that start from a trained backbone."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml
from conftest import Command, assert_same_run, tensors
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from adautomix.config import TrainConfig, architecture_of, make_config
from adautomix.data import load_data
from adautomix.data.partition import partition
from adautomix.errors import UsageError
from adautomix.evaluation.evaluate import evaluate
from adautomix.evaluation.load_target import EvalOptions, load_target
from adautomix.evaluation.record import read_evaluation
from adautomix.evaluation.target import EvalTarget, PixelNetwork
from adautomix.evaluation.transfer import C_GRID, Features, TransferResult, linear_probe
from adautomix.models import Classifier
from adautomix.reporting.evaluations import evaluation_tables
from adautomix.runs.build import build_networks, data_info, load_images
from adautomix.runs.export import export_model
from adautomix.runs.folder import RunFolder
from adautomix.runs.trained import load_trained
from adautomix.training.loop import Trainer
from adautomix.training.run import resume, train

DIGITS = {"data": "digits", "per_class": 3, "image_size": 16, "batch_size": 10, "epochs": 1}
NET = {"model": "resnet18", "stem": "cifar", "width": 0.125, "workers": 1}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a tiny network on a few digits of 16 × 16 pixels."""
    folder = tmp_path_factory.mktemp("transfer") / "source"
    train(make_config({**DIGITS, **NET, "method": "mixup", "out": folder}), quiet=True)
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """The exported teacher of that run."""
    trained = load_trained(run)
    info = {name: trained.data_info[name] for name in ("classes", "mean", "std")}
    return export_model(trained.networks["teacher"], run.parent / "exported", **info, source={})


def percent(value: float) -> str:
    return f"{100 * value:.2f}"


def load_run(run: Path, out: Path, images: int | None = 150) -> EvalTarget:
    return load_target(str(run), EvalOptions({}, images=images, out=out, batch_size=64))


def run_suite(target: EvalTarget, **settings: Any) -> TransferResult:
    """Return the result of the suite with these settings."""
    result = evaluate(target, ["transfer"], {"transfer": settings}).result("transfer")
    assert isinstance(result, TransferResult)
    return result


# --- frozen features -------------------------------------------------------------------------


def by_hand(network: PixelNetwork, split: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return pooled features `[n, D]` and labels `[n]`, computed step by step."""
    model: Classifier = network.model
    pixels = split.images[split.rows].permute(0, 3, 1, 2).double() / 255
    mean, std = network.mean.double(), network.std.double()
    images = ((pixels - mean) / std).float()
    with torch.no_grad():
        last = model.eval().backbone.forward_features(images)
        return last.mean(dim=(2, 3)).double().numpy(), split.labels.numpy()


def standardized(train: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    deviation = train.std(axis=0)
    return np.asarray((other - train.mean(axis=0)) / np.where(deviation == 0, 1, deviation))


def test_the_probe_equals_sklearn_on_the_same_features(run: Path, tmp_path: Path) -> None:
    target = load_run(run, tmp_path)
    result = run_suite(target, knn=0)
    assert (result.data, result.train_images, result.test_images) == ("digits", 30, 150)
    assert result.networks.keys() == {"student", "teacher"}
    for name, network in target.networks.items():
        x, y = by_hand(network, target.data.train)
        test_x, test_y = by_hand(network, target.data.test)
        # A fifth of three images per class is one.
        rows = partition(
            target.data.train.labels,
            {"all": torch.arange(30)},
            per_class=None,
            test_fraction=1 / 3,
            val_fraction=0,
            seed=0,
        )
        fit, held = rows["train"].numpy(), rows["test"].numpy()
        assert len(held) == 10
        scores = [
            LogisticRegression(C=c, max_iter=1000)
            .fit(standardized(x[fit], x[fit]), y[fit])
            .score(standardized(x[fit], x[held]), y[held])
            for c in C_GRID
        ]
        c = C_GRID[int(np.argmax(scores))]
        model = LogisticRegression(C=c, max_iter=1000).fit(standardized(x, x), y)
        transfer = result.networks[name]
        assert transfer.probe is not None
        assert transfer.probe.c == c
        assert transfer.probe.top1 == model.score(standardized(x, test_x), test_y)
        assert transfer.probe.top1 > 0.15, "no better than chance"
        assert transfer.knn is None
        assert transfer.finetuned is None


def test_the_smallest_of_equally_good_c_is_chosen() -> None:
    """Two distant clusters, which every C separates."""
    rng = np.random.default_rng(0)
    labels = torch.arange(40) % 2
    pooled = torch.from_numpy(rng.normal(size=(40, 3))) + 100 * labels[:, None]
    cluster = Features(pooled, labels)
    assert linear_probe(cluster, cluster, seed=0).model_dump() == {"top1": 1.0, "c": C_GRID[0]}


@pytest.mark.parametrize("neighbors", [1, 4, 30, 500])
def test_knn_equals_sklearn_on_the_same_features(neighbors: int, run: Path, tmp_path: Path) -> None:
    target = load_run(run, tmp_path)
    result = run_suite(target, knn=neighbors, probe=False)
    for name, network in target.networks.items():
        x, y = by_hand(network, target.data.train)
        model = KNeighborsClassifier(min(neighbors, 30), metric="cosine").fit(x, y)
        expected = model.score(*by_hand(network, target.data.test))
        assert result.networks[name].knn == expected
        assert result.networks[name].probe is None


@pytest.mark.slow
def test_other_data_sets_are_resized_to_the_network_input(run: Path, tmp_path: Path) -> None:
    """All digits, resized from 32 × 32 for a network with 16 × 16 input."""
    digits = load_data("digits", image_size=16)
    target = load_run(run, tmp_path)
    result = run_suite(target, data="digits", knn=1, probe=False)
    assert (result.data, result.train_images) == ("digits", len(digits.train))
    assert len(digits.train) + result.test_images == 1797
    for name, network in target.networks.items():
        model = KNeighborsClassifier(1, metric="cosine").fit(*by_hand(network, digits.train))
        assert result.networks[name].knn == model.score(*by_hand(network, digits.test))


@pytest.mark.slow
def test_the_number_of_training_images_is_limited(run: Path, tmp_path: Path) -> None:
    first, again, all_ = (
        run_suite(load_run(run, tmp_path / str(i)), images=images)
        for i, images in enumerate((20, 20, None))
    )
    assert (first.train_images, all_.train_images) == (20, 30)
    assert first == again
    assert first.networks != all_.networks


def test_training_images_of_one_class_are_refused(run: Path, tmp_path: Path) -> None:
    target = load_run(run, tmp_path)
    labels = target.data.train.labels
    labels.fill_(3)
    with pytest.raises(UsageError, match="30 training images of digits are all of one class"):
        run_suite(target)


def test_a_timm_network_on_a_folder(photos: Path, tmp_path: Path) -> None:
    options = EvalOptions({"data": str(photos), "workers": 1, "image_size": 32}, out=tmp_path)
    with pytest.warns(UserWarning, match="test_vit has random weights"):
        target = load_target("test_vit", options)
    result = run_suite(target, knn=3)
    network = target.networks["network"]
    with torch.no_grad():
        (pixels, labels), (test, test_labels) = (
            next(target.batches(split)) for split in (target.data.train, target.data.test)
        )
        x, test_x = (network.pooled(images).numpy() for images in (pixels, test))
    expected = KNeighborsClassifier(3, metric="cosine").fit(x, labels).score(test_x, test_labels)
    assert result.networks["network"].knn == expected


# --- starting from a backbone ----------------------------------------------------------------


def initial_networks(**values: Any) -> tuple[TrainConfig, Classifier, Classifier]:
    """Return student and teacher before the first step of a run on three classes."""
    config = make_config({"method": "vanilla", **values})
    size = config.image_size or 16
    student, _, teacher = build_networks(config, num_classes=3, image_size=size, device=CPU)
    return config, student, teacher.model


def backbone_of(weights: Mapping[str, torch.Tensor], owner: str) -> dict[str, torch.Tensor]:
    prefix = f"{owner}.backbone."
    return {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}


def assert_equal(mine: Mapping[str, torch.Tensor], theirs: Mapping[str, torch.Tensor]) -> None:
    assert mine.keys() == theirs.keys()
    assert [name for name in mine if not torch.equal(mine[name], theirs[name])] == []


@pytest.mark.parametrize("source", ["run", "exported", "exported file"])
def test_the_backbone_is_loaded_and_the_head_is_new(source: str, run: Path, exported: Path) -> None:
    file = exported / "model.safetensors"
    path = {"run": run, "exported": exported, "exported file": file}[source]
    weights = backbone_of(tensors(run), "teacher")
    assert not torch.equal(weights["conv1.weight"], tensors(run)["student.backbone.conv1.weight"])
    # A plain weights file does not describe its architecture.
    architecture = NET if path == file else {}
    config, student, teacher = initial_networks(init=path, **architecture)
    assert_equal(student.backbone.state_dict(), weights)
    assert_equal(teacher.backbone.state_dict(), weights)
    _, fresh, _ = initial_networks(**NET)
    assert_equal(student.heads.state_dict(), fresh.heads.state_dict())
    assert student.spec == fresh.spec
    assert config.image_size == (None if path == file else 16)


def test_weights_of_timm_with_a_classifier(tmp_path: Path) -> None:
    source: Any = timm.create_model("test_vit", num_classes=7, img_size=32)
    path = tmp_path / "vit.safetensors"
    save_file(source.state_dict(), path)
    _, student, _ = initial_networks(init=path, model="test_vit", image_size=32)
    weights = {n: w for n, w in source.state_dict().items() if not n.startswith("head.")}
    assert_equal(student.backbone.state_dict(), weights)


def test_the_architecture_comes_with_the_weights_unless_given(run: Path, exported: Path) -> None:
    known = {"model": "resnet18", "stem": "cifar", "width": 0.125, "image_size": 16}
    assert architecture_of(run) == known | {"model_options": {}}
    assert architecture_of(exported) == known
    config = make_config({"init": run, "width": 1.0, "epochs": 3})
    settings = (config.model, config.stem, config.width, config.image_size, config.epochs)
    assert settings == ("resnet18", "cifar", 1.0, 16, 3)
    assert make_config(config.resolved()).resolved() == config.resolved()


def test_the_automatic_stem_is_kept_for_other_image_sizes(run: Path, tmp_path: Path) -> None:
    """The stem that `auto` chose for 16 pixels is kept for larger images."""
    other = Path(shutil.copytree(run, tmp_path / "auto"))
    values = yaml.safe_load((other / "config.yaml").read_text()) | {"stem": "auto"}
    (other / "config.yaml").write_text(yaml.safe_dump(values))
    config = make_config({"init": other, "image_size": 96})
    assert (config.stem, config.image_size) == ("cifar", 96)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (
            ("--width", 0.25),
            "pixels: conv1.weight is [8, 3, 3, 3], not [16, 3, 3, 3]; use the settings",
        ),
        (("--model", "resnet34"), "it lacks layer1.2.conv1.weight"),
        (("--model", "resnet50"), "conv1.weight"),
        (("--stem", "standard"), "does not fit resnet18 with width 0.125, stem standard and "),
        (("--pretrained",), "init and pretrained both say where the weights start: leave out one"),
        (("--init", "nowhere"), "--init nowhere is not a run folder, an exported folder or"),
    ],
)
def test_mismatches_are_one_line_errors(
    flags: tuple[object, ...], line: str, run: Path, photos: Path, tmp_path: Path, command: Command
) -> None:
    words = ("train", "--init", run, "--data", photos, "--workers", 1, "--batch-size", 6)
    outcome = command(*words, *flags, "--out", tmp_path / "run")
    assert outcome.status == 2, outcome.err
    assert outcome.err.count("\n") == 1
    assert line in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_folder_without_its_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="does not say which network it holds: 'stem'"):
        make_config({"init": tmp_path})


@pytest.mark.slow
def test_resuming_does_not_need_the_source_run(run: Path, photos: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(run, tmp_path / "source"))
    values = {"init": source, "data": str(photos), "workers": 1, "batch_size": 6, "epochs": 2}
    train(make_config({**values, "out": tmp_path / "whole"}), quiet=True)

    config = make_config({**values, "out": tmp_path / "stopped"})
    folder, data = RunFolder.create(config), load_images(config, progress=False)
    folder.write_data_info(data_info(data))
    trainer = Trainer(config, data, folder, quiet=True)
    trainer.fit(until=5)
    trainer.save()
    shutil.rmtree(source)
    resume(tmp_path / "stopped", quiet=True)
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.slow
def test_a_plain_command_transfers(
    run: Path, photos: Path, tmp_path: Path, command: Command
) -> None:
    words = ("--data", photos, "--workers", 1, "--batch-size", 6, "--epochs", 1, "--json")
    outcome = command("train", "--init", run, *words, "--out", tmp_path / "run")
    assert outcome.status == 0, outcome.err
    assert outcome.json["parameters"] == sum(
        p.numel() for p in load_trained(tmp_path / "run").networks["student"].parameters()
    )
    assert len(outcome.json["classes"]) == 3
    assert load_trained(tmp_path / "run").networks["student"].spec.width == 0.125


# --- fine-tuning as a suite ------------------------------------------------------------------


@pytest.mark.slow
def test_fine_tuning_is_a_run_from_each_backbone(
    run: Path, exported: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"data": str(photos), "finetune": 1, "batch_size": 6, "lr": 0.02, "knn": 0}
    result = run_suite(load_run(run, tmp_path / "results"), **settings)
    same = {"data": str(photos), "epochs": 1, "batch_size": 6, "lr": 0.02, "method": "vanilla"}
    reference = train(make_config({**same, "init": exported, "out": tmp_path / "run"}), quiet=True)
    final = {name: scores.present() for name, scores in reference.final.items()}
    assert result.networks["teacher"].finetuned == final
    assert result.networks["student"].finetuned != final

    pictures = tmp_path / "results" / "evaluation" / "transfer"
    folders = {path.name.partition("-")[0]: path for path in pictures.iterdir()}
    assert folders.keys() == {"student", "teacher"}, "the initial weights were not deleted"
    assert_equal(tensors(folders["teacher"]), tensors(tmp_path / "run"))
    assert architecture_of(folders["student"]) == architecture_of(run)

    # A second evaluation reuses the cached results, or else the run folders.
    monkeypatch.setattr(Trainer, "fit", None)
    assert run_suite(load_run(run, tmp_path / "results"), **settings) == result
    (tmp_path / "results" / "evaluation" / "parts.jsonl").unlink()
    assert run_suite(load_run(run, tmp_path / "results"), **settings) == result


@pytest.mark.slow
def test_an_exported_and_a_timm_network_are_fine_tuned(
    exported: Path, photos: Path, tmp_path: Path
) -> None:
    settings = {"data": str(photos), "finetune": 1, "batch_size": 6, "knn": 0, "probe": False}
    images = {"data": str(photos), "image_size": 32, "workers": 1}
    with pytest.warns(UserWarning, match="test_vit has random weights"):
        network = load_target("test_vit", EvalOptions(images, out=tmp_path / "vit"))
    result = run_suite(network, **settings).networks["network"]
    assert result.finetuned is not None
    assert result.finetuned.keys() == {"student", "teacher"}
    digits = {"data": "digits", "per_class": 3}
    network = load_target(str(exported), EvalOptions(digits, images=20, out=tmp_path / "exported"))
    result = run_suite(network, **settings).networks["network"]
    assert result.finetuned is not None
    assert 0 <= result.finetuned["student"]["top1"] <= 1


@pytest.mark.slow
def test_fine_tuning_needs_another_data_set(run: Path, command: Command) -> None:
    for flags, line in {
        (
            "--transfer.finetune",
            3,
        ): "transfer.finetune needs another data set: pass",
        ("--transfer.method", "cutmx"): "unknown method 'cutmx': did you mean 'cutmix'?",
        ("--transfer.data", "digts"): "unknown data set 'digts': did you mean 'digits'?",
    }.items():
        outcome = command("evaluate", run, "--suites", "transfer", *flags)
        assert outcome.status == 2
        assert line in outcome.err


def test_the_command_prints_and_stores_the_result(
    run: Path, photos: Path, tmp_path: Path, command: Command
) -> None:
    flags = ("--transfer.data", photos, "--transfer.knn", 1, "--images", 20)
    outcome = command("evaluate", run, "--suites", "transfer", *flags, "--out", tmp_path)
    assert outcome.status == 0, outcome.err
    assert "Transfer to pets" in outcome.out
    record = read_evaluation(tmp_path)
    assert record is not None
    result = record.result("transfer")
    assert isinstance(result, TransferResult)
    (table,) = evaluation_tables({"mine": record})
    network = result.networks["teacher"]
    assert network.probe is not None
    assert network.knn is not None
    cells = (percent(network.probe.top1), f"{network.probe.c:g}", percent(network.knn))
    assert table.rows[1] == ("mine", "teacher", *cells, "–", "–")
    assert "24 training and 9 test images" in table.note
    assert "Transfer to pets" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "evaluation.json").read_text())["suites"]["transfer"]
