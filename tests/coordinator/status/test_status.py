"""The summary: what is counted, and what is wrong, worst first."""

from tests.fakes.control_plane import EMPTY
from tests.fakes.scene import Scene
from tests.fakes.site import FakeSite, until
from twinsite.api.coordinator.v1 import admin_pb2


async def test_all_is_well(sites: Scene):
    await sites.protect()

    async def normal() -> bool:
        return (await sites.admin.status.Show(EMPTY)).vms_normal == 1

    await until(normal)
    status = await sites.admin.status.Show(EMPTY)
    assert (status.vault_name, status.vms, status.vms_protected) == ("demo", 1, 1)
    assert [(site.server, site.connected, site.hosts, site.hosts_connected) for site in status.sites] == [
        ("vmm-a", True, 1, 1),
        ("vmm-b", True, 1, 1),
    ]
    assert not status.problems
    assert status.now.seconds == int(sites.clock.now())


async def test_what_is_wrong_is_said_worst_first(sites: Scene):
    await sites.protect()
    await sites.plane.identity.register("vmm-c")
    other = FakeSite(sites.plane.identity, await sites.plane.identity.register("vmm-d"))
    async with other.connected():
        pass
    sites.source.connected = False
    sites.a.report()
    sites.clock.advance(600)
    sites.b.state(sites.vm.id, "target")

    async def critical() -> bool:
        status = await sites.admin.status.Show(EMPTY)
        return status.vms_critical == 1 and len(status.problems) == 4

    await until(critical)
    problems = list((await sites.admin.status.Show(EMPTY)).problems)
    assert problems[0].startswith("VM web01: critical: the newest point is 10m")
    assert problems[1].startswith("server vmm-d is not connected")
    assert problems[2] == "host a1 is not connected to server vmm-a"
    assert problems[3] == "server vmm-c has not connected yet"


async def test_a_paused_vm_is_counted_as_such(sites: Scene):
    await sites.protect()
    await sites.admin.machines.Pause(admin_pb2.MachineActionRequest(name="web01"))
    status = await sites.admin.status.Show(EMPTY)
    assert (status.vms_paused, status.vms_normal) == (1, 0)


async def test_running_and_failed_jobs_are_counted(sites: Scene):
    job_id = await sites.begin_protect()

    async def running() -> bool:
        return (await sites.admin.status.Show(EMPTY)).jobs_running == 1

    await until(running)
    sites.target.refuse["test_failover"] = admin_pb2.Task().error
    sites.commit(consistency="none")
    sites.commit()
    await sites.plane.ended(job_id)
    await sites.ended(await sites.admin.machines.Test(admin_pb2.TestRequest(name="web01")))
    status = await sites.admin.status.Show(EMPTY)
    assert (status.jobs_running, status.jobs_failed_24h) == (0, 1)
