"""Keys of certificates this host had before: a seed takes days on its way, a certificate is renewed meanwhile.

Kept only while a replica of this host waits for a seed.
"""

from pathlib import Path
from typing import Final

import structlog
from cryptography.hazmat.primitives import serialization

from hyperv_host_agent.replicas import Replicas
from hyperv_host_agent.seeds.manifest import Manifest, SeedKeyGone
from twinsite import async_files, files, keys
from twinsite.credentials import Credentials, CredentialsDamaged
from twinsite.errors import TwinsiteError

_log = structlog.get_logger()
_SUFFIX: Final = ".pem"


class OldKeys:
    def __init__(self, folder: Path, replicas: Replicas) -> None:
        self._folder = folder
        self._replicas = replicas

    async def replaced(self, old: Credentials) -> None:
        """To be called before the certificate is replaced; durable when it returns."""
        if await self.needed():
            files.private_directory(self._folder)
            await async_files.replace(self._folder / (keys.thumbprint(old.certificate) + _SUFFIX), _encode(old))
        else:
            self.forget()

    async def needed(self) -> bool:
        """Whether a replica waits for a seed, or cannot be asked."""
        for vm_id in await self._replicas.ids():
            try:
                held = await self._replicas.get(vm_id)
                if await held.run(held.replica.awaited):
                    return True
            except TwinsiteError as error:
                _log.warning("replica_not_asked_for_its_seed", vm_id=vm_id, reason=str(error))
                return True
        return False

    def forget(self) -> None:
        """All of them."""
        if self._folder.is_dir():
            for path in self._folder.glob("*" + _SUFFIX):
                path.unlink()

    def open(self, manifest: Manifest, present: Credentials) -> bytes:
        """The key of a seed's parts. Raises SeedKeyGone."""
        if manifest.key_for == keys.thumbprint(present.certificate):
            return manifest.open_key(present)
        for path in self._folder.glob("*" + _SUFFIX) if self._folder.is_dir() else ():
            if path.stem == manifest.key_for:
                return manifest.open_key(_decode(path.read_bytes(), present))
        raise SeedKeyGone


def _encode(old: Credentials) -> bytes:
    return old.key_pem + old.certificate.public_bytes(serialization.Encoding.PEM)


def _decode(data: bytes, present: Credentials) -> Credentials:
    try:
        key = serialization.load_pem_private_key(data, None)
        if not isinstance(key, keys.PrivateKey):
            raise SeedKeyGone
        return Credentials.of(key, data[data.index(b"-----BEGIN CERTIFICATE") :], present.roots_pem, {})
    except (ValueError, CredentialsDamaged):
        raise SeedKeyGone from None
