"""The vault as a value, and what can be wrong with asking for it."""

from dataclasses import dataclass
from typing import Final

from twinsite.errors import Conflict, InvalidInput, Precondition

UNNAMED: Final = "unnamed"  # the coordinator has an authority, and nobody has created the vault yet
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


class AuthorityOfAnotherVault(Precondition):
    public = "the database belongs to vault {error.database}, the authority in {error.directory} to {error.authority}"
    still_works = "nothing was started or changed; registered machines go on replicating"
    next_step = "use the state folder and the database that belong together; restore {error.directory} from its backup"

    def __init__(self, database: str, directory: str, authority: str) -> None:
        self.database, self.directory, self.authority = database, directory, authority or "none yet"


class RegionTooLong(InvalidInput):
    public = "a region has at most {error.most} printable characters"
    still_works = "nothing was changed"
    next_step = "use a shorter one"

    def __init__(self) -> None:
        self.most = LONGEST_REGION
