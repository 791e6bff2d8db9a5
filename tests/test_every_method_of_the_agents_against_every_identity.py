"""The tables of provider and host agents, from outside: each of their methods, called by each kind of caller."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from hyperv_host_agent import rpc as host_rpc
from provider_agent import rpc as provider_rpc
from provider_agent.hosts import HostJudge, Hosts
from tests.fakes.pki import TestVault
from tests.fakes.stub_services import call, shapes, stub
from twinsite import keys, server, tls
from twinsite.access import Gate, Judge, Table, VaultMembers
from twinsite.api.host.v1 import replication_pb2
from twinsite.api.provider.v1 import host_link_pb2
from twinsite.channel import dial
from twinsite.clock import SystemClock
from twinsite.credentials import Credentials, Watched

JOIN = host_link_pb2.DESCRIPTOR.services_by_name["HostEnrollment"]
LINK = host_link_pb2.DESCRIPTOR.services_by_name["HostLink"]
REPLICATION = replication_pb2.DESCRIPTOR.services_by_name["Replication"]
REFUSED = {"Unauthenticated", "Unreachable"}  # the second: TLS ended it before there was a call


@dataclass
class Listener:
    address: str
    peer: str
    vault: TestVault

    async def answers(self, service: Any, credentials: Credentials | None) -> set[str]:
        """What all methods of the service say to a caller."""
        channel_credentials = (
            tls.channel_credentials(credentials) if credentials else tls.channel_credentials_roots(self.vault.roots_pem)
        )
        async with dial(self.address, channel_credentials, peer=self.peer) as channel:
            return {await call(channel, method, shape) for method, shape in shapes([service]).items()}


async def listen(
    vault: TestVault, own: Credentials, service: Any, table: Table, judge: Judge, *, members: bool
) -> AsyncIterator[Listener]:
    credentials = tls.server_credentials(Watched(own), require_client=members)
    gate = Gate(table, judge, SystemClock())
    running = await server.serve("127.0.0.1:0", [stub(service)], credentials=credentials, gate=gate)
    yield Listener(running.address, own.identity.dns, vault)
    await running.stop(0.1)


def everybody(vault: TestVault) -> dict[str, Credentials | None]:
    """All who are not a host in good standing."""
    twin = TestVault(vault.vault)  # another CA that uses this vault's names
    return {
        "none": None,
        "foreign CA": TestVault().host(),
        "foreign CA with this vault's names": twin.host(),
        "server": vault.server(),
        "user": vault.user(),
        "coordinator": vault.coordinator(),
        "expired host": vault.host(ends=-1.0),
        "host of tomorrow": vault.host(begins=86_400.0),
    }


async def test_only_the_providers_own_hosts_get_to_its_link(tmp_path: Path) -> None:
    vault = TestVault()
    mine, others, removed = vault.host(), vault.host(), vault.host()
    hosts = Hosts(tmp_path / "hosts.json")
    hosts.issued(mine.identity.id, "host-a1", keys.spki_sha256(mine.certificate))
    hosts.issued(removed.identity.id, "host-a2", keys.spki_sha256(keys.new_key()))  # it has another key by now
    judge = HostJudge(hosts, vault.vault)
    async for listener in listen(vault, vault.server(), LINK, provider_rpc.LINK_TABLE, judge, members=True):
        assert await listener.answers(LINK, mine) == {"ok"}
        for name, credentials in (everybody(vault) | {"other's host": others, "former key": removed}).items():
            assert await listener.answers(LINK, credentials) <= REFUSED | {"Denied"}, name


async def test_joining_is_open_to_strangers_and_nothing_else_is_on_that_listener(tmp_path: Path) -> None:
    vault = TestVault()
    judge = HostJudge(Hosts(tmp_path / "hosts.json"), vault.vault)
    async for listener in listen(vault, vault.server(), JOIN, provider_rpc.JOIN_TABLE, judge, members=False):
        assert await listener.answers(JOIN, None) == {"ok"}
        with pytest.raises(Exception, match=r"UNIMPLEMENTED|Method not found"):
            await listener.answers(LINK, None)


async def test_only_hosts_get_to_replication(tmp_path: Path) -> None:
    vault = TestVault()
    denied = vault.host()
    judge = VaultMembers(vault.vault, denied={denied.identity.id})
    async for listener in listen(vault, vault.host(), REPLICATION, host_rpc.TABLE, judge, members=True):
        # Which VM a host may send here is the grant's to say: tests/hyperv_host_agent/rpc/test_grants.py.
        assert await listener.answers(REPLICATION, vault.host()) == {"ok"}
        for name, credentials in (everybody(vault) | {"denied host": denied}).items():
            assert await listener.answers(REPLICATION, credentials) <= REFUSED | {"Denied"}, name
