"""What hosts measured, from a provider's session to an administrator's table."""

import uuid

import pytest

from coordinator.statistics.model import DAY, KEPT
from coordinator.statistics.store import rows_of
from tests.fakes.scene import Scene
from tests.fakes.site import FakeHost, FakeSite, until
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2
from twinsite.errors import InvalidInput, NotFound

DISK = str(uuid.uuid4())


def minute(sites: Scene, ago: int = 1, **fields: object) -> types_pb2.Sample:
    """A sample of so many minutes ago."""
    start = int(sites.clock.now()) // 60 * 60 - 60 * ago
    numbers = {"vm_id": sites.vm.id, "start_unix": start, "cycles": 2, "changed_bytes": 1000, "wire_bytes": 500}
    return types_pb2.Sample(**numbers | fields)  # type: ignore[arg-type]  # the test's own


async def store(sites: Scene, *samples: types_pb2.Sample, site: FakeSite | None = None, host: FakeHost | None = None):
    """Send a batch and wait for the answer."""
    site, host = site or sites.a, host or sites.source
    number = len(site.samples_stored) + 1
    site.samples(host, number, *samples)
    await until(lambda: (host.id, number) in site.samples_stored)


async def stats(sites: Scene, name: str = "web01", **options: object) -> admin_pb2.StatsResponse:
    return await sites.admin.machines.Stats(admin_pb2.StatsRequest(name=name, **options))  # type: ignore[arg-type]


async def test_what_a_source_host_measured_is_shown_and_a_repeat_changes_nothing(sites: Scene) -> None:
    await sites.protect()
    causes = types_pb2.Causes(network=3.0, cap=1.0)
    disks = [types_pb2.DiskChange(disk_id=DISK, changed_bytes=1000)]
    numbers = {"missed": 1, "failures": 2, "content_bytes": 800, "rpo_max_seconds": 40.5, "seconds_max": 3.0}
    first = minute(sites, 2, seconds_sum=4.0, causes=causes, disks=disks, **numbers)
    for _ in range(3):
        await store(sites, first, minute(sites, 1))
    found = await stats(sites)
    assert len(found.rows) == 2
    row = found.rows[0]
    assert row.start.seconds == first.start_unix
    assert (row.resolution_seconds, row.cycles, row.missed, row.failures) == (60, 2, 1, 2)
    assert (row.changed_bytes, row.content_bytes, row.wire_bytes) == (1000, 800, 500)
    assert (row.rpo_max_seconds, row.seconds_max, row.seconds_sum) == (40.5, 3.0, 4.0)
    assert row.causes == causes
    assert list(row.disks) == disks
    assert found.protected_since.seconds > sites.clock.now() - 3600


async def test_a_host_speaks_only_of_vms_it_is_the_source_of_and_is_answered_all_the_same(sites: Scene) -> None:
    await sites.protect()
    await store(sites, minute(sites), site=sites.b, host=sites.target)  # the target
    await store(sites, minute(sites), site=sites.b, host=sites.source)  # another server
    await store(sites, minute(sites, vm_id=str(uuid.uuid4())))  # not protected
    assert (await stats(sites)).rows == []
    await store(sites, minute(sites))
    assert len((await stats(sites)).rows) == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"start_unix": 61},
        {"start_unix": 4_000_000_020},
        {"start_unix": -60},
        {"cycles": 2**32 - 1},
        {"wire_bytes": 2**64 - 1},
        {"rpo_max_seconds": float("nan")},
        {"seconds_sum": float("inf")},
        {"seconds_max": -1.0},
        {"causes": types_pb2.Causes(turn=-5.0)},
        {"disks": [types_pb2.DiskChange(disk_id="../../etc", changed_bytes=1)]},
        {"disks": [types_pb2.DiskChange(disk_id=DISK), types_pb2.DiskChange(disk_id=DISK)]},
        {"disks": [types_pb2.DiskChange(disk_id=str(uuid.UUID(int=number))) for number in range(65)]},
    ],
)
async def test_impossible_numbers_are_left_out_and_the_rest_is_kept(sites: Scene, fields: dict[str, object]) -> None:
    await sites.protect()
    await store(sites, minute(sites, 1, **fields), minute(sites, 2))
    assert [row.start.seconds for row in (await stats(sites)).rows] == [minute(sites, 2).start_unix]


async def test_the_longer_the_time_the_coarser_the_rows(sites: Scene) -> None:
    await sites.protect()
    await store(sites, *(minute(sites, ago) for ago in range(1, 121)))
    sizes = {}
    for days in (1, 2, 5, 7, 20, 30):
        rows = (await stats(sites, since_seconds=days * DAY)).rows
        sizes[days] = {row.resolution_seconds for row in rows}
        assert sum(row.cycles for row in rows) == 240
    assert sizes == {1: {60}, 2: {60}, 5: {900}, 7: {900}, 20: {3600}, 30: {3600}}
    assert len((await stats(sites, since_seconds=600)).rows) == 10
    with pytest.raises(InvalidInput) as refused:
        await stats(sites, since_seconds=31 * DAY)
    assert refused.value.code == "SPAN_TOO_LONG"
    for pair, name in ((False, "web01"), (True, "gold-a:gold-b")):
        with pytest.raises(InvalidInput) as nothing:
            await stats(sites, name, pair=pair, since_seconds=0)
        assert nothing.value.code == "SPAN_TOO_SHORT"


async def test_a_pair_shows_all_its_vms_together(sites: Scene) -> None:
    await sites.protect()
    await store(sites, minute(sites, 2), minute(sites, 1))
    found = await stats(sites, "gold-a:gold-b", pair=True)
    assert [row.cycles for row in found.rows] == [2, 2]
    assert (found.vms, found.protected_since.seconds > 0) == (1, True)
    with pytest.raises(NotFound):
        await stats(sites, "gold-b:gold-a", pair=True)
    with pytest.raises(NotFound) as of_a_vm:
        await stats(sites, "gold-a:gold-b")
    assert of_a_vm.value.text("next_step") == "twinsite vm stats gold-a:gold-b --pair"


async def test_before_anything_was_measured_it_is_told_since_when_that_could_be(sites: Scene) -> None:
    found = await stats(sites)
    assert (len(found.rows), found.HasField("protected_since")) == (0, False)
    await sites.protect()
    found = await stats(sites)
    assert (len(found.rows), found.HasField("protected_since")) == (0, True)
    with pytest.raises(NotFound):
        await stats(sites, "nobody")


async def test_too_many_at_once_are_not_answered_and_the_session_goes_on(sites: Scene) -> None:
    await sites.protect()
    sites.a.samples(sites.source, 99, *(minute(sites, ago) for ago in range(1, 1100)))
    await store(sites, minute(sites))
    assert (sites.source.id, 99) not in sites.a.samples_stored
    assert len((await stats(sites)).rows) == 1


async def test_explain_names_the_cause_that_was_measured(sites: Scene) -> None:
    unprotected = await sites.admin.machines.Explain(admin_pb2.ShowRequest(name="web01"))
    assert unprotected.verdict == "web01 is not protected: nothing is replicated"
    await sites.protect()
    calm = await sites.admin.machines.Explain(admin_pb2.ShowRequest(name="web01"))
    assert calm.verdict == "web01 is replicated in time"
    assert not calm.remedies
    sites.clock.advance(300)
    slow = {"cycles": 1, "missed": 1, "seconds_sum": 60.0, "seconds_max": 60.0}
    disks = [
        types_pb2.DiskChange(disk_id=disk.id, changed_bytes=count)
        for disk, count in zip(sites.vm.disks, (95, 5), strict=True)
    ]
    causes = types_pb2.Causes(target=50.0, network=10.0)
    await store(sites, *(minute(sites, ago, causes=causes, disks=disks, **slow) for ago in range(1, 6)))
    found = await sites.admin.machines.Explain(admin_pb2.ShowRequest(name="web01"))
    assert found.verdict == "web01 is late: b1 writes slowly: that takes 83 % of each cycle"
    assert "disk vda brings 95 % of the changes" in found.facts
    assert found.remedies


async def test_old_minutes_are_forgotten_by_the_duty(sites: Scene) -> None:
    await sites.protect()
    await store(sites, minute(sites))
    assert len((await stats(sites)).rows) == 1
    sites.clock.advance(31 * DAY)
    while await sites.plane.statistics.expire():
        pass
    async with sites.database.read() as connection:
        for resolution in KEPT:
            assert await rows_of(connection, sites.vm.id, resolution, 0) == []
