"""Transfer to a data set, a table for each."""

from collections.abc import Sequence

from adautomix.evaluation.transfer import GRID, HELD_OUT, Transferred, TransferResult
from adautomix.reporting.figures import MISSING, percent, significant
from adautomix.reporting.section import Found, Section, Table
from adautomix.runs.records import number_at

NOTE = (
    "Top-1 (%) on the test images of a data set. Linear probe and k-NN look at the pooled features "
    "and leave the network as it is: a logistic regression on standardized features, its C chosen "
    f"from {GRID[0]:g} to {GRID[-1]:g} on {HELD_OUT:.0%} of the training images, and a vote of the "
    "nearest by cosine. Fine-tuning trains all of it on from its backbone; the average is that of "
    "the weights along the way."
)
COLUMNS = (
    *("run", "network", "linear probe (%)", "C of the probe", "k-NN (%)"),
    *("fine-tuned (%)", "average of the fine-tuned (%)"),
)


def section(found: Sequence[tuple[Found, TransferResult]]) -> Section:
    """A table for each data set with a row for each network."""
    names = dict.fromkeys(result.data for _, result in found)
    return Section("transfer", "Transfer", NOTE, [table(name, found) for name in names])


def table(data: str, found: Sequence[tuple[Found, TransferResult]]) -> Table:
    """What the networks gave on one data set."""
    here = [(one, result) for one, result in found if result.data == data]
    rows = [
        (one.label, name, *cells(network))
        for one, result in here
        for name, network in result.networks.items()
    ]
    counts = dict.fromkeys((result.train_images, result.test_images) for _, result in here)
    text = "; ".join(f"{train:,} training and {test:,} test images" for train, test in counts)
    return Table(f"Transfer to {data}", COLUMNS, rows, f"Probe and k-NN: {text}.")


def cells(network: Transferred) -> list[str]:
    """The figures of one network, written out."""
    probe = network.probe
    return [
        percent(None if probe is None else probe.top1),
        MISSING if probe is None else significant(probe.c),
        percent(network.knn),
        *(percent(number_at(network.finetuned, (kind, "top1"))) for kind in ("student", "teacher")),
    ]
