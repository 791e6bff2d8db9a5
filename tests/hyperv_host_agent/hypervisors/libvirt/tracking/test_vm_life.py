"""Whatever happens to a VM, its replication goes on with what changed, and with nothing left out."""

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from contextlib import closing

import pytest

from deploy.lab.libvirt_host import LibvirtHost
from deploy.lab.machine import run, until
from hyperv_host_agent.changes.base import SourceFailed, SourceUnavailable, Tracking
from hyperv_host_agent.nbd.connection import Connection
from hyperv_host_agent.nbd.stream import UnixAddress
from tests.fakes.libvirt_tracked import TrackedDomain
from twinsite.extents import CLUSTER, Run
from twinsite.units import MiB

Make = Callable[..., TrackedDomain]
SCSI = "<controller type='scsi' model='virtio-scsi'/>"


def scsi_disk(path: str, target: str) -> str:
    return (
        "<disk type='file' device='disk'><driver name='qemu' type='qcow2' discard='unmap'/>"
        f"<source file='{path}'/><target dev='{target}' bus='scsi'/></disk>"
    )


@pytest.fixture
def running(tracked: Make) -> TrackedDomain:
    made = tracked()
    made.guest.start()
    return made


class TestPowerAndProcesses:
    @pytest.mark.parametrize("how", ["destroy", "reset", "managed save", "libvirtd restarted", "libvirtd killed"])
    def test_tracking_outlives_what_is_orderly_enough(self, running: TrackedDomain, how: str):
        replica = running.begin()
        running.guest.write("vda", 1, 0, CLUSTER)
        match how:
            case "destroy":
                running.guest.destroy()
                running.guest.start()
            case "reset":
                running.host.virsh("reset", running.guest.name)
            case "managed save":
                running.host.virsh("managedsave", running.guest.name)
                running.guest.start()
            case "libvirtd restarted":
                running.host.restart_libvirtd()
            case "libvirtd killed":
                running.host.kill_libvirtd()
                running.host.start_libvirtd()
        running.guest.write("vdb", 2, 3 * CLUSTER, 10)
        assert running.source.status()[1] is Tracking.OK
        assert running.cycle(2, replica) == set()
        assert running.same(replica)

    def test_a_killed_qemu_costs_a_comparison_and_then_cycles_are_small_again(self, running: TrackedDomain):
        replica = running.begin()
        running.guest.write("vda", 1, 0, CLUSTER)
        running.guest.kill()
        until("libvirt to notice", lambda: not running.domain().is_active() or None)
        running.guest.start()
        running.source.start()
        assert running.source.status()[1] is Tracking.LOST
        point = running.source.open_point(2, b"2" * 16, consistency="crash")
        assert (point.tracking, "no sound record" in point.doubt) == (Tracking.LOST, True)
        point.close()
        running.source.discard()
        assert len(running.cycle(3, replica)) == 2
        running.guest.write("vda", 9, 5 * CLUSTER, 5)
        assert running.cycle(4, replica) == set()
        assert running.same(replica)

    def test_bitmaps_left_in_use_are_not_believed_and_are_cleared_away(self, running: TrackedDomain):
        replica = running.begin()
        running.guest.destroy()
        socket = running.host.root / "crashing"
        command = ["qemu-nbd", "-t", "-f", "qcow2", "-k", str(socket), str(running.guest.disks["vda"])]
        crashing = subprocess.Popen(command)
        until("qemu-nbd", lambda: socket.exists() or None)
        connection = Connection(UnixAddress(socket), "")  # it has the image open, then
        crashing.send_signal(signal.SIGKILL)
        crashing.wait()
        connection.close()
        running.guest.start()
        assert running.source.status()[1] is Tracking.LOST
        running.source.start()
        assert len(running.cycle(2, replica)) == 2
        running.guest.write("vda", 3, 0, CLUSTER)
        assert running.cycle(3, replica) == set()
        assert running.same(replica)

    def test_a_guest_that_powers_off_in_the_middle_of_a_point_fails_that_point_only(self, running: TrackedDomain):
        replica = running.begin()
        running.guest.write("vda", 1, 0, CLUSTER)
        vda = running.id("vda")
        with closing(running.source.open_point(2, b"2" * 16, consistency="crash")) as point:
            point.read(vda, Run(0, 1))
            running.guest.destroy()
            until("it to be off", lambda: not running.domain().is_active() or None)
            with pytest.raises((SourceUnavailable, SourceFailed)):
                point.read(vda, Run(0, 1))
        running.source.discard()
        running.guest.start()
        assert running.cycle(3, replica) == set()
        assert running.same(replica)

    def test_libvirtd_killed_under_an_open_point_does_not_disturb_who_reads(self, running: TrackedDomain):
        replica = running.begin()
        running.guest.write("vda", 1, 0, CLUSTER)
        with closing(running.source.open_point(2, b"2" * 16, consistency="crash")) as point:
            running.host.kill_libvirtd()
            assert point.read(running.id("vda"), Run(0, 1)) == b"\1" * CLUSTER
            running.host.start_libvirtd()
        running.source.ack(2, b"1" * 16)  # of another one
        running.source.discard()
        assert running.cycle(3, replica) == set()
        assert running.same(replica)


class TestDisks:
    @pytest.mark.parametrize("live", [True, False])
    def test_a_disk_that_grows_stays_incremental(self, running: TrackedDomain, live: bool):
        replica = running.begin()
        if live:
            running.domain().block_resize("vda", 24 * MiB)
        else:
            running.guest.destroy()
            run("qemu-img", "resize", "-q", str(running.guest.disks["vda"]), str(24 * MiB))
            running.guest.start()
        running.guest.write("vda", 7, 20 * MiB, CLUSTER)
        assert {disk.name: disk.size for disk in running.source.disks()} == {"vda": 24 * MiB, "vdb": 16 * MiB}
        assert running.cycle(2, replica) == set()
        assert running.same(replica)

    def test_a_disk_hot_added_is_whole_inside_the_same_point_and_one_hot_removed_is_gone(self, tracked: Make):
        made = tracked(extra=SCSI)
        made.guest.start()
        replica = made.begin()
        made.guest.write("vda", 1, 0, CLUSTER)
        path = made.host.images / f"{made.guest.name}-sda.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", str(path), str(8 * MiB))
        xml = made.host.root / "disk.xml"
        xml.write_text(scsi_disk(str(path), "sda"))
        made.host.virsh("attach-device", made.guest.name, str(xml), "--live")
        assert made.cycle(2, replica) == {made.id("sda")}
        assert set(replica) == {made.id("vda"), made.id("vdb"), made.id("sda")}
        made.guest.write("vdb", 2, CLUSTER, 1)
        assert made.cycle(3, replica) == set()
        made.host.virsh("detach-device", made.guest.name, str(xml), "--live")
        until("the disk to go", lambda: len(made.source.disks()) == 2 or None)
        made.guest.write("vdb", 3, 2 * CLUSTER, 1)
        assert made.cycle(4, replica) == set()
        assert made.same(replica)

    def test_a_raw_disk_is_read_whole_each_time_in_the_same_instant_and_it_is_said_why(self, tracked: Make):
        made = tracked(disks={"vda": 4 * MiB}, disk_format="raw")
        made.guest.start()
        replica = made.begin()
        made.guest.write("vda", 1, 0, CLUSTER)
        assert made.source.status()[1] is Tracking.OK
        with closing(made.source.open_point(2, b"2" * 16, consistency="crash")) as point:
            assert (point.tracking, "vda is raw" in point.doubt) == (Tracking.OK, True)
        assert made.cycle(3, replica) == {made.id("vda")}
        assert made.same(replica)

    def test_qcow2_of_version_2_is_read_whole_each_time_and_it_is_said_why(self, tracked: Make):
        made = tracked(disks={"vda": 4 * MiB}, options=("compat=0.10",))
        made.guest.start()
        replica = made.begin()
        made.guest.write("vda", 1, 0, CLUSTER)
        with closing(made.source.open_point(2, b"2" * 16, consistency="crash")) as point:
            assert (point.tracking, "version 2" in point.doubt) == (Tracking.OK, True)
        assert made.cycle(3, replica) == {made.id("vda")}
        assert made.same(replica)


class TestSnapshots:
    def test_an_external_snapshot_of_somebody_else_and_its_commit_are_followed(self, running: TrackedDomain):
        name = running.guest.name
        replica = running.begin()
        running.guest.write("vda", 1, 0, CLUSTER)
        running.host.virsh("snapshot-create-as", name, "theirs", "--disk-only", "--no-metadata")
        running.guest.write("vda", 2, 2 * CLUSTER, CLUSTER)
        assert running.cycle(2, replica) == set()
        assert running.same(replica)
        running.guest.write("vda", 3, 4 * CLUSTER, CLUSTER)
        for target in ("vda", "vdb"):
            running.host.virsh("blockcommit", name, target, "--active", "--pivot", "--wait")
        running.guest.write("vda", 4, 6 * CLUSTER, CLUSTER)
        assert running.cycle(3, replica) == set()
        assert running.same(replica)

    def test_an_internal_snapshot_changes_nothing(self, running: TrackedDomain):
        replica = running.begin()
        running.guest.write("vda", 1, 0, CLUSTER)
        running.host.virsh("snapshot-create-as", running.guest.name, "theirs")
        running.guest.write("vda", 2, CLUSTER, CLUSTER)
        assert running.cycle(2, replica) == set()
        assert running.same(replica)
        running.host.virsh("snapshot-delete", running.guest.name, "theirs")


class TestOthers:
    def test_a_backup_of_another_tool_is_waited_for_and_named(self, running: TrackedDomain):
        replica = running.begin()
        xml = running.host.root / "theirs.xml"
        xml.write_text(
            f"<domainbackup mode='pull'><server transport='unix' socket='{running.host.root}/theirs'/></domainbackup>"
        )
        running.host.virsh("backup-begin", running.guest.name, str(xml))
        running.source = running.new_source(wait_seconds=0.3)
        with pytest.raises(SourceUnavailable, match="another backup tool holds it"):
            running.source.open_point(2, b"2" * 16, consistency="crash")
        assert running.domain().job() is not None, "it is theirs, and goes on"
        running.source = running.new_source(wait_seconds=20)
        ends = threading.Timer(0.5, running.host.virsh, ("domjobabort", running.guest.name))
        ends.start()
        assert running.cycle(3, replica) == set()
        ends.join()
        for path in running.host.images.glob("*.scratch*"):
            path.unlink()

    def test_a_running_block_job_is_named_and_survives(self, running: TrackedDomain):
        replica = running.begin()
        copy = running.host.images / "copy.qcow2"
        run("qemu-img", "create", "-q", "-f", "qcow2", str(copy), str(16 * MiB))
        running.guest.fill("vda", 1, size=4 * MiB)
        running.host.virsh(
            *("blockcopy", running.guest.name, "vda", str(copy), "--transient-job", "--reuse-external"),
            *("--bandwidth", "1"),
        )
        with pytest.raises(SourceUnavailable, match="holds it"):
            running.source.open_point(2, b"2" * 16, consistency="crash")
        assert running.domain().block_job("vda") is not None
        running.domain().block_job_abort("vda")
        assert running.cycle(3, replica) == set()
        assert running.same(replica)


class TestScratch:
    def test_without_room_for_it_no_point_is_opened(self, running: TrackedDomain):
        running.begin()
        running.places.room[0] = 1 * MiB
        with pytest.raises(SourceUnavailable, match="bytes free"):
            running.source.open_point(2, b"2" * 16, consistency="crash")
        assert running.leftovers() == []

    def test_a_point_is_given_up_before_the_room_for_it_runs_out(self, running: TrackedDomain):
        replica = running.begin()
        vda = running.id("vda")
        with closing(running.source.open_point(2, b"2" * 16, consistency="crash")) as point:
            point.read(vda, Run(0, 1))
            running.places.room[0] = 1 * MiB
            until("the job to be ended", lambda: running.domain().job() is None or None)
            with pytest.raises(SourceUnavailable, match="no space left"):
                point.read(vda, Run(0, 1))
        running.places.room[0] = 1 << 40
        running.source.discard()
        assert running.cycle(3, replica) == set()
        assert running.same(replica)


class TestFuzzyCopy:
    def test_nothing_stays_open_once_it_rests(self, running: TrackedDomain):
        running.source.start()
        running.guest.write("vda", 8, CLUSTER, CLUSTER)
        vda = running.id("vda")
        assert running.source.read_now(vda, Run(1, 1)) == b"\x08" * CLUSTER
        assert list(running.source.holes_now(vda, Run(0, 256))) == [Run(0, 1), Run(2, 254)]
        assert running.domain().job() is not None
        running.source.rest()
        assert running.leftovers() == []
        assert running.source.read_now(vda, Run(0, 1)) == bytes(CLUSTER)

    def test_it_lets_go_by_itself_when_nobody_reads_on(self, running: TrackedDomain):
        running.source.start()
        running.source.read_now(running.id("vda"), Run(1, 1))
        until("the job to end", lambda: running.domain().job() is None or None)
        assert running.leftovers() == []

    def test_a_disk_that_is_not_there_is_unavailable(self, running: TrackedDomain):
        with pytest.raises(SourceUnavailable):
            running.source.read_now("other", Run(0, 1))


class TestStopped:
    def test_a_stopped_vm_is_replicated_and_its_tracking_goes_on_over_starts(self, tracked: Make):
        made = tracked()
        replica = made.begin()
        assert made.same(replica)
        made.guest.start()
        made.guest.write("vda", 1, 3 * CLUSTER, CLUSTER)
        made.guest.destroy()
        assert made.cycle(2, replica) == set()
        assert made.same(replica)
        assert made.leftovers() == []
        made.guest.start()
        made.guest.write("vdb", 2, 5 * CLUSTER, CLUSTER)
        assert made.cycle(3, replica) == set()
        assert made.same(replica)
        made.guest.destroy()
        assert made.cycle(4, replica) == set()
        assert made.same(replica)

    def test_it_may_start_while_it_is_read_and_then_that_point_is_not_used(self, tracked: Make):
        made = tracked()
        replica = made.begin()
        with closing(made.source.open_point(2, b"2" * 16, consistency="crash")) as point:
            point.read(made.id("vda"), Run(0, 1))
            made.guest.start()
            with pytest.raises(SourceUnavailable, match="started meanwhile"):
                point.read(made.id("vda"), Run(0, 1))
        made.source.discard()
        made.guest.write("vda", 4, 0, CLUSTER)
        assert made.cycle(3, replica) == set()
        assert made.same(replica)

    def test_the_fuzzy_copy_reads_it_too(self, tracked: Make):
        made = tracked()
        assert made.source.read_now(made.id("vda"), Run(0, 1)) == bytes(CLUSTER)
        assert list(made.source.holes_now(made.id("vda"), Run(0, 256))) == [Run(0, 256)]
        made.source.rest()

    def test_what_another_tool_does_to_its_disk_is_seen(self, tracked: Make):
        made = tracked()
        replica = made.begin()
        path = str(made.guest.disks["vda"])
        run("qemu-io", "-f", "qcow2", "-c", f"write -P 9 {2 * CLUSTER} 64k", path)
        assert made.cycle(2, replica) == set()
        assert made.same(replica)


def test_nobody_else_can_open_a_point_while_one_is_open(running: TrackedDomain, host: LibvirtHost):
    running.source.start()
    with closing(running.source.open_point(1, os.urandom(16), consistency="crash")):
        other = running.new_source()
        with pytest.raises(SourceUnavailable, match="in another process"):
            other.open_point(2, os.urandom(16), consistency="crash")
        other.recover()
        assert running.domain().job() is not None, "it is in use, and goes on"
    assert host.state(running.guest.name) == "running"
