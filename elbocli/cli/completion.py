"""`elbo completion`."""

from __future__ import annotations

import click

from elbocli.cli.grouped_help import COMPLETE, Command
from elbocli.cli.options import common

SHELLS = ("bash", "zsh", "fish")


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(SHELLS))
@common
def completion(shell: str) -> None:
    """Print what makes SHELL complete command lines of elbo.

    SHELL is bash, zsh or fish. Completed are commands and options, names of weightings, schedules, predictions, presets
    and samplers, and runs.

    \b
    bash, in ~/.bashrc:               eval "$(elbo completion bash)"
    zsh, in ~/.zshrc after compinit:  eval "$(elbo completion zsh)"
    fish:                             elbo completion fish > ~/.config/fish/completions/elbo.fish
    """
    from click.shell_completion import get_completion_class

    root, kind = click.get_current_context().find_root(), get_completion_class(shell)
    assert kind is not None
    click.echo(kind(root.command, {}, "elbo", COMPLETE).source())
