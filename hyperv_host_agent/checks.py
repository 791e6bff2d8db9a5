"""`twinsite-host check`: would this host agent work here? Looks, and leaves nothing behind."""

import asyncio
import enum
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hyperv_host_agent.hypervisors.base import Severity
from hyperv_host_agent.hypervisors.libvirt import checking
from hyperv_host_agent.membership import JoinFile, Membership
from hyperv_host_agent.packing import Packed, Packer
from hyperv_host_agent.replication.cycle import Batch, CycleHeader, DiskGeometry, Kind
from hyperv_host_agent.runfile import identity_folder, running
from hyperv_host_agent.settings import Settings
from hyperv_host_agent.store.chain import ChainStore
from twinsite import units
from twinsite.clock import Clock
from twinsite.credentials import Credentials, NoCredentials
from twinsite.digest import CHAIN_START
from twinsite.errors import TwinsiteError
from twinsite.extents import CLUSTER, Run

_ANSWER_SECONDS: Final = 5.0


class Verdict(enum.Enum):
    OK = "ok"
    WARNING = "warning"
    CRITICAL = "critical"


_VERDICTS: Final = {
    Severity.NOTE: Verdict.OK,
    Severity.WARNING: Verdict.WARNING,
    Severity.OBSTACLE: Verdict.CRITICAL,
}


@dataclass(frozen=True, slots=True)
class Finding:
    what: str
    verdict: Verdict
    text: str
    next_step: str = ""


def run(settings: Settings, clock: Clock) -> Iterator[Finding]:
    """One finding after the other; blocking."""
    yield _folder("state folder", settings.state, mode=0o700)
    yield _folder("VM folder", settings.vms)
    yield _folder("replica store", settings.store)
    yield _space(settings)
    yield _layer(settings)
    if settings.hypervisor.kind == "libvirt":
        yield from _libvirt(settings)
    yield _port(settings)
    yield from _identity(settings, clock)


def _folder(what: str, path: Path, *, mode: int = 0o711) -> Finding:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=mode)
        with tempfile.TemporaryFile(dir=path) as file:
            file.write(b"twinsite")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return Finding(
            what, Verdict.CRITICAL, f"{path}: {error.strerror}", "give the agent's user write access, or name another"
        )
    return Finding(what, Verdict.OK, f"{path} is writable")


def _space(settings: Settings) -> Finding:
    try:
        free = shutil.disk_usage(settings.store).free
    except OSError as error:
        return Finding("space", Verdict.CRITICAL, f"{settings.store}: {error.strerror}")
    room = free - settings.store_reserve_bytes
    if room <= 0:
        return Finding(
            "space",
            Verdict.CRITICAL,
            f"{units.size(free)} free, {units.size(settings.store_reserve_bytes)} stay reserved: no room for replicas",
            "free space there, move the store, or lower store_reserve_bytes",
        )
    return Finding("space", Verdict.OK, f"room for {units.size(room)} of replicas")


def _layer(settings: Settings) -> Finding:
    """Writes a small replica as replication does, and reads it back with its checksums."""
    content = bytes(range(256)) * (CLUSTER // 256)
    packed = Packed(0)
    packer = Packer()
    for place, packer.level in enumerate((3, 0)):
        packer.pack(packed, Run(place, 1), content, None)
    vm_id, disk = "self-test", DiskGeometry("disk", 4 * CLUSTER)
    header = CycleHeader(vm_id, os.urandom(16), 1, 0, 0, Kind.INITIAL, 0.0, "none", (disk,))
    batch = Batch(
        1, 0, packed.clusters, packed.lengths, bytes(packed.fingerprints), (Run(2, 2),), b"".join(packed.parts)
    )
    try:
        with tempfile.TemporaryDirectory(dir=settings.store, prefix=".check-") as folder:
            replica = ChainStore(Path(folder), reserve=0).create(vm_id, term=0)
            replica.begin(header, resume_after=0)
            replica.put(batch, CHAIN_START)
            replica.commit()
            damage = list(replica.verify())
            replica.close()
    except (TwinsiteError, OSError) as error:
        return Finding("layer format", Verdict.CRITICAL, f"a test replica could not be written: {error}")
    if damage:
        return Finding("layer format", Verdict.CRITICAL, f"a test replica reads back wrong: {damage[0].problem}")
    return Finding("layer format", Verdict.OK, "a test replica (zstd in qcow2) reads back as written")


def _libvirt(settings: Settings) -> Iterator[Finding]:
    yield _folder("scratch folder", settings.hypervisor.scratch)
    folders = (settings.store, settings.vms, settings.hypervisor.scratch)
    for found in checking.findings(settings.hypervisor.uri, folders):
        yield Finding(found.what, _VERDICTS[found.severity], found.text)


def _port(settings: Settings) -> Finding:
    if running(settings.state) is not None:
        return Finding("port", Verdict.OK, f"{settings.listen}: the agent is running")
    host, _, port = settings.listen.rpartition(":")
    try:
        family, _, _, _, address = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        return Finding(
            "port",
            Verdict.CRITICAL,
            f"{settings.listen}: {error.strerror}",
            "stop the program that has it (`ss -ltnp` names it), or choose another port",
        )
    return Finding("port", Verdict.OK, f"{settings.listen} is free")


def _identity(settings: Settings, clock: Clock) -> Iterator[Finding]:
    folder = identity_folder(settings.state)
    try:
        credentials = Credentials.load(folder)
    except NoCredentials:
        yield _invitation(settings)
        return
    except TwinsiteError as error:
        yield Finding("identity", Verdict.CRITICAL, str(error), error.text("next_step"))
        return
    begins = credentials.certificate.not_valid_before_utc.timestamp()
    if clock.now() < begins:
        yield Finding(
            "clock",
            Verdict.CRITICAL,
            f"this host's clock is at least {units.duration(begins - clock.now())} behind the coordinator's",
            "set the clock; peers refuse a certificate that is not valid yet",
        )
        return
    left = credentials.expires - clock.now()
    if left <= 0:
        yield Finding(
            "identity",
            Verdict.CRITICAL,
            f"the certificate of {credentials.identity} has expired",
            "join again: a new join file, and remove the identity folder",
        )
        return
    yield Finding("identity", Verdict.OK, f"{credentials.identity}, certificate good for {units.duration(left)}")
    yield asyncio.run(_provider(folder, credentials, clock))


def _invitation(settings: Settings) -> Finding:
    try:
        invitation = JoinFile.read(settings.join_file)
    except TwinsiteError as error:
        return Finding("identity", Verdict.CRITICAL, str(error), error.text("next_step"))
    return Finding("identity", Verdict.WARNING, f"not joined yet; {settings.join_file} is for {invitation.host_name}")


async def _provider(folder: Path, credentials: Credentials, clock: Clock) -> Finding:
    """Connects without a session: a second one would end that of the running agent."""
    membership = Membership(folder, credentials, clock)
    address = credentials.meta["link_address"]
    async with membership.channel() as channel:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await channel.channel_ready()
        except (TwinsiteError, TimeoutError):
            return Finding(
                "provider",
                Verdict.WARNING,
                f"{address} does not answer; replication goes on without it",
                "look at `twinsite-provider status` there",
            )
    return Finding("provider", Verdict.OK, f"{address} answers")
