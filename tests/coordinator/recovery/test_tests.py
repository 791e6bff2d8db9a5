"""Test failovers: beside replication, any number, and nothing left behind."""

from datetime import datetime

import pytest

from tests.fakes.scene import Scene
from tests.fakes.site import until
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2
from twinsite.errors import NotFound, Precondition


def request(**fields: object) -> admin_pb2.TestRequest:
    return admin_pb2.TestRequest(name="web01", **fields)  # type: ignore[arg-type]  # the test's own


def clean_up(**fields: object) -> admin_pb2.MachineActionRequest:
    return admin_pb2.MachineActionRequest(name="web01", **fields)  # type: ignore[arg-type]  # the test's own


async def test_a_test_runs_beside_replication_and_tells_where(sites: Scene):
    await sites.protect()
    foretold = await sites.admin.machines.Test(request(dry_run=True))
    assert not foretold.job_id
    job = await sites.ended(await sites.admin.machines.Test(request()))
    assert job.result["cycle"] == "2"
    assert job.result["note"] == "/disks/of/the/test"
    assert datetime.fromisoformat(job.result["instant"]).timestamp() == pytest.approx(sites.clock.now() - 5, abs=0.1)
    assert job.result["test"] in sites.target.tests
    sites.commit()

    async def goes_on() -> bool:
        return len(await sites.points()) == 2

    await until(goes_on)

    async def well() -> bool:  # once both hosts have reported
        return (await sites.protection()).health == "normal"

    await until(well)


async def test_several_tests_run_at_once_and_one_clean_up_ends_them_all(sites: Scene):
    await sites.protect()
    sites.commit()

    async def arrived() -> bool:
        return len(await sites.points()) == 2

    await until(arrived)
    for cycle in (0, 2, 2):
        assert (await sites.ended(await sites.admin.machines.Test(request(cycle=cycle)))).state == "succeeded"
    assert len((await sites.protection()).tests) == 3
    with pytest.raises(Precondition) as refused:
        await sites.admin.machines.Unprotect(clean_up())
    assert refused.value.code == "TESTS_RUNNING"
    assert len((await sites.admin.machines.TestCleanup(clean_up(dry_run=True))).consequences) == 3
    answer = await sites.admin.machines.TestCleanup(clean_up(reason="all good"))
    assert (await sites.ended(answer)).state == "succeeded"
    assert not sites.target.tests
    assert not (await sites.protection()).tests
    assert (await sites.audited("vm.test-cleanup"))[0]["reason"] == "all good"


async def test_a_clean_up_without_tests_has_nothing_to_do(sites: Scene):
    await sites.protect()
    assert not (await sites.admin.machines.TestCleanup(clean_up())).job_id


async def test_a_test_that_does_not_start_leaves_nothing(sites: Scene):
    await sites.protect()
    sites.target.refuse["test_failover"] = types_pb2.ErrorDetail(code="NO_SPACE", message="full", next_step="make room")
    job = await sites.ended(await sites.admin.machines.Test(request()))
    assert job.state == "failed"
    assert sites.target.done[-1] == "test_cleanup"
    assert not (await sites.protection()).tests


async def test_a_test_of_which_nothing_is_known_stays_listed(sites: Scene):
    await sites.protect()
    sites.target.stuck |= {"test_failover", "test_cleanup"}
    answer = await sites.admin.machines.Test(request())
    await until(lambda: "test_failover" in sites.target.done)
    assert (await sites.ended_in_time(answer, step=30)).state == "failed"
    assert sites.target.done[-1] == "test_cleanup"
    assert len((await sites.protection()).tests) == 1
    sites.target.stuck.clear()
    answer = await sites.admin.machines.TestCleanup(clean_up())
    assert (await sites.ended(answer)).state == "succeeded"
    assert not (await sites.protection()).tests


async def test_nothing_is_unprotected_under_a_test_that_is_just_starting(sites: Scene):
    await sites.protect()
    sites.target.stuck.add("test_failover")
    answer = await sites.admin.machines.Test(request())
    await until(lambda: "test_failover" in sites.target.done)
    with pytest.raises(Precondition) as refused:
        await sites.admin.machines.Unprotect(clean_up())
    assert refused.value.code == "TESTS_RUNNING"
    assert not (await sites.admin.machines.TestCleanup(clean_up())).job_id
    assert (await sites.ended_in_time(answer, step=60)).state == "failed"


async def test_only_points_can_be_tested(sites: Scene):
    with pytest.raises(Precondition):
        await sites.admin.machines.Test(request())
    await sites.protect()
    with pytest.raises(NotFound):
        await sites.admin.machines.Test(request(cycle=77))
