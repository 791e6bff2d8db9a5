"""After a start the guest is waited for and given its addresses; whatever it does, the start stands."""

import asyncio

import pytest

from hyperv_host_agent.commands import Call
from hyperv_host_agent.greeting import Greeting
from hyperv_host_agent.hypervisors.base import Guest
from hyperv_host_agent.hypervisors.memory import MemoryHypervisor
from hyperv_host_agent.settings import AddressSettings, HypervisorSettings
from tests.contracts.hypervisor import new_spec
from tests.fakes.host_provider import eventually
from twinsite.api.types.v1.commands_pb2 import CommandProgress, HostCommand
from twinsite.clock import MovedClock

MAC = "52:54:00:00:00:01"


class Started:
    """A VM that was just started, and whoever greets its guest."""

    def __init__(self, **settings: object) -> None:
        self.hypervisor, self.clock = MemoryHypervisor(), MovedClock()
        self.vm = new_spec()
        self.hypervisor.add(self.vm)
        self.greeting = Greeting(self.hypervisor, HypervisorSettings(**settings), self.clock)
        self.said: list[CommandProgress] = []

    async def greet(self) -> list[str]:
        return await self.greeting.of(Call(HostCommand(id="c"), self.said.append), self.vm.id)


async def test_a_guest_that_answers_is_told_of():
    started = Started()
    started.hypervisor.guests[started.vm.id] = Guest(True, "web01", ("10.0.0.7/24",))
    assert await started.greet() == ["the guest web01 answers at 10.0.0.7/24"]


async def test_nobody_waits_for_a_guest_that_cannot_answer_or_when_it_is_not_wanted():
    assert await Started().greet() == []
    unwanted = Started(guest_seconds=0)
    unwanted.hypervisor.guests[unwanted.vm.id] = Guest(answers=False)
    assert await unwanted.greet() == []


async def test_a_guest_is_waited_for():
    started = Started()
    started.hypervisor.guests[started.vm.id] = Guest(answers=False)
    greeting = asyncio.ensure_future(started.greet())
    await eventually("the wait", lambda: started.said)
    started.hypervisor.guests[started.vm.id] = Guest(True, "web01")
    while not greeting.done():
        started.clock.advance(1)
        await asyncio.sleep(0.01)
    assert await greeting == ["the guest web01 answers"]


async def test_a_guest_that_stays_silent_is_a_warning():
    started = Started(guest_seconds=30)
    started.hypervisor.guests[started.vm.id] = Guest(answers=False)
    greeting = asyncio.ensure_future(started.greet())
    while not greeting.done():
        started.clock.advance(1)
        await asyncio.sleep(0.01)
    assert await greeting == ["warning: its guest agent has not answered within 30 seconds"]


async def test_a_guest_gets_the_address_of_its_nic():
    started = Started(addresses=(AddressSettings(mac=MAC.upper(), address="10.1.0.7/24"),))
    started.hypervisor.guests[started.vm.id] = Guest(True, "web01")
    assert await started.greet() == ["the guest web01 answers at 10.1.0.7/24"]


@pytest.mark.parametrize("answers", [True, False])
async def test_a_vm_that_goes_meanwhile_is_a_warning(answers: bool):
    started = Started()
    started.hypervisor.guests[started.vm.id] = Guest(answers)
    started.hypervisor.lose(started.vm.id)
    assert "could not be asked" in (await started.greet())[0]
