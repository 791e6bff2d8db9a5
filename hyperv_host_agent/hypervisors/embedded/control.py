"""The guest's control socket: one JSON line asks, one JSON line answers, then the connection ends."""

import contextlib
import json
import os
import socket
import socketserver
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from hyperv_host_agent.changes.base import Anchor
from hyperv_host_agent.changes.durable import descriptor
from hyperv_host_agent.changes.tracked_disks import NotTracked, Opened, Owner, OwnerGone

Words = dict[str, Any]
_LONGEST_LINE: Final = 65536
_ANSWER_SECONDS: Final = 10.0


@contextlib.contextmanager
def _short(path: Path) -> Iterator[str]:
    """A name of at most 107 bytes, the kernel's limit for a socket, whatever the folder's length."""
    with descriptor(path.parent, os.O_RDONLY | os.O_DIRECTORY) as folder:
        yield f"/proc/self/fd/{folder}/{path.name}"


class _Request(socketserver.StreamRequestHandler):
    server: "ControlServer"
    timeout = _ANSWER_SECONDS

    def handle(self) -> None:
        line = self.rfile.readline(_LONGEST_LINE)
        try:
            words = json.loads(line)
            answer = self.server.answer(str(words.pop("verb")), words)
        except OwnerGone:
            return  # the disks were closed in this moment: no answer says so
        except NotTracked:
            answer = {"refused": "not-tracked"}
        except (ValueError, KeyError, TypeError) as error:
            answer = {"refused": "invalid", "problem": str(error)}
        except OSError as error:
            answer = {"refused": "io", "problem": str(error)}
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # the agent may be gone
            self.wfile.write(json.dumps(answer).encode() + b"\n")


class ControlServer(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def __init__(self, path: Path, answer: Callable[[str, Words], Words]) -> None:
        self.answer = answer
        path.unlink(missing_ok=True)  # of a guest that was killed; the caller holds the owner lock
        with _short(path) as name:
            super().__init__(name, _Request)
        path.chmod(0o600)


def serve_owner(owner: Owner, verb: str, words: Words) -> Words:
    """The verbs of `Owner`. Raises KeyError for any other."""
    match verb:
        case "begin_tracking":
            owner.begin_tracking()
        case "open_point":
            opened = owner.open_point(_point(words), words["consistency"])
            return {"instant": opened.instant, "consistency": opened.consistency}
        case "close_point":
            owner.close_point()
        case "ack":
            owner.ack(_point(words))
        case "discard":
            owner.discard()
        case "end_tracking":
            owner.end_tracking()
        case _:
            raise KeyError(verb)
    return {}


def ask(path: Path, verb: str, *, timeout: float = _ANSWER_SECONDS, **words: object) -> Words:
    """Raises OwnerGone when nobody answers in time, else what the other side says: NotTracked, ValueError, OSError."""
    line = json.dumps({"verb": verb} | words).encode() + b"\n"
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection, _short(path) as name:
            connection.settimeout(timeout)
            connection.connect(name)
            connection.sendall(line)
            with connection.makefile("rb") as answers:
                answer = answers.readline(_LONGEST_LINE)
    except OSError as error:
        raise OwnerGone from error
    if not answer.endswith(b"\n"):
        raise OwnerGone
    said: Words = json.loads(answer)
    match said.get("refused"):
        case None:
            return said
        case "not-tracked":
            raise NotTracked
        case "invalid":
            raise ValueError(said["problem"])
        case _:
            raise OSError(said["problem"])


class GuestOwner:
    """The guest process as the owner of its disks."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def begin_tracking(self) -> None:
        ask(self._path, "begin_tracking")

    def open_point(self, point: Anchor, consistency: str) -> Opened:
        said = ask(self._path, "open_point", consistency=consistency, **_words(point))
        return Opened(said["instant"], said["consistency"])

    def close_point(self) -> None:
        ask(self._path, "close_point")

    def ack(self, point: Anchor) -> None:
        ask(self._path, "ack", **_words(point))

    def discard(self) -> None:
        ask(self._path, "discard")

    def end_tracking(self) -> None:
        ask(self._path, "end_tracking")


def _words(point: Anchor) -> Words:
    return {"cycle": point.cycle, "id": point.id.hex()}


def _point(words: Words) -> Anchor:
    return Anchor(int(words["cycle"]), bytes.fromhex(words["id"]))
