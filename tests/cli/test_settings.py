"""Settings as options: help, flags, switches, tables, and shell completion."""

import subprocess
import sys
from typing import Any

import click
import pytest
from click.shell_completion import BashComplete
from conftest import Command

from adautomix.cli.app import cli
from adautomix.cli.base import CommandGroup
from adautomix.cli.settings import SettingsCommand
from adautomix.config.settings import Setting, method_settings, run_settings
from adautomix.methods import METHODS

HEAVY = {"torch", "timm", "torchvision", "numpy", "PIL", "matplotlib", "sklearn"}
GROUPS = (
    "Method",
    "Data",
    "Augmentation",
    "Model",
    "Optimization",
    "Runtime",
    "Evaluation",
    "Logging and checkpoints",
    "Mixing schedule",
    "Teacher",
    "RandAugment",
    "AutoAugment",
    "Color jitter",
)


def parse_flags(*args: str) -> dict[str, str]:
    """The settings that these args give, as dotted names and text."""

    @click.command(cls=SettingsCommand)
    @click.option("--json", "as_json", is_flag=True)
    def tool(as_json: bool, flags: dict[str, str]) -> dict[str, str]:
        return flags

    flags: dict[str, str] = tool.main(list(args), standalone_mode=False)
    return flags


def complete(*args: str) -> list[str]:
    """The args that the shell offers for the last of these."""
    completion = BashComplete(cli, {}, "adautomix", "_ADAUTOMIX_COMPLETE")
    return [item.value for item in completion.get_completions(list(args[:-1]), args[-1])]


def assert_is_listed(setting: Setting, text: str) -> None:
    """Name, type, meaning, default and range are in a help text."""
    flag = f"--{setting.name.replace('_', '-')}"
    start, default = f"{flag} {setting.type}", setting.default
    if setting.is_switch:
        start = f"{flag} / --no-{flag[2:]}"
        default = {"True": "on", "False": "off"}.get(default, default)
    if setting.is_table:
        start = f"{flag}.NAME VALUE"
    bounds = f"; {setting.bounds}" if setting.bounds else ""
    assert setting.description
    line = f" {start} {setting.description} [default: {default}{bounds}] "
    # Lines are wrapped at spaces and at hyphens.
    assert "".join(line.split()) in "".join(text.split())


# --- help ------------------------------------------------------------------------------------


def test_the_help_of_train_lists_every_setting_in_titled_groups(command: Command) -> None:
    text = command("train", "--help").out
    titles = [line[:-1] for line in text.splitlines() if line[:1].strip() and line.endswith(":")]
    assert titles == ["Options", *GROUPS]
    for setting in run_settings():
        if setting.name != "recipe":  # an option of the command itself, listed with these
            assert_is_listed(setting, text)
    assert text.count("--recipe TEXT") == 1
    assert "--cutmix.alpha" not in text
    assert "`adautomix train --method NAME --help`" in " ".join(text.split())


@pytest.mark.parametrize("name", METHODS)
def test_the_help_of_a_method_lists_its_settings(name: str, command: Command) -> None:
    text = command("train", "--method", name, "-h").out
    for setting in method_settings(name):
        assert_is_listed(setting, text)


def test_the_help_of_a_suite_lists_its_settings(command: Command) -> None:
    text = command("evaluate", "--suites", "attack,maps", "--help").out
    for line in ("Suite attack:", "Suite maps:", "  --attack.steps INT,… ", "  --data TEXT"):
        assert f"\n{line}" in text
    assert "\nData (default for a run: its own data):\n" in text
    assert "--occlusion." not in text
    assert text.count("TARGET...") == 1, "the argument is no option"
    assert "--occlusion." in command("evaluate", "--suites", "all", "--help").out
    assert "--lr" not in text


def test_help_of_an_unknown_method(command: Command) -> None:
    outcome = command("train", "--method", "cutmicks", "--help")
    assert outcome.status == 2
    assert outcome.err.startswith("adautomix: unknown method 'cutmicks': did you mean 'cutmix'?")


@pytest.mark.parametrize(
    "args", [["train", "--help"], ["compare", "-h"], ["evaluate", "-h"], ["preview", "-h"]]
)
def test_help_does_not_import_pytorch(args: list[str]) -> None:
    program = (
        "import sys\n"
        "from adautomix.cli import main\n"
        f"main({args})\n"
        "print(*{name.partition('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--data" in done.stdout
    assert HEAVY & set(done.stderr.split()) == set()


def test_every_command_is_in_a_section_of_the_help(command: Command) -> None:
    assert isinstance(cli, CommandGroup)
    listed = [entry for commands in cli.sections.values() for entry in commands]
    assert {entry.name for entry in listed} == cli.commands.keys()
    text = command("--help").out
    for title, commands in cli.sections.items():
        assert f"\n{title}:\n" in text
        for entry in commands:
            assert f"\n  {entry.name} " in text
            assert entry.help
    assert command("-h").out == text


def test_version(command: Command) -> None:
    from adautomix import __version__

    assert command("--version").out == f"adautomix, version {__version__}\n"


# --- flags -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "flags"),
    [
        ("", {}),
        ("--json", {}),
        ("--lr 0.1", {"lr": "0.1"}),
        ("--lr=0.1 --epochs -1", {"lr": "0.1", "epochs": "-1"}),
        ("--batch-size 8 --eval_batch_size 9", {"batch_size": "8", "eval_batch_size": "9"}),
        ("--lr 1 --lr 2", {"lr": "2"}),
        ("--clip-grad none", {"clip_grad": "none"}),
        (
            "--adautomix.beta 0.3 --cutmix.per-sample",
            dict.fromkeys(["adautomix.beta"], "0.3") | {"cutmix.per_sample": "true"},
        ),
        ("--flip", {"flip": "true"}),
        ("--flip --json", {"flip": "true"}),
        ("--flip false --json", {"flip": "false"}),
        ("--flip=false", {"flip": "false"}),
        ("--no-flip", {"flip": "false"}),
        ("--flip --no-flip", {"flip": "false"}),
        ("--no-flip --flip", {"flip": "true"}),
        ("--no-adautomix.adversary", {"adautomix.adversary": "false"}),
        ("--teacher.buffers copy", {"teacher.buffers": "copy"}),
    ],
)
def test_flags_become_settings(args: str, flags: dict[str, str]) -> None:
    assert parse_flags(*args.split()) == flags


def test_tables_are_written_at_once_or_entry_by_entry() -> None:
    from adautomix.config import unflatten

    flags = parse_flags("--model-options", "{depth: 2}", "--sumix.options", "{alpha: 0.4}")
    assert unflatten(flags) == {"model_options": {"depth": 2}, "sumix": {"options": {"alpha": 0.4}}}
    entries = "--model-options.patch_size 4 --model-options.norm=layernorm --sumix.options.alpha 1"
    nested: dict[str, Any] = unflatten(parse_flags(*entries.split()))
    assert nested == {
        "model_options": {"patch_size": 4, "norm": "layernorm"},
        "sumix": {"options": {"alpha": "1"}},
    }


# --- shell completion ------------------------------------------------------------------------


def test_the_shell_completes_commands_settings_and_choices() -> None:
    assert complete("tr") == ["train"]
    assert complete("train", "--prec") == ["--precision"]
    assert complete("train", "--precision", "") == ["fp32", "bf16", "fp16"]
    assert complete("train", "--precision", "b") == ["bf16"]
    assert complete("train", "--no-nest") == ["--no-nesterov"]
    assert complete("train", "--method", "cutmix", "--cut") == [
        "--cutmix.alpha",
        "--cutmix.per-sample",
    ]
    assert complete("compare", "--sweep", "adautomix/n") == ["adautomix/n"]
    assert "cifar100-r18/cutmix@200" in complete("train", "--recipe", "cifar100-r18/")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_completion_script_of_a_shell(shell: str, command: Command) -> None:
    outcome = command("completion", shell)
    assert outcome.status == 0
    assert f"_ADAUTOMIX_COMPLETE={shell}_complete" in outcome.out
