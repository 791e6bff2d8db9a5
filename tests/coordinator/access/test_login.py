"""A password opens a session once; guessing it is slow."""

import contextlib

import pytest

from coordinator.access.model import NameTaken, PasswordTooShort, TooManyTries, UnknownRole, WrongPassword
from tests.fakes.identity_plane import PASSWORD, IdentityPlane
from twinsite import keys
from twinsite.api.coordinator.v1 import admin_pb2, admin_pb2_grpc, enrollment_pb2, enrollment_pb2_grpc
from twinsite.errors import Exhausted, InvalidInput, Unauthenticated
from twinsite.names import InvalidName


def _login(user: str, password: str, key: keys.PrivateKey | None = None) -> enrollment_pb2.LoginRequest:
    return enrollment_pb2.LoginRequest(user=user, password=password, csr_der=keys.csr(key or keys.new_key()))


async def test_the_right_password_opens_a_session_for_the_key_of_the_request(plane: IdentityPlane) -> None:
    await plane.users.create("olga", "owner", PASSWORD)
    key = keys.new_key()
    async with plane.stranger() as channel:
        answer = await enrollment_pb2_grpc.EnrollmentStub(channel).Login(_login("olga", PASSWORD, key))
    assert answer.admin_address == plane.address
    member = plane.member(key, answer.chain_pem, answer.sealed_token, "olga")
    async with plane.dial(member) as channel:
        me = await admin_pb2_grpc.SessionsStub(channel).WhoAmI(admin_pb2.Empty())
    assert (me.user, me.role) == ("olga", "owner")


async def test_an_unknown_user_and_a_wrong_password_get_the_same_answer(plane: IdentityPlane) -> None:
    await plane.users.create("olga", "owner", PASSWORD)
    seen = set()
    async with plane.stranger() as channel:
        for user, password in (("olga", "wrong horse battery"), ("nobody", PASSWORD), ("", ""), ("o" * 5000, "x")):
            with pytest.raises(Unauthenticated) as refused:
                await enrollment_pb2_grpc.EnrollmentStub(channel).Login(_login(user, password))
            seen.add((refused.value.code, str(refused.value), refused.value.text("next_step")))
    assert len(seen) == 1
    assert {entry.outcome for entry in await plane.audited() if entry.action == "user.login"} == {"WRONG_PASSWORD"}


async def test_a_bad_signing_request_costs_no_hash(plane: IdentityPlane) -> None:
    async with plane.stranger() as channel:
        with pytest.raises(InvalidInput):
            await enrollment_pb2_grpc.EnrollmentStub(channel).Login(
                enrollment_pb2.LoginRequest(user="olga", password=PASSWORD, csr_der=b"no")
            )


async def test_tries_from_one_address_are_limited(plane: IdentityPlane) -> None:
    async with plane.stranger() as channel:
        stub = enrollment_pb2_grpc.EnrollmentStub(channel)
        request = enrollment_pb2.LoginRequest(user="olga", password="x", csr_der=b"no")
        for _ in range(10):
            with pytest.raises(InvalidInput):
                await stub.Login(request)
        with pytest.raises(Exhausted) as refused:
            await stub.Login(request)
        assert refused.value.code == "TOO_MANY_TRIES"
        plane.clock.advance(1)
        with pytest.raises(InvalidInput):
            await stub.Login(request)


async def test_a_stranger_who_guesses_cannot_keep_the_owner_from_logging_in(plane: IdentityPlane) -> None:
    await plane.users.create("olga", "owner", PASSWORD)

    async def guess_on() -> None:
        for _ in range(30):
            plane.clock.advance(1)
            with contextlib.suppress(WrongPassword):
                await plane.users.login("olga", "wrong horse battery", keys.csr(keys.new_key()), address="192.0.2.1")

    with pytest.raises(TooManyTries):
        await guess_on()
    opened = await plane.users.login("olga", PASSWORD, keys.csr(keys.new_key()), address="192.0.2.2")
    assert opened.user.name == "olga"


async def test_accounts_with_a_bad_name_role_or_password_are_not_made(plane: IdentityPlane) -> None:
    await plane.users.create("olga", "owner", PASSWORD)
    with pytest.raises(NameTaken):
        await plane.users.create("olga", "viewer", PASSWORD)
    with pytest.raises(UnknownRole):
        await plane.users.create("otto", "king", PASSWORD)
    with pytest.raises(PasswordTooShort):
        await plane.users.create("otto", "viewer", "short")
    with pytest.raises(InvalidName):
        await plane.users.create("ot\nto", "viewer", PASSWORD)
