"""A server that was removed, or a session that was ended, can do nothing more, on whatever connection."""

import asyncio

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from coordinator.access import methods
from coordinator.access.judge import DatabaseJudge
from coordinator.access.model import UnknownServer
from tests.fakes.identity_plane import IdentityPlane, real_time
from tests.fakes.stub_services import SERVICES, stub
from twinsite import access, keys
from twinsite.api.coordinator.v1 import admin_pb2, admin_pb2_grpc, identity_pb2, identity_pb2_grpc
from twinsite.channel import Call, Channel
from twinsite.errors import Unauthenticated

CONNECT = "/twinsite.api.coordinator.v1.Link/Connect"
P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


@pytest.fixture
async def stubbed(tmp_path, database):
    mounts = [stub(service) for service in SERVICES]
    async with IdentityPlane.started(tmp_path / "state", database, real_time(), mounts) as started:
        yield started


async def _live(channel: Channel) -> Call:
    stream: Call = channel.stream_stream(CONNECT)()
    await stream.write(b"")
    assert await stream.read() == b""
    return stream


async def test_a_live_stream_of_a_revoked_server_is_cut_and_others_go_on(stubbed: IdentityPlane) -> None:
    a, b = await stubbed.register("site-a"), await stubbed.register("site-b")
    async with stubbed.dial(a) as of_a, stubbed.dial(b) as of_b:
        cut, kept = await _live(of_a), await _live(of_b)
        reading = asyncio.ensure_future(cut.read())
        await stubbed.members.revoke(a.id, actor="user/owner", reason="decommissioned")
        with pytest.raises(Unauthenticated):
            await asyncio.wait_for(reading, 5)
        with pytest.raises(Unauthenticated):  # the connection is still open
            await of_a.unary_unary("/twinsite.api.coordinator.v1.Identity/GetToken")(b"")
        await kept.write(b"")
        assert await kept.read() == b""
        await kept.done_writing()
        assert await kept.read() is grpc.aio.EOF


async def test_revoking_is_repeatable_frees_the_name_and_takes_the_hosts_along(plane: IdentityPlane) -> None:
    a = await plane.register("site-a")
    await plane.host(a, "hv-1")
    hosts = await plane.members.revoke(a.id, actor="user/owner")
    assert len(hosts) == 1
    assert await plane.members.revoke(a.id, actor="user/owner") == hosts
    again = await plane.register("site-a")
    await plane.host(again, "hv-1")
    assert again.id != a.id
    assert [entry.action for entry in await plane.audited()].count("server.revoke") == 1
    with pytest.raises(UnknownServer):
        await plane.members.revoke("s-000000000000", actor="user/owner")


async def test_logout_ends_this_session_and_no_other(stubbed: IdentityPlane, tmp_path) -> None:
    owner = await stubbed.user("olga", "owner")
    other_key = keys.new_key()
    async with stubbed.database.write() as connection:
        from coordinator.access.store import user_named

        user = await user_named(connection, "olga")
        assert user is not None
        opened = await stubbed.users._open(connection, user, keys.csr(other_key), stubbed.forward.now())
    other = stubbed.member(other_key, opened.issued.chain_pem, opened.sealed_token, "olga")
    show = "/twinsite.api.coordinator.v1.Status/Show"
    async with stubbed.dial(owner) as first, stubbed.dial(other) as second:
        assert await first.unary_unary(show)(b"") == b""
        caller = access.Caller(owner.credentials.identity, "owner", "olga", "", owner.credentials.certificate)
        await stubbed.users.logout(caller)
        with pytest.raises(Unauthenticated):
            await first.unary_unary(show)(b"")
        assert await second.unary_unary(show)(b"") == b""


async def test_a_session_says_who_it_is_and_ends_itself(plane: IdentityPlane) -> None:
    viewer = await plane.user("vera", "viewer")
    async with plane.dial(viewer) as channel:
        stub = admin_pb2_grpc.SessionsStub(channel)
        me = await stub.WhoAmI(admin_pb2.Empty())
        assert (me.user, me.role, me.vault_id, me.vault_name) == ("vera", "viewer", plane.authority.vault, "demo")
        await stub.Logout(admin_pb2.Empty())
        with pytest.raises(Unauthenticated):
            await stub.WhoAmI(admin_pb2.Empty())


async def test_a_session_ends_after_twelve_hours(plane: IdentityPlane) -> None:
    viewer = await plane.user("vera", "viewer")
    async with plane.dial(viewer) as channel:
        await admin_pb2_grpc.SessionsStub(channel).WhoAmI(admin_pb2.Empty())
        plane.clock.advance(12 * 3600 + 1)
        with pytest.raises(Unauthenticated):
            await admin_pb2_grpc.SessionsStub(channel).WhoAmI(admin_pb2.Empty())


def _other_signature(certificate: x509.Certificate) -> x509.Certificate:
    """The same certificate with (r, n - s): valid, same serial and key, another fingerprint."""
    der = certificate.public_bytes(serialization.Encoding.DER)
    r, s = decode_dss_signature(certificate.signature)
    old, new = certificate.signature, encode_dss_signature(r, P256_ORDER - s)
    body = der[: -len(old)]
    grown = len(new) - len(old)
    # The lengths of the bit string and of the whole are the only other bytes that change.
    assert body[-3] == 0x03
    assert body[1] == 0x82
    total = int.from_bytes(body[2:4], "big") + grown
    head = body[:2] + total.to_bytes(2, "big") + body[4:-2] + bytes([body[-2] + grown]) + body[-1:]
    return x509.load_der_x509_certificate(head + new)


async def test_a_certificate_signed_over_again_does_not_evade_revocation(plane: IdentityPlane) -> None:
    a = await plane.register("site-a")
    twin = _other_signature(a.credentials.certificate)
    twin.verify_directly_issued_by(plane.authority._issuing.certificate)
    assert twin.serial_number == a.credentials.certificate.serial_number
    assert keys.thumbprint(twin) != keys.thumbprint(a.credentials.certificate)
    judge = DatabaseJudge(plane.database, plane.authority.vault, plane.forward)
    identity, method = a.credentials.identity, "/twinsite.api.coordinator.v1.Identity/GetToken"
    await judge.admit(identity, twin, methods.MEMBERS[method], {}, method)
    # A token is bound to the bytes of one certificate, which fails closed.
    with pytest.raises(Unauthenticated):
        await judge.admit(identity, twin, methods.MEMBERS[CONNECT], {"authorization": f"Bearer {a.token}"}, CONNECT)
    await plane.members.revoke(a.id, actor="user/owner")
    with pytest.raises(access.NotCurrent):
        await judge.admit(identity, twin, methods.MEMBERS[method], {}, method)


async def test_hosts_of_a_server_have_names_of_their_own_and_keep_their_identity(plane: IdentityPlane) -> None:
    a, b = await plane.register("site-a"), await plane.register("site-b")
    key = keys.new_key()
    async with plane.dial(a) as of_a, plane.dial(b) as of_b:
        asked = identity_pb2.IssueHostCertificateRequest(host_name="hv-1", csr_der=keys.csr(key))
        first = await identity_pb2_grpc.IdentityStub(of_a).IssueHostCertificate(asked)
        again = await identity_pb2_grpc.IdentityStub(of_a).IssueHostCertificate(asked)
        assert again == first
        with pytest.raises(Exception, match="hv-1") as taken:
            await identity_pb2_grpc.IdentityStub(of_b).IssueHostCertificate(asked)
        assert taken.value.code == "NAME_TAKEN"
        renewal = identity_pb2.IssueHostCertificateRequest(host_id=first.host_id, csr_der=keys.csr(keys.new_key()))
        renewed = await identity_pb2_grpc.IdentityStub(of_a).IssueHostCertificate(renewal)
        assert renewed.host_id == first.host_id
        assert renewed.chain_pem != first.chain_pem
        with pytest.raises(Exception, match="no host") as foreign:
            await identity_pb2_grpc.IdentityStub(of_b).IssueHostCertificate(renewal)
        assert foreign.value.code == "UNKNOWN_HOST"


@pytest.mark.parametrize("name", ["../etc", "a\nb", "x" * 300, "", " a", "-a", ".a", "ü"])
async def test_a_host_name_that_could_be_anything_else_is_refused(plane: IdentityPlane, name: str) -> None:
    a = await plane.register("site-a")
    async with plane.dial(a) as channel:
        with pytest.raises(Exception, match="is not a name for a host") as refused:
            await identity_pb2_grpc.IdentityStub(channel).IssueHostCertificate(
                identity_pb2.IssueHostCertificateRequest(host_name=name, csr_der=keys.csr(keys.new_key()))
            )
    assert refused.value.code == "INVALID_NAME"
