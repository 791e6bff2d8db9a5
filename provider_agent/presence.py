"""What each host last said about itself, and whether it is here. Kept over a restart: away is not the same as gone."""

from collections.abc import Callable
from pathlib import Path

import structlog
from google.protobuf import json_format

from provider_agent.hosts import Hosts
from provider_agent.inventory import Presence
from twinsite import async_files, files
from twinsite.api.types.v1 import types_pb2

_log = structlog.get_logger()


class Presences:
    """`on_change` is called after every change."""

    def __init__(self, folder: Path, hosts: Hosts, on_change: Callable[[], None]) -> None:
        self._folder = files.private_directory(folder)
        self._hosts = hosts
        self._on_change = on_change
        self._statuses: dict[str, types_pb2.HostStatus] = {}
        self._connected: set[str] = set()
        for host in hosts.all():
            status = types_pb2.HostStatus()
            try:
                json_format.Parse((folder / f"{host.id}.json").read_bytes(), status)
            except FileNotFoundError:
                continue
            except (OSError, ValueError, json_format.ParseError):
                _log.warning("host_status_unreadable", host=host.id)  # the host says it again when it connects
                continue
            self._statuses[host.id] = status

    def all(self) -> list[Presence]:
        return [
            Presence(
                self._statuses.get(host.id) or types_pb2.HostStatus(host_id=host.id, name=host.name),
                host.id in self._connected,
            )
            for host in self._hosts.all()
        ]

    def connected(self, host_id: str, connected: bool) -> None:
        (self._connected.add if connected else self._connected.discard)(host_id)
        self._on_change()

    async def said(self, host_id: str, status: types_pb2.HostStatus) -> None:
        """The host's id and name are ours to say: it cannot speak for another one."""
        host = self._hosts.get(host_id)
        if host is None:
            return
        told = types_pb2.HostStatus()
        told.CopyFrom(status)
        told.host_id, told.name = host.id, host.name
        before = self._statuses.get(host_id)
        self._statuses[host_id] = told
        self._on_change()
        if before is None or _lasting(before) != _lasting(told):
            content = json_format.MessageToJson(_lasting(told)).encode()
            await async_files.replace(self._folder / f"{host_id}.json", content)


def _lasting(status: types_pb2.HostStatus) -> types_pb2.HostStatus:
    """Without what changes all the time: it is not worth an fsync."""
    lasting = types_pb2.HostStatus()
    lasting.CopyFrom(status)
    lasting.ClearField("store_free_bytes")
    return lasting
