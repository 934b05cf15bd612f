"""What Python users call to use a finished run: load it, export it."""

from pathlib import Path

from adautomix.data.preparation import recorded_preparation
from adautomix.runs.export import export_model
from adautomix.runs.export_formats import ExportFormat
from adautomix.runs.folder import RunFolder
from adautomix.runs.schema import NetworkName
from adautomix.runs.trained import TrainedRun, check_network, load_trained


def load(run: Path | str, *, checkpoint: str = "last", device: str = "auto") -> TrainedRun:
    """Load a trained run.

    Args:
        run: the run folder.
        checkpoint: "last", the newest checkpoint; "previous", the one before it; "best", the one
            with the best evaluation; or a kept one by name, such as "epoch-0005".
        device: where to put the networks: "auto", "cpu", "cuda" …

    Returns:
        The run: `predict(images or paths)`, `classes`, `student`, `teacher`, `config`.

    Raises:
        UsageError: there is no run, nothing was saved yet, or there is no such checkpoint.
        RunError: the checkpoint is damaged.

    Example:
        run = adautomix.load("runs/pets")
        probabilities = run.predict(["cat.jpg", "dog.jpg"])  # [2, K]
    """
    return load_trained(run, checkpoint=checkpoint, device=device)


def export(
    run: Path | str,
    out: Path | str,
    *,
    network: str = "teacher",
    checkpoint: str = "last",
    format: ExportFormat = "timm",
) -> Path:
    """Write a trained network in a format that loads without this package.

    Args:
        run: the run folder.
        out: a new or empty folder.
        network: "teacher" (moving average) or "student".
        checkpoint: see `load`.
        format: "timm" (safetensors and a script); "onnx" or "torch", which add `model.onnx` or a
            program of `torch.export`; "hub", a folder for the Hugging Face Hub.

    Returns:
        The folder, which holds weights, configuration, class names and a loading script.

    Raises:
        UsageError: `out` is not empty, the run or network does not exist, or the exported files do
            not reproduce the network's logits.
    """
    trained = load_trained(run, checkpoint=checkpoint, device="cpu")
    which = check_network(network)
    source = {
        "run": Path(run).name,
        "network": which,
        "method": trained.config.method,
        "step": trained.step,
    }
    return export_model(
        trained.networks[which],
        Path(out),
        format=format,
        classes=trained.classes,
        mean=trained.data_info["mean"],
        std=trained.data_info["std"],
        source=source,
        head=trained.method.eval_head,
        multi_label=trained.multi_label,
        preparation=recorded_preparation(trained.data_info),
        max_pixels=trained.config.max_pixels,
        temperature=trained.temperature(which) or 1.0,
        figures=_figures(trained, which),
    )


def _figures(trained: TrainedRun, network: NetworkName) -> dict[str, float]:
    """The run's last results of a network at the exported step, for the model card."""
    rows = [row for row in RunFolder(trained.folder).rows() if row.step == trained.step]
    scores = getattr(rows[-1], network, None) if rows else None
    if scores is None:
        return {}
    return {f"test {name}": value for name, value in scores.present().items()}
