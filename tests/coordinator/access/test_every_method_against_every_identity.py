"""The whole table, from outside: each method the coordinator's contract has, called by each kind of caller there is."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from coordinator.access import methods
from coordinator.access.model import LOCKED
from coordinator.access.store import change_server
from coordinator.store.engine import Database
from tests.fakes.identity_plane import IdentityPlane, Member, real_time
from tests.fakes.pki import TestVault
from tests.fakes.stub_services import SERVICES, call, shapes, stub
from twinsite.access import ROLES, methods_of
from twinsite.channel import Channel, dial
from twinsite.identity import Identity
from twinsite.tls import channel_credentials, channel_credentials_roots

PROTOS = Path(__file__).parents[3] / "proto/twinsite/api/coordinator/v1"


@pytest.fixture
async def plane(tmp_path: Path, database: Database) -> AsyncIterator[IdentityPlane]:
    mounts = [stub(service) for service in SERVICES]
    async with IdentityPlane.started(tmp_path / "state", database, real_time(), mounts) as started:
        yield started


def _expected(who: str, method: str) -> str:
    return "ok" if who in methods.MEMBERS[method].callers else "Denied"


async def test_every_method_answers_every_identity_as_the_table_says(plane: IdentityPlane) -> None:
    a, b = await plane.register("site-a"), await plane.register("site-b")
    out, locked = await plane.register("gone"), await plane.register("doubtful")
    hosts = {"host A": await plane.host(a, "hv-a"), "host B": await plane.host(b, "hv-b")}
    host_out = await plane.host(out, "hv-gone")
    await plane.members.revoke(out.id, actor="user/owner")
    async with plane.database.write() as connection:
        await change_server(connection, locked.id, state=LOCKED)
    people = {role: await plane.user(f"the {role}", role) for role in ROLES}
    logged_out = await plane.user("away", "owner")
    caller = Identity("user", logged_out.id, plane.authority.vault)
    await plane.users.logout(_as_caller(caller, logged_out))
    foreign, twin = TestVault(), TestVault(plane.authority.vault)

    # name → (channel, who it is for the table; None: nobody, whatever the method)
    callers: dict[str, tuple[Channel, str | None]] = {
        "server A": (plane.dial(a), "server"),
        "server B": (plane.dial(b), "server"),
        **{name: (plane.dial(host), "host") for name, host in hosts.items()},
        **{role: (plane.dial(member), f"user:{role}") for role, member in people.items()},
        "revoked server": (plane.dial(out), None),
        "locked server": (plane.dial(locked), None),
        "host of the revoked server": (plane.dial(host_out), None),
        "ended session": (plane.dial(logged_out), None),
        "no certificate": (
            dial(plane.address, channel_credentials_roots(plane.authority.roots_pem), peer=plane.peer),
            None,
        ),
        "foreign CA, own vault": (_foreign(plane, foreign, "server"), None),
        "foreign CA, this vault's names": (_foreign(plane, twin, "server"), None),
        "foreign CA, as user": (_foreign(plane, twin, "user"), None),
        "coordinator's own certificate": (
            dial(plane.address, channel_credentials(plane.authority.watched.credentials), peer=plane.peer),
            None,
        ),
    }
    shaped = shapes(SERVICES)
    assert set(shaped) == methods_of(SERVICES)
    wrong = []
    for name, (channel, who) in callers.items():
        async with channel:
            for method, shape in shaped.items():
                found = await call(channel, method, shape)
                good = found in ("Unauthenticated", "Unreachable") if who is None else found == _expected(who, method)
                if not good:
                    wrong.append((name, method, found))
    assert wrong == []


async def test_where_a_token_is_demanded_none_another_ones_and_an_expired_one_are_refused(plane: IdentityPlane) -> None:
    a, b, owner = await plane.register("site-a"), await plane.register("site-b"), await plane.user("olga", "owner")
    demanded = {method for method, rule in methods.MEMBERS.items() if rule.token}
    assert methods_of(SERVICES) - demanded == {"/twinsite.api.coordinator.v1.Identity/GetToken"}
    attempts = {
        "no token": (a, "", "server"),
        "B's token over A's certificate": (a, b.token, "server"),
        "the owner's token over A's certificate": (a, owner.token, "server"),
        "A's token over the owner's certificate": (owner, a.token, "user:owner"),
        "no token for the owner": (owner, "", "user:owner"),
        "half a token": (a, a.token[:-2], "server"),
        "garbage": (a, "tst1..", "server"),
    }
    wrong = []
    for name, (member, token, who) in attempts.items():
        async with plane.dial(member, token) as channel:
            for method in demanded:
                if who in methods.MEMBERS[method].callers:
                    found = await call(channel, method, shapes(SERVICES)[method])
                    if found != "Unauthenticated":
                        wrong.append((name, method, found))
    assert wrong == []
    plane.clock.advance(3601)
    async with plane.dial(a) as channel:
        assert await call(channel, "/twinsite.api.coordinator.v1.Link/Connect", "stream_stream") == "Unauthenticated"
        assert await call(channel, "/twinsite.api.coordinator.v1.Identity/GetToken", "unary_unary") == "ok"


def test_the_table_says_what_the_contract_says() -> None:
    """The comments of the .proto files are what people read; here they are compared with what is enforced."""
    said: dict[str, set[str]] = {}
    for file in ("admin", "identity", "link", "enrollment"):
        service, comment = "", ""
        for line in (PROTOS / f"{file}.proto").read_text().splitlines():
            text = line.strip()
            if found := re.match(r"service (\w+)", text):
                service, comment = found[1], ""
            elif text.startswith("//"):
                comment += " " + text.removeprefix("//").strip()
            elif found := re.match(r"rpc (\w+)", text):
                said[f"/twinsite.api.coordinator.v1.{service}/{found[1]}"] = _callers(comment)
                comment = ""
            elif not text:
                comment = ""
    table = {**methods.MEMBERS, **methods.ENROLLMENT}
    assert said == {method: set(rule.callers) for method, rule in table.items()}


def _callers(comment: str) -> set[str]:
    listed = re.search(r"May be called by: ([^.(]+)", comment)
    assert listed, comment
    words = set(re.findall(r"anyone|every role|server|owner|operator|recovery|auditor|viewer", listed[1]))
    if "every role" in words:
        return {f"user:{role}" for role in ROLES}
    return {f"user:{word}" if word in ROLES else word for word in words}


def _foreign(plane: IdentityPlane, vault: TestVault, kind: str) -> Channel:
    """A member of another CA that trusts us, so that only our side can refuse."""
    theirs = vault.server() if kind == "server" else vault.user()
    credentials = grpc.ssl_channel_credentials(plane.authority.roots_pem, theirs.key_pem, theirs.chain_pem)
    return dial(plane.address, credentials, peer=plane.peer)


def _as_caller(identity: Identity, member: Member) -> Any:
    from twinsite.access import Caller

    return Caller(identity, "owner", member.name, "", member.credentials.certificate)
