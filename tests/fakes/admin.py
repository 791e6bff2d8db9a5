"""A coordinator that answers the admin API from a script, on its own thread: what the CLI talks to in its tests."""

import asyncio
import contextlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from tests.fakes.pki import TestVault
from twinsite import access, keys, server, tls
from twinsite.api.coordinator.v1 import admin_pb2, enrollment_pb2
from twinsite.clock import SystemClock
from twinsite.credentials import Watched
from twinsite.errors import TwinsiteError
from twinsite.identity import Identity

Answer = Callable[[Any], Any]


@dataclass
class FakeCoordinator:
    """`answers["Machines.List"] = lambda request: …`; a list is a stream, a TwinsiteError is raised."""

    vault: TestVault
    answers: dict[str, Answer | Message | list[Message] | TwinsiteError] = field(default_factory=dict)
    calls: list[tuple[str, Message, Mapping[str, str]]] = field(default_factory=list)
    enrollment: str = ""
    admin: str = ""

    def requests(self, method: str) -> list[Any]:
        return [request for name, request, _ in self.calls if name == method]

    def login(self, request: enrollment_pb2.LoginRequest) -> enrollment_pb2.LoginResponse:
        """As the real one: a certificate for the CLI's own key and a token only that key opens."""
        user = Identity("user", keys.new_id("u"), self.vault.vault)
        chain = self.vault.chain_for(user, keys.public_key_of(request.csr_der))
        certificate = x509.load_pem_x509_certificates(chain)[0]
        return enrollment_pb2.LoginResponse(
            user_id=user.id,
            role="owner",
            vault_id=user.vault,
            chain_pem=chain,
            sealed_token=keys.seal(b"tst1.token", certificate, user.vault, user.id),
            expires_unix=int(SystemClock().now()) + 43200,
            admin_address=self.admin,
        )


def _handlers(fake: FakeCoordinator, services: Any) -> list[server.Mount]:
    mounts = []
    for service in services:
        handlers = {}
        for method in service.methods:
            name = f"{service.name}.{method.name}"
            read = GetMessageClass(method.input_type).FromString

            async def unary(request: Message, context: Any, name: str = name) -> Message:
                answer = _answer(fake, name, request, context)
                assert isinstance(answer, Message), name
                return answer

            async def stream(request: Message, context: Any, name: str = name) -> Any:
                for item in _answer(fake, name, request, context):
                    yield await item() if inspect.iscoroutinefunction(item) else item

            make = (
                grpc.unary_stream_rpc_method_handler if method.server_streaming else grpc.unary_unary_rpc_method_handler
            )
            handlers[method.name] = make(
                stream if method.server_streaming else unary, read, lambda message: message.SerializeToString()
            )
        generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
        mounts.append(
            server.Mount(service, lambda target, generic=generic: target.add_generic_rpc_handlers((generic,)))
        )
    return mounts


def _answer(fake: FakeCoordinator, name: str, request: Message, context: Any) -> Any:
    fake.calls.append((name, request, dict(context.invocation_metadata())))
    answer = fake.answers.get(name)
    if callable(answer):
        answer = answer(request)
    if isinstance(answer, TwinsiteError):
        raise answer
    assert answer is not None, f"the test has no answer for {name}"
    return answer


@contextlib.contextmanager
def coordinator() -> Iterator[FakeCoordinator]:
    """Serves until the block ends; both listeners on port 0."""
    fake = FakeCoordinator(TestVault())
    fake.answers["Enrollment.Login"] = fake.login
    ready, done = threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()

    async def serve() -> None:
        credentials = Watched(fake.vault.coordinator())
        admin_services = list(admin_pb2.DESCRIPTOR.services_by_name.values())
        enrollment_services = list(enrollment_pb2.DESCRIPTOR.services_by_name.values())
        running = []
        for services, callers, require in (
            (enrollment_services, frozenset({"anyone"}), False),
            (admin_services, frozenset({"user"}), True),
        ):
            table = {method: access.Rule(callers | access.MEMBERS) for method in access.methods_of(services)}
            gate = access.Gate(table, _Everybody(), SystemClock())
            mounted = tls.server_credentials(credentials, require_client=require)
            running.append(await server.serve("127.0.0.1:0", _handlers(fake, services), credentials=mounted, gate=gate))
        fake.enrollment, fake.admin = (listener.address for listener in running)
        ready.set()
        await done.wait()
        for listener in running:
            await listener.stop(0.1)

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(20)
        yield fake
    finally:
        loop.call_soon_threadsafe(done.set)
        thread.join(20)
        loop.close()


class _Everybody:
    """Members are users of role owner here: roles are tested with the real judge."""

    async def admit(self, identity: Any, certificate: Any, rule: Any, metadata: Any, method: str) -> access.Caller:
        del certificate, metadata, method
        role = next((c.removeprefix("user:") for c in sorted(rule.callers) if c.startswith("user:")), "owner")
        return access.Caller(identity, role, "admin", "")


def logged_in(fake: FakeCoordinator, home: Path) -> None:
    """Log the CLI in, as a user does."""
    from twinsite.cli.main import main

    roots = home.parent / "roots.pem"
    roots.write_bytes(fake.vault.roots_pem)
    password = home.parent / "password"
    password.write_text("correct horse\n")
    arguments = ["--coordinator", fake.enrollment, "--ca-file", str(roots), "--user", "admin"]
    assert main(["--home", str(home), "login", *arguments, "--password-file", str(password)]) == 0
