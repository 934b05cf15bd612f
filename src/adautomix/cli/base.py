"""What all commands share: the session, the --debug option, and the group with its sections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

from adautomix.errors import RunError

CONTEXT_SETTINGS: Mapping[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    # Options may be written with underscores, as settings are in files.
    "token_normalize_func": lambda name: name.replace("_", "-"),
}


CONTINUING = ("compare", "evaluate", "ledger", "table", "tune")
"""Commands that go on where they were stopped, if they are repeated."""


@dataclass
class Session:
    """State of one invocation of the command line.

    Attributes:
        debug: Whether an error shows its traceback.
    """

    debug: bool = False


def _set_debug(context: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        context.ensure_object(Session).debug = True


class Command(click.Command):
    """A command with -h and --debug."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options["context_settings"] = {
            **CONTEXT_SETTINGS,
            **(options.get("context_settings") or {}),
        }
        super().__init__(*args, **options)
        self.params.append(
            click.Option(
                ["--debug"],
                is_flag=True,
                expose_value=False,
                is_eager=True,
                callback=_set_debug,
                help="Show the traceback of an error.",
            )
        )

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the arguments; errors get the context, so that they can name the command."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise


class CommandGroup(Command, click.Group):
    """A group whose help lists its commands in titled sections.

    Args:
        sections: Title -> commands, in the order of the help.
    """

    def __init__(
        self, *args: Any, sections: Mapping[str, Sequence[click.Command]], **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self.sections = sections
        for commands in sections.values():
            for command in commands:
                self.add_command(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands, section by section."""
        width = max(len(name) for name in self.commands)
        for title, commands in self.sections.items():
            with formatter.section(title):
                formatter.write_dl(
                    [
                        (f"{command.name:{width}}", command.get_short_help_str(90))
                        for command in commands
                    ]
                )

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; Ctrl-C becomes an error of one line.

        Raises:
            RunError: Stopped by Ctrl-C.
        """
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise RunError(self._stopped(ctx)) from None

    @staticmethod
    def _stopped(ctx: click.Context) -> str:
        """One line that says how to continue after Ctrl-C."""
        name = ctx.invoked_subcommand
        if name in CONTINUING:
            return f"stopped: the same command continues where `adautomix {name}` stopped"
        if name in ("train", "resume"):
            return "stopped before the first checkpoint: repeat the command to start again"
        return "stopped, nothing is unfinished: repeat the command to start again"
