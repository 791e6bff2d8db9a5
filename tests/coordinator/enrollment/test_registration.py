"""One key file registers the servers of both sites, and nobody else."""

import asyncio
import dataclasses

import pytest

from tests.fakes.identity_plane import IdentityPlane
from tests.fakes.pki import TestVault
from twinsite import keys
from twinsite.api.coordinator.v1 import enrollment_pb2, enrollment_pb2_grpc, identity_pb2, identity_pb2_grpc
from twinsite.channel import NotThePeer
from twinsite.errors import Conflict, Exhausted, InvalidInput, TwinsiteError, Unauthenticated
from twinsite.registration_key import KeyFileEdited, RegistrationKey


async def _refusal(plane: IdentityPlane, name: str, file: RegistrationKey) -> TwinsiteError:
    with pytest.raises(TwinsiteError) as refused:
        await plane.register(name, file)
    assert refused.value.text("next_step")
    return refused.value


async def test_one_file_registers_two_servers_that_can_call_at_once(plane: IdentityPlane) -> None:
    file = await plane.key_file()
    a, b = await plane.register("site-a", file), await plane.register("site-b", file)
    assert a.id != b.id
    for member in (a, b):
        async with plane.dial(member) as channel:
            await identity_pb2_grpc.IdentityStub(channel).IssueHostCertificate(
                identity_pb2.IssueHostCertificateRequest(
                    host_name=f"hv {member.name}", csr_der=keys.csr(keys.new_key())
                )
            )
    (view,) = await plane.enrollment.list()
    assert (view.state, view.servers) == ("used_up", ["site-a", "site-b"])


async def test_a_third_machine_looks_like_a_stranger_and_is_an_incident(plane: IdentityPlane) -> None:
    file = await plane.key_file()
    await plane.register("site-a", file)
    await plane.register("site-b", file)
    over = await _refusal(plane, "site-c", file)
    unknown = await _refusal(plane, "site-c", dataclasses.replace(file, key_id="0" * 16))
    wrong = await _refusal(plane, "site-c", dataclasses.replace(file, secret="x" * 43))
    for error in (over, unknown, wrong):
        assert isinstance(error, Unauthenticated)
        assert (error.code, str(error), error.text("next_step")) == (
            over.code, str(over), over.text("next_step"),
        )  # fmt: skip
    incidents = [entry for entry in await plane.audited() if entry.outcome == "INCIDENT"]
    assert [(entry.action, entry.target) for entry in incidents] == [("key.reuse", f"key/{file.key_id}")]


async def test_a_lost_reply_is_given_again_to_the_same_key_pair_and_uses_nothing_up(plane: IdentityPlane) -> None:
    file, key = await plane.key_file(uses=1), keys.new_key()
    first = await plane.register("site-a", file, key)
    again = await plane.register("site-a", file, key)
    assert (again.id, again.credentials.chain_pem) == (first.id, first.credentials.chain_pem)
    async with plane.dial(again) as channel:
        await identity_pb2_grpc.IdentityStub(channel).GetToken(identity_pb2.GetTokenRequest())
    with pytest.raises(Conflict) as renamed:
        await plane.register("site-x", file, key)
    assert renamed.value.code == "REGISTERED_AS"


async def test_two_machines_at_once_on_the_last_use_give_one_server(plane: IdentityPlane) -> None:
    file = await plane.key_file(uses=1)
    results = await asyncio.gather(
        *(plane.register(f"site-{number}", file) for number in range(4)), return_exceptions=True
    )
    assert sum(not isinstance(result, BaseException) for result in results) == 1
    (view,) = await plane.enrollment.list()
    assert len(view.servers) == 1


async def test_two_machines_at_once_under_one_name_with_two_keys_give_one_server_and_one_reason(
    plane: IdentityPlane,
) -> None:
    files = [await plane.key_file(), await plane.key_file()]

    async def register(file: RegistrationKey, address: str) -> object:
        return await plane.enrollment.register(
            key_id=file.key_id,
            secret=file.secret,
            csr_der=keys.csr(keys.new_key()),
            name="site-a",
            agent_version="0.1.0",
            address=address,
        )

    attempts = (register(file, f"10.0.0.{number}") for number, file in enumerate(files))
    results = await asyncio.gather(*attempts, return_exceptions=True)
    assert [getattr(result, "code", "") for result in results if isinstance(result, BaseException)] == ["NAME_TAKEN"]
    assert sorted(view.state for view in await plane.enrollment.list()) == ["active", "active"]
    outcomes = [entry.outcome for entry in await plane.audited() if entry.action == "server.register"]
    assert sorted(outcomes) == ["NAME_TAKEN", "ok"]


async def test_two_servers_that_join_a_host_of_one_name_at_once_give_one_host(plane: IdentityPlane) -> None:
    a, b = await plane.register("site-a"), await plane.register("site-b")
    results = await asyncio.gather(plane.host(a, "hv1"), plane.host(b, "hv1"), return_exceptions=True)
    assert [getattr(result, "code", "") for result in results if isinstance(result, BaseException)] == ["NAME_TAKEN"]


async def test_an_expired_a_revoked_and_a_locked_key_register_nobody(plane: IdentityPlane) -> None:
    expired, revoked, locked = await plane.key_file(seconds=60), await plane.key_file(), await plane.key_file()
    plane.clock.advance(60)
    assert (await _refusal(plane, "site-a", expired)).code == "KEY_EXPIRED"
    await plane.enrollment.revoke(revoked.key_id, actor="user/owner")
    assert (await _refusal(plane, "site-a", revoked)).code == "KEY_REVOKED"
    for _ in range(20):
        await _refusal(plane, "site-a", dataclasses.replace(locked, secret="x" * 43))
    refused = await _refusal(plane, "site-a", locked)
    assert isinstance(refused, Exhausted)
    assert refused.code == "KEY_LOCKED"
    assert {view.key.id: view.state for view in await plane.enrollment.list()} == {
        expired.key_id: "expired",
        revoked.key_id: "revoked",
        locked.key_id: "locked",
    }


async def test_a_clock_set_back_does_not_revive_a_key(plane: IdentityPlane) -> None:
    file = await plane.key_file(seconds=60)
    plane.clock.advance(61)
    await _refusal(plane, "site-a", file)
    plane.clock.set_back(3600)
    assert (await _refusal(plane, "site-a", file)).code == "KEY_EXPIRED"


async def test_a_name_that_is_taken_or_no_name_uses_nothing_up(plane: IdentityPlane) -> None:
    file = await plane.key_file()
    await plane.register("site-a", file)
    taken = await _refusal(plane, "site-a", file)
    assert isinstance(taken, Conflict)
    for name in ("../b", "b\n", "b" * 300, ""):
        refused = await _refusal(plane, name, file)
        assert isinstance(refused, InvalidInput)
        assert refused.code == "INVALID_NAME"
    await plane.register("site-b", file)


async def test_a_signing_request_that_is_not_p256_or_not_signed_is_refused(plane: IdentityPlane) -> None:
    file = await plane.key_file()
    whole = keys.csr(keys.new_key())
    async with plane.stranger() as channel:
        for csr in (b"", b"\x30\x00", whole[:-1] + bytes([whole[-1] ^ 1]), b"x" * 9000):
            plane.clock.advance(1)
            with pytest.raises(InvalidInput) as refused:
                await enrollment_pb2_grpc.EnrollmentStub(channel).Register(
                    enrollment_pb2.RegisterRequest(key_id=file.key_id, secret=file.secret, csr_der=csr, name="site-a")
                )
            assert refused.value.code == "BAD_REQUEST_FOR_CERTIFICATE"


async def test_more_than_a_handful_of_tries_from_one_address_must_wait(plane: IdentityPlane) -> None:
    async with plane.stranger() as channel:
        stub = enrollment_pb2_grpc.EnrollmentStub(channel)
        for _ in range(5):
            with pytest.raises(InvalidInput):
                await stub.Register(enrollment_pb2.RegisterRequest())
        with pytest.raises(Exhausted, match="too many tries"):
            await stub.Register(enrollment_pb2.RegisterRequest())


async def test_a_removed_server_cannot_come_back_with_its_old_reply(plane: IdentityPlane) -> None:
    file, key = await plane.key_file(), keys.new_key()
    member = await plane.register("site-a", file, key)
    await plane.members.revoke(member.id, actor="user/owner")
    with pytest.raises(Unauthenticated):
        await plane.register("site-a", file, key)


async def test_a_key_file_of_another_vault_does_not_get_as_far_as_sending_its_secret(plane: IdentityPlane) -> None:
    """Its root is another: the one who answers at the address is not its coordinator."""
    other = TestVault()
    async with plane.stranger(other.roots_pem) as channel:
        with pytest.raises(NotThePeer):
            await enrollment_pb2_grpc.EnrollmentStub(channel).Register(enrollment_pb2.RegisterRequest())
    assert plane.refusals == []


async def test_the_file_parses_back_and_shows_no_secret_in_logs(plane: IdentityPlane) -> None:
    file = await plane.key_file()
    assert RegistrationKey.parse(file.to_json()) == file
    assert file.secret not in repr(file)
    assert (file.endpoint, file.vault_name, file.uses) == (plane.enrollment_address, "demo", 2)
    with pytest.raises(KeyFileEdited):
        RegistrationKey.parse(file.to_json().replace(b'"uses": 2', b'"uses": 9'))
