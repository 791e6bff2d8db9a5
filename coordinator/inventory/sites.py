"""Hosts and clouds as people ask for them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from sqlalchemy.ext.asyncio import AsyncConnection

from coordinator.inventory import service, store
from coordinator.inventory.model import resolve
from coordinator.inventory.service import CloudView, HostView
from coordinator.store.engine import Database
from twinsite.api.types.v1 import types_pb2


class Pairing(Protocol):
    """What protection knows of clouds and hosts; the module coordinator.protection.pairs is one."""

    async def roles(self, connection: AsyncConnection) -> Mapping[str, tuple[str, str]]:
        """(role, name of the pair) of every paired cloud, by its id."""
        ...

    async def owners(self, connection: AsyncConnection) -> Mapping[str, str]:
        """Hosts that protected VMs run on by right, by VM id."""
        ...

    async def forget_hosts(self, connection: AsyncConnection, host_ids: Sequence[str]) -> None:
        """They are not registered any more."""
        ...


@dataclass(frozen=True, slots=True)
class CloudState:
    cloud: CloudView
    role: str  # primary | target | none
    pair: str
    vms: int
    vms_protected: int

    @property
    def id(self) -> str:
        return self.cloud.id

    @property
    def name(self) -> str:
        return self.cloud.name

    @property
    def server(self) -> str:
        return self.cloud.server_name


class Sites:
    def __init__(self, database: Database, pairing: Pairing) -> None:
        self._database, self._pairing = database, pairing

    async def hosts(self) -> list[tuple[HostView, list[types_pb2.Machine]]]:
        """Each with the VMs it has now."""
        async with self._database.read() as connection:
            views = await service.hosts(connection)
            found = await store.list_machines(connection)
        here: dict[str, list[types_pb2.Machine]] = {}
        for machine in found:
            if machine.state == store.PRESENT:
                here.setdefault(machine.host_id, []).append(machine.document)
        return [(view, here.get(view.id, [])) for view in views.values()]

    async def host(self, name: str) -> tuple[HostView, list[types_pb2.Machine]]:
        """With the VMs it has now. Raises Unknown, Ambiguous."""
        async with self._database.read() as connection:
            view = resolve("host", name, (await service.hosts(connection)).values(), qualifier="server")
            found = await store.list_machines(connection, host_id=view.id)
        return view, [machine.document for machine in found if machine.state == store.PRESENT]

    async def clouds(self) -> list[CloudState]:
        async with self._database.read() as connection:
            roles = await self._pairing.roles(connection)
            owners = await self._pairing.owners(connection)
            machines = await service.machines(connection, owners)
            clouds = await service.clouds(connection)
        found = []
        for view in clouds.values():
            here = {host.id for host in view.hosts}
            vms = [vm_id for vm_id, machine in machines.items() if machine.host.id in here and machine.present]
            role, pair = roles.get(view.id, ("none", ""))
            found.append(CloudState(view, role, pair, len(vms), sum(vm_id in owners for vm_id in vms)))
        return found

    async def cloud(self, name: str) -> CloudState:
        """Raises Unknown, Ambiguous."""
        return resolve("cloud", name, await self.clouds(), qualifier="server")
