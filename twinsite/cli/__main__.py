"""`python -m twinsite.cli`."""

from twinsite.cli.main import run

run()
