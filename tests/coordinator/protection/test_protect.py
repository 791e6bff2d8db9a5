"""Protecting a VM: what is refused, what a failure leaves behind, what a restart changes."""

import asyncio
from pathlib import Path

import pytest

from coordinator.store.engine import Database
from tests.fakes.control_plane import EMPTY, ControlPlane
from tests.fakes.scene import Scene, scene
from tests.fakes.site import GIB, machine, until
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2
from twinsite.errors import Conflict, InvalidInput, NotFound, Precondition

NO_SPACE = types_pb2.ErrorDetail(code="NO_SPACE", message="the store is full", next_step="make room")


def request(name: str = "web01", **fields: object) -> admin_pb2.ProtectRequest:
    return admin_pb2.ProtectRequest(name=name, **fields)  # type: ignore[arg-type]  # the test's own


async def refusal(sites: Scene, wanted: admin_pb2.ProtectRequest) -> str:
    with pytest.raises((Precondition, NotFound, Conflict, InvalidInput)) as refused:
        await sites.admin.machines.Protect(wanted)
    assert refused.value.text("next_step")
    return refused.value.code


async def machines(sites: Scene) -> set[str]:
    return {view.name for view in (await sites.admin.machines.List(EMPTY)).machines}


async def test_wrong_requests_are_refused_and_change_nothing(sites: Scene):
    assert await refusal(sites, request()) == "NOT_IN_SOURCE_CLOUD"
    await sites.pair()
    diskless = machine("diskless")
    del diskless.disks[:]
    copy = machine("copy")
    copy.purpose = "replica"
    sites.source.machines += [diskless, copy]
    sites.target.machines.append(machine("theirs"))
    sites.a.report()
    sites.b.report()

    async def known() -> bool:
        return {"diskless", "copy", "theirs"} <= await machines(sites)

    await until(known)
    assert await refusal(sites, request("nobody")) == "UNKNOWN"
    assert await refusal(sites, request("diskless")) == "NO_DISKS"
    assert await refusal(sites, request("copy")) == "NOT_AN_ORIGINAL"
    assert await refusal(sites, request("theirs")) == "NOT_IN_SOURCE_CLOUD"
    assert await refusal(sites, request("theirs", pair="gold-a:gold-b")) == "NOT_IN_SOURCE_CLOUD"
    assert await refusal(sites, request(pair="no:pair")) == "UNKNOWN"
    assert await refusal(sites, request(target_host="a1")) == "HOST_NOT_IN_TARGET"
    assert await refusal(sites, request(target_host="nowhere")) == "UNKNOWN"
    assert not await sites.audited("vm.protect")
    assert not sites.source.done
    assert not sites.target.done


async def test_a_vm_that_is_not_reported_any_more_cannot_be_protected_and_is_not_forgotten(sites: Scene):
    await sites.pair()
    sites.source.machines.clear()
    sites.a.report()

    async def missing() -> bool:
        return bool(await sites.audited("vm.missing"))

    await until(missing)
    assert await refusal(sites, request()) == "MACHINE_IS_MISSING"
    assert await machines(sites) == {"web01"}


async def test_a_vm_is_protected_once(sites: Scene):
    await sites.protect()
    assert await refusal(sites, request()) == "ALREADY_PROTECTED"


async def test_ids_and_their_prefixes_name_a_vm(sites: Scene):
    for name in (sites.vm.id, sites.vm.id[:8], "gold-a/web01"):
        assert (await sites.admin.machines.Show(admin_pb2.ShowRequest(name=name))).name == "web01"
    with pytest.raises(NotFound):
        await sites.admin.machines.Show(admin_pb2.ShowRequest(name=sites.vm.id[:7]))


async def test_a_dry_run_tells_the_size_the_host_and_what_is_missing(sites: Scene):
    await sites.pair()
    sites.target.free = GIB
    sites.b.report()

    async def reported() -> bool:
        return (await sites.admin.hosts.Show(admin_pb2.ShowRequest(name="b1"))).status.store_free_bytes == GIB

    await until(reported)
    answer = await sites.admin.machines.Protect(request(dry_run=True))
    assert not answer.job_id
    assert any("3.0 GiB" in sentence and "b1" in sentence for sentence in answer.consequences)
    assert any("less free" in sentence for sentence in answer.warnings)
    assert not (await sites.show()).HasField("protection")


async def test_the_host_with_most_free_space_is_chosen_unless_one_is_named(sites: Scene):
    roomy = await sites.b.host("b2", "gold-b", free=150 * GIB)
    sites.b.report()

    async def both() -> bool:
        return len([host for host in (await sites.admin.hosts.List(EMPTY)).hosts if host.cloud == "gold-b"]) == 2

    await until(both)
    await sites.pair()
    assert "b2" in (await sites.admin.machines.Protect(request(dry_run=True))).consequences[0]
    named = await sites.admin.machines.Protect(request(target_host="b1"))
    await until(lambda: "prepare_replica" in sites.target.done)
    assert not roomy.done
    await sites.plane.jobs.cancel(named.job_id, "root")
    await sites.ended(named)


async def test_no_connected_target_host_is_said_so(sites: Scene):
    await sites.pair()
    sites.target.connected = False
    sites.b.report()

    async def gone() -> bool:
        return not (await sites.admin.hosts.Show(admin_pb2.ShowRequest(name="b1"))).connected

    await until(gone)
    assert await refusal(sites, request()) == "NO_TARGET_HOST"


async def test_a_target_that_cannot_leaves_nothing_behind(sites: Scene):
    await sites.pair()
    sites.target.refuse["prepare_replica"] = NO_SPACE
    job = await sites.ended(await sites.admin.machines.Protect(request()))
    assert job.state == "failed"
    assert job.error is not None
    assert (job.error.code, job.error.next_step) == ("NO_SPACE", "make room")
    assert not (await sites.show()).HasField("protection")
    assert sites.a.assigned(sites.source, sites.vm.id) is None
    assert "remove_replica" in sites.target.done
    assert "forget_source" in sites.source.done
    del sites.target.refuse["prepare_replica"]
    answer = await sites.admin.machines.Protect(request())
    await until(lambda: sites.a.assigned(sites.source, sites.vm.id))
    # A term once given is never given again: the hosts may have kept it.
    assert sites.a.assigned(sites.source, sites.vm.id).term == 2
    await sites.plane.jobs.cancel(answer.job_id, "root")
    await sites.ended(answer)


async def test_a_cancel_during_initial_replication_takes_everything_back(sites: Scene):
    job_id = await sites.begin_protect()
    await sites.plane.jobs.cancel(job_id, "root")
    assert (await sites.plane.ended(job_id)).state == "cancelled"
    assert not (await sites.show()).HasField("protection")
    await until(lambda: sites.a.assigned(sites.source, sites.vm.id) is None)
    await until(lambda: sites.b.assigned(sites.target, sites.vm.id) is None)
    assert not sites.target.replicas


async def test_the_disks_that_count_are_those_the_source_names_when_it_is_checked(sites: Scene):
    await sites.pair()
    sites.vm.disks[0].size_bytes = 5 * GIB  # grown, and not reported yet
    await sites.admin.machines.Protect(request())
    await until(lambda: sites.b.assigned(sites.target, sites.vm.id))
    assert sites.target.replicas[sites.vm.id].disks[0].size_bytes == 5 * GIB


async def test_progress_shows_the_bytes_of_the_initial_copy(sites: Scene):
    job_id = await sites.begin_protect()
    sites.a.state(sites.vm.id, "source", "initial", initial_done_bytes=GIB, initial_total_bytes=2 * GIB)

    async def half() -> bool:
        job = await sites.plane.jobs.get(job_id)
        return any(task.percent == 50 and task.bytes_total == 2 * GIB for task in job.tasks)

    await until(half)
    assert (await sites.protection()).state == "initial"


async def test_a_request_repeated_with_its_id_is_one_protection(sites: Scene):
    await sites.pair()
    metadata = (("twinsite-request-id", "0c5a7e1e-0000-4000-8000-000000000002"),)
    first = await sites.admin.machines.Protect(request(), metadata=metadata)
    again = await sites.admin.machines.Protect(request(), metadata=metadata)
    assert first == again
    assert first.job_id


async def test_a_restart_of_the_coordinator_in_mid_protect_changes_nothing(tmp_path: Path, database: Database):
    async with scene(tmp_path / "state", database) as sites:
        job_id = await sites.begin_protect()
        done = list(sites.source.done + sites.target.done)
        versions = len(sites.a.versions)
    clock = sites.clock
    async with ControlPlane.started(tmp_path / "state", database, clock) as plane:
        sites.a.plane = sites.b.plane = plane.identity
        async with sites.a.connected(), sites.b.connected():
            sites.commit(age=9, consistency="none")
            sites.commit(age=3)
            job = await plane.ended(job_id)
            assert job.state == "succeeded"
            assert sites.source.done + sites.target.done == done
            await until(lambda: len(sites.a.versions) > versions)
            assert sites.a.versions[-1] == sites.a.versions[versions - 1]
        async with plane.admin(sites.owner) as admin:
            view = await admin.machines.Show(admin_pb2.ShowRequest(name="web01"))
            assert view.protection.points == 1
            with pytest.raises(Conflict):
                await admin.machines.Protect(request())


async def test_a_host_that_never_answers_ends_the_job_and_not_the_coordinator(sites: Scene):
    await sites.pair()
    sites.source.stuck.add("check_source")
    answer = await sites.admin.machines.Protect(request())
    await until(lambda: "check_source" in sites.source.done)
    job = await sites.ended_in_time(answer, step=60)
    assert job.state == "failed"
    assert job.error is not None
    assert job.error.code == "COMMAND_TIMED_OUT"
    assert sites.a.cancelled
    assert not (await sites.show()).HasField("protection")


async def test_of_two_requests_at_once_one_protects(tmp_path: Path, database: Database):
    async with scene(tmp_path / "state", database) as sites:
        await sites.pair()
        answers = await asyncio.gather(
            *(sites.admin.machines.Protect(request()) for _ in range(4)), return_exceptions=True
        )
        assert sorted(getattr(answer, "code", "") for answer in answers) == ["", *["ALREADY_PROTECTED"] * 3]
        await until(lambda: "prepare_replica" in sites.target.done)
        assert sites.target.done == ["prepare_replica"]
