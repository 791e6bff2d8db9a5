"""A program that is run some hundred times, killed or with a call that fails: at every call that changes a file.

It is started once and forks for every run; strace is attached to the fork before that begins its work. Its calls are
listed by a first run, so that every other one meets its own.
"""

import ctypes
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.fakes.strace import require_strace

CHANGING = (  # calls that change a file or say that it is durable; the store makes no others
    *("openat", "mkdir", "write", "pwrite64", "fsync", "fdatasync"),
    *("rename", "renameat2", "ftruncate", "unlink", "unlinkat", "rmdir", "link", "symlink", "fallocate"),
    *("sendfile", "copy_file_range", "pwritev", "truncate"),
)
SYNCS = ("fsync", "fdatasync")
KILLED = (-9, 137)
_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)\) += (-?\d+)(.*)$")
_FD = re.compile(r"^(\d+)<([^>]*)>")
_PATHS = re.compile(r'"([^"]*)"')
_SECONDS = 60
_PR_SET_PTRACER = 0x59616D61
_ANYBODY = ctypes.c_ulong(-1)


@dataclass(frozen=True)
class Call:
    """One call of a run, in its order."""

    name: str
    path: Path  # that it is about; of a rename the old name
    other: Path | None  # of a rename the new name
    arguments: str
    result: int
    number: int  # among the calls of this name, from 1 on
    injected: bool

    @property
    def changes(self) -> bool:
        """Whether it changed what is on the disk."""
        return self.result >= 0 and (
            self.name != "openat" or "O_CREAT" in self.arguments or "O_TRUNC" in self.arguments
        )


@dataclass(frozen=True)
class Done:
    """How a run ended, and what it said."""

    status: int
    stdout: str
    stderr: str
    calls: Sequence[Call]

    @property
    def killed(self) -> bool:
        return self.status in KILLED


@dataclass
class Warm:
    """A program that is started and warm, and forks for every run."""

    _process: "subprocess.Popen[str]"
    _folder: Path

    @classmethod
    @contextmanager
    def started(cls, script: Path, *arguments: str) -> Iterator[Self]:
        """`script` calls `serve` when its only arguments are "serve" and these."""
        require_strace()
        with tempfile.TemporaryDirectory() as folder:
            process = subprocess.Popen(
                [sys.executable, str(script), "serve", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            try:
                yield cls(process, Path(folder))
            finally:
                process.stdin.close()  # type: ignore[union-attr]
                process.stdout.close()  # type: ignore[union-attr]
                process.wait(_SECONDS)

    def run(self, arguments: Sequence[str], *, inject: str = "", below: Path | None = None) -> Done:
        """Run it once with an injection such as ``fsync:signal=SIGKILL:when=3``; with `below` its calls on files there
        are told.
        """
        said, erred, log = (self._folder / name for name in ("stdout", "stderr", "calls"))
        pid = int(self._ask({"arguments": list(arguments), "stdout": str(said), "stderr": str(erred)}))
        traced = ",".join(CHANGING) if below else inject.split(":", 1)[0]
        command = [require_strace(), "-p", str(pid), "-e", f"trace={traced}", "-o", str(log), "-e", "signal=none"]
        command += ["-e", f"inject={inject}"] if inject else []
        strace = subprocess.Popen(
            [*command, *(("-y", "-s", "0") if below else ())], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        with strace:
            told = b""
            while b"attached" not in told:
                line = strace.stderr.readline()  # type: ignore[union-attr]
                assert line, told
                told += line
            status = int(self._ask({"go": pid}))
        calls = _calls(log, below) if below else ()
        return Done(os.waitstatus_to_exitcode(status), said.read_text(), erred.read_text(), calls)

    def _ask(self, question: dict[str, object]) -> str:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the program to fork from is gone"
        return answer


def serve(main: Callable[[list[str]], None]) -> None:
    """The program's side: fork as often as it is asked to, run `main` in the fork once somebody looks on."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    gates: dict[int, int] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        if "go" in asked:
            os.write(gates[asked["go"]], b"!")
            os.close(gates.pop(asked["go"]))
            answers.write(f"{os.waitpid(asked['go'], 0)[1]}\n")
            continue
        (inside, gate), (ready, waits) = os.pipe(), os.pipe()
        pid = os.fork()
        if not pid:
            os.close(gate)
            _be_the_fork(asked, inside, waits, main)
        os.read(ready, 1)  # its own calls before the work are behind it
        for end in (inside, ready, waits):
            os.close(end)
        gates[pid] = gate
        answers.write(f"{pid}\n")


def _be_the_fork(asked: dict[str, str], gate: int, ready: int, main: Callable[[list[str]], None]) -> None:
    status = 1
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PTRACER, _ANYBODY, 0, 0, 0)
        for name, number in (("stdout", 1), ("stderr", 2)):
            opened = os.open(asked[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            os.dup2(opened, number)
            os.close(opened)
        os.write(ready, b"!")
        os.read(gate, 1)
        main(list(asked["arguments"]))
        sys.stdout.flush()
        status = 0
    except SystemExit as error:
        sys.stderr.write(f"{error}\n")
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        raise
    finally:
        sys.stderr.flush()
        os._exit(status)


def _calls(log: Path, below: Path) -> list[Call]:
    calls: list[Call] = []
    counted: Counter[str] = Counter()
    for line in log.read_text().splitlines():
        found = _CALL.match(line)
        if found is None:
            continue
        name, arguments = found[1], found[2]
        counted[name] += 1
        fd = _FD.match(arguments)
        texts = _PATHS.findall(arguments) if fd is None or name == "openat" else [fd[2]]
        other = Path(texts[1]) if name in {"rename", "link"} else None
        path = Path(texts[0]) if texts else Path()
        if path.is_relative_to(below):
            calls.append(
                Call(name, path, other, arguments, int(found[3]), counted[name], injected="INJECTED" in found[4])
            )
    return calls


def points(calls: Sequence[Call], *names: str) -> list[Call]:
    """Every call at which something else may be on the disk than at the one before; `names`: of these only."""
    return [call for call in calls if call.changes and (not names or call.name in names)]


def whole(warm: Warm, arguments: Sequence[str], root: Path, fresh: Callable[[], None]) -> Done:
    """Run it undisturbed."""
    fresh()
    done = warm.run(arguments, below=root)
    assert done.status == 0, done.stderr
    return done


def kills(warm: Warm, arguments: Sequence[str], root: Path, fresh: Callable[[], None]) -> Iterator[tuple[Call, Done]]:
    """Run a program again and again, killed at every call that changes something below `root`.

    `fresh` puts everything back before each run.
    """
    for call in points(whole(warm, arguments, root, fresh).calls):
        if call.name in SYNCS:  # who is killed loses nothing that was written, synced or not
            continue
        fresh()
        done = warm.run(arguments, inject=f"{call.name}:signal=SIGKILL:when={call.number}")
        assert done.killed, (call, done)
        yield call, done


def assert_no_sync_is_tried_again(calls: Sequence[Call], there: Collection[Path]) -> None:
    """After a sync of a file failed, no later one of the same file and content succeeds: it would prove nothing.

    `there`: the files before the first call.

    A file is another one once it was emptied, removed or replaced; a directory once a name in it changed.
    """
    failed: dict[Path, Call] = {}
    known = set(there)
    for call in calls:
        if call.name == "openat" and call.result >= 0 and "O_CREAT" in call.arguments and call.path not in known:
            failed.pop(call.path.parent, None)
        known |= {call.path, call.other or call.path} if call.result >= 0 else set()
        known -= {call.path} if call.result >= 0 and call.name in {"unlink", "rename"} else set()
        if call.name in SYNCS:
            if call.result < 0:
                failed[call.path] = call
            else:
                assert call.path not in failed, (failed[call.path], call)
            continue
        if call.result < 0:
            continue
        anew = [call.path] if call.name in {"unlink", "rename", "mkdir", "link"} or "O_TRUNC" in call.arguments else []
        for path in [*anew, *([call.other] if call.other else [])]:
            failed.pop(path, None)
            failed.pop(path.parent, None)
        if call.name == "rename" and call.other and call.path in failed:
            failed[call.other] = failed.pop(call.path)
