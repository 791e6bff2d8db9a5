"""A seed's manifest: what it is, for whom, of which parts; signed by the source host and written last.

JSON that a person can read: the body, the signature over its canonical bytes, and the source host's certificates. The
parts' key is in it, sealed to the target host's certificate.
"""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from hyperv_host_agent.replication.cycle import DiskGeometry
from hyperv_host_agent.replication.frames import MAX_DISKS
from hyperv_host_agent.seeds.parts import DIGEST_BYTES, HEADER_BYTES, ID_BYTES, KEY_BYTES, RECORD_BYTES
from hyperv_host_agent.store.rules import MAX_DISK_BYTES, check_id
from twinsite import documents, keys, signatures
from twinsite.credentials import Credentials
from twinsite.errors import Conflict, Failed, NotFound, Precondition, TwinsiteError, Unauthenticated
from twinsite.identity import Identity

FILE: Final = "manifest.json"
FORMAT: Final = 1
MOST_BYTES: Final = 32 << 20  # of the file; 64 TiB in parts of 1 GiB have about 6 MiB
_KIND: Final = "seed manifest"
_FOLDER: Final = re.compile(r"twinsite-seed-([A-Za-z0-9-]{1,64})-([0-9a-f]{32})")
_NANO: Final = 1_000_000_000


class SeedMissing(NotFound):
    public = "{error.path} holds no seed of VM {error.vm_id}"
    next_step = "copy the whole folder twinsite-seed-{error.vm_id}-… there, or name its path"

    def __init__(self, path: Path, vm_id: str) -> None:
        self.path, self.vm_id = path, vm_id


class SeedInterrupted(Precondition):
    public = "the seed in {error.folder} is not complete: its export was interrupted, or its manifest was not copied"
    still_works = "nothing was changed; the replica waits for its seed still"
    next_step = "run twinsite seed export again with the same path (it goes on where it was), or copy manifest.json"

    def __init__(self, folder: Path) -> None:
        self.folder = folder


class ManifestDamaged(Failed):
    public = "the seed's manifest in {error.folder} cannot be used: {error.problem}"
    still_works = "nothing was changed; the replica waits for its seed still"
    next_step = "copy manifest.json from the export again"

    def __init__(self, folder: Path, problem: str) -> None:
        self.folder, self.problem = folder, problem


class OtherVault(Precondition):
    public = "the seed is of vault {error.theirs}, this host belongs to {error.ours}"
    still_works = "nothing was changed"
    next_step = "export the VM again in this vault"

    def __init__(self, theirs: str, ours: str) -> None:
        self.theirs, self.ours = theirs, ours


class OtherTarget(Precondition):
    public = "the seed was exported for host {error.theirs}, this is {error.ours}"
    cause = "it is encrypted to that host: nobody else can read it"
    still_works = "nothing was changed"
    next_step = "import it there, or export the VM again now that its target is this host"

    def __init__(self, theirs: str, ours: str) -> None:
        self.theirs, self.ours = theirs, ours


class OtherSource(Precondition):
    public = "the seed was written by host {error.theirs}, the VM is replicated from {error.ours}"
    still_works = "nothing was changed"
    next_step = "export the VM at the host it runs on"

    def __init__(self, theirs: str, ours: str) -> None:
        self.theirs, self.ours = theirs, ours


class OtherMachine(Precondition):
    public = "the seed is of VM {error.theirs}, not of {error.ours}"
    still_works = "nothing was changed"
    next_step = "name the folder of this VM's seed"

    def __init__(self, theirs: str, ours: str) -> None:
        self.theirs, self.ours = theirs, ours


class OlderSeed(Conflict):
    public = "the seed was exported before the present replication of the VM began"
    cause = "changes made between the two are in no cycle, so it would not fit"
    still_works = "nothing was changed; the replica waits for its seed still"
    next_step = "twinsite seed export: a new one"


class SeedKeyGone(Unauthenticated):
    public = "the seed's key was sealed for a certificate of this host whose key it no longer has"
    cause = "the host joined again since the export, or its state folder was restored"
    still_works = "nothing was changed"
    next_step = "twinsite seed export: a new one"


@dataclass(frozen=True, slots=True)
class Part:
    size: int  # bytes of the file
    digest: bytes  # BLAKE3 of the file


@dataclass(frozen=True, slots=True)
class Manifest:
    vault: str
    vm_id: str
    vm_name: str
    seed: bytes
    source_host: str
    target_host: str
    started: float  # seconds since 1970, by the source's clock, exact to the nanosecond
    ended: float
    after_cycle: int  # the newest cycle whose instant may lie before the end of the export
    disks: tuple[DiskGeometry, ...]
    key_for: str  # thumbprint of the certificate that the key is sealed to
    sealed_key: bytes
    parts: tuple[Part, ...]

    def encode(self, credentials: Credentials) -> bytes:
        """Signed by the source host."""
        body = self._body()
        document = {
            "seed": body,
            "certificates": credentials.chain_pem.decode(),
            "signature": b64encode(signatures.sign(_KIND, documents.canonical(body), credentials.key)).decode(),
        }
        return json.dumps(document, indent=1).encode()

    def open_key(self, mine: Credentials) -> bytes:
        """The parts' key. Raises SeedKeyGone."""
        try:
            key = keys.unseal(self.sealed_key, mine.key, mine.certificate, self.vault, sealed_to(self))
        except keys.SealBroken:
            raise SeedKeyGone from None
        if len(key) != KEY_BYTES:
            raise SeedKeyGone
        return key

    def _body(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "vault": self.vault,
            "vm": self.vm_id,
            "vm_name": self.vm_name,
            "id": self.seed.hex(),
            "source_host": self.source_host,
            "target_host": self.target_host,
            "started_ns": round(self.started * _NANO),
            "ended_ns": round(self.ended * _NANO),
            "after_cycle": self.after_cycle,
            "disks": [{"id": disk.id, "name": disk.name, "bytes": disk.size} for disk in self.disks],
            "key_for": self.key_for,
            "key": b64encode(self.sealed_key).decode(),
            "parts": [[part.size, part.digest.hex()] for part in self.parts],
        }


def sealed_to(manifest: Manifest) -> str:
    """What the key's seal names beside the certificate: a key moved to another seed does not open."""
    return f"{manifest.target_host} seed {manifest.vm_id} {manifest.seed.hex()}"


def seal_key(key: bytes, certificate: x509.Certificate, manifest: Manifest) -> bytes:
    return keys.seal(key, certificate, manifest.vault, sealed_to(manifest))


def folder_name(vm_id: str, seed: bytes) -> str:
    return f"twinsite-seed-{vm_id}-{seed.hex()}"


def folders(path: Path, vm_id: str) -> dict[bytes, Path]:
    """The folders of seeds of a VM in or at a path, by the seed's id. Raises OSError."""
    found = {}
    for folder in (path, *path.iterdir()):
        match = _FOLDER.fullmatch(folder.name)
        if match and match[1] == vm_id and folder.is_dir():
            found[bytes.fromhex(match[2])] = folder
    return found


def vm_of(path: Path) -> str:
    """The VM whose seed a folder is by its name; empty: it is none."""
    match = _FOLDER.fullmatch(path.name)
    return match[1] if match else ""


def read(folder: Path, *, vault: str, roots_pem: bytes) -> Manifest:
    """Checked to be genuine. Raises SeedInterrupted, ManifestDamaged, OtherVault."""
    try:
        if (folder / FILE).exists() and not (folder / FILE).is_file():  # a pipe would never end
            raise ManifestDamaged(folder, "it is no file")
        with (folder / FILE).open("rb") as file:
            data = file.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise SeedInterrupted(folder) from None
    except OSError as error:
        raise ManifestDamaged(folder, error.strerror or "it cannot be read") from error
    try:
        body, chain, signature = _opened(data)
        theirs = body["vault"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ManifestDamaged(folder, "it is not what an export writes") from error
    if isinstance(theirs, str) and theirs != vault:
        raise OtherVault(theirs[:40], vault)
    try:
        manifest = _manifest(body)
        signer = signatures.verify(
            _KIND, documents.canonical(body), signature, chain_pem=chain, roots_pem=roots_pem, at=manifest.ended
        )
    except signatures.NotGenuine as error:
        raise ManifestDamaged(folder, error.why) from error
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, TwinsiteError) as error:
        raise ManifestDamaged(folder, "it is not what an export writes") from error
    if signer != Identity("host", manifest.source_host, vault):
        raise ManifestDamaged(folder, f"it is signed by {signer}")
    return manifest


def _opened(data: bytes) -> tuple[Mapping[str, Any], bytes, bytes]:
    if len(data) > MOST_BYTES:
        raise ValueError("too long")
    document = json.loads(data)
    body = document["seed"]
    if not isinstance(body, dict):
        raise TypeError
    return body, document["certificates"].encode(), b64decode(document["signature"], validate=True)


def _manifest(body: Mapping[str, Any]) -> Manifest:
    """Raises ValueError, KeyError, TypeError, BadName."""
    if body["format"] != FORMAT:
        raise ValueError(f"format {body['format']}")
    texts = [body[name] for name in ("vault", "vm", "vm_name", "source_host", "target_host", "key_for")]
    if not all(isinstance(text, str) for text in texts):
        raise TypeError
    disks = tuple(
        DiskGeometry(check_id("disk", disk["id"]), _number(disk["bytes"], MAX_DISK_BYTES), str(disk["name"]))
        for disk in body["disks"]
    )
    parts = tuple(Part(_number(size, 1 << 50), bytes.fromhex(digest)) for size, digest in body["parts"])
    if len(disks) > MAX_DISKS or len({disk.id for disk in disks}) != len(disks):
        raise ValueError("disks")
    if any(len(part.digest) != DIGEST_BYTES or (part.size - HEADER_BYTES) % RECORD_BYTES for part in parts):
        raise ValueError("parts")
    seed = bytes.fromhex(body["id"])
    if len(seed) != ID_BYTES:
        raise ValueError("id")
    return Manifest(
        vault=body["vault"],
        vm_id=check_id("VM", body["vm"]),
        vm_name=body["vm_name"],
        seed=seed,
        source_host=body["source_host"],
        target_host=body["target_host"],
        started=_number(body["started_ns"], 1 << 63) / _NANO,
        ended=_number(body["ended_ns"], 1 << 63) / _NANO,
        after_cycle=_number(body["after_cycle"], 1 << 53),
        disks=disks,
        key_for=body["key_for"],
        sealed_key=b64decode(body["key"], validate=True),
        parts=parts,
    )


def _number(value: object, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError("a number out of range")
    return value
