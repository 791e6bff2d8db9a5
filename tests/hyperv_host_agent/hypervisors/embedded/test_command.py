"""The command that people and demonstrations make and look at VMs with."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hyperv_host_agent.hypervisors.embedded import EmbeddedHypervisor
from hyperv_host_agent.hypervisors.embedded.__main__ import main, run
from twinsite.units import MiB


@pytest.fixture
def vms(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "vms"
    yield folder
    hypervisor = EmbeddedHypervisor(folder, folder / ".run")
    for state in hypervisor.machines():
        hypervisor.stop(state.spec.id, timeout=0)


def call(command: str, vms: Path, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*command.split(), "--vms", str(vms), *arguments])


def test_a_vm_made_from_an_image_keeps_the_image_and_writes_behind_it(vms: Path, tmp_path: Path):
    image = tmp_path / "files.img"
    content = bytearray(5 * MiB + 1000)
    content[MiB : 2 * MiB] = random.Random(1).randbytes(MiB)
    image.write_bytes(content)
    made = call(
        "create", vms, "--name", "web01", "--disk", f"vda={image}", "--disk", "vdb=64MiB",
        "--interval", "0.01", "--load", "1MiB",
    )  # fmt: skip
    assert made.exit_code == 0, made.output
    vm_id = made.output.strip()
    assert call("start", vms, "--name", "web01").exit_code == 0
    listed = call("list", vms).output
    assert "web01  running" in listed
    assert vm_id in listed
    assert json.loads(call("freeze", vms, "--name", "web01").output) == {"frozen": True}
    assert json.loads(call("records", vms, "--name", "web01").output)["problems"] == []
    assert call("thaw", vms, "--name", vm_id).exit_code == 0
    assert call("stop", vms, "--name", "web01").exit_code == 0
    report = call("records", vms, "--name", "web01")
    assert json.loads(report.output)["newest"] > 0
    hypervisor = EmbeddedHypervisor(vms, vms / ".run")
    disks = hypervisor.machine(vm_id).spec.disks
    with hypervisor.disk_path(vm_id, disks[0].id).open("rb") as file:
        assert file.read(len(content)) == content
    assert hypervisor.disk_path(vm_id, disks[1].id).stat().st_blocks * 512 < 40 * MiB


def test_damaged_records_end_with_a_status_that_says_so(vms: Path):
    vm_id = call("create", vms, "--name", "web01", "--disk", "vda=2M", "--interval", "0.01").output.strip()
    call("start", vms, "--name", "web01")
    call("stop", vms, "--name", "web01")
    hypervisor = EmbeddedHypervisor(vms, vms / ".run")
    with hypervisor.disk_path(vm_id, hypervisor.machine(vm_id).spec.disks[0].id).open("r+b") as file:
        file.seek(2 * MiB - 1024)
        file.write(b"x")
    damaged = call("records", vms, "--name", "web01")
    assert damaged.exit_code == 1
    assert "torn or damaged" in damaged.output


@pytest.mark.parametrize(
    ("disk", "problem"),
    [("vda", "not NAME=IMAGE"), ("vda=lots", "not a size"), ("vda=1K", "at least 1 MiB"), ("vda=IMAGE", "qcow2")],
)
def test_a_wrong_disk_is_refused_and_nothing_is_left(
    vms: Path,
    tmp_path: Path,
    disk: str,
    problem: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    image = tmp_path / "a.qcow2"
    image.write_bytes(b"QFI\xfb" + bytes(100))
    arguments = ["create", "--vms", str(vms), "--name", "web01", "--disk", disk.replace("IMAGE", str(image))]
    monkeypatch.setattr("sys.argv", ["embedded", *arguments])
    with pytest.raises(SystemExit) as ended:
        run()
    assert ended.value.code != 0
    assert problem in capsys.readouterr().err
    assert EmbeddedHypervisor(vms, vms / ".run").machines() == []


def test_disks_change_by_command_while_the_vm_runs(vms: Path):
    call("create", vms, "--name", "web01", "--disk", "vda=2M", "--interval", "0.01")
    call("start", vms, "--name", "web01")
    assert call("disk add", vms, "--name", "web01", "--disk", "vdb=4M").exit_code == 0
    assert call("disk resize", vms, "--name", "web01", "--disk", "vda=8M").exit_code == 0
    assert "running  vda 8.0 MiB, vdb 4.0 MiB" in call("list", vms).output
    for command, said in (
        (("disk remove", "vdb"), "would be deleted"),
        (("disk resize", "vda=4M"), "4.0 MiB would be cut off"),
    ):
        tried = call(command[0], vms, "--name", "web01", "--disk", command[1], "--dry-run")
        assert tried.exit_code == 0
        assert said in tried.output
    assert "vda 8.0 MiB, vdb 4.0 MiB" in call("list", vms).output
    assert call("disk remove", vms, "--name", "web01", "--disk", "vdb").exit_code == 0
    call("stop", vms, "--name", "web01")
    assert call("records", vms, "--name", "web01").exit_code == 0
    assert call("disk remove", vms, "--name", "web01", "--disk", "vdq").exit_code != 0
