"""Complete records of a run, of which a test only names the fields that it is about."""

from typing import Any


def train_fields(step: int, **changes: Any) -> dict[str, Any]:
    """The fields of a "train" row."""
    row = {
        "schema_version": 2,
        "kind": "train",
        "step": step,
        "epoch": float(step),
        "loss": 1.0,
        "mixture_accuracy": 0.5,
        "parts": {},
        "seconds": float(step),
        "images_per_second": 100.0,
        "lr": 0.1,
        "teacher_momentum": 0.999,
    }
    return row | changes


def epoch_fields(step: int, epoch: int = 1, **changes: Any) -> dict[str, Any]:
    """The fields of an "epoch" row that was not evaluated."""
    row = train_fields(step, kind="epoch", epoch=epoch)
    del row["lr"], row["teacher_momentum"]
    return row | changes


def summary_fields(**changes: Any) -> dict[str, Any]:
    """The fields of a `summary.json`."""
    scores = {"top1": 0.5, "top5": 0.75, "nll": 1.5, "ece": 0.1}
    summary = {
        "schema_version": 2,
        "method": "adautomix",
        "data": "digits",
        "model": "resnet18",
        "width": 1.0,
        "seed": 0,
        "device": "x86_64 CPU, 1 threads",
        "processes": 1,
        "runtime": "eager",
        "precision": "fp32",
        "epochs": 2,
        "steps": 20,
        "seconds": 12.34,
        "command": "adautomix train",
        "versions": {"torch": "2.14.1"},
        "classes": ["cat", "dog"],
        "image_size": 32,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "train_images": 1437,
        "test_images": 360,
        "bad_files": [],
        "final": {"student": scores, "teacher": scores},
        "best": {"epoch": 1, "network": "teacher", "top1": 0.8, "split": "val"},
        "parameters": 177052,
        "peak_memory_mib": 512.4,
    }
    return summary | changes
