"""What libvirt refuses, as types a caller can act on."""

import re
from typing import Final

from twinsite.errors import Failed, NotFound, Precondition, Unreachable

_NOT_THERE: Final = frozenset({42, 43, 49, 50, 72, 80, 99, 103, 104})  # domain, network, pool … checkpoint, backup
_NOT_THERE_WORDS: Final = re.compile(r"no job is active|does not have an active block job", re.IGNORECASE)
_BUSY: Final = frozenset({68, 83, 87})  # the state change lock, a block copy, a resource
_BUSY_WORDS: Final = re.compile(r"block ?job|another .*job|job is (already )?active|state change lock", re.IGNORECASE)
_CHECKPOINT: Final = frozenset({102, 109})
_CHECKPOINT_WORDS: Final = re.compile(
    r"missing or broken bitmap|not found in backing chain|bitmap.*(already exists|inconsistent)", re.IGNORECASE
)
_AGENT: Final = frozenset({86, 97, 111, 112})  # unresponsive, out of step, command timed out, command failed
_INTERNAL: Final = 1


class LibvirtMissing(Precondition):
    public = "libvirt-python is not installed here"
    next_step = "install twinsite[libvirt], or Debian's python3-libvirt for a venv with system site packages"


class LibvirtFailed(Failed):
    """A refusal nothing more is known about; `code` and `domain` are libvirt's numbers."""

    public = "libvirt refused: {error.problem}"

    def __init__(self, problem: str, code: int = 0, domain: int = 0) -> None:
        self.problem, self.code_number, self.domain = problem, code, domain


class NotThere(NotFound):
    public = "libvirt has no such thing: {error.problem}"

    def __init__(self, problem: str) -> None:
        self.problem = problem


class Busy(Unreachable):
    """Another job holds the VM: a backup, a migration, a snapshot, a resize."""

    public = "the VM is busy: {error.problem}"
    still_works = "it runs on; a repetition may succeed"

    def __init__(self, problem: str) -> None:
        self.problem = problem


class CheckpointBroken(Failed):
    public = "the VM's change tracking is broken: {error.problem}"
    still_works = "the VM runs on"

    def __init__(self, problem: str) -> None:
        self.problem = problem


class AgentSilent(Unreachable):
    public = "the guest agent does not answer: {error.problem}"
    still_works = "the guest runs on"
    next_step = "look at qemu-guest-agent inside the guest"

    def __init__(self, problem: str) -> None:
        self.problem = problem


class ConnectionLost(Unreachable):
    public = "libvirt does not answer at {error.uri}: {error.problem}"
    still_works = "VMs run on; the connection is made again with the next call"
    next_step = "systemctl status libvirtd"

    def __init__(self, uri: str, problem: str) -> None:
        self.uri, self.problem = uri, problem


Refusal = LibvirtFailed | NotThere | Busy | CheckpointBroken | AgentSilent


def refusal(code: int, domain: int, problem: str) -> Refusal:
    """The type for libvirt's error number; a few of its texts say more than their numbers."""
    if code in _NOT_THERE or _NOT_THERE_WORDS.search(problem):
        return NotThere(problem)
    if code in _CHECKPOINT or _CHECKPOINT_WORDS.search(problem):
        return CheckpointBroken(problem)
    if code in _AGENT or (code != _INTERNAL and "guest agent" in problem.lower()):
        return AgentSilent(problem)
    if code in _BUSY or _BUSY_WORDS.search(problem):
        return Busy(problem)
    return LibvirtFailed(problem, code, domain)
