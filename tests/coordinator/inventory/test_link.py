"""The session of a provider: what it survives, and what becomes of what it says."""

import asyncio

import pytest

from coordinator.inventory.model import POINTS
from tests.fakes.control_plane import EMPTY
from tests.fakes.scene import Scene
from tests.fakes.site import FakeSite, machine, until
from twinsite.api.coordinator.v1 import admin_pb2, link_pb2, link_pb2_grpc
from twinsite.api.types.v1 import commands_pb2, types_pb2
from twinsite.errors import InvalidInput


async def host_of(sites: Scene, name: str) -> admin_pb2.Host:
    return await sites.admin.hosts.Show(admin_pb2.ShowRequest(name=name))


async def vms(sites: Scene) -> dict[str, str]:
    return {view.name: view.host for view in (await sites.admin.machines.List(EMPTY)).machines}


async def test_a_provider_is_welcomed_with_the_vault_and_its_clouds(sites: Scene):
    again = FakeSite(sites.plane.identity, sites.a.member, sites.a.clouds, sites.a.hosts)
    async with again.connected():
        assert again.welcome.vault_name == "demo"
        assert again.welcome.coordinator_unix == int(sites.clock.now())
        assert list(again.welcome.synced_clouds) == ["gold-a"]


async def test_a_second_session_of_a_server_ends_the_first(sites: Scene):
    again = FakeSite(sites.plane.identity, sites.a.member, sites.a.clouds, sites.a.hosts)
    async with again.connected():
        await until(lambda: sites.a.ended)
        assert sites.a.ended is not None
        assert sites.a.ended.code == "SESSION_REPLACED"
        server = await sites.admin.servers.Show(admin_pb2.ShowRequest(name="vmm-a"))
        assert server.connected
        await until(lambda: sites.source.id in again.assignments)


async def test_a_session_that_begins_without_hello_is_ended(sites: Scene):
    async def up():
        yield link_pb2.FromProvider(inventory=link_pb2.Inventory())
        await asyncio.Event().wait()

    async with sites.plane.identity.dial(sites.a.member) as channel:
        with pytest.raises(InvalidInput) as refused:
            async for _ in link_pb2_grpc.LinkStub(channel).Connect(up()):
                pass
    assert refused.value.code == "HELLO_MISSING"


async def test_who_leaves_is_shown_as_not_connected_with_its_hosts(sites: Scene):
    later = FakeSite(sites.plane.identity, await sites.plane.identity.register("vmm-c"))
    host = await later.host("c1", "gold-c")
    async with later.connected():
        await sites.until_clouds("gold-c")
        assert (await host_of(sites, "c1")).connected

    async def gone() -> bool:
        return not (await sites.admin.servers.Show(admin_pb2.ShowRequest(name="vmm-c"))).connected

    await until(gone)
    shown = await host_of(sites, "c1")
    assert (shown.connected, shown.id, shown.state) == (False, host.id, "active")
    assert shown.last_seen.seconds == int(sites.clock.now())


async def test_a_made_up_version_of_assignments_leaves_room_for_the_next_ones(sites: Scene):
    made_up = types_pb2.Assignments(host_id=sites.target.id, version=2**64 - 1)
    again = FakeSite(sites.plane.identity, sites.b.member, sites.b.clouds, sites.b.hosts)
    again.assignments[sites.target.id] = made_up
    async with again.connected():
        sites.b = again
        await until(lambda: again.assignments[sites.target.id] is not made_up)
        await sites.begin_protect()
        assert len({version for _, version in again.versions}) > 1


async def test_a_provider_that_writes_novels_does_not_make_the_status_too_large_to_send(sites: Scene):
    await sites.protect()
    novel = "x" * 3_000_000
    for role, site in (("source", sites.a), ("target", sites.b)):
        site.state(sites.vm.id, role, "blocked", reason=types_pb2.ErrorDetail(message=novel))

    async def blocked() -> bool:
        return (await sites.protection()).state == "blocked"

    await until(blocked)
    assert len((await sites.protection()).reason) < 1200
    point = types_pb2.Point(vm_id=sites.vm.id, cycle=9, instant={"seconds": 1_700_000_000}, pinned_by=novel)
    sites.b.send(
        link_pb2.FromProvider(points=link_pb2.Points(host_id=sites.target.id, vm_id=sites.vm.id, points=[point]))
    )
    sites.target.machines.append(machine("web02"))
    sites.target.machines[-1].nics.add(network=novel)
    sites.target.machines.append(machine("web03"))
    sites.b.report()

    async def reported() -> bool:
        return "web03" in await vms(sites)

    await until(reported)
    assert "web02" not in await vms(sites)
    assert not await sites.points()


async def test_junk_is_logged_and_ends_nothing(sites: Scene):
    await sites.protect()
    huge = 2**64 - 1
    result = commands_pb2.CommandResult(id="j-00000000.1@1", ok=True, cycle=huge)
    point = types_pb2.Point(vm_id=sites.vm.id, cycle=huge, consistency="crash")
    junk = [
        link_pb2.FromProvider(),
        link_pb2.FromProvider(hello=link_pb2.Hello(agent_version="again")),
        link_pb2.FromProvider(result=result),
        link_pb2.FromProvider(result=commands_pb2.CommandResult()),
        link_pb2.FromProvider(received=link_pb2.CommandReceived(id="' OR 1=1 --")),
        link_pb2.FromProvider(
            progress=commands_pb2.CommandProgress(id="x", percent=huge % 2**32, bytes_done=huge, bytes_total=huge)
        ),
        link_pb2.FromProvider(points=link_pb2.Points(host_id=sites.target.id, vm_id=sites.vm.id, points=[point])),
        link_pb2.FromProvider(points=link_pb2.Points(host_id="nobody", vm_id="nothing")),
        link_pb2.FromProvider(
            statistics=link_pb2.Statistics(
                statuses=[
                    types_pb2.ReplicationStatus(vm_id="nothing", role=types_pb2.ROLE_SOURCE),
                    types_pb2.ReplicationStatus(vm_id=sites.vm.id, role=99, committed_cycle=huge),
                    types_pb2.ReplicationStatus(
                        vm_id=sites.vm.id, role=types_pb2.ROLE_TARGET, state=99, committed_instant={"seconds": 2**62}
                    ),
                ]
            )
        ),
        link_pb2.FromProvider(
            inventory=link_pb2.Inventory(
                version=huge, clouds=[link_pb2.Cloud(name="../x")], hosts=[link_pb2.HostPresence()]
            )
        ),
    ]
    for message in junk:
        sites.b.send(message)
    sites.b.report()
    sites.commit()

    async def read_to_the_end() -> bool:
        return len(await sites.points()) == 2 or await sites.points() == [3]

    await until(read_to_the_end)
    assert sites.b.ended is None
    assert (await sites.protection()).rpo_known


async def test_points_are_told_as_changes_and_asked_for_whole_when_these_do_not_fit(sites: Scene):
    await sites.protect()
    target, vm_id = sites.target, sites.vm.id
    known = target.points[vm_id]
    before = await sites.points()
    first, second, third = (sites.commit() for _ in range(3))

    async def listed(*cycles: int) -> None:
        async def there() -> bool:
            return await sites.points() == [*reversed(cycles), *before]

        await until(there)

    await listed(first, second, third)
    asked = len(sites.b.points_asked)
    fresh = types_pb2.Point.FromString(known[-1].SerializeToString())
    fresh.cycle = third + 1
    known[:] = [*(point for point in known if point.cycle != second), fresh]
    sites.b.send_changes(target, vm_id, fresh, gone=[second])
    await listed(first, third, third + 1)
    assert len(sites.b.points_asked) == asked
    known[:] = [point for point in known if point.cycle != first]
    sites.b.send_changes(target, vm_id)  # a removal was missed
    await listed(third, third + 1)
    assert len(sites.b.points_asked) == asked + 1


async def test_changes_never_add_up_to_more_points_than_can_be_told_whole(sites: Scene):
    await sites.protect()
    target, vm_id = sites.target, sites.vm.id
    known = target.points[vm_id]
    asked = len(sites.b.points_asked)
    for part in (1, 2):
        fresh = [types_pb2.Point.FromString(known[-1].SerializeToString()) for _ in range(POINTS)]
        for number, point in enumerate(fresh):
            point.cycle = part * POINTS + number
        told = link_pb2.Points(host_id=target.id, vm_id=vm_id, points=fresh, changes=True)
        told.total = len(known) + part * POINTS
        sites.b.send(link_pb2.FromProvider(points=told))
    await until(lambda: len(sites.b.points_asked) > asked)

    async def only_what_there_is() -> bool:
        return await sites.points() == [point.cycle for point in reversed(known) if point.consistency != "none"]

    await until(only_what_there_is)


async def test_nobody_speaks_for_the_hosts_of_another_server(sites: Scene):
    await sites.protect()
    newest = (await sites.protection()).newest_instant
    liar = sites.a
    liar.commit(sites.target, sites.vm.id, sites.clock.now() + 3600)  # points of b's host, told by a
    sites.target.points[sites.vm.id].pop()
    stolen = sites.target.status()
    stolen.name = "b1"
    stolen.machines.append(machine("planted"))
    report = link_pb2.Inventory(version=99, hosts=[link_pb2.HostPresence(status=stolen, connected=True)])
    liar.send(link_pb2.FromProvider(inventory=report))
    liar.report()
    marker = machine("marker")
    sites.source.machines.append(marker)
    liar.report()

    async def read_to_the_end() -> bool:
        return "marker" in await vms(sites)

    await until(read_to_the_end)
    assert (await host_of(sites, "b1")).server == "vmm-b"
    assert "planted" not in await vms(sites)
    assert (await sites.protection()).newest_instant == newest
    assert len(await sites.points()) == 1


async def test_what_is_no_longer_mentioned_is_missing_and_not_deleted(sites: Scene):
    sites.a.clouds.clear()
    kept = sites.a.hosts.pop(sites.source.id)
    sites.a.report()

    async def missing() -> bool:
        return (await host_of(sites, "a1")).state == "missing"

    await until(missing)
    assert "web01" in await vms(sites)
    for action in ("host.missing", "cloud.missing"):
        assert len(await sites.audited(action)) == 1
    sites.a.hosts[kept.id] = kept
    sites.a.report()

    async def back() -> bool:
        return (await host_of(sites, "a1")).state == "active"

    await until(back)


async def test_a_host_its_provider_cannot_see_keeps_its_vms(sites: Scene):
    sites.source.connected = False
    machines = list(sites.source.machines)
    sites.source.machines.clear()
    sites.a.report()

    async def away() -> bool:
        return not (await host_of(sites, "a1")).connected

    await until(away)
    assert (await sites.show()).host == "a1"
    assert not await sites.audited("vm.missing")
    sites.source.machines += machines


async def test_a_vm_that_moves_to_another_host_is_one_vm(sites: Scene):
    other = await sites.a.host("a2", "gold-a")
    sites.source.machines.remove(sites.vm)
    other.machines.append(sites.vm)
    sites.a.report()

    async def moved() -> bool:
        return (await vms(sites)).get("web01") == "a2"

    await until(moved)
    assert list(await vms(sites)) == ["web01"]


async def test_copies_of_a_test_are_not_vms(sites: Scene):
    copy = machine("web01 - Test")
    copy.purpose = "test"
    sites.source.machines.append(copy)
    other = machine("other")
    sites.source.machines.append(other)
    sites.a.report()

    async def seen() -> bool:
        return "other" in await vms(sites)

    await until(seen)
    assert set(await vms(sites)) == {"web01", "other"}


async def test_a_result_that_was_not_confirmed_is_sent_again_and_counts_once(sites: Scene):
    await sites.protect()
    answer = await sites.admin.machines.Test(admin_pb2.TestRequest(name="web01"))
    assert (await sites.ended(answer)).state == "succeeded"
    await until(lambda: set(sites.b.ledger) == sites.b.stored)
    sites.b.stored.clear()
    done = list(sites.target.done)
    async with sites.b.connected():
        await until(lambda: set(sites.b.ledger) == sites.b.stored)
    assert sites.target.done == done
    assert len((await sites.protection()).tests) == 1


async def test_commands_wait_for_a_provider_that_is_away(sites: Scene):
    away = FakeSite(sites.plane.identity, sites.b.member, sites.b.clouds, sites.b.hosts)
    await sites.protect()
    async with away.connected():  # ends the first session
        await until(lambda: sites.b.ended)

    async def alone() -> bool:
        return not (await sites.admin.servers.Show(admin_pb2.ShowRequest(name="vmm-b"))).connected

    await until(alone)
    answer = await sites.admin.machines.Test(admin_pb2.TestRequest(name="web01"))
    assert any("not connected" in sentence for sentence in answer.warnings)
    async with away.connected():
        assert (await sites.ended(answer)).state == "succeeded"
