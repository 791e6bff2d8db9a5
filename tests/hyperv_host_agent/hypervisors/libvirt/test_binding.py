"""The connection, over libvirt's own driver for tests, which lives in this process."""

import queue
import uuid

import pytest

from hyperv_host_agent.hypervisors.libvirt.binding import Connection
from hyperv_host_agent.hypervisors.libvirt.domain import Domain, State
from hyperv_host_agent.hypervisors.libvirt.errors import (
    AgentSilent,
    Busy,
    CheckpointBroken,
    ConnectionLost,
    LibvirtFailed,
    NotThere,
    refusal,
)
from hyperv_host_agent.hypervisors.libvirt.events import Event, Happening


def definition(vm_id: str, name: str) -> str:
    return f"""<domain type='test'><name>{name}</name><uuid>{vm_id}</uuid><memory unit='MiB'>16</memory>
    <os><type>hvm</type></os></domain>"""


@pytest.fixture
def connection():
    made = Connection("test:///default")
    yield made
    made.close()


def until(heard: "queue.Queue[Event]", vm_id: str, happening: Happening) -> Event:
    while True:
        event = heard.get(timeout=10)
        if (event.vm_id, event.happening) == (vm_id, happening):
            return event


def test_a_vm_is_defined_started_and_stopped(connection):
    vm_id = str(uuid.uuid4())
    domain = connection.define(definition(vm_id, "web01"))
    assert (domain.uuid, domain.name(), domain.state()[0]) == (vm_id, "web01", State.OFF)
    assert vm_id in [found.uuid for found in connection.domains()]
    domain.create()
    assert domain.is_active()
    assert connection.domain(vm_id).state()[0] is State.RUNNING
    domain.suspend()
    assert domain.state() == (State.PAUSED, "user")
    domain.resume()
    domain.destroy()
    assert domain.state() == (State.OFF, "destroyed")


def test_what_is_not_there_is_not_there(connection):
    with pytest.raises(NotThere):
        connection.domain(str(uuid.uuid4()))
    assert not Domain(connection, str(uuid.uuid4())).exists()


def test_a_definition_that_is_none_is_refused_with_what_libvirt_says(connection):
    with pytest.raises(LibvirtFailed, match="Start Tag"):
        connection.define("<domain")


def test_events_are_told_in_a_thread_that_may_call_libvirt(connection):
    heard: queue.Queue[Event] = queue.Queue()
    states: queue.Queue[State] = queue.Queue()

    def tell(event: Event) -> None:
        if event.happening is Happening.STARTED:
            states.put(connection.domain(event.vm_id).state()[0])
        heard.put(event)

    vm_id = str(uuid.uuid4())
    with connection.on_event(tell):
        domain = connection.define(definition(vm_id, "web02"))
        domain.create()
        until(heard, vm_id, Happening.STARTED)
        domain.destroy()
        assert until(heard, vm_id, Happening.STOPPED).detail == "destroyed"
    assert states.get(timeout=10) is State.RUNNING


def test_a_listener_that_fails_does_not_silence_the_others(connection):
    heard: queue.Queue[Event] = queue.Queue()

    def fails(_: Event) -> None:
        raise ValueError("on purpose")

    vm_id = str(uuid.uuid4())
    with connection.on_event(fails), connection.on_event(heard.put):
        connection.define(definition(vm_id, "web03")).create()
        until(heard, vm_id, Happening.STARTED)


def test_a_daemon_that_is_not_there_is_said_so(tmp_path):
    gone = Connection(f"qemu+unix:///system?socket={tmp_path}/none")
    with pytest.raises(ConnectionLost, match="none"):
        gone.domains()
    gone.close()


def test_a_closed_connection_stays_closed(connection):
    connection.close()
    with pytest.raises(ConnectionLost, match="closed"):
        connection.domains()


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (42, "Domain not found", NotThere),
        (103, "no domain checkpoint with matching name 'x'", NotThere),
        (55, "Requested operation is not valid: no job is active on the domain", NotThere),
        (8, "invalid argument: disk vda does not have an active block job", NotThere),
        (68, "Timed out during operation: cannot acquire state change lock (held by monitor=…)", Busy),
        (55, "disk 'vda' already in active block job", Busy),
        (84, "Operation not supported: disk 'vda' has a blockjob assigned", Busy),
        (109, "checkpoint inconsistent: missing or broken bitmap 'x' for disk 'vda'", CheckpointBroken),
        (1, "unable to execute QEMU command 'transaction': Bitmap already exists: x", CheckpointBroken),
        (86, "Guest agent is not responding: agent not available for now", AgentSilent),
        (74, "argument unsupported: QEMU guest agent is not configured", AgentSilent),
        (9, "operation failed: something else", LibvirtFailed),
    ],
)
def test_each_refusal_is_of_the_type_a_caller_can_act_on(code, text, expected):
    assert type(refusal(code, 10, text)) is expected
