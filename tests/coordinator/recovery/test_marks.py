"""Points that are kept, named and locked; replicas that are checked."""

import json

import pytest

from tests.fakes.scene import Scene
from tests.fakes.site import until
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import commands_pb2
from twinsite.errors import Denied, InvalidInput, NotFound, Precondition

DAY = 86400


def mark(cycle: int = 2, **fields) -> admin_pb2.MarkPointRequest:
    return admin_pb2.MarkPointRequest(vm="web01", cycle=cycle, **fields)


def verify(**fields) -> admin_pb2.VerifyRequest:
    return admin_pb2.VerifyRequest(name="web01", **fields)


async def point(sites: Scene):
    return (await sites.admin.points.List(admin_pb2.ShowRequest(name="web01"))).points[0]


async def test_a_point_is_pinned_named_and_unpinned(sites: Scene):
    await sites.protect()
    foretold = await sites.admin.points.Mark(mark(keep=True, name="before the update", dry_run=True))
    assert len(foretold.consequences) == 2
    assert "mark_point" not in sites.target.done
    job = await sites.ended(await sites.admin.points.Mark(mark(keep=True, name="before the update", reason="v2")))
    assert job.state == "succeeded"
    assert job.result["name"] == "before the update"
    kept = await point(sites)
    assert (kept.kept, kept.name) == (True, "before the update")
    again = await sites.admin.points.Mark(mark(keep=True))
    assert not again.job_id
    assert "nothing was changed" in again.warnings[0]
    await sites.ended(await sites.admin.points.Mark(mark(keep=False, name="")))
    assert not (await point(sites)).kept
    facts = (await sites.audited("point.mark"))[-1]
    assert (facts["cycle"], facts["kept"], facts["reason"]) == ("2", "true", "v2")


async def test_a_lock_is_lengthened_and_never_shortened_and_holds_the_replica(sites: Scene):
    await sites.protect()
    foretold = await sites.admin.points.Mark(mark(lock_seconds=30 * DAY, dry_run=True))
    assert "cannot be undone" in foretold.consequences[0]
    assert (await sites.ended(await sites.admin.points.Mark(mark(lock_seconds=30 * DAY)))).state == "succeeded"
    order = sites.target.orders[-1].mark_point
    assert 30 * DAY - 60 <= order.lock_seconds <= 30 * DAY + 1
    assert not order.HasField("keep")
    assert (await point(sites)).HasField("locked_until")
    with pytest.raises(Precondition) as refused:
        await sites.admin.points.Mark(mark(lock_seconds=DAY))
    assert refused.value.code == "LOCK_NOT_SHORTENED"
    assert (await sites.ended(await sites.admin.points.Mark(mark(lock_seconds=60 * DAY)))).state == "succeeded"

    delete = admin_pb2.MachineActionRequest(name="web01", delete_replica=True, dry_run=True)
    for wanted in (delete, admin_pb2.MachineActionRequest(name="web01")):  # the pair's policy deletes, too
        with pytest.raises(Precondition) as refused:
            await sites.admin.machines.Unprotect(wanted)
        assert refused.value.code == "POINTS_LOCKED"
        assert "--keep-replica" in refused.value.text("next_step")
    kept = admin_pb2.MachineActionRequest(name="web01", keep_replica=True)
    assert (await sites.ended(await sites.admin.machines.Unprotect(kept))).state == "succeeded"


async def test_wrong_marks_are_refused_and_change_nothing(sites: Scene):
    await sites.protect()
    for wrong, error, code in (
        (mark(), InvalidInput, "NOTHING_TO_MARK"),
        (mark(99, keep=True), NotFound, "POINT_MISSING"),
        (mark(1, keep=True), NotFound, "POINT_MISSING"),  # the initial copy is no point in time
        (mark(name="../x"), InvalidInput, "INVALID_NAME"),
        (mark(lock_seconds=0), InvalidInput, "INVALID_LOCK"),
        (mark(lock_seconds=2**40), InvalidInput, "INVALID_LOCK"),
    ):
        with pytest.raises(error) as refused:
            await sites.admin.points.Mark(wrong)
        assert refused.value.code == code
    recovery = await sites.plane.identity.user("rita", "recovery")
    async with sites.plane.admin(recovery) as admin:
        with pytest.raises(Denied):
            await admin.points.Mark(mark(keep=True))
        assert (await admin.machines.Verify(verify(dry_run=True))).consequences
    assert "mark_point" not in sites.target.done


async def test_a_mark_repeated_with_its_id_is_one_job(sites: Scene):
    await sites.protect()
    metadata = (("twinsite-request-id", "0c5a7e1e-0000-4000-8000-000000000003"),)
    first = await sites.admin.points.Mark(mark(keep=True), metadata=metadata)
    await sites.ended(first)
    assert await sites.admin.points.Mark(mark(keep=True), metadata=metadata) == first
    assert sites.target.done.count("mark_point") == 1


async def test_a_replica_without_damage_verifies_with_success(sites: Scene):
    await sites.protect()
    sites.target.verified = commands_pb2.Verified(checked_bytes=4096)
    job = await sites.ended(await sites.admin.machines.Verify(verify(cycle=2)))
    assert job.state == "succeeded"
    assert job.result["checked_bytes"] == "4096"
    assert json.loads(job.result["damage"]) == []
    order = sites.target.orders[-1].verify_replica
    assert (order.cycle, order.repair) == (2, False)
    assert (await sites.audited("vm.verified"))[0] == {"damaged": "0", "repaired": "0"}
    with pytest.raises(NotFound):
        await sites.admin.machines.Verify(verify(cycle=77))


async def test_damage_that_remains_is_named_and_the_job_completes_with_errors(sites: Scene):
    await sites.protect()
    damage = commands_pb2.Damage(
        disk_id=sites.vm.disks[0].id, file="000002.qcow2", cluster=7, problem="fingerprint", points=[2]
    )
    sites.target.verified = commands_pb2.Verified(checked_bytes=8192, damage=[damage], damaged_clusters=1)
    job = await sites.ended(await sites.admin.machines.Verify(verify()))
    assert job.state == "completed_with_errors"
    assert job.error is not None
    assert (job.error.code, job.error.next_step) == ("DAMAGE_REMAINS", "twinsite vm verify web01 --repair")
    (found,) = json.loads(job.result["damage"])
    assert (found["file"], found["cluster"], found["points"]) == ("000002.qcow2", 7, [2])

    sites.target.verified.wanted_clusters = 1
    job = await sites.ended(await sites.admin.machines.Verify(verify(repair=True)))
    assert job.error is not None
    assert "next cycles" in job.error.next_step
    sites.target.verified.wanted_clusters, sites.target.verified.tried_clusters = 0, 1
    job = await sites.ended(await sites.admin.machines.Verify(verify()))
    assert job.error is not None
    assert "repair was tried" in job.error.next_step
    assert "--repair" not in job.error.next_step
    sites.target.verified.repaired_clusters, sites.target.verified.damaged_clusters = 1, 0
    job = await sites.ended(await sites.admin.machines.Verify(verify(repair=True)))
    assert job.state == "succeeded"


async def test_a_host_that_is_away_marks_when_it_is_back(sites: Scene):
    await sites.protect()
    sites.target.connected = False
    sites.b.report()

    async def gone() -> bool:
        return bool((await sites.admin.points.Mark(mark(keep=True, dry_run=True))).warnings)

    await until(gone)
    answer = await sites.admin.points.Mark(mark(keep=True))
    sites.target.connected = True
    for command_id, result in list(sites.b.ledger.items()):
        if result is None:
            del sites.b.ledger[command_id]
    async with sites.b.connected():
        assert (await sites.ended(answer)).state == "succeeded"
