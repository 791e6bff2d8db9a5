"""Failing over when things are bad, which is when it is needed."""

from datetime import datetime
from pathlib import Path

import pytest

from coordinator.store.engine import Database
from tests.fakes.control_plane import ControlPlane
from tests.fakes.scene import Scene, scene
from tests.fakes.site import stamp, until
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import commands_pb2, types_pb2
from twinsite.errors import Denied, InvalidInput, NotFound, Precondition, Unauthenticated

BROKEN = types_pb2.ErrorDetail(code="MACHINE_FAILED", message="it does not start", next_step="look at the host")


def request(**fields: object) -> admin_pb2.FailoverRequest:
    return admin_pb2.FailoverRequest(**{"name": "web01", "reason": "site A burns", **fields})  # type: ignore[arg-type]


async def disconnect(sites: Scene, *, target: bool = False) -> None:
    site, host = (sites.b, sites.target) if target else (sites.a, sites.source)
    host.connected = False
    site.report()

    async def seen() -> bool:
        return not (await sites.admin.hosts.Show(admin_pb2.ShowRequest(name=host.name))).connected

    await until(seen)


async def test_a_failover_needs_a_protected_vm_with_a_point_and_nothing_else(sites: Scene):
    with pytest.raises(Precondition) as refused:
        await sites.admin.machines.Failover(request())
    assert refused.value.code == "NOT_PROTECTED"
    await sites.begin_protect()
    sites.commit(consistency="none")
    with pytest.raises(Precondition) as refused:
        await sites.admin.machines.Failover(request())
    assert refused.value.code == "NO_POINT"
    with pytest.raises(NotFound):
        await sites.admin.machines.Failover(admin_pb2.FailoverRequest(name="web99"))


async def test_a_dead_source_an_old_point_and_critical_health_are_no_reason_to_refuse(sites: Scene):
    await sites.protect()
    await disconnect(sites)
    sites.clock.advance(7200)
    await sites.logged_in(ago=0)
    sites.b.state(sites.vm.id, "target")
    answer = await sites.admin.machines.Failover(request(shutdown_source=True))
    assert any("2h00m is lost" in sentence for sentence in answer.consequences)
    assert any("critical" in sentence for sentence in answer.warnings)
    job = await sites.ended_in_time(answer, step=0.1)
    assert job.state == "succeeded"
    stop = next(task for task in job.tasks if task.kind == "failover.stop")
    assert stop.error is not None
    assert stop.error.code == "SOURCE_NOT_STOPPED"
    assert float(job.result["rpo_age_seconds"]) == pytest.approx(7205, abs=1)
    assert "stop_machine" not in sites.source.done


async def test_a_source_that_answers_is_stopped_before_its_term_ends(sites: Scene):
    await sites.protect()
    job = await sites.ended(await sites.admin.machines.Failover(request(shutdown_source=True)))
    assert job.state == "succeeded"
    assert sites.source.done[-1] == "stop_machine"


async def test_a_source_that_does_not_stop_is_not_waited_for(sites: Scene):
    await sites.protect()
    sites.source.stuck.add("stop_machine")
    answer = await sites.admin.machines.Failover(request(shutdown_source=True))
    await until(lambda: "stop_machine" in sites.source.done)
    assert (await sites.ended_in_time(answer, step=1)).state == "succeeded"
    assert sites.a.assigned(sites.source, sites.vm.id).fenced


async def test_the_term_is_raised_before_the_target_is_told(sites: Scene):
    await sites.protect()
    sites.target.stuck.add("failover")
    answer = await sites.admin.machines.Failover(request())
    await until(lambda: "failover" in sites.target.done)
    await until(lambda: sites.a.assigned(sites.source, sites.vm.id).fenced)
    shown = await sites.protection()
    assert (shown.term, shown.owner_host, shown.health) == (2, "b1", "critical")
    with pytest.raises(Precondition) as refused:
        await sites.admin.machines.Failover(request())
    assert refused.value.code == "FAILOVER_IS_RUNNING"
    with pytest.raises(Precondition):
        await sites.admin.machines.Unprotect(admin_pb2.MachineActionRequest(name="web01"))
    assert (await sites.ended_in_time(answer, step=60)).state == "failed"


async def test_a_failover_that_failed_can_be_repeated_in_the_same_term(sites: Scene):
    await sites.protect()
    sites.target.refuse["failover"] = BROKEN
    job = await sites.ended(await sites.admin.machines.Failover(request()))
    assert job.state == "failed"
    assert job.error is not None
    assert job.error.code == "MACHINE_FAILED"
    assert (await sites.protection()).health == "critical"
    del sites.target.refuse["failover"]
    answer = await sites.admin.machines.Failover(request())
    assert any("fenced already" in sentence for sentence in answer.consequences)
    assert (await sites.ended(answer)).state == "succeeded"
    shown = await sites.protection()
    assert (shown.state, shown.term) == ("failed_over", 2)
    assert [facts["term"] for facts in await sites.audited("vm.term-raised")] == ["2"]


async def test_a_target_that_went_away_after_the_term_was_raised_is_not_said_to_cost_nothing(sites: Scene):
    await sites.protect()
    sites.target.refuse["failover"] = BROKEN
    await sites.ended(await sites.admin.machines.Failover(request()))
    await disconnect(sites, target=True)
    job = await sites.ended_in_time(await sites.admin.machines.Failover(request()), step=20)
    assert job.error is not None
    assert job.error.code == "TARGET_AWAY"
    assert "since the term was raised b1 owns the VM" in job.error.still_works


async def test_a_target_that_is_away_costs_the_source_nothing(sites: Scene):
    await sites.protect()
    await disconnect(sites, target=True)
    answer = await sites.admin.machines.Failover(request())
    assert any("b1 is not connected" in sentence for sentence in answer.warnings)
    job = await sites.ended_in_time(answer, step=20)
    assert job.state == "failed"
    assert job.error is not None
    assert job.error.code == "TARGET_AWAY"
    shown = await sites.protection()
    assert (shown.term, shown.owner_host) == (1, "a1")
    assert not sites.a.assigned(sites.source, sites.vm.id).fenced


async def test_an_older_point_can_be_chosen_and_a_missing_one_not(sites: Scene):
    await sites.protect()
    sites.commit()
    sites.commit()

    async def arrived() -> bool:
        return await sites.points() == [4, 3, 2]

    await until(arrived)
    with pytest.raises(NotFound) as refused:
        await sites.admin.machines.Failover(request(cycle=1))  # the initial copy is no point
    assert refused.value.code == "POINT_MISSING"
    answer = await sites.admin.machines.Failover(request(cycle=3))
    assert "1 newer points exist" in answer.warnings
    assert (await sites.ended(answer)).result["cycle"] == "3"
    assert (await sites.protection()).failover_cycle == 3


async def test_a_vm_is_failed_over_once(sites: Scene):
    await sites.protect()
    await sites.ended(await sites.admin.machines.Failover(request()))
    with pytest.raises(Precondition) as refused:
        await sites.admin.machines.Failover(request())
    assert refused.value.code == "ALREADY_FAILED_OVER"
    assert "b1" in str(refused.value)
    for call in (sites.admin.machines.Pause, sites.admin.machines.Resume):
        with pytest.raises(Precondition):
            await call(admin_pb2.MachineActionRequest(name="web01"))


async def test_a_replica_that_started_after_its_job_gave_up_is_recognised(sites: Scene):
    await sites.protect()
    sites.target.stuck.add("failover")
    answer = await sites.admin.machines.Failover(request())
    await until(lambda: "failover" in sites.target.done)
    assert (await sites.ended_in_time(answer, step=60)).state == "failed"
    sites.b.state(sites.vm.id, "target", "failed_over", term=1, committed_cycle=2)  # of an older term: not this one
    sites.b.state(sites.vm.id, "target", "failed_over", term=2, committed_cycle=2)

    async def recognised() -> bool:
        return (await sites.protection()).failover_cycle == 2

    await until(recognised)
    assert (await sites.protection()).health == "warning"


async def test_what_was_failed_over_stays_fenced_when_it_is_unprotected(sites: Scene):
    await sites.protect()
    await sites.ended(await sites.admin.machines.Failover(request()))
    replica = type(sites.vm)()
    replica.CopyFrom(sites.vm)
    replica.purpose = "replica"
    sites.target.machines.append(replica)
    sites.b.report()

    async def there() -> bool:
        return (await sites.show()).host == "b1"

    await until(there)
    wanted = admin_pb2.MachineActionRequest(name="web01", delete_replica=True, reason="A is gone")
    answer = await sites.admin.machines.Unprotect(wanted)
    assert any("not deleted" in sentence for sentence in answer.warnings)
    assert (await sites.ended(answer)).state == "succeeded"
    assert "remove_replica" not in sites.target.done
    await until(lambda: sites.b.assigned(sites.target, sites.vm.id) is None)
    fence = sites.a.assigned(sites.source, sites.vm.id)
    assert (fence.fenced, fence.term) == (True, 2)


async def test_an_operator_does_not_fail_over_and_recovery_does(sites: Scene):
    await sites.protect()
    operator = await sites.plane.identity.user("olga", "operator")
    async with sites.plane.admin(operator) as admin:
        with pytest.raises(Denied):
            await admin.machines.Failover(request())
    recovery = await sites.plane.identity.user("rita", "recovery")
    async with sites.plane.admin(recovery) as admin:
        await admin.machines.Failover(request(dry_run=True))


async def test_a_failover_wants_a_login_of_minutes_ago_whatever_the_clock_does_and_a_reason(sites: Scene):
    await sites.protect()
    with pytest.raises(InvalidInput) as no_reason:
        await sites.admin.machines.Failover(request(reason=" "))
    assert no_reason.value.code == "REASON_MISSING"
    await sites.logged_in(ago=340)
    for set_back in (0, 100):
        sites.clock.set_back(set_back)
        with pytest.raises(Unauthenticated) as old:
            await sites.admin.machines.Failover(request())
        assert old.value.code == "LOGIN_TOO_OLD"
        assert "twinsite login" in old.value.text("next_step")
    assert (await sites.admin.machines.Failover(request(dry_run=True, reason=""))).consequences
    assert (await sites.protection()).term == 1
    await sites.logged_in(ago=320)
    assert (await sites.ended(await sites.admin.machines.Failover(request()))).state == "succeeded"


async def test_a_failover_that_is_repeated_because_its_answer_was_lost_is_answered_whatever_the_login(sites: Scene):
    await sites.protect()
    metadata = (("twinsite-request-id", "0c5a7e1e-0000-4000-8000-000000000003"),)
    first = await sites.admin.machines.Failover(request(), metadata=metadata)
    await sites.logged_in(ago=340)
    assert await sites.admin.machines.Failover(request(), metadata=metadata) == first
    await sites.ended(first)


async def test_a_point_the_coordinator_never_heard_of_is_dated_by_the_host_that_started_from_it(sites: Scene):
    await sites.protect()
    newest = stamp(sites.clock.now() - 1)
    sites.target.points[sites.vm.id].append(types_pb2.Point(vm_id=sites.vm.id, cycle=9, instant=newest))
    job = await sites.ended(await sites.admin.machines.Failover(request()))
    assert job.result["cycle"] == "9"
    assert datetime.fromisoformat(job.result["instant"]).timestamp() == pytest.approx(sites.clock.now() - 1, abs=0.1)
    assert float(job.result["point_age_seconds"]) == pytest.approx(1, abs=0.5)


async def test_a_restart_in_the_middle_of_a_failover_raises_no_second_term(tmp_path: Path, database: Database):
    async with scene(tmp_path / "state", database) as sites:
        await sites.protect()
        sites.target.stuck.add("failover")
        answer = await sites.admin.machines.Failover(request())
        await until(lambda: "failover" in sites.target.done)
    sites.target.stuck.clear()
    running = next(command for command, result in sites.b.ledger.items() if result is None)
    sites.b.ledger[running] = commands_pb2.CommandResult(id=running, ok=True, cycle=2, machine=sites.vm)
    async with ControlPlane.started(tmp_path / "state", database, sites.clock) as plane:
        sites.b.plane = plane.identity
        async with sites.b.connected(), plane.admin(sites.owner) as admin:
            assert (await plane.ended(answer.job_id)).state == "succeeded"
            shown = (await admin.machines.Show(admin_pb2.ShowRequest(name="web01"))).protection
            assert (shown.state, shown.term, shown.failover_cycle) == ("failed_over", 2, 2)
    assert sites.target.done.count("failover") == 1


async def test_a_lost_point_is_told_and_neither_counted_nor_taken(sites: Scene):
    await sites.protect()
    lost, good = sites.commit(), sites.commit()
    held = [point for point in sites.target.points[sites.vm.id] if point.consistency != "none"]
    next(point for point in held if point.cycle == lost).lost = True
    sites.b.send_points(sites.target, sites.vm.id)

    async def counted() -> bool:
        return (await sites.protection()).points == len(held) - 1

    await until(counted)
    assert await sites.points() == [point.cycle for point in reversed(held)]
    term = (await sites.protection()).term
    with pytest.raises(Precondition) as refused:
        await sites.admin.machines.Failover(request(cycle=lost))
    assert refused.value.code == "POINT_LOST"
    with pytest.raises(Precondition) as refused:
        await sites.admin.machines.Test(admin_pb2.TestRequest(name="web01", cycle=lost))
    assert refused.value.code == "POINT_LOST"
    assert (await sites.protection()).term == term
    held[-1].consistency = "none"  # what came last cannot be used: then an older one is taken, and not the lost one
    sites.b.send_points(sites.target, sites.vm.id)

    async def gone() -> bool:
        return good not in await sites.points()

    await until(gone)
    answer = await sites.admin.machines.Failover(request(dry_run=True))
    assert any(f"from point {held[0].cycle}," in sentence for sentence in answer.consequences)
    assert not any("newer" in sentence for sentence in answer.warnings)
