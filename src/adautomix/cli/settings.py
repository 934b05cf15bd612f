"""Settings as options: a thin layer between click and the pydantic models of `adautomix.config`.

Click parses the command line and prints the help; names, types, defaults and descriptions come
from the models. Values stay text, so that pydantic alone converts and checks them, whether they
come from a flag or from a file.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem

from adautomix.cli.base import Command
from adautomix.cli.options import names_in
from adautomix.errors import UsageError

if TYPE_CHECKING:
    from adautomix.config.settings import Setting

# Keys in click's context: the options of the settings, and the values that were given.
_OPTIONS, _VALUES = f"{__name__}.options", f"{__name__}.values"


class SettingOption(click.Option):
    """One setting as an option. A switch accepts `--flip` as well as `--flip false`.

    Args:
        setting: The setting.
        negative: Make the option `--no-flip` of the switch `--flip` instead.
        key: Name of one entry of a table: `--model-options.patch_size` has `patch_size`.
    """

    def __init__(self, setting: "Setting", *, negative: bool = False, key: str = "") -> None:
        self.setting, self.negative = setting, negative
        self.dotted = f"{setting.name}.{key}" if key else setting.name
        form: dict[str, Any] = {}
        if negative:
            form = {"is_flag": True, "flag_value": "false", "default": None}
        elif setting.is_switch:
            form = {"is_flag": False, "flag_value": "true"}
        flag = ("no-" if negative else "") + self.dotted.replace("_", "-")
        super().__init__(
            [f"--{flag}", "setting_" + re.sub(r"\W", "_", flag)],  # click wants an identifier
            type=str,
            shell_complete=_complete,
            expose_value=False,
            callback=_store,
            **form,
        )

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """The flag and its type; then meaning, default and range. A switch has one line."""
        if self.negative or self.dotted != self.setting.name:
            return None
        flag, setting = self.opts[0], self.setting
        left, default = f"{flag} {setting.type}", setting.default
        if setting.is_table:
            left = f"{flag}.NAME VALUE"
        if setting.is_switch:
            left = f"{flag} / --no-{flag[2:]}"
            default = {"True": "on", "False": "off"}.get(default, default)
        facts = [f"default: {default}", *([setting.bounds] if setting.bounds else [])]
        return left, f"{setting.description}  [{'; '.join(facts)}]"


def _complete(
    context: click.Context, option: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    """Offer shell completion the choices of a setting, or files where it can be a path."""
    assert isinstance(option, SettingOption)
    setting = option.setting
    if setting.type == "PATH" or setting.name == "data":
        return [CompletionItem(incomplete, type="file")]
    return [CompletionItem(word) for word in setting.choices if word.startswith(incomplete)]


def _store(context: click.Context, option: click.Parameter, value: str | None) -> None:
    """Keep the value of a setting that was given; click calls this in the order typed."""
    if value is not None and isinstance(option, SettingOption):
        context.meta[_VALUES][option.dotted] = value


class SettingsCommand(Command):
    """A command that takes every setting of a run as an option, in titled groups.

    Its function gets those that were given as `flags`: dotted name -> text. The settings of all
    methods are accepted; the help and shell completion show only those of the methods that
    `selector` names, because loading a method imports PyTorch.
    """

    selector: tuple[str, ...] = ("--method", "--methods")

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Read by parse_args below, which has the better message.
        self.allow_extra_args = True

    def settings(self, selected: Sequence[str] | None) -> "list[Setting]":
        """The settings of a run and of the selected methods; None stands for all methods."""
        from adautomix.config.settings import method_settings, run_settings

        return [
            *run_settings(),
            *(one for name in _methods(selected) for one in method_settings(name)),
        ]

    def shows(self, setting: "Setting") -> bool:
        """Whether the help lists a setting."""
        return True

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse the command line.

        Raises:
            UsageError: An unknown setting (the message suggests the nearest), or a stray argument.
        """
        wants_help = ctx.resilient_parsing or not {*ctx.help_option_names}.isdisjoint(args)
        settings = self.settings(self._selected(args) if wants_help else None)
        ctx.meta[_VALUES] = {}
        ctx.meta[_OPTIONS] = list(self._options(settings, args))
        try:
            rest = super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            raise UsageError(self._unknown(ctx, error.option_name)) from None
        if rest and not ctx.resilient_parsing:
            raise UsageError(f"unexpected argument {rest[0]!r}: settings are written --name value")
        ctx.params["flags"] = ctx.meta[_VALUES]
        return rest

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """The command's own options, and after them those of the settings."""
        return [*super().get_params(ctx), *ctx.meta.get(_OPTIONS, [])]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options, then the settings group by group."""
        own = [param for param in super().get_params(ctx) if isinstance(param, click.Option)]
        shown = [option for option in ctx.meta[_OPTIONS] if self.shows(option.setting)]
        groups = groupby(shown, lambda option: option.setting.group)
        for title, options in [("Options", own), *((title, [*group]) for title, group in groups)]:
            records = [option.get_help_record(ctx) for option in options]
            with formatter.section(title):
                formatter.write_dl([record for record in records if record])

    def _selected(self, args: Sequence[str]) -> list[str]:
        """The names that the selecting option has, anywhere on the command line."""
        option = click.Option([*self.selector, "names"], default="")
        selection = click.Command("selection", params=[option], add_help_option=False)
        context = selection.make_context(
            "selection",
            list(args),
            resilient_parsing=True,
            ignore_unknown_options=True,
            allow_extra_args=True,
        )
        return names_in(context.params["names"] or "")

    def _options(
        self, settings: "Sequence[Setting]", args: Sequence[str]
    ) -> Iterator[SettingOption]:
        """The options of settings; an option of the command itself takes precedence."""
        own = {name for option in self.params for name in option.opts}
        for setting in settings:
            flag = f"--{setting.name.replace('_', '-')}"
            if flag in own:
                continue
            yield SettingOption(setting)
            if setting.is_switch:
                yield SettingOption(setting, negative=True)
            if setting.is_table:
                for key in _keys(flag, args):
                    yield SettingOption(setting, key=key)

    def _unknown(self, ctx: click.Context, flag: str) -> str:
        """One line about an option that does not exist, with the nearest that does."""
        from adautomix.cli.neighbors import advice
        from adautomix.methods import METHODS
        from adautomix.validation import unknown_setting

        known = [_name_of(name) for option in self.get_params(ctx) for name in option.opts]
        name = _name_of(flag)
        told = advice(name, METHODS, known)
        line = f"unknown setting {name}: {told}" if told else unknown_setting(name, known)
        return f"{line} (`{ctx.command_path} --help`)"


def _name_of(flag: str) -> str:
    """The name of a setting as in files: `batch_size` for `--batch-size`."""
    name = flag.lstrip("-").replace("-", "_")
    return name.replace("no_", "no-", 1) if name.startswith("no_") else name


def _methods(selected: Sequence[str] | None) -> list[str]:
    """The selected methods; all of them for None and "all"."""
    if selected is not None and "all" not in selected:
        return list(selected)
    from adautomix.methods import METHODS

    return list(METHODS)


def _keys(flag: str, args: Sequence[str]) -> set[str]:
    """The entries of a table that are given one by one: `--model-options.patch_size 4`."""
    normalized = (arg.partition("=")[0].replace("_", "-") for arg in args)
    return {arg[len(flag) + 1 :] for arg in normalized if arg.startswith(f"{flag}.")}
