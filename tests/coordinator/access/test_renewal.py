"""A management certificate renewed: once, twice, with a lost reply, and by somebody who copied the old one."""

import pytest

from coordinator.access.store import get_server
from tests.fakes.identity_plane import IdentityPlane, Member
from twinsite import keys
from twinsite.api.coordinator.v1 import identity_pb2, identity_pb2_grpc
from twinsite.errors import InvalidInput, Precondition, Unauthenticated
from twinsite.identity import Identity


async def _renew(
    plane: IdentityPlane, member: Member, key: keys.PrivateKey, generation: int | None = None
) -> identity_pb2.RenewResponse:
    async with plane.dial(member) as channel:
        answer: identity_pb2.RenewResponse = await identity_pb2_grpc.IdentityStub(channel).Renew(
            identity_pb2.RenewRequest(csr_der=keys.csr(key), generation=generation or member.generation)
        )
    return answer


async def _renewed(plane: IdentityPlane, member: Member) -> Member:
    key = keys.new_key()
    answer = await _renew(plane, member, key)
    return plane.member(key, answer.chain_pem, answer.sealed_token, member.name, answer.generation)


async def _use(plane: IdentityPlane, member: Member) -> None:
    async with plane.dial(member) as channel:
        await identity_pb2_grpc.IdentityStub(channel).GetToken(identity_pb2.GetTokenRequest())


async def test_renewed_twice_both_certificates_work_in_turn_and_the_generation_rises(plane: IdentityPlane) -> None:
    first = await plane.register("site-a")
    second = await _renewed(plane, first)
    await _use(plane, second)
    third = await _renewed(plane, second)
    await _use(plane, third)
    assert (first.generation, second.generation, third.generation) == (1, 2, 3)
    assert len({keys.spki_sha256(member.credentials.certificate) for member in (first, second, third)}) == 3


async def test_the_old_certificate_works_until_the_new_one_was_used_and_ten_minutes_longer(
    plane: IdentityPlane,
) -> None:
    first = await plane.register("site-a")
    second = await _renewed(plane, first)
    plane.clock.advance(3000)
    await _use(plane, first)
    await _use(plane, second)
    plane.clock.advance(599)
    await _use(plane, first)
    plane.clock.advance(2)
    with pytest.raises(Unauthenticated):
        await _use(plane, first)
    await _use(plane, second)


async def test_a_lost_reply_is_given_again_to_the_same_key(plane: IdentityPlane) -> None:
    first, key = await plane.register("site-a"), keys.new_key()
    lost = await _renew(plane, first, key)
    again = await _renew(plane, first, key)
    assert (again.chain_pem, again.generation) == (lost.chain_pem, lost.generation)


async def test_a_renewal_that_was_never_used_gives_way_to_the_next(plane: IdentityPlane) -> None:
    first = await plane.register("site-a")
    lost, kept = await _renewed(plane, first), await _renewed(plane, first)
    await _use(plane, kept)
    with pytest.raises(Unauthenticated):
        await _use(plane, lost)


async def test_an_old_generation_locks_the_identity_for_the_thief_and_the_owner(plane: IdentityPlane) -> None:
    stolen = await plane.register("site-a")
    owner = await _renewed(plane, stolen)
    await _use(plane, owner)
    with pytest.raises(Precondition) as refused:
        await _renew(plane, stolen, keys.new_key())
    assert refused.value.code == "GENERATION_MISMATCH"
    for member in (stolen, owner):
        with pytest.raises(Unauthenticated):
            await _use(plane, member)
    async with plane.database.read() as connection:
        server = await get_server(connection, owner.id)
    assert server is not None
    assert server.state == "locked"
    assert (await plane.audited())[0].action == "server.lock"


async def test_a_renewal_with_the_old_key_pair_is_refused(plane: IdentityPlane) -> None:
    member = await plane.register("site-a")
    with pytest.raises(InvalidInput, match="needs a new key pair"):
        await _renew(plane, member, member.credentials.key)


async def test_a_token_opens_for_its_own_server_alone(plane: IdentityPlane) -> None:
    a, b = await plane.register("site-a"), await plane.register("site-b")
    async with plane.dial(a) as channel:
        answer = await identity_pb2_grpc.IdentityStub(channel).GetToken(identity_pb2.GetTokenRequest())
    vault = plane.authority.vault
    token = keys.unseal(answer.sealed_token, a.credentials.key, a.credentials.certificate, vault, a.id)
    assert token.startswith(b"tst1.")
    with pytest.raises(keys.SealBroken):
        keys.unseal(answer.sealed_token, b.credentials.key, b.credentials.certificate, vault, b.id)
    with pytest.raises(keys.SealBroken):
        keys.unseal(answer.sealed_token, a.credentials.key, a.credentials.certificate, vault, b.id)
    async with plane.dial(a, token.decode()) as channel:
        await identity_pb2_grpc.IdentityStub(channel).IssueHostCertificate(
            identity_pb2.IssueHostCertificateRequest(host_name="hv-1", csr_der=keys.csr(keys.new_key()))
        )


def test_an_identity_parses_back_from_its_names() -> None:
    identity = Identity("server", keys.new_id("s"), keys.new_id("v", 16))
    assert Identity.parse(identity.uri) == identity
