"""What `vm show` counts is counted since the protection began: it never falls, whoever restarts."""

from pathlib import Path

from coordinator.inventory.model import stamp
from coordinator.store.engine import Database
from tests.fakes.control_plane import ControlPlane
from tests.fakes.scene import Scene, scene
from tests.fakes.site import until
from twinsite.api.coordinator.v1 import admin_pb2

FIRST, SECOND = 1_800_000_000.25, 1_800_009_000.5


async def counted(sites: Scene, since: float, cycles: int, changed: int, sent: int, *, shown: tuple[int, ...]) -> None:
    """A source says this; then that is shown."""
    sites.a.state(
        sites.vm.id, "source", cycles=cycles, changed_bytes=changed, wire_bytes=sent, counted_since=stamp(since)
    )
    await until(lambda: told(sites, shown))


async def told(sites: Scene, shown: tuple[int, ...]) -> bool:
    protection = await sites.protection()
    return (protection.cycles, protection.changed_bytes, protection.wire_bytes) == shown


async def test_a_source_that_counts_anew_is_added_to_what_was_counted(sites: Scene):
    await sites.protect()
    await counted(sites, FIRST, 10, 4000, 1000, shown=(10, 4000, 1000))
    sites.a.state(sites.vm.id, "source", "waiting", last_cycle_seconds=0.5)  # restarted, and counts nothing yet

    async def heard() -> bool:
        return (await sites.protection()).last_cycle_seconds == 0.5

    await until(heard)
    assert await told(sites, (10, 4000, 1000))
    await counted(sites, FIRST, 12, 5000, 1200, shown=(12, 5000, 1200))  # it went on with its count
    await counted(sites, SECOND, 1, 50, 10, shown=(13, 5050, 1210))  # its state was lost: a count of its own
    await counted(sites, SECOND, 3, 70, 30, shown=(15, 5070, 1230))


async def test_a_count_that_goes_back_is_waited_for(sites: Scene):
    await sites.protect()
    await counted(sites, FIRST, 10, 4000, 1000, shown=(10, 4000, 1000))
    await counted(sites, FIRST, 11, 3900, 900, shown=(11, 4000, 1000))
    await counted(sites, FIRST, 12, 4100, 1050, shown=(12, 4100, 1050))


async def test_a_host_cannot_count_more_than_the_database_holds(sites: Scene):
    await sites.protect()
    most = 2**63 - 1
    await counted(sites, FIRST, 5, 2**64 - 1, 7, shown=(5, most, 7))
    await counted(sites, SECOND, 1, 2**64 - 1, 7, shown=(6, most, 14))


async def test_a_restart_of_the_coordinator_forgets_no_count(tmp_path: Path, database: Database):
    async with scene(tmp_path / "state", database) as sites:
        await sites.protect()
        await counted(sites, FIRST, 10, 4000, 1000, shown=(10, 4000, 1000))
        await counted(sites, SECOND, 1, 50, 10, shown=(11, 4050, 1010))
    async with ControlPlane.started(tmp_path / "state", database, sites.clock) as plane:
        sites.a.plane = sites.b.plane = plane.identity
        async with plane.admin(sites.owner) as admin:
            shown = (await admin.machines.Show(admin_pb2.ShowRequest(name="web01"))).protection
            assert (shown.cycles, shown.changed_bytes, shown.wire_bytes) == (11, 4050, 1010)


async def test_a_vm_that_is_protected_again_is_counted_from_nothing(sites: Scene):
    await sites.protect()
    await counted(sites, FIRST, 10, 4000, 1000, shown=(10, 4000, 1000))
    request = admin_pb2.MachineActionRequest(name="web01", keep_replica=True, reason="test")
    await sites.ended(await sites.admin.machines.Unprotect(request))
    await sites.admin.machines.Protect(admin_pb2.ProtectRequest(name="web01"))
    await until(lambda: sites.a.assigned(sites.source, sites.vm.id))
    assert await told(sites, (0, 0, 0))
