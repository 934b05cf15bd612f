"""The `adautomix` command: parse, call, print.

Everything heavy is imported inside the commands, so that help and shell completion answer at once.
"""

from adautomix.cli.app import main

__all__ = ["main"]
