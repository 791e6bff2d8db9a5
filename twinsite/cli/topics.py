"""`twinsite help TOPIC`."""

from typing import Final

import click

_TOPICS: Final = {
    "exit-codes": """0 done · 1 it ran and failed · 2 the command line or a value is wrong · 3 finished with warnings
4 not logged in, expired, or not permitted · 5 not found, or the name fits several · 6 the state forbids it
7 confirmation or reason missing, or login not fresh · 8 --wait-timeout reached, the job still runs
9 the coordinator does not answer · 130 Ctrl-C (a job goes on)
Treat a code that is not listed as a failure.""",
    "environment": """TWINSITE_HOME      folder of the login (default ~/.config/twinsite)
TWINSITE_NO_INPUT  1: never ask""",
    "confirmations": """A  nothing to confirm: reading, test failover
B  y/N, or -y: pause, cancel a job, revoke a key, protect, change a pair
C  --confirm NAME: unprotect, lock a point, remove a pair or a server
D  --confirm NAME and --reason TEXT, logged in at most 5 minutes ago: failover, deleting a replica""",
}


@click.command()
@click.argument("topic", type=click.Choice(sorted(_TOPICS)), required=False)
def topics(topic: str | None) -> None:
    """Texts on exit codes, environment and confirmations.

    \b
    twinsite help exit-codes
    """
    click.echo(_TOPICS[topic] if topic else "topics: " + ", ".join(sorted(_TOPICS)))
