"""The connection to libvirt: one for all threads, made again by itself after the daemon was away."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import structlog

from hyperv_host_agent.hypervisors.libvirt import events, library
from hyperv_host_agent.hypervisors.libvirt.domain import Domain
from hyperv_host_agent.hypervisors.libvirt.errors import ConnectionLost
from hyperv_host_agent.hypervisors.libvirt.events import Event, Happening

Answer = TypeVar("Answer")

_RETRY_SECONDS: Final = 1.0  # between attempts to hear events again

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Network:
    name: str
    active: bool


class Connection:
    """Thread-safe. Nothing is opened before the first call. Every call raises ConnectionLost while the daemon is away.

    A call that meets a dead connection makes a new one first; one during which it dies fails, and the next may succeed.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self._opening = threading.Lock()
        self._raw: Any = None
        self._closed = False
        self._lost = threading.Event()  # the daemon hung up, or this connection was closed
        self._listeners: dict[object, Callable[[Event], None]] = {}
        self._heard: queue.SimpleQueue[Event | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    def run(self, action: Callable[[Any], Answer]) -> Answer:
        """`action` with a virConnect; its refusals are one of `errors`."""
        return library.run(self.uri, self._live(), action)

    def domains(self) -> list[Domain]:
        found = self.run(lambda connection: [domain.UUIDString() for domain in connection.listAllDomains(0)])
        return [Domain(self, uuid) for uuid in found]

    def domain(self, uuid: str) -> Domain:
        """Raises NotThere."""
        return Domain(self, self.run(lambda connection: connection.lookupByUUIDString(uuid).UUIDString()))

    def define(self, xml: str) -> Domain:
        """A persistent VM, or its new definition when it has the same id and name. Raises LibvirtFailed."""
        return Domain(self, self.run(lambda connection: connection.defineXML(xml).UUIDString()))

    def capabilities(self) -> str:
        """XML of the host."""
        return str(self.run(lambda connection: connection.getCapabilities()))

    def domain_capabilities(self, *, emulator: str | None, arch: str, machine: str | None, kind: str) -> str:
        """XML of what a VM of the machine type and the kind ("kvm", "qemu") may have. Raises LibvirtFailed."""
        return str(self.run(lambda connection: connection.getDomainCapabilities(emulator, arch, machine, kind, 0)))

    def networks(self) -> list[Network]:
        return self.run(
            lambda connection: [
                Network(network.name(), bool(network.isActive())) for network in connection.listAllNetworks(0)
            ]
        )

    def memory_bytes(self) -> int:
        """Of the host."""
        return int(self.run(lambda connection: connection.getInfo()[1])) << 20

    @contextlib.contextmanager
    def on_event(self, callback: Callable[[Event], None]) -> Iterator[None]:
        """While the block runs, `callback` hears of everything, in one thread that may call libvirt.

        It goes on after the daemon was away; CONNECTED says that something may have been missed.
        """
        handle = self.listen(callback)
        try:
            yield
        finally:
            self.unlisten(handle)

    def listen(self, callback: Callable[[Event], None]) -> object:
        """The same without a block; ends with `unlisten` of what it returns, or with `close`."""
        handle = object()
        with self._opening:
            self._listeners[handle] = callback
            if not self._threads:
                self._threads = [
                    threading.Thread(target=work, name=f"libvirt-{work.__name__.strip('_')}", daemon=True)
                    for work in (self._tell, self._keep)
                ]
                for thread in self._threads:
                    thread.start()
        try:
            self._live()
        except ConnectionLost:
            self._lost.set()  # the keeper goes on trying
        return handle

    def unlisten(self, handle: object) -> None:
        with self._opening:
            self._listeners.pop(handle, None)

    def close(self) -> None:
        with self._opening:
            self._closed = True
            raw, self._raw = self._raw, None
            self._listeners.clear()
        self._lost.set()
        self._heard.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()
        if raw is not None:
            library.disconnect(raw)

    def _live(self) -> Any:
        with self._opening:
            if self._closed:
                raise ConnectionLost(self.uri, "it was closed here")
            if self._raw is not None and library.alive(self._raw):
                return self._raw
            if self._raw is not None:
                library.disconnect(self._raw)
                self._raw = None
            raw = library.connect(self.uri, self._lost.set)
            # In every connection, listeners or not: who listens later must not have to make a new one.
            library.run(self.uri, raw, lambda raw: events.register(raw, self._hear))
            self._raw = raw
            self._hear(Event("", Happening.CONNECTED))
            return raw

    def _hear(self, event: Event) -> None:
        if self._threads:
            self._heard.put(event)

    def _keep(self) -> None:
        """Whoever listens wants to hear again, also when nobody calls."""
        while not self._closed:
            self._lost.wait()
            self._lost.clear()
            while not self._closed:
                try:
                    self._live()
                    break
                except ConnectionLost:
                    threading.Event().wait(_RETRY_SECONDS)

    def _tell(self) -> None:
        while (event := self._heard.get()) is not None:
            with self._opening:
                listeners = list(self._listeners.values())
            for listener in listeners:
                try:
                    listener(event)
                except (
                    Exception
                ):  # the top of this thread; the other listeners, and the next event, are told all the same
                    log.exception("event of libvirt not handled", vm=event.vm_id, happening=event.happening.value)
