"""Registering this provider with a vault, once."""

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from provider_agent.inventory import Selection
from provider_agent.membership import kept_key
from provider_agent.vmm import fabric_file
from twinsite import __version__, files, keys, names
from twinsite.api.coordinator.v1 import enrollment_pb2 as pb
from twinsite.api.coordinator.v1 import enrollment_pb2_grpc as rpc
from twinsite.channel import dial
from twinsite.clock import Clock
from twinsite.credentials import Credentials, NoCredentials
from twinsite.errors import Failed, InvalidInput, NotFound, Precondition
from twinsite.identity import Identity, InvalidIdentity, from_certificate
from twinsite.registration_key import RegistrationKey
from twinsite.tls import channel_credentials_roots

_PENDING_KEY: Final = "registration-key.pem"


class AlreadyRegistered(Precondition):
    public = "this provider is registered already, as {error.server_id} “{error.name}” in vault {error.vault_name}"
    still_works = "nothing was sent, the key file is not used up"
    next_step = (
        "to register it anew: twinsite server remove {error.name}, then stop the provider and remove {error.folder}"
    )

    def __init__(self, credentials: Credentials, folder: Path) -> None:
        self.server_id = credentials.identity.id
        self.name = credentials.meta["name"]
        self.vault_name = credentials.meta["vault_name"]
        self.folder = folder


class UnknownCloud(NotFound):
    public = "the fabric has no cloud named {error.name}"
    cause = "{error.known}"
    still_works = "nothing was sent, the key file is not used up"
    next_step = "correct --sync-clouds, or the fabric file"

    def __init__(self, name: str, known: list[str]) -> None:
        near = difflib.get_close_matches(name, known, n=1)
        self.name = name
        self.known = f"did you mean {near[0]}?" if near else f"it has: {', '.join(known) or 'none'}"


class BadProxy(InvalidInput):
    public = "{error.shown} is not the address of a proxy"
    still_works = "nothing was sent, the key file is not used up"
    next_step = "write it as http://HOST:PORT or http://USER:PASSWORD@HOST:PORT"

    def __init__(self, proxy: str) -> None:
        self.shown = ascii(proxy.rpartition("@")[2][:80])


class BadAnswer(Failed):
    public = "the coordinator answered with a certificate that is not right: {error.why}"
    still_works = "nothing was stored; registering again with the same file is safe"
    next_step = "check that coordinator and provider have the same version"

    def __init__(self, why: str) -> None:
        self.why = why


@dataclass(frozen=True, slots=True)
class Request:
    key_file: Path
    name: str
    vault_name: str  # empty: not checked
    selection: Selection
    proxy: str = field(repr=False)  # empty: none; may hold a password


async def register(request: Request, folder: Path, fabric: Path, clock: Clock) -> Credentials:
    """The credentials, stored in `folder`. Repeatable until it succeeds: the key pair is kept before it is shown.

    Raises the errors of this module and of twinsite.registration_key, and what the coordinator refuses with.
    """
    try:
        raise AlreadyRegistered(Credentials.load(folder), folder)
    except NoCredentials:
        pass
    path = str(request.key_file)
    key_file = RegistrationKey.read(request.key_file)
    key_file.check(path, clock.now(), request.vault_name)
    names.check(request.name, "server")
    _check_proxy(request.proxy)
    _check_clouds(request.selection, fabric)
    files.private_directory(folder)
    key = kept_key(folder / _PENDING_KEY)
    response = await _ask(key_file, key, request)
    _check(response, key_file, key)
    meta = {
        "name": request.name,
        "vault_name": response.vault_name,
        "link_address": response.link_address,
        "proxy": request.proxy,
        "selection": str(request.selection),
        "generation": str(response.generation),
        "signing_key": response.signing_key.hex(),
        "signing_key_id": response.signing_key_id,
    }
    fresh = Credentials.of(key, response.chain_pem, response.roots_pem, meta, directory=folder)
    # That it opens proves that the token is this server's; a running provider asks for one of its own.
    keys.unseal(response.sealed_token, key, fresh.certificate, fresh.identity.vault, fresh.identity.id)
    stored = Credentials.store(folder, key, response.chain_pem, response.roots_pem, meta)
    (folder / _PENDING_KEY).unlink()
    return stored


async def _ask(key_file: RegistrationKey, key: keys.PrivateKey, request: Request) -> pb.RegisterResponse:
    async with dial(
        key_file.endpoint,
        channel_credentials_roots(key_file.ca.encode()),
        peer=key_file.server_name,
        proxy=request.proxy or None,
    ) as channel:
        response: pb.RegisterResponse = await rpc.EnrollmentStub(channel).Register(
            pb.RegisterRequest(
                key_id=key_file.key_id,
                secret=key_file.secret,
                csr_der=keys.csr(key),
                name=request.name,
                agent_version=__version__,
            )
        )
        return response


def _check(response: pb.RegisterResponse, key_file: RegistrationKey, key: keys.PrivateKey) -> None:
    """The certificate is this server's, for this key pair, and from the vault in the key file."""
    try:
        chain = x509.load_pem_x509_certificates(response.chain_pem)
        root = x509.load_pem_x509_certificate(key_file.ca.encode())
        roots = x509.load_pem_x509_certificates(response.roots_pem)
        identity = from_certificate(chain[0])
        for certificate, issuer in zip(chain, [*chain[1:], root], strict=True):
            certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        raise BadAnswer("its chain does not lead to the root in the key file") from None
    except InvalidIdentity as error:
        raise BadAnswer(error.why) from None
    if identity != Identity("server", response.server_id, key_file.vault):
        raise BadAnswer(f"it names {identity.uri}")
    if keys.spki_sha256(chain[0]) != keys.spki_sha256(key):
        raise BadAnswer("it is for another key pair")
    if root not in roots:
        raise BadAnswer("the root in the key file is not among the vault's roots")


def _check_proxy(proxy: str) -> None:
    if not proxy:
        return
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(proxy)
        good = parts.scheme == "http" and bool(parts.hostname) and parts.port is not None and not parts.path.strip("/")
    except ValueError:
        good = False
    if not good:
        raise BadProxy(proxy)


def _check_clouds(selection: Selection, fabric: Path) -> None:
    """Only names that an administrator wrote need the fabric."""
    if selection.names:
        known = [cloud.name for cloud in fabric_file.load(fabric).clouds]
        for name in sorted(selection.names):
            if name not in known:
                raise UnknownCloud(name, known)
