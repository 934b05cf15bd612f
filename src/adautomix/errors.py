"""Errors that the user can fix, and the one-line messages they carry.

    AdAutoMixError          base class; catch it to catch every error of this package
    ├── UsageError          a setting, argument, file or folder is wrong; exit status 2
    └── RunError            a run started and could not continue; exit status 1
        ├── StoppedError    a signal asked it to stop
        └── DiskFullError   there was no space left to write it

The command line prints the message of an `AdAutoMixError` as one line, without a traceback, and
exits with its `exit_status`. Any other exception is a bug and keeps its traceback.
"""

import difflib
import shlex
from collections.abc import Iterable


class AdAutoMixError(Exception):
    """Base class of the errors that the user can fix; the message says what is wrong and how."""

    exit_status = 1


class UsageError(AdAutoMixError):
    """A setting, argument, file or folder is not valid; nothing was started."""

    exit_status = 2


class RunError(AdAutoMixError):
    """A run started and could not continue; everything saved so far is intact."""

    exit_status = 1


class StoppedError(RunError):
    """A signal asked a run to stop; its checkpoint was saved, and it can be continued."""


class DiskFullError(RunError):
    """The disk is full; the same command continues once there is space again."""


class AdAutoMixWarning(UserWarning):
    """Something was wrong and could be dealt with; the message says what and how, in one line."""


def command_text(*words: object) -> str:
    """A command of this package as it has to be typed, for messages.

    Example:
        >>> command_text("resume", "my run")
        "`adautomix resume 'my run'`"
    """
    return f"`{shlex.join(['adautomix', *map(str, words)])}`"


def nearest_name(name: str, known: Iterable[str]) -> str | None:
    """The known name most similar to `name`, ignoring case; None if none is similar."""
    by_lowercase = {candidate.lower(): candidate for candidate in known}
    matches = difflib.get_close_matches(name.lower(), by_lowercase, n=1)
    return by_lowercase[matches[0]] if matches else None


def unknown_name(
    kind: str, name: str, known: Iterable[str], listing: str, *, quote: bool = True
) -> str:
    """Error message for an unknown name, with the nearest known name as a suggestion.

    Args:
        kind: what the name should have been, for example "method".
        name: the unknown name.
        known: all valid names.
        listing: the advice given if no known name is similar, for example
            "`adautomix methods` lists them all".
        quote: put quotation marks around names. Values are quoted, names of settings are not.

    Example:
        >>> unknown_name("method", "cutmx", ["mixup", "cutmix"], "use mixup or cutmix")
        "unknown method 'cutmx': did you mean 'cutmix'?"
    """
    nearest = nearest_name(name, known)
    shown = repr if quote else str
    hint = listing if nearest is None else f"did you mean {shown(nearest)}?"
    return f"unknown {kind} {shown(name)}: {hint}"


def one_line(error: BaseException, most: int = 200) -> str:
    """Return at most so many characters of an error's text, in one line, to quote in a message."""
    return " ".join(str(error).split())[:most]
