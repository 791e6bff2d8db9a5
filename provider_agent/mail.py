"""Where messages for this site's hosts go."""

from typing import Protocol

from twinsite.api.provider.v1 import host_link_pb2 as pb


class Mail(Protocol):
    def send(self, host_id: str, message: pb.ToHost) -> bool:
        """False when the host has no session now: it is told when it connects."""
        ...
