"""The guest's kernel and initramfs, built once from Debian packages and kept below build/lab."""

import fcntl
import hashlib
import lzma
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.lab import debian_packages, initramfs
from deploy.lab.machine import LabFailed, run

_HERE: Final = Path(__file__).parent
CACHE: Final = _HERE.parents[1] / "build" / "lab"
_PACKAGES: Final = (
    "busybox-static",
    "qemu-guest-agent",
    # What the agent is linked against; a library that is missing here fails the build by name.
    "libc6",
    "libglib2.0-0",
    "libnuma1",
    "libpcre2-8-0",
    "libudev1",
    "liburing2",
)
_MODULES: Final = (
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "ext4",
    "crc32c_generic",
    "button",
    "evdev",
)
_OPTIONAL_MODULES: Final = ("af_packet",)  # DHCP; built in where it is not a module
_PLACES: Final = {  # files of guest_files/ inside the initramfs
    "init": "init",
    "state": "guest/state",
    "dhcp": "guest/dhcp",
    "fsfreeze-hook": "etc/qemu/fsfreeze-hook",
    "shutdown": "sbin/shutdown",
}


@dataclass(frozen=True, slots=True)
class GuestImage:
    kernel: Path
    initrd: Path


def build() -> GuestImage:
    """From the cache when nothing of the recipe changed. Raises LabFailed."""
    recipe = hashlib.sha256()
    for file in (Path(__file__), Path(initramfs.__file__), *sorted((_HERE / "guest_files").iterdir())):
        recipe.update(file.name.encode() + b"\0" + file.read_bytes())
    folder = CACHE / f"guest-{recipe.hexdigest()[:16]}"
    image = GuestImage(folder / "vmlinuz", folder / "initrd.gz")
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:  # tests of several processes want it at one time
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _build(folder)
    return image


def _build(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".making-") as making:
        root, result = Path(making, "root"), Path(making, "result")
        root.mkdir()
        result.mkdir()
        debian_packages.unpack((*_PACKAGES, debian_packages.kernel_package()), root, Path(making, "downloads"))
        shutil.copyfile(next((root / "boot").glob("vmlinuz-*")), result / "vmlinuz")
        files = {place: (_HERE / "guest_files" / name).read_bytes() for name, place in _PLACES.items()}
        files["bin/busybox"] = (root / "bin" / "busybox").read_bytes()
        files["etc/acpi/PWRF/00000080"] = b"#!/bin/sh\nexec /sbin/shutdown -h\n"
        files |= _agent(root) | _modules(root)
        # The name is that of the 64 bit loader inside every program, the folder the first the loader looks into.
        links = {"lib64": "lib/x86_64-linux-gnu", "usr/lib": "../lib"}
        initramfs.write(result / "initrd.gz", files, links)
        os.rename(result, folder)  # noqa: PTH104  # whole or not at all


def _agent(root: Path) -> dict[str, bytes]:
    """qemu-ga and the libraries it is linked against, by their place in the guest."""
    program = root / "usr" / "sbin" / "qemu-ga"
    loader = next(path for path in root.glob("lib*/**/ld-linux-x86-64.so.2") if not path.is_symlink())
    places = ":".join(str(root / at / "x86_64-linux-gnu") for at in ("lib", "usr/lib"))
    found = {"usr/sbin/qemu-ga": program.read_bytes()}
    found["lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"] = loader.read_bytes()
    for line in run(str(loader), "--library-path", places, "--list", str(program)).splitlines():
        if "not found" in line:
            raise LabFailed(f"qemu-guest-agent needs a library that is not among the guest's packages: {line.strip()}")
        if (match := re.fullmatch(r"\s*(\S+) => (/\S+) .*", line)) and str(root) in match[2]:
            found[f"lib/x86_64-linux-gnu/{Path(match[1]).name}"] = Path(match[2]).read_bytes()
    return found


def _modules(root: Path) -> dict[str, bytes]:
    """Kernel modules by their place in the guest, and the order they are loaded in; what is built in is left out."""
    paths = {_name(path): path for path in root.glob("lib/modules/*/kernel/**/*.ko*")}
    built_in = {
        _name(Path(at)) for file in root.glob("lib/modules/*/modules.builtin") for at in file.read_text().split()
    }
    order: list[str] = []
    content: dict[str, bytes] = {}

    def take(name: str) -> None:
        if name in content or name in built_in:
            return
        if name not in paths:
            raise LabFailed(f"the kernel has no module {name}")
        data = paths[name].read_bytes()
        content[name] = lzma.decompress(data) if paths[name].suffix == ".xz" else data
        needed = re.search(rb"\0depends=([^\0]*)\0", content[name])
        for other in needed[1].decode().split(",") if needed and needed[1] else ():
            take(other.replace("-", "_"))
        order.append(name)

    for name in (*_MODULES, *(name for name in _OPTIONAL_MODULES if name in paths)):
        take(name)
    files = {f"modules/{name}.ko": data for name, data in content.items()}
    return files | {"modules/order": " ".join(f"{name}.ko" for name in order).encode()}


def _name(path: Path) -> str:
    return path.name.split(".")[0].replace("-", "_")
