"""`twinsite-host check` says whether libvirt would do."""

import tempfile
from pathlib import Path

from deploy.lab.libvirt_host import LibvirtHost
from hyperv_host_agent import checks
from hyperv_host_agent.checks import Verdict
from hyperv_host_agent.hypervisors.libvirt.checking import _closed
from hyperv_host_agent.settings import HypervisorSettings, Settings
from twinsite.clock import SystemClock


def settings(folder: Path, uri: str) -> Settings:
    hypervisor = HypervisorSettings(kind="libvirt", uri=uri, scratch=folder / "scratch")
    return Settings(
        state=folder / "state", vms=folder / "vms", store=folder / "store", hypervisor=hypervisor, listen="127.0.0.1:0"
    )


def test_a_host_that_will_do_is_said_to(kvm_host: LibvirtHost, tmp_path: Path):
    found = {one.what: one for one in checks.run(settings(tmp_path, kvm_host.uri), SystemClock())}
    assert found["libvirt"].verdict is Verdict.OK
    assert found["qcow2"].verdict is Verdict.OK
    assert found["scratch folder"].verdict is Verdict.OK


def test_a_libvirt_that_does_not_answer_is_critical(tmp_path: Path):
    uri = f"qemu+unix:///system?socket={tmp_path}/none"
    found = {one.what: one for one in checks.run(settings(tmp_path, uri), SystemClock())}
    assert found["libvirt"].verdict is Verdict.CRITICAL
    assert "systemctl status libvirtd" in found["libvirt"].text


def test_a_folder_on_the_way_that_qemu_cannot_pass_is_named():
    with tempfile.TemporaryDirectory() as name:  # in a place that everybody passes
        shut = Path(name)
        inside = shut / "store"
        inside.mkdir()
        for place in (inside, shut):
            place.chmod(0o711)
        assert _closed(inside, 64055, 64055) is None
        shut.chmod(0o700)
        assert _closed(inside, 64055, 64055) == shut
        assert _closed(inside, 0, 0) is None
