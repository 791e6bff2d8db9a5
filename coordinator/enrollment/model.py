"""Registration keys: values, states, and what can be wrong with one."""

from dataclasses import dataclass
from typing import Final

from twinsite.errors import Conflict, Exhausted, InvalidInput, NotFound, Precondition, Unauthenticated
from twinsite.registration_key import LONGEST_LIFE
from twinsite.units import duration

DEFAULT_USES: Final = 2  # one file registers the servers of both sites
MOST_USES: Final = 32
FAILURES: Final = 20  # wrong secrets that lock a key

_NEW: Final = "create a new one with `twinsite key create`"


class KeyRefused(Unauthenticated):
    """Also of a key that was used as often as it may: a thief learns nothing, the audit log tells the owner."""

    public = "the registration key is not accepted"
    cause = "it is unknown here, its secret is wrong, or it has been used as often as it may"
    still_works = "nothing was registered"
    next_step = f"check with `twinsite key list`, then {_NEW}"


class KeyExpired(Unauthenticated):
    public = "the registration key has expired"
    still_works = "nothing was registered; servers it registered before stay"
    next_step = _NEW


class KeyRevoked(Unauthenticated):
    public = "the registration key was revoked"
    still_works = "nothing was registered; servers it registered before stay"
    next_step = _NEW


class KeyLocked(Exhausted):
    public = "the registration key is locked after too many wrong secrets"
    still_works = "nothing was registered"
    next_step = f"find out who tried (`twinsite audit list`), then {_NEW}"


class RegisteredAs(Conflict):
    public = "this machine was registered as {error.name} with this key before"
    still_works = "that registration is good"
    next_step = "register again with --name {error.name}, or with a new key pair for another name"

    def __init__(self, name: str) -> None:
        self.name = name


class BadLifeOfKey(InvalidInput):
    public = "a registration key lives between 1 second and 5 days, not {error.asked}"
    still_works = "no key was created"
    next_step = "leave the time out to get 5 days"

    def __init__(self, seconds: int) -> None:
        self.asked = duration(seconds)


class BadUses(InvalidInput):
    public = "a registration key is good for 1 to 32 servers, not {error.asked}"
    still_works = "no key was created"
    next_step = "leave the number out to get 2"

    def __init__(self, asked: int) -> None:
        self.asked = asked


class UnknownKey(NotFound):
    public = "there is no registration key {error.key_id}"
    next_step = "see `twinsite key list`"

    def __init__(self, key_id: str) -> None:
        self.key_id = ascii(key_id[:40])


class NoVault(Precondition):
    public = "the vault has no name yet"
    still_works = "no key was created"
    next_step = "name it with `twinsite vault create NAME`"


@dataclass(frozen=True, slots=True)
class Key:
    """A registration key as it is stored: of its secret the hash alone. Instants are seconds since 1970."""

    id: str
    secret_sha256: str
    issued: float
    expires: float
    uses: int
    created_by: str
    revoked: float  # 0: no
    failures: int  # wrong secrets in all

    def state(self, used: int, now: float) -> str:
        """One of active, expired, revoked, used_up, locked."""
        if self.revoked:
            return "revoked"
        if self.failures >= FAILURES:
            return "locked"
        if now >= self.expires:
            return "expired"
        return "used_up" if used >= self.uses else "active"


def checked_life(seconds: int) -> int:
    """0 means the longest. Raises BadLifeOfKey."""
    if not 0 <= seconds <= LONGEST_LIFE:
        raise BadLifeOfKey(seconds)
    return seconds or LONGEST_LIFE


def checked_uses(uses: int) -> int:
    """0 means the default. Raises BadUses."""
    if not 0 <= uses <= MOST_USES:
        raise BadUses(uses)
    return uses or DEFAULT_USES
