"""A backup tool that froze a guest's file systems goes on finding them frozen, whatever Twinsite does meanwhile."""

import json

import pytest

from deploy.lab.machine import until
from hyperv_host_agent.hypervisors.libvirt.opening import open_libvirt

pytestmark = pytest.mark.system


def test_cycles_do_not_thaw_what_another_program_froze(guest, lan, tmp_path):
    pytest.importorskip("libvirt")
    host = guest.host
    hypervisor = open_libvirt(
        *(host.uri, tmp_path / "vms", tmp_path / "state", host.root / "scratch"), networks={}, test_network=""
    )
    try:
        source = hypervisor.change_source(host.virsh("domuuid", guest.name))
        source.start()
        until("records", lambda: guest.answer(lan)["record"] > 2)
        until("the agent's own look at the guest", lambda: not source._freezer._asking.locked())
        host.virsh("domfsfreeze", guest.name)
        for cycle in 1, 2:
            source.start()  # as before each cycle
            source.open_point(cycle, bytes([cycle]) * 16, consistency="crash").close()
            source.ack(cycle, bytes([cycle]) * 16)
        until("whoever asks the guest", lambda: not source._freezer._asking.locked())
        asked = host.virsh("qemu-agent-command", guest.name, '{"execute": "guest-fsfreeze-status"}')
        assert json.loads(asked)["return"] == "frozen"
        host.virsh("domfsthaw", guest.name)
    finally:
        hypervisor.close()
