"""The whole way of one VM through the public door: register, pair, protect, test, fail over."""

from pathlib import Path

import pytest

from coordinator.store.engine import Database
from tests.fakes.control_plane import EMPTY, ControlPlane
from tests.fakes.identity_plane import real_time
from tests.fakes.site import FakeSite, machine, until
from twinsite import grants
from twinsite.api.coordinator.v1 import admin_pb2
from twinsite.api.types.v1 import types_pb2


async def test_a_vm_goes_from_registration_to_running_at_the_other_site(tmp_path: Path, database: Database) -> None:
    clock = real_time()
    async with ControlPlane.started(tmp_path / "state", database, clock) as plane:
        vm = machine("web01")
        a = FakeSite(plane.identity, await plane.identity.register("vmm-a"))
        b = FakeSite(plane.identity, await plane.identity.register("vmm-b"))
        source = await a.host("a1", "gold-a", vm)
        target = await b.host("b1", "gold-b")
        async with plane.admin(await plane.owner()) as admin, a.connected(), b.connected():

            async def clouds_are_there() -> bool:
                clouds = (await admin.clouds.List(EMPTY)).clouds
                return sorted(cloud.name for cloud in clouds if cloud.hosts) == ["gold-a", "gold-b"]

            await until(clouds_are_there)
            policy = types_pb2.Policy(frequency_seconds=30, additional_points=2, compression=True, delete_replica=True)
            job = await admin.pairs.Create(
                admin_pb2.CreatePairRequest(source_cloud="gold-a", target_cloud="gold-b", policy=policy)
            )
            assert (await plane.ended(job.job_id)).state == "succeeded"

            answer = await admin.machines.Protect(admin_pb2.ProtectRequest(name="web01"))
            await until(lambda: a.assigned(source, vm.id) and b.assigned(target, vm.id))
            sends, receives = a.assigned(source, vm.id), b.assigned(target, vm.id)
            assert (sends.role, sends.peer_address, sends.term) == (types_pb2.ROLE_SOURCE, target.address, 1)
            assert (receives.role, receives.peer_host_id) == (types_pb2.ROLE_TARGET, source.id)
            signer = plane.identity.authority.signer
            grant = grants.verify(sends.grant, {signer.key_id: signer.public}, clock.now())
            assert (grant.source_host, grant.target_host, grant.term) == (source.id, target.id, 1)
            assert dict(grant.disks) == {disk.id: disk.size_bytes for disk in vm.disks}

            b.commit(target, vm.id, clock.now() - 20, consistency="none")
            assert not (await plane.jobs.get(answer.job_id)).final
            b.commit(target, vm.id, clock.now() - 5)
            a.state(vm.id, "source", initial_done_bytes=100, initial_total_bytes=100)
            assert (await plane.ended(answer.job_id)).state == "succeeded"

            async def is_normal() -> bool:
                shown = (await admin.machines.Show(admin_pb2.ShowRequest(name="web01"))).protection
                return (shown.state, shown.health, shown.points) == ("replicating", "normal", 1)

            await until(is_normal)
            shown = (await admin.machines.Show(admin_pb2.ShowRequest(name="web01"))).protection
            assert shown.rpo_known
            assert shown.rpo_age_seconds == pytest.approx(5, abs=0.1)
            clock.advance(7)
            shown = (await admin.machines.Show(admin_pb2.ShowRequest(name="web01"))).protection
            assert shown.rpo_age_seconds == pytest.approx(12, abs=0.1)

            tested = await admin.machines.Test(admin_pb2.TestRequest(name="web01"))
            job_of_test = await plane.ended(tested.job_id)
            assert job_of_test.state == "succeeded"
            assert job_of_test.result["cycle"] == "2"
            assert job_of_test.result["machine"] == "web01 - Test"
            assert len(target.tests) == 1
            assert len((await admin.machines.Show(admin_pb2.ShowRequest(name="web01"))).protection.tests) == 1
            cleaned = await admin.machines.TestCleanup(admin_pb2.MachineActionRequest(name="web01"))
            assert (await plane.ended(cleaned.job_id)).state == "succeeded"
            assert not target.tests

            foretold = await admin.machines.Failover(admin_pb2.FailoverRequest(name="web01", dry_run=True))
            assert not foretold.job_id
            assert any("term 1 → 2" in sentence for sentence in foretold.consequences)
            assert any("in the last 12s" in sentence for sentence in foretold.consequences)
            over = await admin.machines.Failover(admin_pb2.FailoverRequest(name="web01", reason="site A burns"))
            done = await plane.ended(over.job_id)
            assert done.state == "succeeded"
            assert done.result["cycle"] == "2"
            assert float(done.result["rpo_age_seconds"]) == pytest.approx(12, abs=0.1)
            assert target.done[-1] == "failover"

            def fenced() -> bool:
                old, new = a.assigned(source, vm.id), b.assigned(target, vm.id)
                return old is not None and old.fenced and old.term == 2 and not new.fenced and new.term == 2

            await until(fenced)
            grant = grants.verify(b.assigned(target, vm.id).grant, {signer.key_id: signer.public}, clock.now())
            assert (grant.source_host, grant.term) == (target.id, 2)
            shown = (await admin.machines.Show(admin_pb2.ShowRequest(name="web01"))).protection
            assert (shown.state, shown.owner_host, shown.term, shown.failover_cycle) == ("failed_over", "b1", 2, 2)
            actions = [entry.action for entry in await plane.identity.audited()]
            for action in ("pair.create", "vm.protect", "vm.test", "vm.test-cleanup", "vm.failover", "vm.failed-over"):
                assert action in actions
