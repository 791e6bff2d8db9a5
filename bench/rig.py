"""Two real host agents as processes on loopback, from nothing but their state folders; no provider runs."""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from demo.ports import free_port
from hyperv_host_agent.assignments import FILE
from hyperv_host_agent.hypervisors.base import MachineSpec, Purpose
from hyperv_host_agent.hypervisors.embedded.machine_folder import DiskFile, MachineFolder, folder_name
from hyperv_host_agent.replication.cycle import DiskGeometry
from hyperv_host_agent.runfile import identity_folder
from hyperv_host_agent.store.chain import ChainStore
from tests.fakes.pki import TestVault
from twinsite import grants
from twinsite.api.types.v1 import types_pb2
from twinsite.credentials import Credentials

PROGRAM = Path(sys.executable).with_name("twinsite-host")


@dataclass
class Process:
    """An agent; `peak` is its highest resident set in bytes, read while it lives."""

    process: subprocess.Popen[bytes]

    @property
    def peak(self) -> int:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return 0

    @property
    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)


def seconds_of(manifest: Path) -> float:
    """From a cycle's instant to its commit, of a manifest that no maintenance has rewritten yet."""
    document = json.loads(manifest.read_bytes())["document"]
    return manifest.stat().st_mtime - float(document["instant"])


@dataclass
class Rig:
    """Sides "a" (source) and "b" (target) below `root`."""

    root: Path
    vault: TestVault = field(default_factory=TestVault)
    ports: dict[str, int] = field(default_factory=dict)
    hosts: dict[str, str] = field(default_factory=dict)
    running: dict[str, Process] = field(default_factory=dict)
    vm_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    target_at: str = "127.0.0.1"  # where the target listens
    inside: dict[str, tuple[str, ...]] = field(default_factory=dict)  # side → command that puts a program elsewhere

    def lay_out(self, disks: dict[str, Path], *, compression: bool, frequency: int = 3600) -> None:
        """One stopped VM with these disk images (used in place), assigned at both sides, one cycle after its copy."""
        self.join()
        place = self.folder("a") / "vms" / folder_name(self.vm_id)
        place.mkdir(parents=True)
        files = []
        for name, path in disks.items():
            os.link(path, place / f"{name}.raw")
            disk_id = str(uuid.uuid5(uuid.NAMESPACE_OID, name))
            files.append(DiskFile(disk_id, name, path.stat().st_size, f"{name}.raw"))
        geometry = tuple(DiskGeometry(file.id, file.size, file.name) for file in files)
        spec = MachineSpec(self.vm_id, "bench", 1, 1 << 30, geometry)
        MachineFolder.write(place, spec, tuple(files), Purpose.ORDINARY, autostart=False)
        self.protect(spec, compression=compression, frequency=frequency)

    def join(self) -> None:
        """Both sides have settings and an identity; nothing runs."""
        for side in "ab":
            self.ports[side] = free_port()
            self.hosts[side] = f"h-{secrets.token_hex(6)}"
            self.folder(side).mkdir(parents=True)
            self._settings(side)
            self._join(side)

    def protect(self, *specs: MachineSpec, compression: bool, frequency: int) -> None:
        self.vm_id = specs[0].id
        for spec in specs:
            ChainStore(self.folder("b") / "store", reserve=0).create(spec.id, term=1).close()
        self.assign(*specs, compression=compression, frequency=frequency)

    def assign(self, *specs: MachineSpec, compression: bool, frequency: int) -> None:
        for side, role, peer in (("a", types_pb2.ROLE_SOURCE, "b"), ("b", types_pb2.ROLE_TARGET, "a")):
            assignments = [
                types_pb2.Assignment(
                    vm_id=spec.id,
                    vm_name=spec.name,
                    role=role,
                    policy=types_pb2.Policy(frequency_seconds=frequency, additional_points=1, compression=compression),
                    grant=self._grant(spec),
                    peer_host_id=self.hosts[peer],
                    peer_address=f"{self.target_at}:{self.ports['b']}" if side == "a" else "",
                    term=1,
                )
                for spec in specs
            ]
            held = types_pb2.Assignments(host_id=self.hosts[side], version=1, assignments=assignments)
            (self.folder(side) / "state" / FILE).write_bytes(held.SerializeToString())

    def _grant(self, spec: MachineSpec) -> types_pb2.SignedDocument:
        grant = grants.Grant(
            "g-bench",
            self.vault.vault,
            spec.id,
            spec.name,
            tuple((disk.id, disk.size) for disk in spec.disks),
            self.hosts["a"],
            self.hosts["b"],
            "https",
            1,
            int(time.time()) + 86400,
        )
        return grants.sign(grant, self.vault.signer)

    def folder(self, side: str) -> Path:
        return self.root / side

    def start(self, side: str, *, timeout: float = 20.0) -> Process:
        ready = self.folder(side) / "state" / "run" / "ready.json"
        ready.unlink(missing_ok=True)
        log = (self.folder(side) / "log").open("ab")
        with log:
            process = subprocess.Popen(
                [*self.inside.get(side, ()), str(PROGRAM), "--config", str(self.folder(side) / "host.toml"), "serve"],
                stdout=log,
                stderr=log,
            )
        self.running[side] = Process(process)
        deadline = time.monotonic() + timeout
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((self.folder(side) / "log").read_text())
            time.sleep(0.02)
        return self.running[side]

    def stop(self) -> None:
        for process in self.running.values():
            if process.process.poll() is None:
                process.stop()

    def points(self, vm_id: str = "") -> Path:
        """The folder of the manifests at the target."""
        return self.folder("b") / "store" / (vm_id or self.vm_id) / "points"

    def newest(self, vm_id: str = "") -> int:
        """Number of the newest committed cycle, 0: none."""
        folder = self.points(vm_id)
        return max((int(path.stem) for path in folder.glob("[0-9]*.json") if path.stem.isdigit()), default=0)

    def wait_for(self, cycle: int, *, timeout: float = 300.0) -> float:
        """Seconds from the cycle's instant at the source to its commit at the target."""
        path = self.points() / f"{cycle:06d}.json"
        deadline = time.monotonic() + timeout
        while not path.exists():
            if time.monotonic() > deadline:
                raise RuntimeError("\n".join((self.folder(side) / "log").read_text() for side in "ab"))
            time.sleep(0.01)
        return seconds_of(path)

    def _settings(self, side: str) -> None:
        folder = self.folder(side)
        (folder / "host.toml").write_text(
            f'state = "{folder}/state"\nstore = "{folder}/store"\nvms = "{folder}/vms"\n'
            f'listen = "{self.target_at if side == "b" else "127.0.0.1"}:{self.ports[side]}"\nstore_reserve_bytes = 0\n'
        )

    def _join(self, side: str) -> None:
        meta = {
            "host_name": f"host-{side}",
            "server_id": f"s-{secrets.token_hex(6)}",
            "link_address": f"127.0.0.1:{free_port()}",  # nobody answers there
            "signing_key": self.vault.signer.public.hex(),
            "signing_key_id": self.vault.signer.key_id,
        }
        made = self.vault.host(self.hosts[side], meta=meta)
        state = self.folder(side) / "state"
        state.mkdir()
        Credentials.store(identity_folder(state), made.key, made.chain_pem, made.roots_pem, made.meta)
