"""The vault's certificate authority, and the key that signs its documents."""

from coordinator.pki.authority import Authority, AuthorityDamaged
from coordinator.pki.certificates import Issued

__all__ = ["Authority", "AuthorityDamaged", "Issued"]
