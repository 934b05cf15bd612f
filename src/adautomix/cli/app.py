"""The group of all commands, and how a command ends: its exit status and its error line."""

import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import click

from adautomix.cli.base import CommandGroup, Session
from adautomix.cli.checking import check_mix, doctor
from adautomix.cli.comparing import compare, report
from adautomix.cli.completing import completion
from adautomix.cli.evaluating import evaluate, export
from adautomix.cli.listing import datasets, methods, settings, suites, sweeps
from adautomix.cli.predicting import predict
from adautomix.cli.previewing import preview
from adautomix.cli.reproducing import ledger, recipes, table
from adautomix.cli.timing import bench, plan
from adautomix.cli.training import resume, train
from adautomix.cli.tuning import tune
from adautomix.errors import AdAutoMixError, AdAutoMixWarning
from adautomix.files import explain_full_disk
from adautomix.text import printable
from adautomix.version import __version__


@click.version_option(__version__)
@click.group(
    cls=CommandGroup,
    sections={
        "Train": [train, resume, compare, tune, plan],
        "Reproduce published tables": [table, ledger],
        "Use and inspect runs": [evaluate, predict, report, preview, export],
        "List what is available": [methods, settings, recipes, sweeps, datasets, suites],
        "Check and measure": [check_mix, doctor, bench],
        "Shell": [completion],
    },
    epilog="`adautomix COMMAND --help` lists the options of a command, and `adautomix train "
    "--help` every setting of a run.",
)
def cli() -> None:
    """Train image classifiers with mixing augmentation: AdAutoMix and its peers."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; an error is one line, and exit status 2 (wrong usage) or 1 (failed)."""
    args = list(sys.argv[1:] if arguments is None else arguments)
    session = Session()
    try:
        with one_line_warnings(), explain_full_disk(None, "repeat the command"):
            cli.main(args or ["--help"], prog_name="adautomix", standalone_mode=False, obj=session)
            sys.stdout.flush()
    except BrokenPipeError:
        stop_writing()
    except (click.Abort, KeyboardInterrupt):  # before or after the command itself
        fail("stopped: repeat the command", 1)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "adautomix"
        fail(f"{error.format_message()} (`{path} --help`)", 2)
    except AdAutoMixError as error:
        if session.debug:
            traceback.print_exc()
        tell_torchrun(error)
        fail(as_flag(str(error)), error.exit_status)
    except Exception as error:
        if session.debug:
            raise
        fail(f"{described(error)} (--debug shows where)", 1)


def described(error: Exception) -> str:
    """Return an error as text; one about a file names the file first."""
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return f"{type(error).__name__}: {error}"


def fail(text: str, status: int) -> NoReturn:
    """Print one line on stderr and exit with this status."""
    print_error_line(text)
    sys.exit(status)


SETTING = re.compile(r"([a-z][a-z0-9_]*(?:\.[a-z0-9_]+)*) (=|is) ")
"""How messages about a setting's value begin: `epochs = 'three': …`, `per_class is 0: …`."""


def as_flag(text: str) -> str:
    """Name the setting that a message begins with as it is typed: `--epochs 'three': …`."""
    begin = SETTING.match(text)
    if begin is None:
        return text
    from adautomix.config.loading import list_settings

    name, verb = begin.groups()
    if name not in {setting for setting, *_ in list_settings()}:
        return text
    flag = f"--{name.replace('_', '-')}"
    return f"{flag} {'' if verb == '=' else 'is '}{text[begin.end() :]}"


def tell_torchrun(error: BaseException) -> None:
    """Give torchrun, if it started this process, the message that it shows as the root cause."""
    if "TORCHELASTIC_ERROR_FILE" in os.environ:
        from torch.distributed.elastic.multiprocessing.errors import get_error_handler

        get_error_handler().record_exception(error.with_traceback(None))


def print_error_line(text: str) -> None:
    """Print one line on stderr."""
    print(f"adautomix: {printable(' '.join(text.split()), None)}", file=sys.stderr)


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """Print each warning of this package as one line on stderr; others as Python does."""
    show = warnings.showwarning

    def show_in_one_line(
        message: Warning | str, category: type[Warning], *details: Any, **options: Any
    ) -> None:
        if issubclass(category, AdAutoMixWarning):
            print_error_line(f"warning: {message}")
        else:
            show(message, category, *details, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("always", AdAutoMixWarning)
        warnings.showwarning = show_in_one_line
        yield


def stop_writing() -> NoReturn:
    """End the program after the reader of its output has gone, as `head` does."""
    # Python flushes stdout once more at its end; without this it would complain about the pipe.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(1)
