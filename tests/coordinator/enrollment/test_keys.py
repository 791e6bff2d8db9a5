"""Registration keys as an administrator handles them."""

import uuid

import pytest

from coordinator.enrollment.model import BadLifeOfKey, BadUses, NoVault
from coordinator.enrollment.store import get
from tests.fakes.identity_plane import IdentityPlane
from twinsite.api.coordinator.v1 import admin_pb2, admin_pb2_grpc
from twinsite.errors import NotFound
from twinsite.registration_key import RegistrationKey


async def test_a_key_is_created_listed_and_revoked_over_the_wire(plane: IdentityPlane) -> None:
    operator = await plane.user("otto", "operator")
    async with plane.dial(operator) as channel:
        stub = admin_pb2_grpc.KeysStub(channel)
        created = await stub.Create(admin_pb2.CreateKeyRequest())
        file = RegistrationKey.parse(created.file_json)
        assert file.expires - file.issued == 5 * 86400
        assert (created.key.uses, created.key.state, created.key.created_by) == (2, "active", "otto")
        await plane.register("site-a", file)
        (listed,) = (await stub.List(admin_pb2.Empty())).keys
        assert (listed.used, list(listed.servers), listed.state) == (1, ["site-a"], "active")
        assert (await stub.Revoke(admin_pb2.RevokeKeyRequest(id=file.key_id, dry_run=True))).state == "active"
        assert (await stub.Revoke(admin_pb2.RevokeKeyRequest(id=file.key_id))).state == "revoked"
        assert (await stub.Revoke(admin_pb2.RevokeKeyRequest(id=file.key_id))).state == "revoked"
        with pytest.raises(NotFound):
            await stub.Revoke(admin_pb2.RevokeKeyRequest(id="nope"))
    actions = [entry.action for entry in await plane.audited()]
    assert actions.count("key.create") == actions.count("key.revoke") == 1


async def test_a_repeated_request_gets_the_same_file_and_makes_no_second_key(plane: IdentityPlane) -> None:
    owner = await plane.user("olga", "owner")
    async with plane.dial(owner) as channel:
        stub = admin_pb2_grpc.KeysStub(channel)
        metadata = (("twinsite-request-id", str(uuid.uuid4())),)
        first = await stub.Create(admin_pb2.CreateKeyRequest(), metadata=metadata)
        again = await stub.Create(admin_pb2.CreateKeyRequest(), metadata=metadata)
        assert again == first
        assert len((await stub.List(admin_pb2.Empty())).keys) == 1


async def test_the_secret_is_not_in_the_database(plane: IdentityPlane) -> None:
    file = await plane.key_file()
    async with plane.database.read() as connection:
        stored = await get(connection, file.key_id)
    assert stored is not None
    assert file.secret not in repr(stored)


async def test_a_key_for_too_long_too_many_or_no_vault_is_not_made(plane: IdentityPlane) -> None:
    with pytest.raises(BadLifeOfKey):
        await plane.key_file(seconds=5 * 86400 + 1)
    with pytest.raises(BadUses):
        await plane.key_file(uses=33)
    plane.vault_name = ""
    with pytest.raises(NoVault):
        await plane.key_file()
    assert await plane.enrollment.list() == []
