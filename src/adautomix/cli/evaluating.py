"""Commands about trained networks: evaluate and export."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from adautomix.cli.base import Command
from adautomix.cli.options import (
    FILE,
    device_option,
    json_option,
    names_in,
    network_option,
    run_argument,
    which_option,
)
from adautomix.cli.output import print_json, print_line, print_listing
from adautomix.cli.settings import SettingsCommand
from adautomix.errors import UsageError

if TYPE_CHECKING:
    from adautomix.config.settings import Setting


DATA = "Data (default for a run: its own data)"
"""Title of the settings of the data in the help of evaluate."""


class EvaluateCommand(SettingsCommand):
    """Takes the settings of suites in place of those of methods; the help shows the data's."""

    selector = ("--suites",)

    def settings(self, selected: Sequence[str] | None) -> "list[Setting]":
        """The settings of a run and of the selected suites; None stands for all suites."""
        from adautomix.config.settings import model_settings, run_settings

        settings = [
            replace(setting, group=DATA) if setting.group == "Data" else setting
            for setting in run_settings()
        ]
        if selected is None or selected:  # The suites import PyTorch.
            from adautomix.evaluation.evaluate import select_suites
            from adautomix.evaluation.registry import SUITES

            for name in select_suites(["all"] if selected is None else selected):
                settings += model_settings(name, SUITES[name].Settings, f"Suite {name}")
        return settings

    def shows(self, setting: "Setting") -> bool:
        """Whether a setting is about the data or a suite; others seldom matter here."""
        return setting.group == DATA or setting.group.startswith("Suite ")


@click.command(cls=EvaluateCommand)
@click.argument("targets", nargs=-1, metavar="TARGET...")
@click.option(
    "--suites",
    default="accuracy",
    show_default=True,
    help="Suites, comma-separated, or all; `adautomix suites` lists them.",
)
@click.option("--weights", type=FILE, help="Safetensors file of weights for a timm model.")
@click.option("--pretrained", is_flag=True, help="Use timm's pretrained weights.")
@click.option(
    "--images", type=click.IntRange(min=1), help="Maximum number of test images; none: all."
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    help="Images per forward pass.",
)
@click.option(
    "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Random seed."
)
@which_option
@click.option("--out", "folder", type=FILE, help="Folder for the results; none: the run's own.")
@device_option
@json_option
def evaluate(
    targets: tuple[str, ...],
    suites: str,
    weights: Path | None,
    pretrained: bool,
    images: int | None,
    batch_size: int,
    seed: int,
    which: str,
    folder: Path | None,
    device: str,
    as_json: bool,
    flags: dict[str, Any],
) -> None:
    """Evaluate trained networks: calibration, corruption, attack, occlusion and more.

    TARGET is a run folder (student and teacher are evaluated), a folder of `adautomix export`, or
    the name of a timm model, which needs --data. If stopped, the same command continues.
    The settings of suites are listed by `adautomix evaluate --suites NAME,… --help`.
    """
    from adautomix.config import unflatten
    from adautomix.evaluation.evaluate import evaluate as run_suites
    from adautomix.evaluation.load_target import EvalOptions, load_target
    from adautomix.evaluation.registry import SUITES
    from adautomix.reporting.evaluations import evaluation_tables, evaluation_verdicts
    from adautomix.reporting.page import update_page
    from adautomix.training.progress import suite_progress

    if not targets:
        raise UsageError(
            "name what to evaluate: a run folder, an exported folder, or a timm model with "
            "--pretrained or --weights FILE"
        )
    values = unflatten(flags)
    suite_settings = {name: values.pop(name) for name in SUITES if name in values}
    options = EvalOptions(
        values, weights, pretrained, which, images, batch_size, seed, folder, device
    )
    records = {}
    for name in targets:
        target = load_target(name, options)
        if not as_json:
            images = len(target.data.test)
            print_line(f"{name}: {images:,} test images of {target.data.name}")
            for note in target.data.notes:
                print_line(f"note: {note}")
        with suite_progress(name, quiet=as_json) as progress:
            records[name] = run_suites(target, names_in(suites), suite_settings, progress)
        update_page(target)
    if as_json:
        print_json({name: record.model_dump(mode="json") for name, record in records.items()})
        return
    for line in evaluation_verdicts(records):
        print_line(line)
    for table in evaluation_tables(records):
        print_line(table.title, bold=True)
        print_listing(table.rows, table.columns, as_json=False)


@click.command(cls=Command)
@run_argument
@click.option("--out", "folder", type=FILE, required=True, help="Folder to write; it must be new.")
@click.option(
    "--format",
    type=click.Choice(["timm", "onnx", "torch", "hub"]),
    default="timm",
    show_default=True,
    help="timm: safetensors and a script; onnx or torch: also model.onnx or a torch.export "
    "program; hub: a folder for the Hugging Face Hub.",
)
@network_option
@which_option
def export(
    run: Path,
    folder: Path,
    format: Literal["timm", "onnx", "torch", "hub"],
    network: str,
    which: str,
) -> None:
    """Write a network for use without this package: timm, ONNX, torch.export, Hugging Face Hub.

    The files are read back, and the export is refused unless they reproduce the logits.
    """
    from adautomix.runs.api import export as export_network

    export_network(run, folder, network=network, checkpoint=which, format=format)
    if format == "hub":
        print_line(f'Wrote {folder}: timm.create_model("local-dir:{folder}", pretrained=True)')
    else:
        print_line(f"Wrote {folder}: try `python {folder}/load_model.py IMAGE`")
