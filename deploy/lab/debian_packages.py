"""Debian packages as files: downloaded with apt, unpacked with dpkg, never installed."""

import re
from collections.abc import Sequence
from pathlib import Path

from deploy.lab.machine import LabFailed, find, run

_DOWNLOAD_SECONDS = 300.0


def kernel_package() -> str:
    """The newest cloud kernel's own package, behind the meta package. Raises LabFailed."""
    for line in run("apt-cache", "depends", "linux-image-cloud-amd64").splitlines():
        if found := re.search(r"Depends: (linux-image-\S+)", line):
            return found[1]
    raise LabFailed("apt knows no linux-image-cloud-amd64: apt-get update")


def unpack(packages: Sequence[str], folder: Path, downloads: Path) -> None:
    """Their files below `folder`. Raises LabFailed, which says what is missing."""
    if find("apt-get") is None or find("dpkg-deb") is None:
        raise LabFailed("the laboratory's guest is made of Debian packages: this machine has no apt-get")
    downloads.mkdir(parents=True, exist_ok=True)
    get = ("env", "-C", str(downloads), "apt-get", "-qq", "-o", "APT::Sandbox::User=", "download", *packages)
    try:
        run(*get, timeout=_DOWNLOAD_SECONDS)
    except LabFailed:  # lists that are missing or older than the archive
        run("apt-get", "-qq", "update", timeout=_DOWNLOAD_SECONDS)
        run(*get, timeout=_DOWNLOAD_SECONDS)
    for package in downloads.glob("*.deb"):
        run("dpkg-deb", "-x", str(package), str(folder))
