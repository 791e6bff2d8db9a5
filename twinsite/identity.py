"""Who a peer is, read from its certificate; rules only."""

import re
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

from cryptography import x509
from cryptography.x509.oid import NameOID

from twinsite.errors import Unauthenticated

Kind = Literal["coordinator", "server", "host", "user"]
COORDINATOR_ID: Final = "main"  # replicas of a coordinator are one identity

_VAULT: Final = re.compile(r"v-[0-9a-f]{16}")
_IDS: Final[dict[str, re.Pattern[str]]] = {
    "coordinator": re.compile(COORDINATOR_ID),
    "server": re.compile(r"s-[0-9a-f]{12}"),
    "host": re.compile(r"h-[0-9a-f]{12}"),
    "user": re.compile(r"u-[0-9a-f]{12}"),
}
_URI: Final = re.compile(r"spiffe://([^./]+)\.twinsite/([^/]+)/([^/]+)")


class InvalidIdentity(Unauthenticated):
    public = "the certificate does not name a member of a Twinsite vault"
    cause = "{error.why}"
    next_step = "register again, or ask which vault this machine belongs to"

    def __init__(self, why: str) -> None:
        self.why = why


@dataclass(frozen=True, slots=True)
class Identity:
    """A member of a vault. Ids are never reused, and never come from a CSR."""

    kind: Kind
    id: str
    vault: str

    @property
    def uri(self) -> str:
        return f"spiffe://{trust_domain(self.vault)}/{self.kind}/{self.id}"

    @property
    def dns(self) -> str:
        """What a client demands of the peer it dials."""
        return f"{self.id}.{self.kind}.{trust_domain(self.vault)}"

    @classmethod
    def parse(cls, uri: str, vault: str | None = None) -> "Identity":
        """From a URI SAN; of the given vault if one is given. Raises InvalidIdentity."""
        match = _URI.fullmatch(uri)
        if match is None:
            raise InvalidIdentity(f"{uri[:120]!a} has another form")
        found, kind, identifier = match.groups()
        if kind not in get_args(Kind) or not _IDS[kind].fullmatch(identifier) or not _VAULT.fullmatch(found):
            raise InvalidIdentity(f"{uri[:120]!a} has another form")
        if vault is not None and found != vault:
            raise InvalidIdentity(f"it belongs to vault {found}, this is {vault}")
        return cls(cast("Kind", kind), identifier, found)

    def __str__(self) -> str:
        return f"{self.kind}/{self.id}"


def trust_domain(vault: str) -> str:
    return f"{vault}.twinsite"


def coordinator(vault: str) -> Identity:
    """The peer that providers and the CLI dial."""
    return Identity("coordinator", COORDINATOR_ID, vault)


def from_certificate(certificate: x509.Certificate) -> Identity:
    """The one identity in a certificate: exactly one URI SAN and one DNS SAN that agree. Raises InvalidIdentity."""
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        raise InvalidIdentity("it has no readable alternative name") from None
    uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    hosts = names.get_values_for_type(x509.DNSName)
    if len(uris) != 1 or len(hosts) != 1 or len(list(names)) != 2:
        raise InvalidIdentity("it must have exactly one URI and one DNS name")
    identity = Identity.parse(uris[0])
    if hosts[0] != identity.dns:
        raise InvalidIdentity(f"its two names disagree: {uris[0][:120]!a}, {hosts[0][:120]!a}")
    return identity


def vault_of_root(root: x509.Certificate) -> str:
    """The vault whose root this is; the CA writes it into the subject's organization. Raises InvalidIdentity."""
    for attribute in root.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME):
        if isinstance(attribute.value, str) and _VAULT.fullmatch(attribute.value):
            return attribute.value
    raise InvalidIdentity("this root certificate names no vault")
