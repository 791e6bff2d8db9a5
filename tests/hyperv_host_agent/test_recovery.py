"""Test failover, failover and what surrounds them, ordered by a provider and carried out by real agents."""

from pathlib import Path

import pytest

from hyperv_host_agent.hypervisors.base import Finding, MachineMissing, Native, Power, Purpose, Severity
from tests.fakes.agent_pair import FIRST, SECOND, contents, pair, spec
from tests.fakes.host_provider import eventually, grant
from tests.fakes.pki import TestVault
from twinsite.api.types.v1 import commands_pb2, types_pb2

TEST = commands_pb2.TestFailover
FAILED_OVER = types_pb2.REPLICATION_STATE_FAILED_OVER
FENCED = types_pb2.REPLICATION_STATE_FENCED


async def test_a_test_failover_is_the_source_at_the_point_and_replication_goes_on(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        guest = two.add(machine, contents())
        await two.protect(machine)
        await two.settled(machine.id)
        before = {disk: guest.content(disk) for disk in (FIRST, SECOND)}

        result = await two.provider.order(
            two.target.host_id, "test@1", test_failover=TEST(vm_id=machine.id, test_id="t1")
        )
        assert result.ok, result.error
        assert result.machine.name == "web01 - Test"
        assert result.machine.id != machine.id
        assert result.machine.purpose == "test"
        assert result.machine.power == types_pb2.POWER_STATE_RUNNING
        assert not any(nic.network for nic in result.machine.nics)
        assert "vda: " in result.note
        copy = two.there.change_source(result.machine.id)
        assert {disk: copy.content(disk) for disk in (FIRST, SECOND)} == before

        guest.write(FIRST, 0, b"while the test runs")
        await two.settled(machine.id)
        pinned = [point for point in two.at_target.points[machine.id] if point.pinned_by]
        assert [(point.cycle, point.pinned_by) for point in pinned] == [(result.cycle, "test-t1")]
        assert result.instant == pinned[0].instant

        cleaned = await two.provider.order(
            two.target.host_id, "clean@1", test_cleanup=commands_pb2.TestCleanup(vm_id=machine.id, test_id="t1")
        )
        assert cleaned.ok
        with pytest.raises(MachineMissing):
            two.there.machine(result.machine.id)
        await eventually(
            "the pin to go", lambda: not any(point.pinned_by for point in two.at_target.points[machine.id])
        )
        again = await two.provider.order(
            two.target.host_id, "clean@2", test_cleanup=commands_pb2.TestCleanup(vm_id=machine.id, test_id="t1")
        )
        assert again.ok


async def test_after_a_failover_the_vm_runs_here_and_the_old_owner_is_refused(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        guest = two.add(machine, contents())
        await two.protect(machine)
        await two.settled(machine.id)
        before = {disk: guest.content(disk) for disk in (FIRST, SECOND)}

        result = await two.provider.order(two.target.host_id, "failover@1", failover=two.failover(machine.id))
        assert result.ok, result.error
        assert (result.machine.id, result.machine.name, result.machine.purpose) == (machine.id, "web01", "replica")
        runs = two.there.machine(machine.id)
        assert (runs.power, runs.purpose) == (Power.RUNNING, Purpose.REPLICA)
        assert {disk: two.there.change_source(machine.id).content(disk) for disk in before} == before
        await eventually("the replica to say so", lambda: two.at_target.statuses[machine.id].state == FAILED_OVER)

        # Nobody told the source; it learns it from the target.
        await eventually("the source to notice", lambda: two.at_source.statuses[machine.id].state == FENCED)
        reason = two.at_source.statuses[machine.id].reason
        assert reason.code == "OLDER_TERM"
        newest = two.at_target.points[machine.id][-1].cycle
        guest.write(FIRST, 0, b"written by the old owner")
        await two.replicated(machine.id, beyond=newest - 1)
        assert two.at_target.points[machine.id][-1].cycle == newest


async def test_a_repeated_failover_is_answered_and_an_older_term_is_refused(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        two.add(machine, contents())
        await two.protect(machine)
        await two.settled(machine.id)
        first = await two.provider.order(two.target.host_id, "f@1", failover=two.failover(machine.id, term=3))
        assert first.ok
        second = await two.provider.order(two.target.host_id, "f@2", failover=two.failover(machine.id, term=3))
        assert second.ok
        assert second.cycle == first.cycle
        older = await two.provider.order(two.target.host_id, "f@3", failover=two.failover(machine.id, term=2))
        assert not older.ok
        assert older.error.code == "OLDER_TERM"
        removed = await two.provider.order(
            two.target.host_id, "r@1", remove_replica=commands_pb2.RemoveReplica(vm_id=machine.id)
        )
        assert removed.error.code == "POINT_PINNED"


async def test_a_failover_without_a_genuine_grant_changes_nothing(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        two.add(machine, contents())
        await two.protect(machine)
        await two.settled(machine.id)
        shown = two.describe(machine.id)
        here, there = two.target.host_id, two.source.host_id
        vault = two.provider.vault
        wrong = {
            "signature": grant(vault, shown, here, there, term=2, signer=TestVault().signer),
            "vm": grant(vault, shown, here, there, term=2, vm_id="another"),
            "owner": grant(vault, shown, there, here, term=2),
            "expired": grant(vault, shown, here, there, term=2, seconds=-1000),
            "vault": grant(vault, shown, here, there, term=2, vault="v-0000000000000000"),
        }
        for what, document in wrong.items():
            order = commands_pb2.Failover(vm_id=machine.id, grant=document)
            result = await two.provider.order(here, f"{what}@1", failover=order)
            assert (result.ok, result.error.code) == (False, "GRANT_REFUSED"), what
            with pytest.raises(MachineMissing):
                two.there.machine(machine.id)
        newest = two.at_target.points[machine.id][-1].cycle
        await two.replicated(machine.id, beyond=newest)  # replication goes on, in the old term


async def test_a_failed_over_vm_comes_up_again_after_a_restart_of_its_host(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        two.add(machine, contents())
        await two.protect(machine)
        await two.settled(machine.id)
        result = await two.provider.order(two.target.host_id, "failover@1", failover=two.failover(machine.id))
        assert result.ok
        two.there.lose_power()
        await two.restart_target()
        await eventually("it to run", lambda: two.there.machine(machine.id).power is Power.RUNNING)


async def test_a_name_that_is_taken_at_the_target_is_said_before_anything_is_made(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        two.add(machine, contents())
        two.there.add(spec("other"))
        taken = two.describe(machine.id)
        taken.name = "other"
        result = await two.provider.order(
            two.target.host_id, "p@1", prepare_replica=commands_pb2.PrepareReplica(machine=taken, term=1)
        )
        assert result.error.code == "MACHINE_EXISTS"
        assert not list((tmp_path / "b1" / "store").iterdir())


async def test_a_vm_without_a_point_cannot_be_failed_over(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        two.add(machine, contents())
        prepared = await two.provider.order(
            two.target.host_id,
            "p@1",
            prepare_replica=commands_pb2.PrepareReplica(machine=two.describe(machine.id), term=1),
        )
        assert prepared.ok
        result = await two.provider.order(two.target.host_id, "f@1", failover=two.failover(machine.id))
        assert result.error.code == "NO_POINT"
        absent = await two.provider.order(
            two.target.host_id, "t@1", test_failover=TEST(vm_id=machine.id, test_id="t", cycle=5)
        )
        assert absent.error.code == "POINT_MISSING"


async def test_a_forgotten_source_is_as_it_was_and_can_be_protected_again(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        guest = two.add(machine, contents())
        await two.protect(machine)
        await two.settled(machine.id)
        for view, agent in ((two.at_source, two.source), (two.at_target, two.target)):
            two.provider.assign(agent.host_id)
            await eventually("nothing to be assigned", lambda view=view: view.held == view.assigned.version)
        forgotten = await two.provider.order(
            two.source.host_id, "forget@1", forget_source=commands_pb2.ForgetSource(vm_id=machine.id)
        )
        removed = await two.provider.order(
            two.target.host_id, "remove@1", remove_replica=commands_pb2.RemoveReplica(vm_id=machine.id)
        )
        assert (forgotten.ok, removed.ok) == (True, True)
        assert guest.status()[0] is None
        assert two.hypervisor.machine(machine.id).power is Power.RUNNING
        assert not [path for path in (tmp_path / "b1" / "store").iterdir() if not path.name.startswith(".")]
        await two.protect(machine)
        await two.settled(machine.id)


async def test_a_protected_vm_starts_with_its_host_once_it_is_certain_that_it_may(tmp_path: Path) -> None:
    async with pair(tmp_path, current=False) as two:
        machine = spec()
        two.add(machine, contents())
        await two.protect(machine)
        await two.settled(machine.id)
        two.hypervisor.lose_power()
        sessions = two.at_source.sessions
        await two.restart_source()
        await eventually("it to connect", lambda: two.at_source.sessions > sessions)
        await two.settled(machine.id)  # it replicates, stopped as it is
        assert two.hypervisor.machine(machine.id).power is Power.STOPPED
        two.provider.current = True
        two.provider.welcome(two.source.host_id)
        await eventually("it to run", lambda: two.hypervisor.machine(machine.id).power is Power.RUNNING)
        two.hypervisor.stop(machine.id, timeout=0)
        await two.restart_source()
        await two.settled(machine.id)
        assert two.hypervisor.machine(machine.id).power is Power.STOPPED  # on purpose: it stays so


NATIVE = Native("libvirt-domain", "<domain/>", (("nvram", b"variables"),))


async def test_a_vms_own_words_travel_with_its_points_and_not_with_the_inventory(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        two.hypervisor.add(machine, contents=contents(), native=NATIVE)
        found = await two.provider.order(
            two.source.host_id, "check@1", check_source=commands_pb2.CheckSource(vm_id=machine.id)
        )
        assert (found.machine.native.document, list(found.machine.native.files)) == ("<domain/>", [])
        await two.protect(machine)
        await two.settled(machine.id)
        assert not any(told.HasField("native") for told in two.at_source.status.machines)
        test = await two.provider.order(
            two.target.host_id, "test@1", test_failover=TEST(vm_id=machine.id, test_id="t1")
        )
        assert two.there.describe(test.machine.id) == NATIVE
        result = await two.provider.order(two.target.host_id, "failover@1", failover=two.failover(machine.id))
        assert result.ok, result.error
        assert two.there.describe(machine.id) == NATIVE


async def test_what_the_target_finds_is_said_and_an_obstacle_is_met_before_the_term_is_raised(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        two.add(machine, contents())
        two.there.preflown.append(Finding(Severity.WARNING, "network", "this host has no network 'lan'"))
        prepared = await two.prepare(two.describe(machine.id), attempt=7)
        assert prepared.note == "warning: this host has no network 'lan'"
        await two.protect(machine)
        await two.settled(machine.id)
        two.there.preflown.append(Finding(Severity.OBSTACLE, "machine type", "no machine type x"))
        refused = await two.provider.order(two.target.host_id, "failover@1", failover=two.failover(machine.id))
        assert (refused.ok, refused.error.code) == (False, "OBSTACLES")
        two.there.preflown.pop()
        result = await two.provider.order(two.target.host_id, "failover@2", failover=two.failover(machine.id))
        assert result.ok, result.error
        assert "warning: this host has no network 'lan'" in result.note


async def test_a_vm_that_cannot_be_replicated_is_not_and_what_else_is_found_is_said(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        two.add(machine, contents())
        check = commands_pb2.CheckSource(vm_id=machine.id)
        two.hypervisor.examined.append(Finding(Severity.WARNING, "disk", "vdb is raw"))
        found = await two.provider.order(two.source.host_id, "check@1", check_source=check)
        assert (found.ok, found.note) == (True, "warning: vdb is raw")
        two.hypervisor.examined.append(Finding(Severity.OBSTACLE, "definition", "it is not persistent"))
        refused = await two.provider.order(two.source.host_id, "check@2", check_source=check)
        assert (refused.error.code, "not persistent" in refused.error.message) == ("NOT_REPLICABLE", True)


async def test_a_target_is_asked_without_being_prepared(tmp_path: Path) -> None:
    async with pair(tmp_path) as two:
        machine = spec()
        two.add(machine, contents())
        two.there.preflown.append(Finding(Severity.OBSTACLE, "machine type", "no machine type x"))
        order = commands_pb2.CheckTarget(machine=two.describe(machine.id))
        refused = await two.provider.order(two.target.host_id, "check@1", check_target=order)
        assert refused.error.code == "OBSTACLES"
        two.there.preflown.clear()
        assert (await two.provider.order(two.target.host_id, "check@2", check_target=order)).ok
        prepared = await two.prepare(two.describe(machine.id))
        assert prepared.ok, prepared.error
