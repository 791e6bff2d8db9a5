"""Statistics of this site's hosts on their way to the coordinator. Nothing is kept here: the host does, until the
coordinator says that it stored them.
"""

from typing import Final

import structlog

from provider_agent.mail import Mail
from provider_agent.outbox import Outbox
from twinsite.api.coordinator.v1 import link_pb2
from twinsite.api.provider.v1 import host_link_pb2 as pb
from twinsite.units import MiB

_log = structlog.get_logger()
_LARGEST_BYTES: Final = 1 * MiB  # of a batch; a host sends half of that, and a message may have four times as much


class Samples:
    def __init__(self, outbox: Outbox, mail: Mail) -> None:
        self._outbox, self._mail = outbox, mail

    def take(self, host_id: str, batch: pb.SampleBatch) -> None:
        """Pass it on, in every session with the coordinator until it is stored or the host is gone."""
        if batch.ByteSize() > _LARGEST_BYTES:
            _log.warning("samples_too_large", host=host_id, bytes=batch.ByteSize())
            return
        self._outbox.samples(link_pb2.HostSamples(host_id=host_id, id=batch.id, samples=batch.samples))

    def stored(self, stored: link_pb2.HostSamplesStored) -> None:
        self._outbox.samples_stored(stored.host_id, stored.id)
        self._mail.send(stored.host_id, pb.ToHost(samples_stored=pb.SamplesStored(id=stored.id)))

    def gone(self, host_id: str) -> None:
        """The host ended its session; it sends them again in the next one."""
        self._outbox.forget_samples(host_id)
