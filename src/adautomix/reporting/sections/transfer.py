"""Report section of the transfer suite: one table per data set."""

from collections.abc import Sequence

from adautomix.evaluation.transfer import C_GRID, HELD_OUT, NetworkTransfer, TransferResult
from adautomix.reporting.formatting import MISSING, percent, six_digits
from adautomix.reporting.section import Evaluated, Section, Table
from adautomix.runs.records import number_at

NOTE = (
    "Top-1 accuracy on the test images of a data set. Linear probe and k-NN classify the pooled "
    "features and do not change the network. The probe is a logistic regression on standardized "
    f"features; its inverse regularization C is chosen between {C_GRID[0]:g} and {C_GRID[-1]:g} on "
    f"{HELD_OUT:.0%} of the training images. k-NN is a vote of the nearest training images by "
    "cosine similarity. Fine-tuning trains the whole network further from its backbone; the last "
    "column is the moving average of the fine-tuned weights."
)
COLUMNS = (
    *("run", "network", "linear probe (%)", "C of the probe", "k-NN (%)"),
    *("fine-tuned (%)", "moving average of fine-tuned (%)"),
)

Results = Sequence[tuple[Evaluated, TransferResult]]


def section(results: Results) -> Section:
    """Return the section with a table per data set and a row per network."""
    names = dict.fromkeys(result.data for _, result in results)
    tables = [transfer_table(name, results) for name in names]
    return Section("transfer", "Transfer", NOTE, tables)


def transfer_table(data: str, results: Results) -> Table:
    """Return the results of all networks on one data set."""
    matching = [(one, result) for one, result in results if result.data == data]
    rows = [
        (one.label, name, *cells(network))
        for one, result in matching
        for name, network in result.networks.items()
    ]
    counts = dict.fromkeys((result.train_images, result.test_images) for _, result in matching)
    text = "; ".join(f"{train:,} training and {test:,} test images" for train, test in counts)
    return Table(f"Transfer to {data}", COLUMNS, rows, f"Probe and k-NN: {text}.")


def cells(network: NetworkTransfer) -> list[str]:
    """Return the formatted results of one network."""
    probe = network.probe
    return [
        percent(None if probe is None else probe.top1),
        MISSING if probe is None else six_digits(probe.c),
        percent(network.knn),
        *(percent(number_at(network.finetuned, (kind, "top1"))) for kind in ("student", "teacher")),
    ]
