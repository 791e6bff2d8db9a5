"""What each host of this site has to do, as the coordinator said it last. Hosts are told it whenever they connect."""

from pathlib import Path

import structlog
from google.protobuf import json_format

from provider_agent.hosts import Hosts
from provider_agent.mail import Mail
from provider_agent.outbox import Outbox
from twinsite import __version__, async_files, files
from twinsite.api.provider.v1 import host_link_pb2 as pb
from twinsite.api.types.v1 import types_pb2
from twinsite.clock import Clock

_log = structlog.get_logger()


class Assignments:
    """Durable per host before the host is told."""

    def __init__(self, folder: Path, hosts: Hosts, outbox: Outbox, mail: Mail, clock: Clock) -> None:
        self._folder = files.private_directory(folder)
        self._hosts, self._outbox, self._mail, self._clock = hosts, outbox, mail, clock
        self._held: dict[str, types_pb2.Assignments] = {}
        self._current: set[str] = set()  # hosts whose assignments came in the coordinator's present session
        for host in hosts.all():
            try:
                text = (folder / f"{host.id}.json").read_bytes()
                self._held[host.id] = json_format.Parse(text, types_pb2.Assignments())
            except FileNotFoundError:
                continue
            except (OSError, ValueError, json_format.ParseError):
                # The coordinator sends them again; the host has its own copy.
                _log.error("assignments_unreadable", host=host.id)

    def versions(self) -> dict[str, int]:
        return {host_id: held.version for host_id, held in self._held.items()}

    def has(self, host_id: str, vm_id: str) -> bool:
        held = self._held.get(host_id)
        return held is not None and any(one.vm_id == vm_id for one in held.assignments)

    def knows(self, host_id: str) -> bool:
        """Whether it was ever told what the host has to do."""
        return host_id in self._held

    def session_lost(self) -> None:
        """The coordinator may decide otherwise from now on without our knowing it."""
        self._current.clear()

    async def replace(self, snapshot: types_pb2.Assignments) -> None:
        """From the coordinator: durable, then to the host."""
        host_id = snapshot.host_id
        if self._hosts.get(host_id) is None:
            _log.error("assignments_for_unknown_host", host=host_id[:40])
            return
        changed = self._held.get(host_id) != snapshot
        if changed:
            content = json_format.MessageToJson(snapshot).encode()
            await async_files.replace(self._folder / f"{host_id}.json", content)
            self._held[host_id] = snapshot
            self._outbox.keep(host_id, (one.vm_id for one in snapshot.assignments))
            _log.info("assignments_received", host=host_id, version=snapshot.version, count=len(snapshot.assignments))
            self._mail.send(host_id, pb.ToHost(assignments=snapshot))
        if host_id not in self._current:
            self._current.add(host_id)
            # It was welcomed before this was known.
            self._mail.send(host_id, pb.ToHost(welcome=self._welcome(host_id)))

    def greet(self, host_id: str) -> None:
        """A session with the host begins."""
        self._mail.send(host_id, pb.ToHost(welcome=self._welcome(host_id)))
        held = self._held.get(host_id)
        if held is not None:
            self._mail.send(host_id, pb.ToHost(assignments=held))

    def _welcome(self, host_id: str) -> pb.Welcome:
        return pb.Welcome(
            provider_unix=int(self._clock.now()),
            provider_version=__version__,
            assignments_current=host_id in self._current,
        )
