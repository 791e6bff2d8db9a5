"""Ending a protection, also when a side is dead; pausing one."""

import pytest

from tests.fakes.scene import Scene
from tests.fakes.site import until
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2
from twinsite.errors import InvalidInput, Precondition, Unauthenticated


def request(**fields: object) -> admin_pb2.MachineActionRequest:
    return admin_pb2.MachineActionRequest(name="web01", **fields)  # type: ignore[arg-type]  # the test's own


async def disconnect(sites: Scene) -> None:
    """The source host is gone for its provider."""
    sites.source.connected = False
    sites.a.report()

    async def seen() -> bool:
        return not (await sites.admin.hosts.Show(admin_pb2.ShowRequest(name="a1"))).connected

    await until(seen)


async def test_unprotecting_leaves_nothing_but_the_vm(sites: Scene):
    await sites.protect()
    foretold = await sites.admin.machines.Unprotect(request(dry_run=True))
    assert not foretold.job_id
    assert any("is deleted" in sentence for sentence in foretold.consequences)
    job = await sites.ended(await sites.admin.machines.Unprotect(request(reason="moved")))
    assert job.state == "succeeded"
    assert not (await sites.show()).HasField("protection")
    await until(lambda: sites.a.assigned(sites.source, sites.vm.id) is None)
    await until(lambda: sites.b.assigned(sites.target, sites.vm.id) is None)
    assert not sites.target.replicas
    assert sites.source.done[-1] == "forget_source"
    assert not await sites.points()
    assert (await sites.audited("vm.unprotect"))[0]["reason"] == "moved"
    assert await sites.audited("vm.unprotected")


async def test_the_replica_is_kept_when_asked(sites: Scene):
    await sites.protect()
    with pytest.raises(InvalidInput):
        await sites.admin.machines.Unprotect(request(keep_replica=True, delete_replica=True))
    await sites.ended(await sites.admin.machines.Unprotect(request(keep_replica=True)))
    assert sites.vm.id in sites.target.replicas
    assert "remove_replica" not in sites.target.done


async def test_to_ask_for_the_replica_to_be_deleted_wants_a_reason_and_a_login_of_minutes_ago(sites: Scene):
    await sites.protect()
    with pytest.raises(InvalidInput) as no_reason:
        await sites.admin.machines.Unprotect(request(delete_replica=True))
    assert no_reason.value.code == "REASON_MISSING"
    await sites.logged_in(ago=340)
    with pytest.raises(Unauthenticated) as old:
        await sites.admin.machines.Unprotect(request(delete_replica=True, reason="moved"))
    assert old.value.code == "LOGIN_TOO_OLD"
    assert (await sites.admin.machines.Unprotect(request(delete_replica=True, dry_run=True))).consequences
    assert (await sites.show()).HasField("protection")
    await sites.logged_in(ago=0)
    job = await sites.ended(await sites.admin.machines.Unprotect(request(delete_replica=True, reason="moved")))
    assert job.state == "succeeded"
    assert not sites.target.replicas


async def test_a_dead_source_is_warned_of_and_cleaned_up_when_it_returns(sites: Scene):
    await sites.protect()
    await disconnect(sites)
    answer = await sites.admin.machines.Unprotect(request())
    assert any("a1 is not connected" in sentence for sentence in answer.warnings)
    job = await sites.ended_in_time(answer, step=0.1)
    assert "remove_replica" in sites.target.done
    assert job.state == "completed_with_errors"
    assert job.error is not None
    assert job.error.code == "CLEAN_UP_POSTPONED"
    assert not (await sites.show()).HasField("protection")

    late = (await sites.plane.jobs.list(target=f"host/{sites.source.id}"))[0]
    assert not late.final
    with pytest.raises(Precondition) as refused:
        await sites.admin.machines.Protect(admin_pb2.ProtectRequest(name="web01"))
    assert refused.value.code == "LEFTOVER_PENDING"
    assert late.id in refused.value.text("next_step")

    sites.source.connected = True
    for command_id, result in list(sites.a.ledger.items()):  # as its provider delivers what waited
        if result is None:
            del sites.a.ledger[command_id]
    async with sites.a.connected():
        assert (await sites.plane.ended(late.id)).state == "succeeded"
        assert sites.source.done[-1] == "forget_source"
        answer = await sites.admin.machines.Protect(admin_pb2.ProtectRequest(name="web01", dry_run=True))
        assert answer.consequences


async def test_who_cancels_a_postponed_clean_up_may_protect_again(sites: Scene):
    await sites.protect()
    await disconnect(sites)
    await sites.ended_in_time(await sites.admin.machines.Unprotect(request()), step=0.1)
    late = (await sites.plane.jobs.list(target=f"host/{sites.source.id}"))[0]
    await sites.plane.jobs.cancel(late.id, "user/root")
    again = admin_pb2.ActionResponse(job_id=late.id)
    assert (await sites.ended_in_time(again, step=10)).state == "cancelled"
    answer = await sites.admin.machines.Protect(admin_pb2.ProtectRequest(name="web01", dry_run=True))
    assert answer.consequences


async def test_a_host_that_fails_to_clean_up_is_asked_again(sites: Scene):
    await sites.protect()
    sites.target.refuse["remove_replica"] = types_pb2.ErrorDetail(code="POINT_PINNED", message="a point is in use")
    job = await sites.ended(await sites.admin.machines.Unprotect(request()))
    assert job.state == "completed_with_errors"
    late = (await sites.plane.jobs.list(target=f"host/{sites.target.id}"))[0]
    await until(lambda: sites.target.done.count("remove_replica") == 2)
    del sites.target.refuse["remove_replica"]
    again = admin_pb2.ActionResponse(job_id=late.id)
    assert (await sites.ended_in_time(again, step=10)).state == "succeeded"
    assert not sites.target.replicas


async def test_what_is_not_protected_is_not_unprotected(sites: Scene):
    with pytest.raises(Precondition) as refused:
        await sites.admin.machines.Unprotect(request())
    assert refused.value.code == "NOT_PROTECTED"
    job_id = await sites.begin_protect()
    with pytest.raises(Precondition) as refused:
        await sites.admin.machines.Unprotect(request())
    assert job_id in refused.value.text("next_step")


async def test_pausing_reaches_both_hosts_at_once_and_shows(sites: Scene):
    await sites.protect()
    answer = await sites.admin.machines.Pause(request(reason="backup window"))
    assert not answer.job_id
    assert (await sites.protection()).health == "paused"
    await until(lambda: sites.a.assigned(sites.source, sites.vm.id).paused)
    await until(lambda: sites.b.assigned(sites.target, sites.vm.id).paused)
    assert await sites.admin.machines.Pause(request()) != answer
    await sites.admin.machines.Resume(request())
    await until(lambda: not sites.a.assigned(sites.source, sites.vm.id).paused)

    async def well() -> bool:  # once both hosts have reported
        return (await sites.protection()).health == "normal"

    await until(well)
    assert len(await sites.audited("vm.pause")) == 1
    assert (await sites.audited("vm.pause"))[0] == {"reason": "backup window"}


async def test_what_does_not_replicate_is_not_paused(sites: Scene):
    with pytest.raises(Precondition) as refused:
        await sites.admin.machines.Pause(request())
    assert refused.value.code == "NOT_PROTECTED"
