"""The folder of a login, and files that the user names."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinsite.errors import InvalidInput, Unauthenticated


class NotLoggedIn(Unauthenticated):
    public = "you are not logged in"
    still_works = "nothing was changed"
    next_step = "twinsite login --coordinator HOST:PORT --ca-file roots.pem --user NAME"


class NoFile(InvalidInput):
    public = "{error.path} cannot be read: {error.problem}"
    still_works = "nothing was changed"
    next_step = "name a file that exists and is yours"

    def __init__(self, path: Path, problem: str) -> None:
        self.path, self.problem = path, problem


@dataclass(frozen=True, slots=True)
class Home:
    """The folder that holds the login (0700): identity/ with key and certificate, token, context.json."""

    path: Path

    @property
    def identity(self) -> Path:
        return self.path / "identity"

    def context(self) -> dict[str, Any]:
        """Addresses, user and instants of the last login. Raises NotLoggedIn."""
        try:
            return dict(json.loads((self.path / "context.json").read_text()))
        except FileNotFoundError:
            raise NotLoggedIn from None

    def token(self) -> str:
        try:
            return (self.path / "token").read_text()
        except FileNotFoundError:
            raise NotLoggedIn from None

    def write(self, name: str, text: str) -> None:
        """Whole or not at all, readable by its owner only."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = self.path / f".{name}.{os.getpid()}"
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        partial.replace(self.path / name)

    def forget(self) -> None:
        """After a logout: key, certificate and token are gone; the coordinator's address is kept for the next login."""
        (self.path / "token").unlink(missing_ok=True)
        for file in self.identity.glob("*"):
            file.unlink()


def read_file(path: Path) -> bytes:
    """A file the user named. Raises NoFile."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise NoFile(path, error.strerror or str(error)) from None
