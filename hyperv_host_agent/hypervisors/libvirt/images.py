"""qemu-img: overlays on recovery points, and whether it can read them at all."""

import functools
import subprocess
import tempfile
from pathlib import Path
from typing import Final

_SECONDS: Final = 30.0
_CLUSTER: Final = "64k"


def create_overlay(path: Path, size: int, layer: Path) -> None:
    """An empty qcow2 of `size` bytes over the newest layer of a point. Raises OSError."""
    options = f"cluster_size={_CLUSTER},lazy_refcounts=off"
    _run("create", "-q", "-f", "qcow2", "-o", options, "-F", "qcow2", "-b", str(layer), str(path), str(size))


@functools.cache
def zstd_problem() -> str:
    """Why the qemu-img of this host cannot read the layers of recovery points; empty: it can."""
    with tempfile.TemporaryDirectory(prefix="twinsite-") as folder:
        try:
            _run("create", "-q", "-f", "qcow2", "-o", "compression_type=zstd", f"{folder}/probe", "1M")
        except OSError as error:
            return str(error)
    return ""


def _run(*arguments: str) -> None:
    try:
        subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, timeout=_SECONDS)
    except subprocess.CalledProcessError as error:
        raise OSError(
            error.stderr.decode(errors="replace").strip() or f"qemu-img ended with {error.returncode}"
        ) from None
    except subprocess.TimeoutExpired:
        raise OSError(f"qemu-img did not end within {_SECONDS:.0f} seconds") from None
