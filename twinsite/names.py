"""The names people give to servers, hosts, clouds and vaults. Checked once, where they come in."""

import re
from typing import Final

from twinsite.errors import InvalidInput

LONGEST: Final = 63  # one DNS label, and short enough for a table
# Begins with a letter or a digit, so that no name is "..", an option of a command, or a hidden file.
_NAME: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._ -]{0,61}[A-Za-z0-9._-])?")


class InvalidName(InvalidInput):
    public = "{error.shown} is not a name for a {error.what}"
    cause = "{error.why}"
    still_works = "nothing was changed"
    next_step = (
        "use 1 to 63 letters, digits, dots, underscores, hyphens and spaces inside, beginning with a letter or digit"
    )

    def __init__(self, what: str, name: str) -> None:
        self.what = what
        self.shown = ascii(name if len(name) <= 40 else name[:40] + "…")
        self.why = f"it has {len(name)} characters" if not 1 <= len(name) <= LONGEST else "a character is not allowed"


def check(name: str, what: str) -> str:
    """The name as it is. `what` names the thing for the error's text. Raises InvalidName."""
    if not _NAME.fullmatch(name):
        raise InvalidName(what, name)
    return name
