"""The source document's steps, from a new vault to a VM that runs at the other site; each checked as it happens."""

import hashlib
import shutil
import tempfile
import time
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from demo.lab import SITES, Lab, until
from demo.report import Mismatch, Report
from demo.sites import Sites
from hyperv_host_agent.store import chains, manifests
from hyperv_host_agent.store.packed_point import PackedPoint
from twinsite.extents import cluster_length, clusters

VM: Final = "web01"
FREQUENCY: Final = "5s"
CYCLES: Final = 3


class Walk:
    def __init__(self, lab: Lab, sites: Sites, report: Report, image: Path | None) -> None:
        self.lab, self.sites, self.report, self.image = lab, sites, report, image
        self.report.traffic = self._traffic
        self.protected = False

    def run(self) -> None:
        """All steps. Raises Mismatch, ProgramFailed, CommandFailed, NoDisk."""
        self._prepare()
        self._control_plane()
        self._protect()
        self._test_failover()
        self._failover()
        self.report.facts["verified"] = True

    def end(self) -> None:
        if not self.lab.programs:
            return  # nothing of ours was started: what runs in this folder belongs to an earlier demonstration
        self.lab.kill()  # first: a host agent would start its guests again
        self.sites.end()

    def explore(self) -> str:
        lab = self.lab
        pids = [str(program.pid) for program in lab.programs.values() if program.running]
        lines = [
            f"The coordinator and site B are running (state and logs in {lab.root}). Explore:",
            f"  export TWINSITE_HOME={lab.root}/login PATH={Path('.venv/bin').absolute()}:$PATH",
            "  twinsite status",
            "  twinsite vm show web01",
            "  twinsite point list web01",
            "  twinsite job list",
            "  twinsite audit list",
            f"  {self.replica.log()}        (the guest's own log at site B)",
            f"End it: kill {' '.join(pids)}; {self.sites.how_to_end()}",
        ]
        return "\n".join(lines)

    # ---- steps ---------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        lab = self.lab
        with self.report.step("prepare two sites") as step:
            if running := self.sites.running():
                raise Mismatch(f"a demonstration still runs in {lab.root} (process {running[0]}); end it first")
            shutil.rmtree(lab.root, ignore_errors=True)
            self.source, step.verified = self.sites.prepare(VM, self.image)

    def _control_plane(self) -> None:
        lab = self.lab
        with self.report.step("start the coordinator, log in") as step:
            lab.start_coordinator()
            step.verified = "mutual TLS, token bound to the key"
        with self.report.step("create the vault") as step:
            lab.cli("vault", "create", "demo", "--region", "laboratory")
            vault = lab.json("vault", "show")
            self._same("the vault's state", vault["state"], "active")
            step.verified = vault["id"]
        with self.report.step("create a registration key file") as step:
            key = lab.create_key(ttl="5d")
            step.verified = "valid 5 days, two uses"
        with self.report.step("register both servers") as step:
            for site in SITES:
                lab.register(site, key)
            self._same("uses of the key", lab.json("key", "list")["items"][0]["used"], 2)
            step.verified = "one file, two identities"
        with self.report.step("sync metadata, hosts join") as step:
            for site in SITES:
                lab.start_site(site)
            until("both sites to be connected", lambda: lab.sites_connected() or None)
            until("the VM to be seen", lambda: any(v["name"] == VM for v in lab.json("vm", "list")["items"]) or None)
            step.verified = "2 clouds, 2 hosts, 1 VM"
        with self.report.step("pair cloud gold-a with gold-b") as step:
            lab.cli("pair", "create", "gold-a", "gold-b", "--frequency", FREQUENCY)
            step.verified = f"every {FREQUENCY}, compressed"

    def _protect(self) -> None:
        lab = self.lab
        with self.report.step("protect web01, initial replication") as step:
            self.source.start()
            self.protected = True
            lab.cli("vm", "protect", VM, "--pair", "gold-a:gold-b", "-y")
            until("the traffic to be reported", lambda: lab.protection()["cycles"] >= 2 or None)
            point = lab.points()[0]
            step.verified = f"recovery point {point['cycle']}"
        with self.report.step(f"{CYCLES} cycles while the guest writes") as step:
            first = lab.points()[0]["cycle"]
            newest = until(
                f"{CYCLES} more points", lambda: next((p for p in lab.points() if p["cycle"] >= first + CYCLES), None)
            )
            step.verified = f"newest point {newest['cycle']}"

    def _test_failover(self) -> None:
        lab = self.lab
        with self.report.step("test failover while the guest is frozen") as step, self.source.frozen() as newest:
            # Whatever point is the newest now or at any time until the thaw, it holds these disks.
            frozen = time.time()
            copies = self.source.digests()
            until("a cycle of the frozen disks", lambda: self._point_after(frozen), timeout=90)
            result = lab.json("vm", "test", VM)["job"]["result"]
            step.verified = f"from point {result['cycle']}"
        with self.report.step("compare the test copy with the source") as step:
            cycle = int(result["cycle"])
            for name, expected in copies.items():
                self._same(f"disk {name} of the replica at point {cycle}", self._replica(cycle, name), expected)
            (test,) = self.sites.copies("test")
            recovered, problems = test.boot()
            self._same("problems the test copy found on its disks", problems, [])
            self._same("newest record in the test copy", recovered, newest)
            step.verified = f"{len(copies)} disks equal by SHA-256, record {newest} on both"
            if where := test.answers():
                step.verified += f"; {where}"
        with self.report.step("clean the test up, replication went on") as step:
            lab.cli("vm", "test-cleanup", VM)
            self._same("test copies left", self.sites.copies("test"), [])
            seen = lab.points()[0]["cycle"]
            until("a point after the test", lambda: lab.points()[0]["cycle"] > seen or None)
            self._same("tests shown", lab.protection()["tests"], [])
            step.verified = "new points since"

    def _failover(self) -> None:
        lab = self.lab
        with self.report.step("kill -9 everything at site A") as step:
            shown = lab.protection()
            for name in ("provider-a", "host-a"):
                lab[name].kill()
            self.sites.kill("a")
            killed = time.time()
            displayed = killed - _seconds(shown["newest_instant"])  # the age that was displayed, grown until the kill
            step.verified = f"displayed RPO age {displayed:.1f} s"
        with self.report.step("unplanned failover to the newest point") as step:
            lab.login()
            job = lab.json("vm", "failover", VM, "--confirm", VM, "--reason", "demonstration: site A is gone")["job"]
            self._same("the job's state", job["state"], "succeeded")
            (self.replica,) = self.sites.copies("replica")
            recovered, problems = self.replica.boot()
            self._same("problems the VM found on its disks at B", problems, [])
            instant = next(p for p in lab.points() if p["cycle"] == int(job["result"]["cycle"]))["instant"]
            step.verified = f"boots with record {recovered} of point {job['result']['cycle']}"
            if where := self.replica.answers():
                step.verified += f"; {where}"
        with self.report.step("nothing of the point is lost") as step:
            at = _seconds(instant)
            expected = self.source.newest_record(before=at)
            lost = max(0, expected - recovered)
            age = killed - at
            written = self.source.newest_record()
            self._same("records lost of those written before the point's instant", lost, 0)
            if age > displayed:
                raise Mismatch(f"{age:.1f} s of writes are lost, {displayed:.1f} s were displayed")
            until("the VM to write on at B", lambda: self.replica.newest_record() > recovered or None)
            self._same("where the VM runs by right", lab.protection()["owner_host"], "host-b1")
            step.verified = f"{written - recovered} records after it, {age:.1f} s of {displayed:.1f} s shown"
        self.report.facts |= {
            "rpo_age_seconds": round(displayed, 3),
            "lost_seconds": round(age, 3),
            "records_lost_after_point": lost,
            "changed_bytes": sum(step.changed_bytes for step in self.report.steps),
            "wire_bytes": sum(step.wire_bytes for step in self.report.steps),
        }

    # ---- looking -------------------------------------------------------------------------------------------------

    def _traffic(self) -> tuple[int, int] | None:
        if not self.protected:
            return None
        shown = self.lab.protection()
        return (shown["changed_bytes"], shown["wire_bytes"]) if shown else None

    def _point_after(self, instant: float) -> dict[str, Any] | None:
        """The oldest point whose instant lies after `instant`."""
        return next((p for p in reversed(self.lab.points()) if _seconds(p["instant"]) > instant), None)

    def _replica(self, cycle: int, name: str) -> str:
        """SHA-256 of one disk of a point, read from the replica's files without the agent."""
        vm = next((self.lab.root / "host-b" / "store").glob("*/points")).parent
        with tempfile.TemporaryDirectory() as aside:  # loading mends what it finds torn: never in a store in use
            shutil.copytree(vm / manifests.POINTS, Path(aside, manifests.POINTS))
            for document in vm.glob(f"{chains.CHAINS}*"):
                shutil.copy(document, aside)
            points, lost = manifests.load(Path(aside), vm.name)
            held, problem = chains.read(Path(aside))
            if problem:
                raise Mismatch(f"the chains of {vm.name}: {problem}")
            known = chains.load(held or chains.Chains(), Path(aside), vm.name, points, lost)
        disk = next(entry for entry in points[cycle].disks if entry.geometry.name == name)
        stack = known.stack(disk.geometry.id, disk.at)
        size, digest = disk.geometry.size, hashlib.sha256()
        with closing(PackedPoint(vm / disk.geometry.id, stack, disk.at, size)) as reader:
            for cluster in range(clusters(size)):
                digest.update(reader.read_cluster(cluster)[: cluster_length(cluster, size)])
        return digest.hexdigest()

    def _same(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            raise Mismatch(f"{what}: {found!r}, expected {expected!r}")


def _seconds(rfc3339: str) -> float:
    return datetime.fromisoformat(rfc3339).timestamp()
