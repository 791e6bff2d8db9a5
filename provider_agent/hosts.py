"""The hosts that joined through this provider: their names, and the keys their certificates may have."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import structlog
from cryptography import x509

from twinsite import files, keys
from twinsite.access import Caller, Metadata, NotCurrent, Rule
from twinsite.errors import Failed
from twinsite.identity import Identity

_log = structlog.get_logger()
_KEYS_KEPT: Final = 8  # issued and not used yet: replies that were lost


class HostsDamaged(Failed):
    public = "the record of this site's hosts, {error.path}, cannot be read"
    still_works = "nothing was started; hosts that replicate go on"
    next_step = "restore the file from a backup, or remove it and join the hosts again"

    def __init__(self, path: Path) -> None:
        self.path = path


@dataclass(frozen=True, slots=True)
class Host:
    id: str
    name: str
    keys: tuple[str, ...]  # SPKI hashes: the one in use, then those issued after it


class Hosts:
    """Durable when a method returns."""

    def __init__(self, path: Path) -> None:
        """Raises HostsDamaged."""
        self._path = path
        self._by_id: dict[str, Host] = {}
        try:
            for id_, told in json.loads(path.read_bytes()).items():
                self._by_id[id_] = Host(id_, str(told["name"]), tuple(map(str, told["keys"])))
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise HostsDamaged(path) from None

    def all(self) -> tuple[Host, ...]:
        return tuple(self._by_id.values())

    def get(self, host_id: str) -> Host | None:
        return self._by_id.get(host_id)

    def named(self, name: str) -> Host | None:
        return next((host for host in self._by_id.values() if host.name == name), None)

    def issued(self, host_id: str, name: str, key: str) -> None:
        """A certificate for `key` was issued to the host. Its former key stays good until the new one is used."""
        known = self._by_id.get(host_id)
        used, waiting = (known.keys[:1], known.keys[1:]) if known is not None else ((), ())
        if key not in used + waiting:
            self._put(Host(host_id, name, used + (*waiting, key)[-_KEYS_KEPT:]))

    def used(self, host_id: str, key: str) -> bool:
        """Whether the host may show `key`. From now on it may not show those before it."""
        host = self._by_id.get(host_id)
        if host is None or key not in host.keys:
            return False
        if key != host.keys[0]:
            self._put(replace(host, keys=host.keys[host.keys.index(key) :]))
        return True

    def _put(self, host: Host) -> None:
        fresh = {**self._by_id, host.id: host}
        told = {one.id: {"name": one.name, "keys": one.keys} for one in fresh.values()}
        files.replace(self._path, json.dumps(told, indent=1).encode())
        self._by_id = fresh


class HostJudge:
    """Admits the hosts in the record, each with its newest key."""

    def __init__(self, hosts: Hosts, vault: str) -> None:
        self._hosts, self._vault = hosts, vault

    async def admit(
        self, identity: Identity, certificate: x509.Certificate, rule: Rule, metadata: Metadata, method: str
    ) -> Caller:
        del rule, metadata, method
        if identity.vault != self._vault or identity.kind != "host":
            raise NotCurrent(identity)
        if not self._hosts.used(identity.id, keys.spki_sha256(certificate)):
            raise NotCurrent(identity)
        host = self._hosts.get(identity.id)
        return Caller(identity, "host", host.name if host else "", "")
