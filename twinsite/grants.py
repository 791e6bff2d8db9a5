"""A grant: the coordinator's word that one host may replicate one VM to another, checked without the coordinator."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from twinsite import documents
from twinsite.api.types.v1.types_pb2 import SignedDocument
from twinsite.errors import Denied

KIND: Final = "twinsite-grant/1"
SKEW: Final = 300


class GrantRefused(Denied):
    public = "the grant is refused: {error.why}"
    still_works = "nothing was written"
    next_step = "look at `twinsite vm show`: the coordinator sends both hosts the grant that counts"

    def __init__(self, why: str) -> None:
        self.why = why


@dataclass(frozen=True, slots=True)
class Grant:
    """Sizes in bytes, `not_after` in seconds since 1970. Offsets and sizes of a peer are checked against it."""

    grant_id: str
    vault: str
    vm_id: str
    vm_name: str
    disks: tuple[tuple[str, int], ...]  # (disk id, size)
    source_host: str
    target_host: str
    mode: str  # "https"
    term: int
    not_after: int


def sign(grant: Grant, signer: documents.Signer) -> SignedDocument:
    return documents.sign(KIND, asdict(grant), signer)


def verify(document: SignedDocument, keys: Mapping[str, bytes], now: float) -> Grant:
    """Raises GrantRefused. Whose hosts, which VM and which term it must be is for the caller to compare."""
    try:
        body = documents.verify(KIND, document, keys)
    except documents.SignatureRefused as error:
        raise GrantRefused(error.why) from None
    try:
        grant = _parse(body)
    except (KeyError, TypeError, ValueError):
        raise GrantRefused("a field is missing or has a wrong type") from None
    if now > grant.not_after + SKEW:
        raise GrantRefused(f"it was good until {grant.not_after} (seconds since 1970), now is {int(now)}")
    return grant


def _parse(body: Mapping[str, Any]) -> Grant:
    return Grant(
        **{name: _a(str, body[name]) for name in _TEXTS},
        disks=tuple((_a(str, disk), _a(int, size)) for disk, size in body["disks"]),
        term=_a(int, body["term"]),
        not_after=_a(int, body["not_after"]),
    )


_TEXTS: Final = ("grant_id", "vault", "vm_id", "vm_name", "source_host", "target_host", "mode")


def _a(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value
