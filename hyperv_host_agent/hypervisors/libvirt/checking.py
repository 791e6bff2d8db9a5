"""Would VMs of this libvirt be replicated and run from replicas? Looks, and leaves nothing behind."""

import os
import re
import stat
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Final

from hyperv_host_agent.hypervisors.base import Finding, Severity
from hyperv_host_agent.hypervisors.libvirt import capabilities, library
from hyperv_host_agent.hypervisors.libvirt.binding import Connection
from hyperv_host_agent.hypervisors.libvirt.images import zstd_problem
from twinsite.errors import TwinsiteError

_OWNER: Final = re.compile(r"\+(\d+):\+(\d+)")


def findings(uri: str, folders: Iterable[Path]) -> Iterator[Finding]:
    """`folders` are those QEMU must come into. A note says what is as it should be."""
    try:
        library.libvirt()
        with closing(Connection(uri)) as connection:
            words = connection.capabilities()
            count = len(connection.domains())
    except TwinsiteError as error:
        yield Finding(Severity.OBSTACLE, "libvirt", f"{error}; {error.text('next_step')}")
        return
    yield Finding(Severity.NOTE, "libvirt", f"{uri} answers, it has {count} VMs")
    problem = zstd_problem()
    if problem:
        yield Finding(Severity.OBSTACLE, "qcow2", f"QEMU here cannot read recovery points: {problem}")
    else:
        yield Finding(Severity.NOTE, "qcow2", "QEMU here reads recovery points (zstd in qcow2)")
    if not any(arch.accelerated for arch in capabilities.host(words).values()):
        yield Finding(Severity.WARNING, "acceleration", "this host has no KVM: VMs run many times slower")
    yield from _access(words, folders)


def _access(words: str, folders: Iterable[Path]) -> Iterator[Finding]:
    owner = _qemu_user(words)
    if owner is None:
        return
    user, group = owner
    closed = [found for folder in folders if (found := _closed(folder, user, group)) is not None]
    for folder in closed:
        text = f"QEMU runs as user {user} and cannot come into {folder}: setfacl -m u:{user}:x {folder}"
        yield Finding(Severity.OBSTACLE, "access", text)
    if not closed:
        yield Finding(Severity.NOTE, "access", f"QEMU (user {user}) comes into the folders of replicas")


def _qemu_user(words: str) -> tuple[int, int] | None:
    """User and group of QEMU's processes; None when libvirt does not say."""
    root = ET.fromstring(words)  # noqa: S314  # libvirt's own words, from this host
    for model in root.findall("host/secmodel"):
        if model.findtext("model") == "dac":
            found = _OWNER.fullmatch((model.findtext("baselabel") or "").strip())
            if found is not None:
                return int(found[1]), int(found[2])
    return None


def _closed(folder: Path, user: int, group: int) -> Path | None:
    """The first folder on the way that the user may not pass, by its mode; access lists are taken as a yes."""
    if user == 0:
        return None
    for place in (*reversed(folder.absolute().parents), folder.absolute()):
        try:
            status = place.stat()
        except OSError:
            return None  # it is made later
        if "system.posix_acl_access" in os.listxattr(place):
            continue
        bit = stat.S_IXUSR if status.st_uid == user else stat.S_IXGRP if status.st_gid == group else stat.S_IXOTH
        if not status.st_mode & bit:
            return place
    return None
