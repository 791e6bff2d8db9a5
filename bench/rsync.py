"""The peer for changes: `rsync --inplace` of a disk image over ssh, against a server of its own on loopback."""

import contextlib
import getpass
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from demo.ports import free_port

_SSHD: Final = "/usr/sbin/sshd"


def missing() -> list[str]:
    found = [program for program in ("rsync", "ssh", "ssh-keygen") if shutil.which(program) is None]
    return found if Path(_SSHD).exists() else [*found, "sshd"]


@dataclass(frozen=True)
class Server:
    port: int
    folder: Path

    def copy_seconds(self, source: Path, target: Path) -> float:
        started = time.monotonic()
        shell = (
            f"ssh -p {self.port} -i {self.folder}/key -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -q"
        )
        subprocess.run(
            [
                "rsync",
                "--inplace",
                "--no-whole-file",
                "-e",
                shell,
                str(source),
                f"{getpass.getuser()}@127.0.0.1:{target}",
            ],
            check=True,
        )
        return time.monotonic() - started


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Server]:
    folder.mkdir(mode=0o700)
    for name in ("host", "key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
    shutil.copy(folder / "key.pub", folder / "authorized")
    Path("/run/sshd").mkdir(exist_ok=True)  # where sshd keeps its unprivileged half
    port = free_port()
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host",
        "AuthorizedKeysFile": folder / "authorized",
        "PidFile": folder / "pid",
        "StrictModes": "no",
        "UsePAM": "no",
        "PasswordAuthentication": "no",
    }
    (folder / "config").write_text("".join(f"{name} {value}\n" for name, value in settings.items()))
    process = subprocess.Popen([_SSHD, "-D", "-f", str(folder / "config")], stderr=subprocess.DEVNULL)
    try:
        time.sleep(0.5)
        yield Server(port, folder)
    finally:
        process.terminate()
        process.wait()
