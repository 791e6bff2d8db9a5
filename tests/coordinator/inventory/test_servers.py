"""Servers as people see them, and their removal."""

import pytest

from tests.fakes.control_plane import EMPTY
from tests.fakes.scene import Scene
from tests.fakes.site import FakeSite, until
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.errors import Denied, NotFound, Precondition


async def test_a_server_shows_its_clouds_and_hosts(sites: Scene):
    server = await sites.admin.servers.Show(admin_pb2.ShowRequest(name="vmm-a"))
    assert (server.state, server.connected, server.hosts, server.hosts_connected) == ("active", True, 1, 1)
    assert list(server.clouds) == ["gold-a"]
    assert server.agent_version == "0.1.0"
    host = await sites.admin.hosts.Show(admin_pb2.ShowRequest(name="a1"))
    assert (host.server, host.cloud, host.host_group) == ("vmm-a", "gold-a", "all")
    assert [vm.name for vm in host.status.machines] == ["web01"]
    cloud = await sites.admin.clouds.Show(admin_pb2.ShowRequest(name="gold-a"))
    assert (cloud.hosts, cloud.vms, cloud.vms_protected, cloud.role) == (1, 1, 0, "none")


async def test_a_server_in_use_is_not_removed(sites: Scene):
    await sites.pair()
    with pytest.raises(Precondition) as refused:
        await sites.admin.servers.Remove(admin_pb2.RemoveRequest(name="vmm-b"))
    assert refused.value.code == "SERVER_PAIRED"
    assert "gold-a:gold-b" in refused.value.text("next_step")
    assert sites.b.ended is None


async def test_a_removed_server_is_out_at_once_with_all_it_had(sites: Scene):
    foretold = await sites.admin.servers.Remove(admin_pb2.RemoveRequest(name="vmm-a", dry_run=True))
    assert any("gold-a" in sentence for sentence in foretold.consequences)
    assert len((await sites.admin.servers.List(EMPTY)).servers) == 2
    answer = await sites.admin.servers.Remove(admin_pb2.RemoveRequest(name="vmm-a", reason="sold"))
    assert answer == foretold
    await until(lambda: sites.a.ended)
    assert sites.a.ended is not None
    assert sites.a.ended.code == "NOT_CURRENT"
    assert [server.name for server in (await sites.admin.servers.List(EMPTY)).servers] == ["vmm-b"]
    assert [host.name for host in (await sites.admin.hosts.List(EMPTY)).hosts] == ["b1"]
    assert [cloud.name for cloud in (await sites.admin.clouds.List(EMPTY)).clouds] == ["gold-b"]
    assert not (await sites.admin.machines.List(EMPTY)).machines
    assert (await sites.audited("server.remove"))[0]["reason"] == "sold"
    with pytest.raises(NotFound):
        await sites.admin.servers.Remove(admin_pb2.RemoveRequest(name="vmm-a"))
    again = FakeSite(sites.plane.identity, sites.a.member, sites.a.clouds, sites.a.hosts)
    async with again.connected():
        await until(lambda: again.ended)


async def test_an_operator_does_not_remove_servers(sites: Scene):
    operator = await sites.plane.identity.user("olga", "operator")
    async with sites.plane.admin(operator) as admin:
        with pytest.raises(Denied):
            await admin.servers.Remove(admin_pb2.RemoveRequest(name="vmm-a"))
