"""A VM's disks as they are now, for the fuzzy copy: opened when asked for, let go of soon, again and again."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Final

from hyperv_host_agent.hypervisors.libvirt.tracking.session import Session

SLICE_SECONDS: Final = 5.0  # a session is open: other jobs of the VM wait for no longer, and little is overwritten


class Now:
    """Thread-safe. `open_session` raises SourceUnavailable."""

    def __init__(self, open_session: Callable[[], Session]) -> None:
        self._open_session = open_session
        self._changed = threading.Condition()
        self._session: Session | None = None
        self._users = 0
        self._ending = False  # nobody begins to use it any more
        self._timer: threading.Timer | None = None

    @contextlib.contextmanager
    def using(self) -> Iterator[Session]:
        with self._changed:
            self._changed.wait_for(lambda: not self._ending)
            if self._session is None:
                self._session = self._open_session()
                self._timer = threading.Timer(SLICE_SECONDS, self._expired, (self._session,))
                self._timer.daemon = True
                self._timer.start()
            self._users += 1
            session = self._session
        try:
            yield session
        finally:
            with self._changed:
                self._users -= 1
                self._changed.notify_all()

    def rest(self) -> None:
        """Nothing is open when it returns."""
        with self._changed:
            self._changed.wait_for(lambda: not self._ending)
            self._end()

    def _expired(self, session: Session) -> None:
        with self._changed:
            if self._session is session and not self._ending:
                self._end()

    def _end(self) -> None:
        self._ending = True
        try:
            self._changed.wait_for(lambda: not self._users)
            session, self._session = self._session, None
            if self._timer is not None:
                self._timer.cancel()
            if session is not None:
                session.close()
        finally:
            self._ending = False
            self._changed.notify_all()
