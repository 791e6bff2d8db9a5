"""The first process of a machine of the laboratory: own mounts, processes and network; when it ends, all of it ends.

Run as a file, not imported: `first_process.py NAME (held | detached) [FROM:TO …]`. It says its pid on standard output.
`held` lives as long as its standard input is open, so that a test runner that is killed leaves nothing behind.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys

_NEW_MOUNTS, _NEW_HOSTNAME, _NEW_PIDS, _NEW_NETWORK = 0x20000, 0x4000000, 0x20000000, 0x40000000


def _mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True, stdout=sys.stderr)


def main(name: str, mode: str, *binds: str) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_NEW_MOUNTS | _NEW_HOSTNAME | _NEW_PIDS | _NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "no namespaces")
    said, say = os.pipe()
    child = os.fork()
    if child:
        os.close(say)
        if os.read(said, 1):
            print(child, flush=True)
        if mode == "detached":
            return
        _, status = os.waitpid(child, 0)  # reaped here: a test's processes leave no zombie to the machine
        sys.exit(os.waitstatus_to_exitcode(status) != 0)
    _mount("--make-rprivate", "/")
    _mount("-t", "proc", "proc", "/proc")
    _mount("-t", "sysfs", "sysfs", "/sys")  # the old one shows the network devices of the old namespace
    for bind in binds:
        _mount("--bind", *bind.split(":"))
    socket.sethostname(name)
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    os.chdir("/")
    os.setsid()
    # A dead QEMU that nobody reaps looks alive to libvirtd; orphans of an ignored signal are reaped by the kernel.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    os.write(say, b"1")
    os.close(1)  # whoever reads our output to its end need not wait for us
    if mode == "detached":
        while True:
            signal.pause()
    os.read(0, 1)


main(*sys.argv[1:])
