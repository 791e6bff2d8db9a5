"""Members, users, sessions: values, states and what can be wrong with them."""

from dataclasses import dataclass
from typing import Final

from twinsite.access import ROLES
from twinsite.errors import Conflict, Exhausted, InvalidInput, NotFound, Precondition, Unauthenticated

ACTIVE: Final = "active"
LOCKED: Final = "locked"  # something stole or copied its key: only removing and registering again helps
UNREGISTERED: Final = "unregistered"

TOKEN_LIFE: Final = 3600.0  # seconds, of a server's token; users' live as long as their session
GRACE: Final = 600.0  # seconds an old certificate is good for after the new one was first used
SHORTEST_PASSWORD: Final = 12  # characters


class TokenRefused(Unauthenticated):
    public = "the access token is missing or not good for this certificate"
    cause = "it has expired, was withdrawn, or belongs to another certificate"
    still_works = "nothing was changed"
    next_step = "an agent gets a new one by itself; at the CLI: twinsite login"


class GenerationMismatch(Precondition):
    public = "{error.server} is locked: its certificate was renewed by somebody else before"
    cause = "it asked with generation {error.presented}, the coordinator is at {error.current}"
    still_works = "replication goes on with the grants that hosts hold"
    next_step = "find out who has a copy of its key, then `twinsite server remove` and register it again"

    def __init__(self, server: str, presented: int, current: int) -> None:
        self.server, self.presented, self.current = server, presented, current


class NameTaken(Conflict):
    public = "there is a {error.what} named {error.name} already"
    cause = "{error.why}"
    still_works = "nothing was changed, no key was used up"
    next_step = "choose another name, or remove the old one first"

    def __init__(self, what: str, name: str, why: str = "") -> None:
        self.what, self.name, self.why = what, name, why


class UnknownServer(NotFound):
    public = "there is no server {error.name}"
    next_step = "see `twinsite server list`"

    def __init__(self, name: str) -> None:
        self.name = ascii(name[:80])


class UnknownHost(NotFound):
    public = "there is no host {error.name} of this server"
    next_step = "let the host join again with a new join file"

    def __init__(self, name: str) -> None:
        self.name = ascii(name[:80])


class WrongPassword(Unauthenticated):
    public = "user or password is wrong"
    still_works = "nothing was changed"
    next_step = "try again; if it is lost, let an account be made with `twinsite-coordinator admin create`"


class TooManyTries(Exhausted):
    public = "too many tries from here"
    still_works = "nothing was changed"
    next_step = "wait {error.seconds} seconds and try again"

    def __init__(self, seconds: int = 10) -> None:
        self.seconds = seconds


class PasswordTooShort(InvalidInput):
    public = "the password has fewer than {error.least} characters"
    still_works = "nothing was changed"
    next_step = "choose a longer one; several words are good"

    def __init__(self, least: int = SHORTEST_PASSWORD) -> None:
        self.least = least


class UnknownRole(InvalidInput):
    public = "there is no role {error.role}"
    still_works = "nothing was changed"
    next_step = "choose one of {error.known}"

    def __init__(self, role: str) -> None:
        self.role, self.known = ascii(role[:40]), ", ".join(ROLES)


@dataclass(frozen=True, slots=True)
class Server:
    """A registered VMM server. Instants are seconds since 1970, 0 for never."""

    id: str
    name: str
    state: str
    serial: str
    spki: str
    chain: bytes
    generation: int
    registered: float
    expires: float  # of its certificate
    agent_version: str  # that registered; the link knows the one that runs
    key_id: str  # the registration key it came with
    pending_serial: str  # of a renewed certificate that was not used yet; empty: none
    pending_spki: str
    pending_chain: bytes
    pending_expires: float
    previous_serial: str  # good until previous_until
    previous_spki: str
    previous_until: float


@dataclass(frozen=True, slots=True)
class Host:
    """A hypervisor host. It belongs to the server that vouched for it."""

    id: str
    name: str
    server_id: str
    state: str
    serial: str
    spki: str
    chain: bytes
    registered: float
    expires: float
    previous_serial: str
    previous_spki: str


@dataclass(frozen=True, slots=True)
class User:
    id: str
    name: str
    role: str
    password: str  # Argon2id in PHC form
    created: float


@dataclass(frozen=True, slots=True)
class Session:
    """A user's certificate and the time it is good for."""

    serial: str
    user_id: str
    spki: str
    created: float
    expires: float
    ended: float  # 0: it has not been ended
