"""From a folder of photographs to predictions, pages and comparisons, through the command."""

import importlib.util
import json
import math
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from conftest import CLASSES, SMALL_NET, Command, tensors
from every import TRANSFORMER, each, steps_of, trainer_of
from mix_positions import MixPositions
from PIL import Image
from torch import Tensor, nn
from torchmetrics.classification import MulticlassCalibrationError

from adautomix.cli import main
from adautomix.config import load_config
from adautomix.errors import UsageError
from adautomix.methods import METHODS, build_method, describe_methods
from adautomix.metrics import collect_logits, score
from adautomix.models import evaluating
from adautomix.pictures.image_grid import LINE, TILE
from adautomix.pictures.mix_rows import batch_from_files, to_pixels
from adautomix.reporting.formatting import percent
from adautomix.rng import generator_at
from adautomix.runs.folder import WRONG_PHOTOS
from adautomix.runs.trained import load_trained
from adautomix.training.loop import Trainer
from adautomix.training.optim import build_optimizer

NETWORKS = ("student", "teacher")
TRAINING = (*SMALL_NET, "--epochs", 2, "--batch-size", 6)
# The mask loss is a mean over all masks of a batch, so it differs when the batch is split.
PART_BY_PART: dict[str, dict[str, Any]] = {
    "automix": {"mask_weight": 0},
    "samix": {"mask_weight": 0},
}
# These show a single source: nothing is mixed in, or only the image itself.
ALONE = ("vanilla", "cutout", "dada", "meada", "fracmix", "augmix")
NORMALIZED_BY_PARTS = ("dada",)  # its generator has batch norm


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """AdAutoMix on the folder of photographs, trained by the command."""
    folder = tmp_path_factory.mktemp("end to end") / "run"
    args = ("train", "--data", photos, *TRAINING, "--out", folder, "--json")
    main([str(word) for word in args])
    return folder


@pytest.fixture
def pictures(photos: Path) -> list[Path]:
    return [photos / "test" / name / "0.png" for name in CLASSES]


def summary_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "summary.json").read_text())  # type: ignore[no-any-return]


def by_hand(run: Path, files: list[Path], network: str) -> Tensor:
    """Probabilities `[n, K]`: pixels, normalization and forward written out."""
    trained = load_trained(run)
    pixels = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files])
    mean, std = (np.array(trained.data_info[name]) for name in ("mean", "std"))
    images = torch.from_numpy((pixels / 255 - mean) / std).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        logits: Tensor = trained.networks[network].eval()(images, head="clean")
        return logits.softmax(dim=1)


# --- one run ---------------------------------------------------------------------------------


def test_a_run_folder_holds_everything(run: Path) -> None:
    names = {str(path.relative_to(run)) for path in run.rglob("*")}
    expected = {"config.yaml", "data.json", "metrics.jsonl", "summary.json", "report.html"}
    expected |= {f"checkpoints/{name}" for name in ("last", "previous", "best")}
    assert expected <= names
    assert [name for name in names if name.endswith(".tmp")] == []
    assert any(name.startswith("samples/") and name.endswith(".png") for name in names)


def test_the_summary_says_what_was_done(run: Path) -> None:
    summary = summary_of(run)
    facts = {
        name: summary[name] for name in ("method", "model", "width", "seed", "epochs", "steps")
    }
    assert facts == {
        "method": "adautomix",
        "model": "resnet18",
        "width": 0.125,
        "seed": 0,
        "epochs": 2,
        "steps": 8,
    }
    assert summary["classes"] == list(CLASSES)
    assert (summary["train_images"], summary["test_images"]) == (24, 9)
    assert summary["versions"]["torch"] == torch.__version__
    weights = load_trained(run).networks["student"].parameters()
    assert summary["parameters"] == sum(value.numel() for value in weights)


def test_train_prints_where_everything_is(photos: Path, tmp_path: Path, command: Command) -> None:
    args = ("--data", photos, *SMALL_NET, "--epochs", 1, "--batch-size", 12, "--method", "vanilla")
    outcome = command("train", *args, "--out", tmp_path / "run")
    assert outcome.status == 0
    assert f"Run folder {tmp_path / 'run'}, page {tmp_path / 'run' / 'report.html'}" in outcome.out
    figures = summary_of(tmp_path / "run")["final"]["student"]
    assert "epoch 1/1  loss" in outcome.err
    assert f"student {figures['top1']:.2%}" in outcome.err
    quiet = command("train", *args, "--out", tmp_path / "quiet", "--json")
    assert quiet.err == ""
    stored = summary_of(tmp_path / "quiet")
    assert len(stored.pop("checksum")) == 64
    assert quiet.json == stored
    assert quiet.json["final"] == summary_of(tmp_path / "run")["final"]


def test_evaluate_reproduces_the_results_of_the_summary(run: Path, command: Command) -> None:
    outcome = command("evaluate", run, "--json")
    assert outcome.status == 0
    record = outcome.json[str(run)]
    results = record["suites"]["accuracy"]["networks"]
    for network, scores in summary_of(run)["final"].items():
        assert results[network] == pytest.approx(scores, rel=1e-5)
    assert record == json.loads((run / "evaluation.json").read_text())
    best = command("evaluate", run, "--which", "best", "--json").json[str(run)]
    recorded, results = summary_of(run)["best"], best["suites"]["accuracy"]["networks"]
    assert results[recorded["network"]]["top1"] == recorded["top1"]
    assert best["source"]["step"] == 4 * recorded["epoch"]
    printed = command("evaluate", run, "--which", "best").out
    assert f"{100 * results['student']['top1']:.2f}" in printed


@pytest.mark.parametrize("network", NETWORKS)
def test_predict_is_a_forward_pass(
    network: str, run: Path, pictures: list[Path], command: Command
) -> None:
    outcome = command("predict", run, *pictures, "--network", network, "--json")
    assert outcome.status == 0
    expected = by_hand(run, pictures, network)
    for entry, file, probabilities in zip(outcome.json, pictures, expected, strict=True):
        assert entry["image"] == str(file)
        predicted = entry["classes"]
        assert sum(predicted.values()) == pytest.approx(1, abs=1e-5)
        assert list(predicted.values()) == sorted(predicted.values(), reverse=True)
        for name, probability in zip(CLASSES, probabilities.tolist(), strict=True):
            assert predicted[name] == pytest.approx(probability, abs=1e-5)


def test_predict_prints_the_most_probable_class(
    run: Path, pictures: list[Path], command: Command
) -> None:
    outcome = command("predict", run, pictures[0], "--top", 1, "--json")
    likeliest = CLASSES[int(by_hand(run, pictures[:1], "teacher").argmax())]
    assert list(outcome.json[0]["classes"]) == [likeliest]
    assert likeliest in command("predict", run, pictures[0], "--top", 1).out


def test_predict_on_a_file_that_is_not_an_image(
    run: Path, tmp_path: Path, command: Command
) -> None:
    for name, args in {"notes.txt": "not an image", "absent.png": "no such file"}.items():
        if name == "notes.txt":
            (tmp_path / name).write_text("no image")
        outcome = command("predict", run, tmp_path / name)
        assert (outcome.status, outcome.out) == (2, "")
        assert outcome.err.startswith(f"adautomix: cannot read {tmp_path / name}: {args}")
        assert outcome.err.count("\n") == 1
    outcome = command("predict", run, tmp_path / name, "--network", "tutor")
    assert outcome.status == 2


def load_script(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("exported", folder / "load_model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_an_exported_network_predicts_the_same(
    network: str, run: Path, pictures: list[Path], tmp_path: Path, command: Command
) -> None:
    outcome = command("export", run, "--out", tmp_path / "model", "--network", network)
    assert outcome.status == 0
    exported = load_script(tmp_path / "model")
    assert exported.CONFIG["classes"] == list(CLASSES)
    with torch.no_grad():
        images = torch.cat([exported.read_image(str(file)) for file in pictures])
        predicted = exported.load_model()(images).softmax(dim=1)
    torch.testing.assert_close(predicted, by_hand(run, pictures, network), atol=1e-5, rtol=0)
    again = command("export", run, "--out", tmp_path / "model")
    assert again.status == 2
    assert "export needs a new or empty folder" in again.err


class Reader(HTMLParser):
    """The visible text of a page, and its tags."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.text, self.features = "", set[str]()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.features.add(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_of_a_run(run: Path, tmp_path: Path, command: Command) -> None:
    outcome = command("report", run, "--out", tmp_path / "page.html")
    assert outcome.status == 0
    for page in (tmp_path / "page.html", run / "report.html"):
        reader = Reader(page)
        for network in NETWORKS:
            assert percent(summary_of(run)["final"][network]["top1"]) in reader.text
        assert all(name in reader.text for name in CLASSES)
        assert "script" not in reader.features


# --- previews --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_preview_of_every_method_from_two_pictures(
    pictures: list[Path], tmp_path: Path, command: Command
) -> None:
    """One image with a row per method: its name, the sources of the mix, and a mix."""
    target = tmp_path / "all.png"
    outcome = command("preview", "--images", *pictures[:2], "--out", target)
    assert (outcome.status, outcome.out) == (0, f"Wrote {target}\n"), outcome.err
    grid = np.asarray(Image.open(target))
    at = MixPositions(2, len(METHODS))
    assert grid.shape == (at.size[1], at.size[0], 3)
    batch = batch_from_files(pictures[:2], TILE)
    sources = to_pixels(batch.images, batch.mean, batch.std).permute(0, 2, 3, 1).numpy()
    columns = at.columns
    for index, name in enumerate(METHODS):
        x, y = at.x(columns.method, index), at.y(index)
        assert (grid[y : y + LINE, x : at.x(columns.source(0), index)] < 128).any(), name
        first, second, mix = (
            grid[y : y + TILE, at.x(column, index) : at.x(column, index) + TILE]
            for column in (columns.source(0), columns.source(1), columns.mix)
        )
        assert any(np.array_equal(first, source) for source in sources), name
        alone = bool((second == 255).all())
        assert alone or any(np.array_equal(second, source) for source in sources), name
        if name != "comixup":  # which may find that copies of a picture go best together
            assert alone == (name in ALONE), name
        if name not in ("comixup", "meada"):  # an ascent can be smaller than a step of the colors
            assert np.array_equal(mix, first) == (name == "vanilla"), name


@pytest.mark.slow
def test_a_preview_of_one_method_has_the_requested_number_of_rows(
    pictures: list[Path], tmp_path: Path, command: Command
) -> None:
    args = ("preview", "--images", *pictures, *SMALL_NET, "--method", "mixup")
    for requested, rows in ((), 3), (("--rows", 2), 2):
        target = tmp_path / f"{rows}.png"
        assert command(*args, *requested, "--out", target).status == 0
        with Image.open(target) as image:
            assert image.size == MixPositions(2, rows).size


@pytest.mark.slow
def test_a_preview_of_a_run_uses_its_generator(
    run: Path, pictures: list[Path], tmp_path: Path, command: Command
) -> None:
    for name, args in {"data": (), "files": ("--images", *pictures)}.items():
        target = tmp_path / f"{name}.png"
        outcome = command("preview", "--run", run, *args, "--out", target)
        assert outcome.status == 0, outcome.err
        with Image.open(target) as image:
            assert len(image.getcolors(2**24) or ()) > 100, "an empty picture"


# --- comparisons -----------------------------------------------------------------------------


@pytest.mark.slow
def test_runs_side_by_side_are_the_same_runs(
    photos: Path, tmp_path: Path, command: Command
) -> None:
    args = ("compare", "--data", photos, *TRAINING, "--methods", "vanilla,mixup", "--seeds", 0)
    for jobs in (1, 2):
        outcome = command(*args, "--jobs", jobs, "--out", tmp_path / str(jobs))
        assert outcome.status == 0, outcome.err
    assert "(2 of 2 runs, 0 s left)" in outcome.err
    for name in ("vanilla-s0", "mixup-s0"):
        alone, beside = (tensors(tmp_path / str(jobs) / name) for jobs in (1, 2))
        assert all(torch.equal(value, beside[key]) for key, value in alone.items())


@pytest.mark.slow
def test_a_comparison_continues_where_it_stopped(
    photos: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"{method}-s{seed}" for method in ("vanilla", "mixup") for seed in (0, 1)]
    runs = ("--methods", "vanilla,mixup", "--seeds", "0,1", "--jobs", 1, "--out", tmp_path)
    args = ("compare", "--data", photos, *TRAINING, *runs, "--json")
    outcome = command(*args)
    assert outcome.status == 0, outcome.err
    assert [f"{run['method']}-s{run['seed']}" for run in outcome.json] == names
    finals = [run["final"] for run in outcome.json]
    assert [summary_of(tmp_path / name)["final"] for name in names] == finals
    page = Reader(tmp_path / "report.html").text
    assert all(name in page for name in names)

    written = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/checkpoints/last/*")}
    whole = tensors(tmp_path / "mixup-s1")
    trained: list[str] = []
    fit = Trainer.fit

    def noted(self: Trainer, until: int | None = None) -> None:
        trained.append(self.folder.path.name)
        fit(self, until)

    monkeypatch.setattr(Trainer, "fit", noted)
    again = command(*args)
    assert again.status == 0
    assert again.json == outcome.json
    assert trained == []
    assert {path: path.stat().st_mtime_ns for path in written} == written

    # One run stopped before its first checkpoint and one after it; the others are done.
    early, late = tmp_path / "mixup-s1", tmp_path / "vanilla-s1"
    (early / "summary.json").unlink()
    (late / "summary.json").unlink()
    shutil.rmtree(early / "checkpoints")
    for name in ("predictions.safetensors", "report.html"):
        (early / name).unlink(missing_ok=True)
    shutil.rmtree(early / WRONG_PHOTOS)  # written at the end, too
    shutil.rmtree(late / "checkpoints" / "last")
    assert command(*args).status == 0
    assert trained == ["vanilla-s1", "mixup-s1"]
    assert [summary_of(tmp_path / name)["final"] for name in names] == finals
    assert all(torch.equal(whole[name], value) for name, value in tensors(early).items())

    other = command(*args, "--lr", 0.01)
    assert other.status == 2
    assert "vanilla-s0 was run with other settings: lr was 0.1 and is now 0.01." in other.err


# --- lists and help --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "columns", "entry"),
    [
        ("datasets", {"data", "what it is"}, "digits"),
        ("settings", {"setting", "default", "meaning"}, "adautomix.beta"),
    ],
)
def test_lists(args: str, columns: set[str], entry: str, command: Command) -> None:
    rows = command(args, "--json").json
    assert all(row.keys() == columns for row in rows)
    assert all(all(row.values()) for row in rows), "an empty cell"
    first = next(iter(rows[0]))
    assert entry in [row[first] for row in rows]
    assert entry in command(args).out


def test_methods_are_listed_with_their_facts(command: Command) -> None:
    assert command("methods", "--json").json == describe_methods()
    assert "adautomix" in command("methods").out


def test_every_default_is_valid(command: Command) -> None:
    for row in command("settings", "--json").json:
        load_config(flags={row["setting"]: row["default"]})


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from adautomix.cli import main\n"
        "main(['--help'])\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert "compare" in done.stdout
    heavy = {"torch", "pydantic", "timm", "numpy", "PIL", "yaml", "matplotlib", "sklearn"}
    assert heavy & set(done.stderr.split()) == set()


@pytest.mark.parametrize(
    "name", ["train", "resume", "compare", "bench", "evaluate", "predict", "preview", "export"]
)
def test_every_command_has_help(name: str, command: Command) -> None:
    outcome = command(name, "--help")
    assert outcome.status == 0
    assert f"Usage: adautomix {name}" in outcome.out


def test_no_arguments_print_help(command: Command) -> None:
    assert command().out == command("--help").out


# --- ways to compute -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_like_single(
    precision: str, photos: Path, tmp_path: Path, command: Command
) -> None:
    args = ("--data", photos, *TRAINING, "--method", "mixup", "--drop-last", "true", "--json")
    figures = {}
    for name in ("fp32", precision):
        outcome = command("train", *args, "--precision", name, "--out", tmp_path / name)
        assert outcome.status == 0, outcome.err
        assert outcome.json["precision"] == name
        figures[name] = outcome.json["final"]["student"]["nll"]
    assert figures[precision] != figures["fp32"], "half precision was not used"
    assert figures[precision] == pytest.approx(figures["fp32"], abs=0.2)
    assert all(value.dtype != torch.float16 for value in tensors(tmp_path / precision).values())


def test_a_first_step_that_fp16_skips_changes_nothing() -> None:
    """Deterministic mode fills memory that the optimizer does not initialize with NaN."""
    config = load_config(flags={"method": "vanilla", "lr": 0.5, "momentum": 0.9})
    method = build_method("vanilla", num_classes=2)
    model = nn.Linear(3, 2, bias=False)
    start = model.weight.detach().clone()
    optimizer = build_optimizer(config, model, method)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    torch.use_deterministic_algorithms(True)
    try:
        for gradient in (torch.inf, 1.0):
            scaler.scale((model.weight * gradient).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
    finally:
        torch.use_deterministic_algorithms(False)
    expected = start - 0.5 * (1 + config.weight_decay * start)
    torch.testing.assert_close(model.weight.detach(), expected)


@pytest.mark.parametrize("name", each(name for name in METHODS if name not in NORMALIZED_BY_PARTS))
def test_accumulated_parts_are_the_batch(name: str, tmp_path: Path) -> None:
    """Without batch norm, five parts of 35 and then 13 images give the same as whole batches."""
    options = {
        "batch_size": 35,
        "drop_last": False,
        **TRANSFORMER,
        name: PART_BY_PART.get(name, {}),
    }
    losses, weights = [], []
    for accumulate in (1, 5):
        trainer = trainer_of(name, tmp_path / str(accumulate), accumulate=accumulate, **options)
        losses.append(steps_of(trainer, 2))
        weights.append(trainer.weights())
    for mine, theirs in zip(*losses, strict=True):
        expected = {key: theirs[key] for key in theirs if key != "generator_mask"}
        assert {key: mine[key] for key in expected} == pytest.approx(expected, rel=1e-4)
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], atol=1e-6, rtol=1e-5)


def test_digits_are_learned(tmp_path: Path, command: Command) -> None:
    """Ten labeled digits per class and ten epochs give far more than the 10 % of guessing."""
    args = ("--data", "digits", "--per-class", 10, "--method", "vanilla", "--image-size", 16)
    rate = ("--epochs", 10, "--batch-size", 20, "--lr", 0.1, "--eval-every", 10)
    outcome = command("train", *args, *SMALL_NET, *rate, "--out", tmp_path / "run", "--json")
    assert outcome.status == 0, outcome.err
    assert outcome.json["test_images"] == 1697
    assert outcome.json["final"]["student"]["top1"] > 0.4


# --- scores by hand --------------------------------------------------------------------------


def test_top1_top5_and_likelihood_by_hand() -> None:
    """Seven classes, where the rank of the right one is known for each image."""
    ranks = [0, 0, 1, 4, 5, 6]
    logits = torch.arange(7.0).flip(0).repeat(len(ranks), 1)  # class k is k-th likeliest
    scores = score(logits, torch.tensor(ranks))
    assert scores.top1 == pytest.approx(2 / 6)
    assert scores.top5 == pytest.approx(4 / 6)
    log_sum = math.log(sum(math.exp(6 - rank) for rank in range(7)))
    by_rank = [log_sum - (6 - rank) for rank in ranks]
    assert scores.nll == pytest.approx(sum(by_rank) / 6, rel=1e-6)


def test_top5_of_three_classes_is_always_right() -> None:
    logits = torch.randn(8, 3, generator=generator_at(0, 0, "logits"))
    assert score(logits, torch.arange(8) % 3).top5 == 1


def test_calibration_error_by_hand() -> None:
    """Two bins: confidence 0.9 with half of them right, 0.6 with all of them right."""
    confidence = torch.tensor([0.9, 0.9, 0.9, 0.9, 0.6, 0.6])
    logits = torch.stack([confidence, 1 - confidence], dim=1).log()
    labels = torch.tensor([0, 0, 1, 1, 0, 0])
    expected = 4 / 6 * abs(0.9 - 0.5) + 2 / 6 * abs(0.6 - 1.0)
    assert score(logits, labels).ece == pytest.approx(expected, abs=1e-6)


def test_calibration_error_against_torchmetrics() -> None:
    """Three of five predictions are right at any confidence, so both signs of the gap occur."""
    logits = 2 * torch.randn(200, 10, generator=generator_at(0, 0, "logits"))
    shift = torch.tensor([0, 0, 0, 1, 2]).repeat(40)
    labels = (logits.argmax(dim=1) + shift) % 10
    expected = {}
    for bins in (10, 15):
        oracle = MulticlassCalibrationError(num_classes=10, n_bins=bins, norm="l1")
        oracle.update(logits.softmax(dim=1), labels)
        expected[bins] = float(oracle.compute())
    assert score(logits, labels).ece == pytest.approx(expected[15], abs=1e-6)
    assert expected[10] != pytest.approx(expected[15], abs=1e-3), "the bins do not show"


class TwoHeads(nn.Module):
    """Logits are the mean pixel times a factor per head; dropout would reveal training mode."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.factor = nn.Parameter(torch.tensor([1.0, -1.0]))

    def forward(self, images: Tensor, head: str) -> Tensor:
        scale = 1.0 if head == "clean" else 2.0
        logits: Tensor = self.drop(images.mean(dim=(1, 2, 3)))[:, None] * self.factor * scale
        return logits


def test_logits_are_collected_in_order_and_in_evaluation_mode() -> None:
    images = torch.arange(5.0)[:, None, None, None].expand(5, 3, 2, 2)
    labels = torch.arange(5)
    batches = [(images[:3], labels[:3]), (images[3:], labels[3:])]
    logits, collected = collect_logits({"student": TwoHeads()}, batches, head="mixed")
    expected = torch.stack([2 * torch.arange(5.0), -2 * torch.arange(5.0)], dim=1)
    assert torch.equal(logits["student"], expected)
    assert torch.equal(collected, labels)


def test_evaluating_restores_the_mode_of_every_module() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout())
    model[1].eval()
    other = nn.Dropout().eval()
    before = [module.training for module in model.modules()]
    with evaluating(model, other):
        assert not any(module.training for module in model.modules())
        assert not torch.is_grad_enabled()
    assert [module.training for module in model.modules()] == before == [True, True, False, True]
    assert not other.training
    with pytest.raises(UsageError), evaluating(model):
        raise UsageError("in the middle")
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()
