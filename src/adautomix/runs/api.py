"""What Python users call to use a finished run: load it, export it."""

from pathlib import Path

from adautomix.data.preparation import recorded_preparation
from adautomix.runs.export import export_model
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
    run: Path | str, out: Path | str, *, network: str = "teacher", checkpoint: str = "last"
) -> Path:
    """Write a trained network as safetensors that timm loads without this package.

    Args:
        run: the run folder.
        out: a new or empty folder.
        network: "teacher" (moving average) or "student".
        checkpoint: see `load`.

    Returns:
        The folder, which holds weights, configuration, class names and a loading script.

    Raises:
        UsageError: `out` is not empty, or the run or network does not exist.
    """
    trained = load_trained(run, checkpoint=checkpoint, device="cpu")
    source = {
        "run": Path(run).name,
        "network": check_network(network),
        "method": trained.config.method,
        "step": trained.step,
    }
    return export_model(
        trained.networks[network],
        Path(out),
        classes=trained.classes,
        mean=trained.data_info["mean"],
        std=trained.data_info["std"],
        source=source,
        head=trained.method.eval_head,
        multi_label=trained.multi_label,
        preparation=recorded_preparation(trained.data_info),
    )
