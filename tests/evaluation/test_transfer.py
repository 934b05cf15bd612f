"""Transfer: probes against scikit-learn by hand, and runs that start from another's backbone."""

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
from adautomix.evaluation.evaluate import evaluate, read
from adautomix.evaluation.load_target import EvalOptions, load_target
from adautomix.evaluation.target import EvalTarget, PixelNetwork
from adautomix.evaluation.transfer import GRID, Features, TransferResult, linear_probe
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
    """A tiny network trained on a few digits of 16 × 16."""
    folder = tmp_path_factory.mktemp("transfer") / "source"
    train(make_config({**DIGITS, **NET, "method": "mixup", "out": folder}), quiet=True)
    return folder


@pytest.fixture(scope="module")
def exported(run: Path) -> Path:
    """Its teacher as `adautomix export` writes it."""
    trained = load_trained(run)
    card = {name: trained.card[name] for name in ("classes", "mean", "std")}
    return export_model(trained.networks["teacher"], run.parent / "exported", **card, source={})


def opened(run: Path, out: Path, images: int | None = 150) -> EvalTarget:
    return load_target(str(run), EvalOptions({}, images=images, out=out, batch_size=64))


def transferred(subject: EvalTarget, **settings: Any) -> TransferResult:
    """What the suite finds with these settings."""
    found = evaluate(subject, ["transfer"], {"transfer": settings}).result("transfer")
    assert isinstance(found, TransferResult)
    return found


# --- frozen features -------------------------------------------------------------------------


def by_hand(network: PixelNetwork, split: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Pooled features `[n, D]` and labels `[n]`: pixels, normalization and forward written out."""
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


def test_the_probe_is_sklearns_on_the_same_features(run: Path, tmp_path: Path) -> None:
    subject = opened(run, tmp_path)
    result = transferred(subject, knn=0)
    assert (result.data, result.train_images, result.test_images) == ("digits", 30, 150)
    assert result.networks.keys() == {"student", "teacher"}
    for name, network in subject.networks.items():
        x, y = by_hand(network, subject.data.train)
        test_x, test_y = by_hand(network, subject.data.test)
        # A fifth of three images a class is one.
        rows = partition(
            subject.data.train.labels,
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
            for c in GRID
        ]
        c = GRID[int(np.argmax(scores))]
        model = LogisticRegression(C=c, max_iter=1000).fit(standardized(x, x), y)
        found = result.networks[name]
        assert found.probe is not None
        assert found.probe.c == c
        assert found.probe.top1 == model.score(standardized(x, test_x), test_y)
        assert found.probe.top1 > 0.15, "no better than one in ten"
        assert found.knn is None
        assert found.finetuned is None


def test_of_equal_c_the_smallest_is_taken() -> None:
    """Two clouds far apart: every C tells them apart."""
    rng = np.random.default_rng(0)
    labels = torch.arange(40) % 2
    pooled = torch.from_numpy(rng.normal(size=(40, 3))) + 100 * labels[:, None]
    cloud = Features(pooled, labels)
    assert linear_probe(cloud, cloud, seed=0).model_dump() == {"top1": 1.0, "c": GRID[0]}


@pytest.mark.parametrize("neighbors", [1, 4, 30, 500])
def test_knn_is_sklearns_on_the_same_features(neighbors: int, run: Path, tmp_path: Path) -> None:
    subject = opened(run, tmp_path)
    result = transferred(subject, knn=neighbors, probe=False)
    for name, network in subject.networks.items():
        x, y = by_hand(network, subject.data.train)
        model = KNeighborsClassifier(min(neighbors, 30), metric="cosine").fit(x, y)
        expected = model.score(*by_hand(network, subject.data.test))
        assert result.networks[name].knn == expected
        assert result.networks[name].probe is None


def test_another_set_is_seen_at_the_size_that_the_network_knows(run: Path, tmp_path: Path) -> None:
    """All digits, which are of 32 × 32, and a network of 16 × 16."""
    digits = load_data("digits", image_size=16)
    subject = opened(run, tmp_path)
    result = transferred(subject, data="digits", knn=1, probe=False)
    assert (result.data, result.train_images) == ("digits", len(digits.train))
    assert len(digits.train) + result.test_images == 1797
    for name, network in subject.networks.items():
        model = KNeighborsClassifier(1, metric="cosine").fit(*by_hand(network, digits.train))
        assert result.networks[name].knn == model.score(*by_hand(network, digits.test))


def test_at_most_so_many_training_images(run: Path, tmp_path: Path) -> None:
    first, again, all_ = (
        transferred(opened(run, tmp_path / str(i)), images=images)
        for i, images in enumerate((20, 20, None))
    )
    assert (first.train_images, all_.train_images) == (20, 30)
    assert first == again
    assert first.networks != all_.networks


def test_one_class_teaches_nothing(run: Path, tmp_path: Path) -> None:
    subject = opened(run, tmp_path)
    labels = subject.data.train.labels
    labels.fill_(3)
    with pytest.raises(UsageError, match="30 training images of digits are of one class: use more"):
        transferred(subject)


def test_a_timm_network_on_a_folder(photos: Path, tmp_path: Path) -> None:
    asked = EvalOptions({"data": str(photos), "workers": 1, "image_size": 32}, out=tmp_path)
    subject = load_target("test_vit", asked)
    result = transferred(subject, knn=3)
    network = subject.networks["network"]
    with torch.no_grad():
        (pixels, labels), (test, test_labels) = (
            next(subject.batches(split)) for split in (subject.data.train, subject.data.test)
        )
        x, test_x = (network.pooled(images).numpy() for images in (pixels, test))
    expected = KNeighborsClassifier(3, metric="cosine").fit(x, labels).score(test_x, test_labels)
    assert result.networks["network"].knn == expected


# --- starting from a backbone ----------------------------------------------------------------


def started(**values: Any) -> tuple[TrainConfig, Classifier, Classifier]:
    """Student and teacher before the first step of a run on three classes."""
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
    on_progress = NET if path == file else {}  # a plain file does not say what network it is of
    config, student, teacher = started(init=path, **on_progress)
    assert_equal(student.backbone.state_dict(), weights)
    assert_equal(teacher.backbone.state_dict(), weights)
    _, fresh, _ = started(**NET)
    assert_equal(student.heads.state_dict(), fresh.heads.state_dict())
    assert student.spec == fresh.spec
    assert config.image_size == (None if path == file else 16)


def test_weights_of_timm_with_a_classifier(tmp_path: Path) -> None:
    source: Any = timm.create_model("test_vit", num_classes=7, img_size=32)
    save_file(source.state_dict(), tmp_path / "vit.safetensors")
    _, student, _ = started(init=tmp_path / "vit.safetensors", model="test_vit", image_size=32)
    weights = {n: w for n, w in source.state_dict().items() if not n.startswith("head.")}
    assert_equal(student.backbone.state_dict(), weights)


def test_the_architecture_comes_with_the_weights_where_not_told(run: Path, exported: Path) -> None:
    known = {"model": "resnet18", "stem": "cifar", "width": 0.125, "image_size": 16}
    assert architecture_of(run) == known | {"model_options": {}}
    assert architecture_of(exported) == known
    config = make_config({"init": run, "width": 1.0, "epochs": 3})
    on_progress = (config.model, config.stem, config.width, config.image_size, config.epochs)
    assert on_progress == ("resnet18", "cifar", 1.0, 16, 3)
    assert make_config(config.resolved()).resolved() == config.resolved()


def test_a_stem_that_was_made_up_is_told(run: Path, tmp_path: Path) -> None:
    """What `auto` was for 16 pixels is kept for other images."""
    other = Path(shutil.copytree(run, tmp_path / "auto"))
    values = yaml.safe_load((other / "config.yaml").read_text()) | {"stem": "auto"}
    (other / "config.yaml").write_text(yaml.safe_dump(values))
    config = make_config({"init": other, "image_size": 96})
    assert (config.stem, config.image_size) == ("cifar", 96)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--width", 0.25), "pixels: conv1.weight is [8, 3, 3, 3], not [16, 3, 3, 3]; leave these"),
        (("--model", "resnet34"), "it has no layer1.2.conv1.weight"),
        (("--model", "resnet50"), "conv1.weight"),
        (("--stem", "standard"), "is not the backbone of resnet18, width 0.125, stem standard"),
        (("--pretrained",), "init and pretrained both say where the weights start: leave out one"),
        (("--init", "nowhere"), "init = nowhere: no run folder, folder of `adautomix export`"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(
    flags: tuple[object, ...], line: str, run: Path, photos: Path, tmp_path: Path, command: Command
) -> None:
    words = ("train", "--init", run, "--data", photos, "--workers", 1, "--batch-size", 6)
    outcome = command(*words, *flags, "--out", tmp_path / "run")
    assert outcome.status == 2, outcome.err
    assert outcome.err.count("\n") == 1
    assert line in outcome.err
    assert not (tmp_path / "run").exists()


def test_a_folder_that_does_not_say_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="does not say which network it holds: 'stem'"):
        make_config({"init": tmp_path})


def test_resuming_needs_the_source_no_more(run: Path, photos: Path, tmp_path: Path) -> None:
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


def test_fine_tuning_is_a_run_from_each_backbone(
    run: Path, exported: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"data": str(photos), "finetune": 1, "batch_size": 6, "lr": 0.02, "knn": 0}
    result = transferred(opened(run, tmp_path / "found"), **settings)
    same = {"data": str(photos), "epochs": 1, "batch_size": 6, "lr": 0.02, "method": "vanilla"}
    reference = train(make_config({**same, "init": exported, "out": tmp_path / "run"}), quiet=True)
    final = {name: scores._asdict() for name, scores in reference.final.items()}
    assert result.networks["teacher"].finetuned == final
    assert result.networks["student"].finetuned != final

    pictures = tmp_path / "found" / "evaluation" / "transfer"
    folders = {path.name.partition("-")[0]: path for path in pictures.iterdir()}
    assert folders.keys() == {"student", "teacher"}, "the weights to start from are left"
    assert_equal(tensors(folders["teacher"]), tensors(tmp_path / "run"))
    assert architecture_of(folders["student"]) == architecture_of(run)

    # What was trained is found again, from the parts or from the run folders.
    monkeypatch.setattr(Trainer, "fit", None)
    assert transferred(opened(run, tmp_path / "found"), **settings) == result
    (tmp_path / "found" / "evaluation" / "parts.jsonl").unlink()
    assert transferred(opened(run, tmp_path / "found"), **settings) == result


def test_an_exported_and_a_timm_network_are_fine_tuned(
    exported: Path, photos: Path, tmp_path: Path
) -> None:
    settings = {"data": str(photos), "finetune": 1, "batch_size": 6, "knn": 0, "probe": False}
    images = {"data": str(photos), "image_size": 32, "workers": 1}
    network = load_target("test_vit", EvalOptions(images, out=tmp_path / "vit"))
    found = transferred(network, **settings).networks["network"]
    assert found.finetuned is not None
    assert found.finetuned.keys() == {"student", "teacher"}
    digits = {"data": "digits", "per_class": 3}
    network = load_target(str(exported), EvalOptions(digits, images=20, out=tmp_path / "exported"))
    found = transferred(network, **settings).networks["network"]
    assert found.finetuned is not None
    assert 0 <= found.finetuned["student"]["top1"] <= 1


def test_fine_tuning_wants_another_set(run: Path, command: Command) -> None:
    for flags, line in {
        ("--transfer.finetune", 3): "transfer.finetune needs another data set: --transfer.data",
        ("--transfer.method", "cutmx"): "unknown method 'cutmx': did you mean 'cutmix'?",
        ("--transfer.data", "digts"): "unknown data set 'digts': did you mean 'digits'?",
    }.items():
        outcome = command("evaluate", run, "--suites", "transfer", *flags)
        assert outcome.status == 2
        assert line in outcome.err


def test_the_command_prints_and_keeps_what_it_found(
    run: Path, photos: Path, tmp_path: Path, command: Command
) -> None:
    flags = ("--transfer.data", photos, "--transfer.knn", 1, "--images", 20)
    outcome = command("evaluate", run, "--suites", "transfer", *flags, "--out", tmp_path)
    assert outcome.status == 0, outcome.err
    assert "Transfer to pets" in outcome.out
    record = read(tmp_path)
    assert record is not None
    result = record.result("transfer")
    assert isinstance(result, TransferResult)
    (table,) = evaluation_tables({"mine": record})
    found = result.networks["teacher"]
    assert found.probe is not None
    assert found.knn is not None
    mask_source = (f"{100 * found.probe.top1:.2f}", f"{found.probe.c:g}", f"{100 * found.knn:.2f}")
    assert table.rows[1] == ("mine", "teacher", *mask_source, "–", "–")
    assert "24 training and 9 test images" in table.note
    assert "Transfer to pets" in (tmp_path / "report.html").read_text()
    assert json.loads((tmp_path / "evaluation.json").read_text())["suites"]["transfer"]
