"""libvirt-python itself: loaded at the first use, its event loop in one thread, its errors translated."""

import functools
import threading
from collections.abc import Callable
from typing import Any, Final, NoReturn, TypeVar

from hyperv_host_agent.hypervisors.libvirt.errors import ConnectionLost, LibvirtMissing, refusal

Answer = TypeVar("Answer")

_KEEPALIVE_SECONDS: Final = 5
_KEEPALIVE_COUNT: Final = 3


@functools.cache
def libvirt() -> Any:
    """The module, with its event loop running. Raises LibvirtMissing."""
    try:
        import libvirt as module
    except ImportError:
        raise LibvirtMissing from None
    module.registerErrorHandler(lambda *_: None, None)  # otherwise each refusal is printed to stderr as well
    module.virEventRegisterDefaultImpl()
    threading.Thread(target=_run_events, args=(module,), name="libvirt-events", daemon=True).start()
    return module


@functools.cache
def qemu() -> Any:
    """The module of what only QEMU has: its monitor and its guest agent."""
    libvirt()
    import libvirt_qemu as module

    return module


def available() -> bool:
    try:
        libvirt()
    except LibvirtMissing:
        return False
    return True


def flag(*names: str) -> int:
    """The sum of libvirt's constants of these names, without their VIR_."""
    return sum(getattr(libvirt(), f"VIR_{name}") for name in names)


def word(prefix: str, value: int) -> str:
    """What a constant is called: 5 of "DOMAIN_PAUSED_" is "ioerror"; empty for a number without a name."""
    return _words(prefix).get(value, "")


@functools.cache
def _words(prefix: str) -> dict[int, str]:
    whole = f"VIR_{prefix}"
    named = {name: value for name, value in vars(libvirt()).items() if name.startswith(whole)}
    return {value: name.removeprefix(whole).lower() for name, value in named.items() if isinstance(value, int)}


def connect(uri: str, lost: Callable[[], None]) -> Any:
    """A virConnect that notices a dead daemon within 15 seconds, and calls `lost` then. Raises ConnectionLost."""
    module = libvirt()
    try:
        connection = module.open(uri)
    except module.libvirtError as error:
        raise ConnectionLost(uri, _text(error)) from None
    watches: tuple[Callable[[], Any], ...] = (
        lambda: connection.setKeepAlive(_KEEPALIVE_SECONDS, _KEEPALIVE_COUNT),
        lambda: connection.registerCloseCallback(lambda *_: lost(), None),
    )
    for watch in watches:
        try:
            watch()
        except module.libvirtError:
            continue  # a driver inside this process has nothing that could be lost
    return connection


def run(uri: str, connection: Any, action: Callable[[Any], Answer]) -> Answer:
    """`action` of the connection, its refusal as one of our errors; ConnectionLost when it is dead afterwards."""
    module = libvirt()
    try:
        return action(connection)
    except module.libvirtError as error:
        _refuse(uri, connection, error)


def disconnect(connection: Any) -> None:
    """Let go of it: it closes with its last user's reference, for another thread may be in the middle of a call."""
    module = libvirt()
    watched = list(getattr(connection, "domainEventCallbackID", ()))
    for end in (
        connection.unregisterCloseCallback,
        *(functools.partial(connection.domainEventDeregisterAny, number) for number in watched),
    ):
        try:
            end()
        except module.libvirtError:
            continue  # it is dead already, or it never could


def alive(connection: Any) -> bool:
    try:
        return bool(connection.isAlive())
    except libvirt().libvirtError:
        return False


def _refuse(uri: str, connection: Any, error: Any) -> NoReturn:
    if not alive(connection):
        raise ConnectionLost(uri, _text(error)) from None
    raise refusal(error.get_error_code() or 0, error.get_error_domain() or 0, _text(error)) from None


def _text(error: Any) -> str:
    return str(error.get_error_message() or error)


def _run_events(module: Any) -> None:
    while True:
        module.virEventRunDefaultImpl()
