"""How the programs end: typed errors as text and exit status, alike everywhere (`twinsite help exit-codes`)."""

import click

from twinsite.cli import output
from twinsite.errors import Internal, TwinsiteError


def run(command: click.Command, name: str, arguments: list[str]) -> int:
    """Run one command of a program; its exit status. A defect keeps its traceback."""
    try:
        result = command.main(args=arguments, prog_name=name, standalone_mode=False)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as wrong:
        wrong.show()
        return wrong.exit_code
    except (TwinsiteError, BaseExceptionGroup) as error:
        from twinsite import status  # grpc takes longer to import than --help may take

        problem = _typed(error)
        code = status.exit_code(problem)
        output.error(problem, code, as_json=False)
        return code
    except (KeyboardInterrupt, click.Abort):
        return 130
    except BrokenPipeError:
        output.silence_broken_pipe()
        return 0
    return result if isinstance(result, int) else 0


def _typed(error: BaseException) -> TwinsiteError:
    """The first typed error in a group of a task group; a group without one is a defect and keeps its traceback."""
    while isinstance(error, BaseExceptionGroup):
        typed = error.subgroup(TwinsiteError)
        if typed is None:
            raise error
        error = typed.exceptions[0]
    return error if isinstance(error, TwinsiteError) else Internal()
