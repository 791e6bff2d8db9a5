"""The gate in front of every method: closed by default, the same for all four shapes of calls."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.fakes.echo import ALL, BOTH, DOWN, SERVERS, SERVICE, UNARY, UP, World
from tests.fakes.pki import DAY
from twinsite import access, errors, server, tls
from twinsite.access import Rule
from twinsite.api.coordinator.v1 import identity_pb2, identity_pb2_grpc
from twinsite.channel import Channel, dial
from twinsite.server import Mount

Start = Callable[..., Awaitable[World]]


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    worlds = []

    async def begin(table: Mapping[str, Rule] = ALL, **kwargs: bool) -> World:
        worlds.append(await World().start(table, **kwargs))
        return worlds[-1]

    yield begin
    for world in worlds:
        await world.running.stop(0)


async def _every_shape(channel: Channel, request: bytes) -> list[Any]:
    """The answers, or the errors, of the four methods."""

    async def up() -> bytes:
        call = channel.stream_unary(UP)()
        await call.write(request)
        await call.done_writing()
        answer: bytes = await call
        return answer

    async def both() -> list[bytes]:
        call = channel.stream_stream(BOTH)()
        await call.write(request)
        await call.done_writing()
        return [message async for message in call]

    async def down() -> list[bytes]:
        return [message async for message in channel.unary_stream(DOWN)(request)]

    async def unary() -> bytes:
        answer: bytes = await channel.unary_unary(UNARY)(request)
        return answer

    return await asyncio.gather(unary(), down(), up(), both(), return_exceptions=True)


@pytest.mark.parametrize("writing", [False, True])
async def test_an_allowed_caller_gets_through_in_every_shape_and_is_named(start: Start, writing: bool) -> None:
    world = await start(writing=writing)
    member = world.vault.server()
    async with world.dial(member) as channel:
        assert await _every_shape(channel, b"hi") == [b"hi", [b"hi"] * 3, b"hi", [b"hi"]]
    assert {caller.identity for caller in world.echo.callers} == {member.identity}
    assert {(caller.role, caller.address) for caller in world.echo.callers} == {("server", "127.0.0.1")}
    with pytest.raises(LookupError):
        access.caller()


@pytest.mark.parametrize("writing", [False, True])
async def test_a_typed_error_arrives_with_all_its_texts_in_every_shape(start: Start, writing: bool) -> None:
    world = await start(writing=writing)
    async with world.dial(world.vault.server()) as channel:
        for request in (b"typed", b"grouped"):
            for error in await _every_shape(channel, request):
                assert isinstance(error, errors.Exhausted)
                texts = [error.text(name) for name in ("public", "cause", "still_works", "next_step")]
                assert (error.code, texts) == (
                    "NO_SPACE",
                    ["no space on vda", "3 of 4 {bytes} are used", "nothing was written", "make room"],
                )


async def test_a_defect_arrives_as_internal_with_a_reference_to_the_log_and_no_detail(start: Start) -> None:
    world = await start()
    async with world.dial(world.vault.server()) as channel:
        with capture_logs() as lines:
            found = await _every_shape(channel, b"boom")
    logged = {line["reference"] for line in lines if line["event"] == "call failed on a defect"}
    assert len(logged) == 4
    for error in found:
        assert isinstance(error, errors.Internal)
        assert "secret" not in str(error)
        assert any(reference in str(error) and reference in error.text("next_step") for reference in logged)


async def test_other_kinds_are_denied_in_every_shape_and_told_who_may(start: Start) -> None:
    world = await start()
    for credentials in (world.vault.host(), world.vault.user()):
        async with world.dial(credentials) as channel:
            for error in await _every_shape(channel, b"hi"):
                assert isinstance(error, errors.Denied)
                assert error.text("cause") == "allowed: server"
    assert world.echo.callers == []
    assert len(world.refusals) == 8


async def test_a_method_that_is_served_and_not_in_the_table_stops_the_start() -> None:
    world = World()
    with pytest.raises(access.MissingRule, match=r"twinsite\.test\.Echo/Both"):
        await world.start({UNARY: SERVERS, DOWN: SERVERS, UP: SERVERS})


async def test_a_method_nobody_described_is_closed_all_the_same(start: Start) -> None:
    """Mounted beside its descriptor, and spelled in ways a router might take for another."""
    world = await start()
    world.gate.table.pop(UNARY)
    async with world.dial(world.vault.server()) as channel:
        for method in (UNARY, f"/{SERVICE}/Nothing", f"{SERVICE}/Unary", f"//{SERVICE}/Unary", UNARY.lower()):
            with pytest.raises(errors.TwinsiteError) as refused:
                await channel.unary_unary(method)(b"hi")
            assert isinstance(refused.value, errors.Denied | errors.InvalidInput | errors.Failed)
    assert world.echo.callers == []


@pytest.mark.parametrize("writing", [False, True])
async def test_live_calls_of_an_identity_are_cut_with_a_status_in_every_shape(start: Start, writing: bool) -> None:
    world = await start(writing=writing)
    member, other = world.vault.server(), world.vault.server()
    async with world.dial(member) as channel, world.dial(other) as kept:
        stream = kept.stream_stream(BOTH)()
        await stream.write(b"hi")
        assert await stream.read() == b"hi"
        calls = asyncio.ensure_future(_every_shape(channel, b"wait"))
        async with asyncio.timeout(10):
            while sum(caller.identity == member.identity for caller in world.echo.callers) < 4:
                await asyncio.sleep(0.01)
        world.gate.cut(member.identity)
        for error in await asyncio.wait_for(calls, 5):
            assert isinstance(error, errors.Unauthenticated)
            assert error.code == "NOT_CURRENT"
        assert world.echo.closed == 4
        await stream.write(b"ho")
        assert await stream.read() == b"ho"
        stream.cancel()


async def test_a_call_that_is_being_judged_while_its_identity_is_cut_does_not_start(start: Start) -> None:
    world = await start()
    member, judge = world.vault.server(), world.judge
    asked, go_on = asyncio.Event(), asyncio.Event()

    class Slow(access.VaultMembers):
        async def admit(self, *args: Any) -> access.Caller:
            asked.set()
            await go_on.wait()
            return await judge.admit(*args)

    world.gate._judge = Slow(world.vault.vault)
    async with world.dial(member) as channel:
        call = channel.unary_unary(UNARY)(b"hi")
        result = asyncio.ensure_future(asyncio.wait_for(call, 10))
        await asyncio.wait_for(asked.wait(), 10)
        world.gate.cut(member.identity)
        go_on.set()
        with pytest.raises(errors.Unauthenticated):
            await result
    assert world.echo.callers == []


async def test_a_certificate_is_judged_by_its_dates_at_every_call_with_five_minutes_to_spare(start: Start) -> None:
    world = await start()
    member = world.vault.server(ends=DAY)
    async with world.dial(member) as channel:
        assert await channel.unary_unary(UNARY)(b"hi") == b"hi"
        world.clock.advance(DAY + 290)
        assert await channel.unary_unary(UNARY)(b"hi") == b"hi"
        world.clock.advance(20)
        with pytest.raises(errors.Unauthenticated) as expired:
            await channel.unary_unary(UNARY)(b"hi")
        assert expired.value.code == "CERTIFICATE_EXPIRED"
        world.clock.advance(-3 * DAY)
        with pytest.raises(errors.Unauthenticated):
            await channel.unary_unary(UNARY)(b"hi")


async def test_denied_ids_serials_and_keys_are_not_current(start: Start) -> None:
    world = await start()
    from twinsite import keys

    for fact in (lambda c: c.identity.id, lambda c: keys.serial_of(c.certificate), lambda c: keys.spki_sha256(c.key)):
        member = world.vault.server()
        async with world.dial(member) as channel:
            assert await channel.unary_unary(UNARY)(b"hi") == b"hi"
            world.judge.denied.add(fact(member))
            with pytest.raises(errors.Unauthenticated):
                await channel.unary_unary(UNARY)(b"hi")


async def test_on_a_listener_for_strangers_only_methods_for_anyone_answer(start: Start) -> None:
    world = await start(
        {UNARY: Rule(frozenset({"anyone"})), DOWN: SERVERS, UP: SERVERS, BOTH: SERVERS}, require_client=False
    )
    async with dial(
        world.running.address,
        tls.channel_credentials_roots(world.vault.roots_pem),
        peer=world.watched.credentials.identity.dns,
    ) as channel:
        answer, *refused = await _every_shape(channel, b"hi")
        assert answer == b"hi"
        assert [error.code for error in refused] == ["NO_CERTIFICATE"] * 3
        assert await channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == b"\x08\x01"
    assert world.echo.callers[0].identity is None


async def test_health_answers_members_only_where_certificates_are_asked_for(start: Start) -> None:
    world = await start()
    member = world.vault.host()
    async with world.dial(member) as channel:
        assert await channel.unary_unary("/grpc.health.v1.Health/Check")(b"") == b"\x08\x01"
        world.judge.denied.add(member.identity.id)
        with pytest.raises(errors.Unauthenticated):
            await channel.unary_unary("/grpc.health.v1.Health/Check")(b"")


async def test_bytes_that_are_no_request_are_refused_after_the_caller_was_checked() -> None:
    world = World()
    service = identity_pb2.DESCRIPTOR.services_by_name["Identity"]
    mount = Mount(
        service,
        lambda to: identity_pb2_grpc.add_IdentityServicer_to_server(identity_pb2_grpc.IdentityServicer(), to),  # type: ignore[abstract]
    )
    gate = access.Gate(dict.fromkeys(access.methods_of([service]), SERVERS), world.judge, world.clock)
    credentials = tls.server_credentials(world.watched)
    world.running = await server.serve("127.0.0.1:0", [mount], credentials=credentials, gate=gate)
    method = "/twinsite.api.coordinator.v1.Identity/Renew"
    async with world.dial(world.vault.server()) as member, world.dial(world.vault.host()) as host:
        with pytest.raises(errors.InvalidInput) as garbage:
            await member.unary_unary(method)(b"\xff\xff\xff")
        assert garbage.value.code == "UNREADABLE"
        with pytest.raises(errors.Denied):
            await host.unary_unary(method)(b"\xff\xff\xff")
    await world.running.stop(0)


async def test_very_long_texts_are_shortened_and_not_lost(start: Start) -> None:
    world = await start()

    class Long(errors.Failed):
        public = "x" * 50_000
        next_step = "read " * 10_000

    async def long(request: bytes, context: Any) -> bytes:
        raise Long

    world.echo._do = lambda request: long(request, None)  # type: ignore[method-assign]
    async with world.dial(world.vault.server()) as channel:
        with pytest.raises(errors.Failed) as failed:
            await channel.unary_unary(UNARY)(b"hi")
    assert failed.value.code == "LONG"
    assert failed.value.text("next_step").startswith("read read")


async def test_a_refusal_that_meets_a_write_arrives_as_what_it_is(start: Start) -> None:
    """gRPC overwrites the peer's status when a write fails as the call ends; ours must be the one that is seen."""
    world = await start()
    async with world.dial(world.vault.host()) as channel:
        for _ in range(150):
            _, _, up, both = await _every_shape(channel, b"hi")
            assert (up.code, both.code) == ("NOT_ALLOWED", "NOT_ALLOWED")
            with pytest.raises(errors.Denied):
                await _write_for_ever(channel)


async def _write_for_ever(channel: Channel) -> None:
    stream = channel.stream_stream(BOTH)()
    while True:
        await stream.write(b"more")
