"""The command that prints shell completion: completion."""

import click
from click.shell_completion import get_completion_class

from adautomix.cli.base import Command


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion script of a shell.

    \b
    bash:  eval "$(adautomix completion bash)"        in ~/.bashrc
    zsh:   eval "$(adautomix completion zsh)"         in ~/.zshrc
    fish:  adautomix completion fish | source         in ~/.config/fish/config.fish
    """
    script = get_completion_class(shell)
    assert script is not None, shell
    root = context.find_root().command
    click.echo(script(root, {}, "adautomix", "_ADAUTOMIX_COMPLETE").source())
