"""The registration key file: what a server needs to register once, and to know whom it registers with."""

import hashlib
import hmac
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from twinsite import files
from twinsite.documents import canonical
from twinsite.errors import InvalidInput, Precondition
from twinsite.identity import InvalidIdentity, coordinator, vault_of_root
from twinsite.keys import spki_sha256
from twinsite.units import KiB

VERSION: Final = 1
LONGEST_LIFE: Final = 5 * 86400  # seconds
_LARGEST: Final = 64 * KiB  # of a file; a real one has 1 KiB


class KeyFileUnusable(InvalidInput):
    public = "{error.path} is not a registration key file: {error.why}"
    still_works = "nothing was sent, the key is not used up"
    next_step = "take the file as `twinsite key create` wrote it, or create a new one"

    def __init__(self, path: str, why: str) -> None:
        self.path, self.why = path, why


class KeyFileEdited(KeyFileUnusable):
    public = "{error.path} was changed after it was created: {error.why}"


class KeyFileExpired(Precondition):
    public = "the registration key in {error.path} has expired"
    cause = "it was good until {error.expires} (seconds since 1970), this machine's clock says {error.now}"
    still_works = "nothing was sent"
    next_step = "create a new one with `twinsite key create`, or correct this machine's clock"

    def __init__(self, path: str, expires: int, now: float) -> None:
        self.path, self.expires, self.now = path, expires, int(now)


class ForeignVault(Precondition):
    public = "{error.path} is for the vault {error.found}, not {error.wanted}"
    still_works = "nothing was sent, the key is not used up"
    next_step = "take the key file of vault {error.wanted}, or leave --vault-name out"

    def __init__(self, path: str, found: str, wanted: str) -> None:
        self.path, self.found, self.wanted = path, found, wanted


@dataclass(frozen=True, slots=True)
class RegistrationKey:
    """Everything in the file but the format's version and the checksum. Its repr shows no secret."""

    vault: str
    vault_name: str
    endpoint: str  # host:port of the coordinator's enrolment listener
    server_name: str  # DNS name its certificate must have
    ca: str  # the root, PEM: the first connection is verified too
    ca_spki_sha256: str
    key_id: str
    secret: str
    issued: int  # seconds since 1970
    expires: int
    uses: int
    kind: str = "server"

    def __repr__(self) -> str:
        return f"RegistrationKey({self.key_id!r}, vault={self.vault!r})"

    def to_json(self) -> bytes:
        body: dict[str, Any] = {"v": VERSION, **asdict(self)}
        return json.dumps({**body, "sum": _sum(body)}, indent=1).encode() + b"\n"

    @classmethod
    def read(cls, path: Path) -> "RegistrationKey":
        """Raises KeyFileUnusable, KeyFileEdited."""
        try:
            with path.open("rb") as file:
                return cls.parse(file.read(_LARGEST + 1), str(path))
        except OSError as error:
            raise KeyFileUnusable(str(path), error.strerror or type(error).__name__) from None

    @classmethod
    def parse(cls, text: bytes, path: str = "the file") -> "RegistrationKey":
        """Whole and unaltered, whoever's it is. The sum finds slips, the pin a root that was swapped; the coordinator
        finds the rest. Raises KeyFileUnusable, KeyFileEdited.
        """
        try:
            body = json.loads(text) if len(text) <= _LARGEST else None
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            raise KeyFileUnusable(path, "it is not a JSON object")
        if body.get("v") != VERSION:
            raise KeyFileUnusable(path, f"its version {body.get('v')!a:.20} is not known here")
        total = body.pop("sum", None)
        try:
            if not isinstance(total, str) or not hmac.compare_digest(total.encode(), _sum(body).encode()):
                raise KeyFileEdited(path, "its checksum is wrong")
            del body["v"]
            kinds = {field.name: field.type for field in fields(cls)}
            if set(body) != set(kinds) or any(type(body[name]) is not kinds[name] for name in kinds):
                raise KeyFileEdited(path, "a field is missing, unknown or of another type")
        except ValueError:  # a float, which has no canonical form
            raise KeyFileEdited(path, "a field is of another type") from None
        found = cls(**body)
        found.check_root(path)
        return found

    def check_root(self, path: str) -> None:
        try:
            root = x509.load_pem_x509_certificate(self.ca.encode())
            vault = vault_of_root(root)
        except (ValueError, InvalidIdentity):
            raise KeyFileEdited(path, "its root certificate cannot be read") from None
        if spki_sha256(root) != self.ca_spki_sha256:
            raise KeyFileEdited(path, "its root certificate is not the one it names")
        if vault != self.vault or self.server_name != coordinator(vault).dns:
            raise KeyFileEdited(path, "its root certificate is of another vault")

    def check(self, path: str, now: float, vault_name: str = "") -> None:
        """Whether to send it. Raises KeyFileExpired; ForeignVault when a vault's name is expected and it is another."""
        if now > self.expires:
            raise KeyFileExpired(path, self.expires, now)
        if vault_name and vault_name != self.vault_name:
            raise ForeignVault(path, self.vault_name, vault_name)

    def write(self, path: Path) -> None:
        """0600. Raises FileExistsError: a key file is not overwritten by another."""
        files.create(path, self.to_json())


def _sum(body: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(body)).hexdigest()
