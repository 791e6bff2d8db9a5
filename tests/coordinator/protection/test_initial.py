"""Initial replication at a chosen time, from an image at the target, and on media."""

from pathlib import Path

import pytest

from coordinator.store.engine import Database
from tests.fakes.control_plane import ControlPlane
from tests.fakes.scene import Scene, scene
from tests.fakes.site import stamp, until
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2
from twinsite.errors import Denied, InvalidInput, Precondition

HOUR = 3600
DAY = 86400
OFFLINE = types_pb2.InitialReplication.METHOD_OFFLINE


def request(
    start: float = 0.0, *, offline: bool = False, existing: dict[str, str] | None = None, dry_run: bool = False
):
    initial = types_pb2.InitialReplication(method=OFFLINE if offline else 0, start_at=stamp(start) if start else None)
    return admin_pb2.ProtectRequest(name="web01", initial=initial, existing=existing or {}, dry_run=dry_run)


def action(**fields) -> admin_pb2.MachineActionRequest:
    return admin_pb2.MachineActionRequest(name="web01", **fields)


async def begin(sites: Scene, wanted: admin_pb2.ProtectRequest) -> str:
    """The job, once both hosts are told."""
    await sites.pair()
    job_id = (await sites.admin.machines.Protect(wanted)).job_id
    await until(lambda: sites.a.assigned(sites.source, sites.vm.id) and sites.b.assigned(sites.target, sites.vm.id))
    return job_id


async def message(sites: Scene, job_id: str) -> str:
    job = await sites.plane.jobs.get(job_id)
    return next(task.message for task in job.tasks if task.kind == "protect.initial")


async def test_what_cannot_be_is_refused_and_changes_nothing(sites: Scene):
    await sites.pair()
    now = sites.clock.now()
    disk = sites.vm.disks[0]
    for wrong, code in (
        (request(now - HOUR), "INVALID_START"),
        (request(now + 7 * DAY + HOUR), "INVALID_START"),
        (request(offline=True, existing={"vda": "/images/a.qcow2"}), "SEED_AND_IMAGE"),
        (request(existing={"vdz": "/images/a.qcow2"}), "NO_SUCH_DISK"),
        (request(existing={"vda": "/images/a.qcow2", disk.id: "/images/b.qcow2"}), "NO_SUCH_DISK"),
        (request(existing={"vda": "images/a.qcow2"}), "INVALID_PATH"),
        (request(existing={"vda": "/images/../etc/shadow"}), "INVALID_PATH"),
        (request(existing={"vda": "/images/a\nb"}), "INVALID_PATH"),
    ):
        with pytest.raises(InvalidInput) as refused:
            await sites.admin.machines.Protect(wrong)
        assert refused.value.code == code
        assert refused.value.text("next_step")
    assert not (await sites.show()).HasField("protection")


async def test_a_replication_that_begins_later_waits_and_says_until_when(sites: Scene):
    at = sites.clock.now() + 2 * HOUR
    await sites.pair()
    foretold = await sites.admin.machines.Protect(request(at, dry_run=True))
    assert any("in 2h00m" in sentence for sentence in foretold.consequences)
    job_id = (await sites.admin.machines.Protect(request(at))).job_id
    await until(lambda: sites.a.assigned(sites.source, sites.vm.id))
    assigned = sites.a.assigned(sites.source, sites.vm.id)
    assert assigned.initial.start_at == stamp(at)

    async def waits() -> bool:
        return "waits until" in await message(sites, job_id)

    await until(waits)
    shown = await sites.protection()
    assert shown.initial_start == stamp(at)
    assert shown.health == "warning"
    assert "begins in" in shown.reason


async def test_a_waiting_replication_is_begun_now_by_a_command_or_cancelled(sites: Scene):
    job_id = await begin(sites, request(sites.clock.now() + DAY))
    foretold = await sites.admin.machines.StartInitial(action(dry_run=True))
    assert foretold.consequences
    await sites.admin.machines.StartInitial(action(reason="line is free"))
    await until(lambda: not sites.a.assigned(sites.source, sites.vm.id).initial.HasField("start_at"))
    assert not (await sites.protection()).HasField("initial_start")
    assert await sites.audited("vm.start-initial") == [{"reason": "line is free"}]
    with pytest.raises(Precondition) as refused:
        await sites.admin.machines.StartInitial(action())
    assert refused.value.code == "NOT_SCHEDULED"
    await sites.plane.jobs.cancel(job_id, "root")
    assert (await sites.plane.ended(job_id)).state == "cancelled"
    assert not (await sites.show()).HasField("protection")


async def test_images_at_the_target_are_named_to_it_by_disk_id(sites: Scene):
    job_id = await begin(sites, request(existing={"vdb": "/images/template.qcow2"}))
    order = next(one.prepare_replica for one in sites.target.orders if one.HasField("prepare_replica"))
    assert dict(order.existing) == {sites.vm.disks[1].id: "/images/template.qcow2"}
    assert (await sites.audited("vm.protect"))[0]["existing_vdb"] == "/images/template.qcow2"
    await sites.plane.jobs.cancel(job_id, "root")
    await sites.plane.ended(job_id)


# ---- seeds -------------------------------------------------------------------------------------------------------


def seed(path: str = "/media/disk1", **fields) -> admin_pb2.SeedRequest:
    return admin_pb2.SeedRequest(name="web01", path=path, **fields)


async def refusal(method, wanted) -> str:
    with pytest.raises((Precondition, InvalidInput)) as refused:
        await method(wanted)
    assert refused.value.text("next_step")
    return refused.value.code


async def awaiting(sites: Scene) -> str:
    job_id = await begin(sites, request(offline=True))
    sites.b.state(sites.vm.id, "target", awaiting_seed=True, committed_cycle=1)

    async def told() -> bool:
        return "waits for its seed: twinsite seed export web01" in await message(sites, job_id)

    await until(told)
    return job_id


async def test_a_vm_goes_to_its_target_on_media(sites: Scene):
    job_id = await awaiting(sites)
    assert sites.a.assigned(sites.source, sites.vm.id).initial.method == OFFLINE
    shown = await sites.protection()
    assert shown.awaiting_seed
    assert shown.health == "warning"
    assert "waits for its seed" in shown.reason

    foretold = await sites.admin.machines.SeedExport(seed(dry_run=True))
    assert any("3.0 GiB" in sentence for sentence in foretold.consequences)
    asked = await sites.ended(foretold)
    assert (asked.kind, asked.state, asked.result["note"]) == ("seed.check-export", "succeeded", "the path will do")
    assert sites.source.done[-1] == "check_seed_export"
    exported = await sites.ended(await sites.admin.machines.SeedExport(seed()))
    assert exported.state == "succeeded"
    assert exported.result["seed"] == "seed-1"
    order = sites.source.orders[-1].seed_export
    assert order.path == "/media/disk1"
    assert b"BEGIN CERTIFICATE" in order.target_certificate
    assert order.target_certificate.count(b"BEGIN") == 1
    assert list(order.hypervisor_addresses) == ["127.0.0.1"]

    imported = await sites.ended(await sites.admin.machines.SeedImport(seed()))
    assert imported.state == "succeeded"
    assert sites.target.orders[-1].seed_import.path == "/media/disk1"
    sites.b.state(sites.vm.id, "target", committed_cycle=2)
    sites.commit(age=3)
    assert (await sites.plane.ended(job_id)).state == "succeeded"
    await until(lambda: not sites.a.assigned(sites.source, sites.vm.id).HasField("initial"))
    assert await refusal(sites.admin.machines.SeedImport, seed()) == "SEED_NOT_AWAITED"
    for action_ in ("vm.seed-export", "vm.seed-exported", "vm.seed-import", "vm.seed-imported"):
        assert (await sites.audited(action_))[0]["path"] == "/media/disk1"


async def test_seeds_are_refused_where_they_make_no_sense(sites: Scene):
    machines = sites.admin.machines
    assert await refusal(machines.SeedExport, seed()) == "NOT_PROTECTED"
    assert await refusal(machines.SeedExport, seed("disk1")) == "INVALID_PATH"
    await begin(sites, request(offline=True))
    assert await refusal(machines.SeedExport, seed()) == "SEED_TOO_EARLY"
    sites.b.state(sites.vm.id, "target", committed_cycle=1)

    async def over() -> bool:
        return await refusal(machines.SeedExport, seed()) == "SEED_NOT_AWAITED"

    await until(over)
    recovery = await sites.plane.identity.user("rita", "recovery")
    async with sites.plane.admin(recovery) as admin:
        with pytest.raises(Denied):
            await admin.machines.SeedExport(seed())


async def test_a_vm_that_replicates_over_the_network_needs_no_seed(sites: Scene):
    await sites.protect()
    assert await refusal(sites.admin.machines.SeedExport, seed()) == "NOT_OFFLINE"


async def test_one_seed_at_a_time_and_a_cancel_rolls_back(sites: Scene):
    await awaiting(sites)
    sites.source.stuck.add("seed_export")
    first = await sites.admin.machines.SeedExport(seed())
    await until(lambda: "seed_export" in sites.source.done)
    assert await refusal(sites.admin.machines.SeedExport, seed("/media/other")) == "SEED_RUNNING"
    assert await refusal(sites.admin.machines.SeedImport, seed()) == "SEED_RUNNING"
    await sites.plane.jobs.cancel(first.job_id, "root")
    assert (await sites.ended(first)).state == "cancelled"
    assert sites.a.cancelled


async def test_a_seed_that_fails_says_why(sites: Scene):
    await awaiting(sites)
    sites.target.refuse["seed_import"] = types_pb2.ErrorDetail(code="SEED_OF_ANOTHER_VM", message="it is of web07")
    job = await sites.ended(await sites.admin.machines.SeedImport(seed()))
    assert job.state == "failed"
    assert job.error is not None
    assert job.error.code == "SEED_OF_ANOTHER_VM"


async def test_a_dry_run_of_a_seed_asks_the_host_and_says_what_it_refuses(sites: Scene):
    await awaiting(sites)
    wrong = types_pb2.ErrorDetail(code="SEED_PATH_MISSING", message="/media/disk1 is no directory on host b1")
    sites.target.refuse["check_seed_import"] = wrong
    job = await sites.ended(await sites.admin.machines.SeedImport(seed(dry_run=True)))
    assert job.state == "failed"
    assert job.error is not None
    assert job.error.code == "SEED_PATH_MISSING"
    assert "seed_import" not in sites.target.done
    assert await sites.audited("vm.seed-import") == []
    assert (await sites.protection()).awaiting_seed


async def test_what_has_a_point_waits_for_no_seed(sites: Scene):
    job_id = await awaiting(sites)
    first = types_pb2.Point(vm_id=sites.vm.id, cycle=2, instant=stamp(sites.clock.now()), consistency="crash", term=1)
    sites.target.points[sites.vm.id] = [first]
    sites.b.send_points(sites.target, sites.vm.id)  # heard of before the status that goes with it
    assert (await sites.plane.ended(job_id)).state == "succeeded"
    shown = await sites.protection()
    assert shown.points
    assert not shown.awaiting_seed


async def test_an_export_repeated_with_its_id_is_one_job(sites: Scene):
    await awaiting(sites)
    metadata = (("twinsite-request-id", "0c5a7e1e-0000-4000-8000-000000000004"),)
    first = await sites.admin.machines.SeedExport(seed(), metadata=metadata)
    await sites.ended(first)
    assert await sites.admin.machines.SeedExport(seed(), metadata=metadata) == first
    assert sites.source.done.count("seed_export") == 1


async def test_a_restart_forgets_neither_the_start_nor_the_seed_that_is_being_written(
    tmp_path: Path, database: Database
):
    async with scene(tmp_path / "state", database) as sites:
        at = sites.clock.now() + 600
        job_id = await begin(sites, request(at, offline=True))
        sites.clock.advance(1200)
        sites.b.state(sites.vm.id, "target", awaiting_seed=True, committed_cycle=1)

        async def awaited() -> bool:
            return (await sites.protection()).awaiting_seed

        await until(awaited)
        sites.source.stuck.add("seed_export")
        export = await sites.admin.machines.SeedExport(seed())
        await until(lambda: "seed_export" in sites.source.done)
    sites.source.stuck.clear()
    for command_id, result in list(sites.a.ledger.items()):  # the host goes on where it was
        if result is None:
            del sites.a.ledger[command_id]
    async with ControlPlane.started(tmp_path / "state", database, sites.clock) as plane:
        sites.a.plane = sites.b.plane = plane.identity
        async with sites.a.connected(), sites.b.connected():
            assert (await plane.ended(export.job_id)).state == "succeeded"
            assigned = sites.a.assigned(sites.source, sites.vm.id)
            assert (assigned.initial.method, assigned.initial.start_at) == (OFFLINE, stamp(at))
            sites.commit()
            assert (await plane.ended(job_id)).state == "succeeded"
