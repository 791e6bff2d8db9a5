"""Certificates for hosts, asked from the coordinator on their behalf."""

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

import structlog
from cryptography import x509

from provider_agent.host_keys import HostKeys
from provider_agent.hosts import Hosts
from twinsite import keys
from twinsite.api.coordinator.v1 import identity_pb2
from twinsite.api.provider.v1 import host_link_pb2 as pb
from twinsite.clock import Clock
from twinsite.errors import Exhausted, Failed, NotFound, TwinsiteError, Unauthenticated, Unreachable
from twinsite.identity import Identity, from_certificate

_log = structlog.get_logger()
_FAILURES: Final = 20  # in _WINDOW_SECONDS, from one address
_WINDOW_SECONDS: Final = 60.0
_ADDRESSES_KEPT: Final = 1000


class CoordinatorAway(Unreachable):
    public = "the provider has no session with the coordinator now"
    cause = "only the coordinator issues certificates"
    still_works = "the host key stays good for this host; replication of other hosts goes on"
    next_step = "look at `twinsite-provider status`; the host tries again by itself"


class TooManyFailures(Exhausted):
    public = "too many failed attempts to join from this address"
    still_works = "nothing was changed"
    next_step = "wait a minute; check the join file"


class WrongCertificate(Failed):
    public = "the coordinator issued a certificate for something else than was asked"
    still_works = "it was not handed to the host"
    next_step = "check the versions of coordinator and provider"


class UnknownHost(NotFound):
    public = "host {error.host_id} is not known to this provider"
    still_works = "nothing was changed"
    next_step = "join it again: twinsite-provider host-key create --host NAME -O FILE"

    def __init__(self, host_id: str) -> None:
        self.host_id = host_id


class Issuer(Protocol):
    """The coordinator, as far as joining needs it."""

    async def issue(
        self, request: identity_pb2.IssueHostCertificateRequest
    ) -> identity_pb2.IssueHostCertificateResponse:
        """Raises CoordinatorAway, and what the coordinator refuses with."""
        ...


class Joining:
    def __init__(
        self,
        hosts: Hosts,
        host_keys: HostKeys,
        issuer: Issuer,
        server: Identity,
        *,
        clock: Clock,
        link_address: Callable[[], str],
    ) -> None:
        self._hosts, self._host_keys, self._issuer, self._server = hosts, host_keys, issuer, server
        self._clock, self._link_address = clock, link_address
        self._one_at_a_time = asyncio.Lock()  # two calls with one key must not both find it unanswered
        self._failures: dict[str, list[float]] = {}

    async def join(self, request: pb.JoinRequest, address: str) -> pb.JoinResponse:
        """Idempotent per key pair. Raises HostKeyRefused, HostKeyExpired, CoordinatorAway and others."""
        self._check_rate(address)
        spki = keys.spki_sha256(keys.public_key_of(request.csr_der))
        async with self._one_at_a_time:
            try:
                key = self._host_keys.redeem(request.key_id, request.secret, spki)
            except Unauthenticated:
                self._failures.setdefault(address, []).append(self._clock.now())
                raise
            if key.answer:
                return pb.JoinResponse.FromString(key.answer)
            known = self._hosts.named(key.host_name)
            issued = await self._issue(known.id if known else "", key.host_name, request.csr_der, spki)
            self._hosts.issued(issued.host_id, key.host_name, spki)
            response = pb.JoinResponse(
                host_id=issued.host_id,
                host_name=key.host_name,
                vault_id=self._server.vault,
                server_id=self._server.id,
                chain_pem=issued.chain_pem,
                roots_pem=issued.roots_pem,
                signing_key=issued.signing_key,
                signing_key_id=issued.signing_key_id,
                link_address=self._link_address(),
            )
            self._host_keys.answered(key, response.SerializeToString())
            _log.info("host_joined", host=issued.host_id, name=key.host_name, agent_version=request.agent_version)
            return response

    async def renew(self, host_id: str, csr_der: bytes) -> pb.RenewHostResponse:
        """The host's present key stays good until the new one is used. Raises UnknownHost, CoordinatorAway."""
        host = self._hosts.get(host_id)
        if host is None:
            raise UnknownHost(host_id)
        spki = keys.spki_sha256(keys.public_key_of(csr_der))
        issued = await self._issue(host.id, host.name, csr_der, spki)
        self._hosts.issued(host.id, host.name, spki)
        return pb.RenewHostResponse(chain_pem=issued.chain_pem, roots_pem=issued.roots_pem)

    async def _issue(
        self, host_id: str, host_name: str, csr_der: bytes, spki: str
    ) -> identity_pb2.IssueHostCertificateResponse:
        request = identity_pb2.IssueHostCertificateRequest(host_id=host_id, host_name=host_name, csr_der=csr_der)
        issued = await self._issuer.issue(request)
        try:
            certificate = x509.load_pem_x509_certificates(issued.chain_pem)[0]
            identity = from_certificate(certificate)
        except (ValueError, TwinsiteError):
            raise WrongCertificate from None
        wanted = Identity("host", host_id or issued.host_id, self._server.vault)
        if identity != wanted or issued.host_id != wanted.id or keys.spki_sha256(certificate) != spki:
            raise WrongCertificate
        return issued

    def _check_rate(self, address: str) -> None:
        since = self._clock.now() - _WINDOW_SECONDS
        if len(self._failures) > _ADDRESSES_KEPT:
            self._failures = {one: times for one, times in self._failures.items() if times[-1] > since}
        recent = [when for when in self._failures.get(address, ()) if when > since]
        if recent:
            self._failures[address] = recent
        else:
            self._failures.pop(address, None)
        if len(recent) >= _FAILURES:
            raise TooManyFailures
