"""Keys with which hosts join: one host, one key pair, five days. Only the secret's hash is kept."""

import base64
import hashlib
import hmac
import json
import re
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from twinsite import files, names
from twinsite.clock import Clock
from twinsite.credentials import Credentials
from twinsite.errors import Conflict, Unauthenticated

_log = structlog.get_logger()
LIFE_SECONDS: Final = 5 * 86400
_KEY_ID: Final = re.compile(r"[0-9a-f]{16}")


class HostKeyRefused(Unauthenticated):
    public = "this host key is not known here"
    cause = "it was never made, was used by another key pair, or belongs to another provider"
    still_works = "nothing was changed"
    next_step = "make a new one at the provider: twinsite-provider host-key create --host NAME -O FILE"


class HostKeyExpired(Unauthenticated):
    public = "the host key of {error.host_name} has expired"
    still_works = "nothing was changed"
    next_step = "make a new one at the provider: twinsite-provider host-key create --host {error.host_name} -O FILE"

    def __init__(self, host_name: str) -> None:
        self.host_name = host_name


class FileExists(Conflict):
    public = "{error.path} exists already"
    still_works = "it was left as it is, and no key was made"
    next_step = "name another file"

    def __init__(self, path: Path) -> None:
        self.path = path


@dataclass(frozen=True, slots=True)
class HostKey:
    id: str
    host_name: str
    secret_sha256: str
    expires: float
    spki: str = ""  # the key pair that used it
    answer: bytes = b""  # what that one was answered


class HostKeys:
    """One file per key, so that the command that makes one needs no running provider."""

    def __init__(self, folder: Path, clock: Clock) -> None:
        self._folder, self._clock = folder, clock

    def create(self, host_name: str) -> tuple[HostKey, str]:
        """The key and its secret, which is not seen again. Raises InvalidName."""
        names.check(host_name, "host")
        secret = secrets.token_urlsafe(32)
        key = HostKey(secrets.token_hex(8), host_name, _hash(secret), self._clock.now() + LIFE_SECONDS)
        files.private_directory(self._folder)
        files.create(self._path(key.id), _encode(key))
        return key, secret

    def redeem(self, key_id: str, secret: str, spki: str) -> HostKey:
        """The key, bound to the key pair from now on. Raises HostKeyRefused, HostKeyExpired."""
        key = self._read(key_id)
        # The same work for a key that is not there.
        if not hmac.compare_digest(_hash(secret), key.secret_sha256 if key else "0" * 64) or key is None:
            raise HostKeyRefused
        if key.expires <= self._clock.now():
            raise HostKeyExpired(key.host_name)
        if key.spki and key.spki != spki:
            _log.error("host_key_reused", incident=True, host=key.host_name, key_id=key.id)
            raise HostKeyRefused
        if not key.spki:
            key = HostKey(key.id, key.host_name, key.secret_sha256, key.expires, spki)
            files.replace(self._path(key.id), _encode(key))
        return key

    def answered(self, key: HostKey, answer: bytes) -> None:
        """The same key pair gets the same answer again."""
        done = HostKey(key.id, key.host_name, key.secret_sha256, key.expires, key.spki, answer)
        files.replace(self._path(key.id), _encode(done))

    def sweep(self) -> None:
        """Delete the keys that have expired."""
        for path in self._folder.glob("*.json"):
            key = self._read(path.stem)
            if key is not None and key.expires <= self._clock.now():
                path.unlink(missing_ok=True)

    def _path(self, key_id: str) -> Path:
        return self._folder / f"{key_id}.json"

    def _read(self, key_id: str) -> HostKey | None:
        if not _KEY_ID.fullmatch(key_id):
            return None
        try:
            told = json.loads(self._path(key_id).read_bytes())
            return HostKey(
                key_id,
                told["host_name"],
                told["secret_sha256"],
                float(told["expires"]),
                told["spki"],
                base64.b64decode(told["answer"]),
            )
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError):
            _log.warning("host_key_unreadable", key_id=key_id)
            return None


def write_join_file(path: Path, key: HostKey, secret: str, *, address: str, provider: Credentials) -> None:
    """What a host needs to join, for its eyes only (mode 0600). Raises FileExists."""
    content = {
        "v": 1,
        "kind": "host",
        "vault_name": provider.meta["vault_name"],
        "host_name": key.host_name,
        "address": address,
        "server": provider.identity.uri,
        "roots_pem": provider.roots_pem.decode(),
        "key_id": key.id,
        "secret": secret,
        "expires": int(key.expires),
    }
    try:
        files.create(path, (json.dumps(content, indent=1) + "\n").encode())
    except FileExistsError:
        raise FileExists(path) from None


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _encode(key: HostKey) -> bytes:
    told = {
        "host_name": key.host_name,
        "secret_sha256": key.secret_sha256,
        "expires": key.expires,
        "spki": key.spki,
        "answer": base64.b64encode(key.answer).decode(),
    }
    return json.dumps(told).encode()
