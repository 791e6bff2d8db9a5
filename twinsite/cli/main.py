"""The entry point: the command tree, and the one place where errors become text and exit codes."""

import sys
from importlib import import_module
from typing import Any, Final

import click

from twinsite import __version__
from twinsite.cli import confirm, output
from twinsite.cli.command import DETACHED, Detached, global_options
from twinsite.errors import Internal, TwinsiteError

# noun → module; imported when used, so that --help stays fast
_NOUNS: Final = {
    "audit": "The audit log.",
    "cloud": "Clouds of the registered servers.",
    "completion": "Completion of commands and names in the shell.",
    "help": "Exit codes, environment, confirmations.",
    "host": "Hypervisor hosts.",
    "job": "What was asked for, and how far it is.",
    "key": "Registration keys for VMM servers.",
    "login": "Log in to a coordinator.",
    "logout": "End this login.",
    "pair": "Pairs of a primary and a target cloud.",
    "point": "Recovery points.",
    "seed": "Initial copies on media.",
    "server": "Registered VMM servers.",
    "status": "Everything on one screen.",
    "vault": "The vault.",
    "vm": "VMs: protect, test, fail over.",
    "whoami": "The login in use.",
}
_MODULE: Final = {"login": "account", "logout": "account", "whoami": "account", "help": "topics"}


class Tree(click.Group):
    """Nouns, loaded when called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return sorted(_NOUNS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        if cmd_name not in _NOUNS:
            return None
        module = import_module(f"twinsite.cli.{_MODULE.get(cmd_name, cmd_name)}")
        found: click.Command = getattr(module, "topics" if cmd_name == "help" else cmd_name)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Nouns"):
            formatter.write_dl(sorted(_NOUNS.items()))


@click.group(cls=Tree, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, "-V", "--version", prog_name="twinsite")
@global_options
def twinsite(**_: Any) -> None:
    """Disaster recovery for VMs between two private-cloud sites.

    \b
    twinsite status
    twinsite vm protect web01 --pair gold-a:gold-b
    twinsite vm failover web01 --confirm web01 --reason "site A lost power"
    """


def run() -> None:
    """`twinsite`."""
    sys.exit(main(sys.argv[1:]))


def main(arguments: list[str]) -> int:
    """Run one command; its exit status (`twinsite help exit-codes`)."""
    as_json = "json" in arguments or "-ojson" in arguments or "--output=json" in arguments
    try:
        result = twinsite.main(args=arguments, prog_name="twinsite", standalone_mode=False)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as wrong:
        wrong.show()
        return wrong.exit_code
    except confirm.NotConfirmed as refused:
        output.error(refused, confirm.EXIT, as_json=as_json)
        return confirm.EXIT
    except TwinsiteError as problem:
        from twinsite import status

        code = status.exit_code(problem)
        output.error(problem, code, as_json=as_json)
        return code
    except Detached as detached:
        job = detached.job_id
        line = f"Detached. Job {job} continues. twinsite job watch {job} · to stop it: twinsite job cancel {job}"
        click.echo(line, err=True)
        return DETACHED
    except (KeyboardInterrupt, click.Abort):
        click.echo("Stopped.", err=True)
        return DETACHED
    except BrokenPipeError:
        output.silence_broken_pipe()
        return 0
    except Exception:  # the top of the process: a person gets a sentence, -X dev the traceback
        if sys.flags.dev_mode:
            raise
        output.error(Internal(), 1, as_json=as_json)
        click.echo(f"  Detail:  {sys.exc_info()[1]!r}", err=True)
        return 1
    return result if isinstance(result, int) else 0
