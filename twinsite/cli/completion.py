"""`twinsite completion`."""

from typing import Final

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

_SHELLS: Final = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}


@click.command()
@click.argument("shell", type=click.Choice(list(_SHELLS)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """A script that has the shell complete commands, flags and names of VMs, pairs, hosts and jobs.

    \b
    twinsite completion bash > ~/.local/share/bash-completion/completions/twinsite
    """
    click.echo(_SHELLS[shell](ctx.find_root().command, {}, "twinsite", "_TWINSITE_COMPLETE").source())
