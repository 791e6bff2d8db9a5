"""The vault as a value, and what can be wrong with asking for it."""

from dataclasses import dataclass
from typing import Final

from twinsite.errors import Conflict, InvalidInput, Precondition

CREATING: Final = "creating"
ACTIVE: Final = "active"
LONGEST_REGION: Final = 63


@dataclass(frozen=True, slots=True)
class Vault:
    id: str
    name: str
    region: str  # where it says it is; for people
    state: str
    created: float  # seconds since 1970 UTC


class VaultExists(Conflict):
    public = "this coordinator has a vault already: {error.name}"
    cause = "one coordinator keeps one vault"
    still_works = "nothing was changed"
    next_step = "use it (`twinsite vault show`), or run another coordinator with its own state folder"

    def __init__(self, name: str) -> None:
        self.name = name


class NoVault(Precondition):
    public = "this coordinator has no vault yet"
    still_works = "nothing was changed"
    next_step = "twinsite vault create NAME"


class RegionTooLong(InvalidInput):
    public = "a region has at most {error.most} printable characters"
    still_works = "nothing was changed"
    next_step = "use a shorter one"

    def __init__(self) -> None:
        self.most = LONGEST_REGION
