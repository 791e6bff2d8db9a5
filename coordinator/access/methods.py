"""Every method the coordinator serves, and who may call it. A method that is not here stops the start."""

from collections.abc import Iterable
from typing import Final

from twinsite.access import ROLES, Rule, Table

_PACKAGE: Final = "twinsite.api.coordinator.v1"


def _rules(service: str, methods: Iterable[str], *callers: str, token: bool = True) -> dict[str, Rule]:
    rule = Rule(frozenset(callers), token=token)
    return {f"/{_PACKAGE}.{service}/{method}": rule for method in methods}


def _users(*roles: str) -> list[str]:
    return [f"user:{role}" for role in roles]


_EVERY = _users(*ROLES)
_OWNER = _users("owner")
_OPERATE = _users("owner", "operator")
_RECOVER = _users("owner", "operator", "recovery")

ENROLLMENT: Final[Table] = _rules("Enrollment", ("Register", "Login"), "anyone", token=False)

MEMBERS: Final[Table] = {
    # Its token may have run out: the certificate alone gets a new one.
    **_rules("Identity", ("GetToken",), "server", token=False),
    **_rules("Identity", ("Renew", "IssueHostCertificate"), "server"),
    **_rules("Link", ("Connect",), "server"),
    **_rules("Sessions", ("WhoAmI", "Logout"), *_EVERY),
    **_rules("Status", ("Show",), *_EVERY),
    **_rules("Vaults", ("Create",), *_OWNER),
    **_rules("Vaults", ("Show",), *_EVERY),
    **_rules("Keys", ("Create", "Revoke"), *_OPERATE),
    **_rules("Keys", ("List",), *_EVERY),
    **_rules("Servers", ("List", "Show"), *_EVERY),
    **_rules("Servers", ("Remove",), *_OWNER),
    **_rules("Hosts", ("List", "Show"), *_EVERY),
    **_rules("Clouds", ("List", "Show"), *_EVERY),
    **_rules("Pairs", ("List", "Show"), *_EVERY),
    **_rules("Pairs", ("Create", "Update", "Remove"), *_OPERATE),
    **_rules("Machines", ("List", "Show", "Stats", "Explain"), *_EVERY),
    **_rules("Machines", ("Protect", "Unprotect", "Pause", "Resume", "StartInitial"), *_OPERATE),
    **_rules("Machines", ("SeedExport", "SeedImport"), *_OPERATE),
    **_rules("Machines", ("Test", "TestCleanup", "Verify"), *_RECOVER),
    # Not for operators: the decision that a site is lost is the owner's, or of those trusted with recovery.
    **_rules("Machines", ("Failover",), *_users("owner", "recovery")),
    **_rules("RecoveryPoints", ("List",), *_EVERY),
    **_rules("RecoveryPoints", ("Mark",), *_OPERATE),
    **_rules("Jobs", ("List", "Show", "Watch"), *_EVERY),
    **_rules("Jobs", ("Cancel",), *_RECOVER),
    **_rules("Audit", ("List",), *_users("owner", "operator", "auditor")),
}
