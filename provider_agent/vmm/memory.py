"""A fabric in memory, for tests of what stands on the port."""

from provider_agent.vmm.base import Fabric, Reading
from twinsite.errors import TwinsiteError


class MemoryVmm:
    def __init__(self, fabric: Fabric) -> None:
        self._reading = Reading(fabric)

    def put(self, fabric: Fabric) -> None:
        self._reading = Reading(fabric)

    def fail(self, problem: TwinsiteError) -> None:
        self._reading = Reading(self._reading.fabric, problem)

    async def read(self) -> Reading:
        return self._reading
