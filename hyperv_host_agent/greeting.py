"""What comes after the start of a copy: wait for its guest, give it its addresses, tell what it says."""

from typing import Final

from hyperv_host_agent import blocking
from hyperv_host_agent.commands import Call
from hyperv_host_agent.hypervisors.base import Address, Guest, Hypervisor
from hyperv_host_agent.settings import HypervisorSettings
from twinsite.clock import Clock
from twinsite.errors import TwinsiteError

_LOOK_SECONDS: Final = 1.0


class Greeting:
    """A guest that is silent, or takes no address, is a warning: its VM runs."""

    def __init__(self, hypervisor: Hypervisor, settings: HypervisorSettings, clock: Clock) -> None:
        self._hypervisor, self._clock = hypervisor, clock
        self._seconds = settings.guest_seconds
        self._addresses = {
            wanted.mac.lower(): Address(wanted.mac.lower(), wanted.address, wanted.gateway)
            for wanted in settings.addresses
        }

    async def of(self, call: Call, vm_id: str) -> list[str]:
        """Lines for whoever ordered the start."""
        try:
            return await self._greet(call, vm_id)
        except TwinsiteError as error:
            return [f"warning: its guest could not be asked: {error}"]

    async def _greet(self, call: Call, vm_id: str) -> list[str]:
        guest = await self._wait(call, vm_id)
        if guest is None:
            return []
        if not guest.answers:
            return [f"warning: its guest agent has not answered within {self._seconds} seconds"]
        problems = await self._address(vm_id)
        guest = await blocking.finish(self._hypervisor.guest, vm_id) or guest
        where = f" at {', '.join(guest.addresses)}" if guest.addresses else ""
        return [f"the guest {guest.hostname or 'inside'} answers{where}", *problems]

    async def _wait(self, call: Call, vm_id: str) -> Guest | None:
        """The last that was said; None: nobody is to be waited for."""
        if not self._seconds:
            return None
        deadline = self._clock.monotonic() + self._seconds
        guest = await blocking.finish(self._hypervisor.guest, vm_id)
        if guest is not None:
            call.progress(90, "wait for the guest")
        while guest is not None and not guest.answers and self._clock.monotonic() < deadline:
            await self._clock.sleep(_LOOK_SECONDS)
            guest = await blocking.finish(self._hypervisor.guest, vm_id)
        return guest

    async def _address(self, vm_id: str) -> list[str]:
        problems = []
        state = await blocking.finish(self._hypervisor.machine, vm_id)
        for mac, _ in state.spec.nics:
            wanted = self._addresses.get(mac.lower())
            if wanted is not None:
                try:
                    await blocking.finish(self._hypervisor.set_address, vm_id, wanted)
                except TwinsiteError as error:
                    problems.append(f"warning: {wanted.address} was not set: {error}")
        return problems
