"""TLS of servers and channels. TLS 1.3 alone is enforced per call by `twinsite.access`: gRPC has no option for it."""

from dataclasses import dataclass

import grpc

from twinsite.credentials import Credentials, Watched


@dataclass(frozen=True, slots=True)
class ServerCredentials:
    """`require_client`: every peer has shown a certificate of the vault before a call reaches us."""

    grpc: grpc.ServerCredentials
    require_client: bool


def server_credentials(watched: Watched, *, require_client: bool = True) -> ServerCredentials:
    """A listener is either for members (mutual TLS) or for strangers who enrol: gRPC cannot do both on one port.

    With `require_client` false it does not even see a certificate that a client would show.
    """
    handed_out = watched.configuration

    def newest() -> grpc.ServerCertificateConfiguration | None:
        # Called in a gRPC thread once per new connection. None keeps what it has, and with it the session tickets.
        nonlocal handed_out
        if watched.configuration is handed_out:
            return None
        handed_out = watched.configuration
        return handed_out

    made = grpc.dynamic_ssl_server_credentials(
        handed_out,
        newest,  # type: ignore[arg-type]  # the stubs do not know None, the documentation does
        require_client_authentication=require_client,
    )
    return ServerCredentials(made, require_client)


def channel_credentials(credentials: Credentials) -> grpc.ChannelCredentials:
    """Mutual TLS as this member. A channel does not reload: after a renewal, dial again."""
    return grpc.ssl_channel_credentials(credentials.roots_pem, credentials.key_pem, credentials.chain_pem)


def channel_credentials_roots(roots_pem: bytes) -> grpc.ChannelCredentials:
    """For enrolment: checks the server, shows nothing."""
    if not roots_pem:
        raise ValueError("without roots gRPC would trust the public web's")
    return grpc.ssl_channel_credentials(roots_pem)
