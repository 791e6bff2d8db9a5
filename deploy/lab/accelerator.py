"""Whether KVM works here: a device file says nothing, only a guest that boots does."""

import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from deploy.lab.guest_image import CACHE, GuestImage
from deploy.lab.machine import find

_DEVICE: Final = Path("/dev/kvm")
_PROBE_SECONDS: Final = 10.0  # a guest says its first word in less than one under KVM


def accelerator(image: GuestImage) -> str:
    """The domain type to use: "kvm" or "qemu"; asked once per boot of this machine."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    known = CACHE / f"accelerator-{boot}"
    if not known.exists():
        known.write_text("kvm" if os.access(_DEVICE, os.R_OK | os.W_OK) and _boots(image) else "qemu")
    return known.read_text()


def _boots(image: GuestImage) -> bool:
    qemu = find("qemu-system-x86_64")
    if qemu is None:
        return False
    machine = ("-machine", "q35", "-accel", "kvm", "-m", "192", "-nodefaults", "-display", "none", "-no-reboot")
    system = ("-kernel", str(image.kernel), "-initrd", str(image.initrd), "-append", "console=ttyS0 quiet")
    with tempfile.NamedTemporaryFile() as console:
        probe = subprocess.Popen(
            [qemu, *machine, *system, "-serial", f"file:{console.name}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + _PROBE_SECONDS
        try:
            while probe.poll() is None and time.monotonic() < deadline:
                if b"GUEST up" in Path(console.name).read_bytes():
                    return True
                time.sleep(0.05)  # a real guest that boots
        finally:
            probe.kill()
            probe.wait()
    return False
