"""What a run says before its first step, and after its last."""

from pathlib import Path

from conftest import SMALL_NET, Command


def test_a_run_says_what_it_does(photos: Path, tmp_path: Path, command: Command) -> None:
    out = tmp_path / "run"
    args = ("--data", photos, *SMALL_NET, "--epochs", 1, "--batch-size", 12, "--method", "mixup")
    outcome = command("train", *args, "--out", out)
    assert outcome.status == 0
    before, _, after = outcome.err.partition("Scores are on test")
    for text in (
        "3 classes; images: 24 train, 9 test",
        "training images per class: 8 (",
        "input: 16x16",
        "device: ",
        "network: resnet18, 0.2 million parameters",
        "method: mixup, seed 0; 1 epoch, 2 steps of 12 images, fp32",
        f"run folder: {out}",
    ):
        assert text in before
    assert "epoch 1/1  loss" in after
    first, *lines = outcome.out.splitlines()
    assert first.startswith("Right on ")
    assert " of 9 test photos (" in first
    table = [line for line in lines if line.startswith(("network", "student", "teacher"))]
    assert len(table) == 3
    assert all(len(line) <= 80 for line in table)
    assert any(line.startswith("Note: 9 test photos say little") for line in lines)
    assert any(line.startswith("NLL: negative log-likelihood") for line in lines)


def test_accumulation_says_what_batch_norm_sees(
    photos: Path, tmp_path: Path, command: Command
) -> None:
    common = ("--data", photos, "--epochs", 1, "--batch-size", 12, "--method", "vanilla")
    norm = command("train", *common, *SMALL_NET, "--accumulate", 2, "--out", tmp_path / "a")
    assert "with --accumulate 2, batch norm normalizes 6 images at a time" in norm.err
    vit = ("--model", "vit_tiny_patch16_224", "--model-options", "{embed_dim: 12, depth: 1}")
    other = command(
        "train", *common, *vit, "--image-size", 16, "--accumulate", 2, "--out", tmp_path / "b"
    )
    assert "batch norm" not in other.err
