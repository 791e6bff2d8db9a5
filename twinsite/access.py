"""Who may call what: one gate in front of every method of every server, closed unless the table opens it.

Each call is checked, not each connection: a resumed TLS session hides that a certificate has expired, and an open
connection knows nothing of a revocation.
"""

import asyncio
import contextlib
import contextvars
import dataclasses
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol

import grpc
import structlog
from cryptography import x509
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import DecodeError

from twinsite import keys
from twinsite.clock import Clock
from twinsite.errors import Denied, Internal, InvalidInput, TwinsiteError, Unauthenticated
from twinsite.identity import Identity, from_certificate
from twinsite.status import METADATA_KEY, status_of, to_proto

if TYPE_CHECKING:  # protobuf's stubs give its descriptors two types
    from google._upb import _message

    AnyService = ServiceDescriptor | _message.ServiceDescriptor
    Context = grpc.aio.ServicerContext[Any, Any]  # generic in the stubs only
    Handler = grpc.RpcMethodHandler[Any, Any]

log = structlog.get_logger()

SKEW: Final = 300.0  # seconds a peer's clock may be off; certificates are dated back by as much
ROLES: Final = ("owner", "operator", "recovery", "auditor", "viewer")
MEMBERS: Final = frozenset({"coordinator", "server", "host", *(f"user:{role}" for role in ROLES)})
_TEXT_LIMIT: Final = 1200  # characters of each text on the wire: trailing metadata above 8 KiB may be refused


class MissingRule(Internal):
    public = "the method table does not cover what is served: {error.methods}"
    next_step = "add a rule for each to the table of the program"

    def __init__(self, methods: Iterable[str]) -> None:
        self.methods = ", ".join(sorted(methods))


class TlsTooOld(Unauthenticated):
    public = "this server speaks TLS 1.3 only"
    next_step = "update the program that called"


class NoCertificate(Unauthenticated):
    public = "no usable certificate was shown"
    next_step = "register this machine, or log in"


class CertificateExpired(Unauthenticated):
    public = "the certificate of {error.identity} is not valid now"
    cause = "it is valid from {error.begins} to {error.ends}, UTC"
    still_works = "nothing was changed"
    next_step = "compare the clocks of both machines; if it has expired, renew it or register again"

    def __init__(self, identity: Identity, certificate: x509.Certificate) -> None:
        self.identity = identity
        self.begins = f"{certificate.not_valid_before_utc:%Y-%m-%d %H:%M}"
        self.ends = f"{certificate.not_valid_after_utc:%Y-%m-%d %H:%M}"


class NotCurrent(Unauthenticated):
    public = "{error.identity} is not, or no longer, a member in good standing"
    cause = "it was revoked, locked, or has a newer certificate"
    still_works = "nothing was changed"
    next_step = "ask the owner of the vault for its state; register again if it was removed"

    def __init__(self, identity: Identity) -> None:
        self.identity = identity


class NotAllowed(Denied):
    public = "{error.who} may not call {error.method}"
    cause = "allowed: {error.callers}"
    still_works = "nothing was changed"
    next_step = "ask an owner of the vault to do it, or to change your role"

    def __init__(self, who: str, method: str, callers: Iterable[str]) -> None:
        self.who, self.method, self.callers = who, method, ", ".join(sorted(callers)) or "nobody"


class Unreadable(InvalidInput):
    public = "the request cannot be read"
    still_works = "nothing was changed"
    next_step = "update the program that called: the two ends do not speak the same version"


@dataclass(frozen=True, slots=True)
class Rule:
    """Callers: "anyone", a kind of identity, or "user:<role>". `token`: a bearer token is demanded as well."""

    callers: frozenset[str]
    token: bool = False

    def admits(self, kind: str, role: str) -> bool:
        return "anyone" in self.callers or _label(kind, role) in self.callers


Table = Mapping[str, Rule]  # "/package.Service/Method" → rule


def methods_of(services: "Iterable[AnyService]") -> set[str]:
    return {f"/{service.full_name}/{method.name}" for service in services for method in service.methods}


def check_complete(table: Table, services: "Iterable[AnyService]") -> None:
    """Raises MissingRule when a served method has no rule: the start fails, not the first call."""
    missing = methods_of(services) - set(table)
    if missing:
        raise MissingRule(missing)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who made the call being handled. `role` is the user's role, or the kind of a machine; `name` is for people."""

    identity: Identity | None
    role: str
    name: str
    address: str  # IP address without port
    certificate: x509.Certificate | None = None  # the one shown for this call
    login_age: float | None = None  # seconds since this session's login, by the judge's clock; None: it has none


Metadata = Mapping[str, str]  # text entries of the call; of a repeated key the last


class Judge(Protocol):
    """Knows which identities are in good standing."""

    async def admit(
        self, identity: Identity, certificate: x509.Certificate, rule: Rule, metadata: Metadata, method: str
    ) -> Caller:
        """The caller, its state, serial, key and (if the rule wants it) token checked; whether the rule admits it is
        the gate's to decide, who also fills in address and certificate. Raises Unauthenticated.
        """
        ...


@dataclass(slots=True)
class VaultMembers:
    """The judge of programs without a database: members of one vault, less those that are denied.

    Denied are ids, serials (hex) and SPKI hashes (hex), never fingerprints: ECDSA signatures are malleable.
    """

    vault: str
    denied: set[str] = field(default_factory=set)

    async def admit(
        self, identity: Identity, certificate: x509.Certificate, rule: Rule, metadata: Metadata, method: str
    ) -> Caller:
        del rule, metadata, method
        facts = {identity.id, keys.serial_of(certificate), keys.spki_sha256(certificate)}
        if identity.vault != self.vault or facts & self.denied:
            raise NotCurrent(identity)
        return Caller(identity, identity.kind, identity.id, "")


@dataclass(frozen=True, slots=True)
class Refusal:
    method: str
    identity: Identity | None
    address: str
    error: TwinsiteError


_caller: contextvars.ContextVar[Caller] = contextvars.ContextVar("caller")


def caller() -> Caller:
    """Who called the method that is being handled. Raises LookupError outside of one."""
    return _caller.get()


@dataclass(eq=False, slots=True)
class _Call:
    identity: Identity
    serial: str
    task: asyncio.Task[Any]
    handling: bool = False
    cut: bool = False


class Gate(grpc.aio.ServerInterceptor):
    """Admits calls, names their caller, turns errors into statuses, and can cut what is running.

    `on_refused` is told of every call that was not admitted, for the audit log.
    """

    def __init__(
        self,
        table: Table,
        judge: Judge,
        clock: Clock,
        *,
        on_refused: Callable[[Refusal], Awaitable[None]] | None = None,
    ) -> None:
        self.table: dict[str, Rule] = dict(table)
        self._judge, self._clock, self._on_refused = judge, clock, on_refused
        self._live: set[_Call] = set()

    def include(self, table: Table) -> None:
        """Add the rules of what a server mounts by itself; rules that are there stay."""
        self.table = {**table, **self.table}

    def cut(self, identity: Identity, serial: str | None = None) -> None:
        """End the calls of an identity (of one certificate of it) that are running; not the one this is called from."""
        here = asyncio.current_task()
        for call in self._live:
            if call.identity == identity and serial in (None, call.serial) and call.task is not here:
                call.cut = True
                if call.handling:
                    call.task.cancel()

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], "Awaitable[Handler | None]"],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler":
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # type: ignore[return-value]  # gRPC's own UNIMPLEMENTED
        method = _text(handler_call_details.method)
        return self._guarded(handler, method, self.table.get(method, Rule(frozenset())))

    def _guarded(self, handler: "Handler", method: str, rule: Rule) -> "Handler":
        read, write = handler.request_deserializer, handler.response_serializer
        inner: Any  # typed for the synchronous server

        def parsed(request: Any) -> Any:
            # A unary request arrives here as bytes: strangers get nothing of ours to parse.
            try:
                return read(request) if read is not None else request
            except (DecodeError, ValueError):
                raise Unreadable from None

        if handler.request_streaming and handler.response_streaming:
            inner = handler.stream_stream

            async def stream_stream(requests: Any, context: "Context") -> None:
                async with self._admitted(context, method, rule):
                    await _drive(inner(requests, context), context)

            return grpc.stream_stream_rpc_method_handler(stream_stream, read, write)
        if handler.request_streaming:
            inner = handler.stream_unary

            async def stream_unary(requests: Any, context: "Context") -> Any:
                async with self._admitted(context, method, rule):
                    return await inner(requests, context)

            return grpc.stream_unary_rpc_method_handler(stream_unary, read, write)
        if handler.response_streaming:
            inner = handler.unary_stream

            async def unary_stream(request: Any, context: "Context") -> None:
                async with self._admitted(context, method, rule):
                    await _drive(inner(parsed(request), context), context)

            return grpc.unary_stream_rpc_method_handler(unary_stream, None, write)
        inner = handler.unary_unary

        async def unary_unary(request: Any, context: "Context") -> Any:
            async with self._admitted(context, method, rule):
                return await inner(parsed(request), context)

        return grpc.unary_unary_rpc_method_handler(unary_unary, None, write)

    @contextlib.asynccontextmanager
    async def _admitted(self, context: "Context", method: str, rule: Rule) -> AsyncIterator[None]:
        """The block runs for an admitted caller; what it raises leaves as a status. Every exit is one gRPC knows."""
        address = _address(context)
        call: _Call | None = None
        try:
            try:
                presented = self._presented(context, rule)
                if presented is not None:
                    call = _Call(*presented[:2], _current_task())
                    # Before the judge: whoever revokes after the judge has looked finds the call here.
                    self._live.add(call)
                await self._admit(presented, context, method, rule, address, call)
            except TwinsiteError as error:
                await self._refused(Refusal(method, call.identity if call else None, address, error))
                raise
            try:
                if call is not None:
                    call.handling = True
                yield
            finally:
                if call is not None:
                    call.handling = False
        except grpc.aio.AbortError:
            raise
        except asyncio.CancelledError:
            if call is None or not call.cut:
                raise  # the peer went away, or the server is stopping
            await _abort(context, NotCurrent(call.identity))
        except Exception as error:  # noqa: BLE001  # the top of a call
            if call is not None and call.cut:
                await _abort(context, NotCurrent(call.identity))
            await _abort(context, _typed(error, method))
        finally:
            if call is not None:
                self._live.discard(call)

    def _presented(self, context: "Context", rule: Rule) -> tuple[Identity, str, x509.Certificate] | None:
        facts = context.auth_context()
        if list(facts.get("ssl_tls_version", ())) != [b"TLSv1.3"]:
            raise TlsTooOld
        pems = list(facts.get("x509_pem_cert", ()))
        if not pems:
            if "anyone" in rule.callers:
                return None
            raise NoCertificate
        try:
            certificate = x509.load_pem_x509_certificate(pems[0])
        except ValueError:
            raise NoCertificate from None
        identity = from_certificate(certificate)
        begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
        if not begins - SKEW <= self._clock.now() <= ends + SKEW:
            raise CertificateExpired(identity, certificate)
        return identity, keys.serial_of(certificate), certificate

    async def _admit(
        self,
        presented: tuple[Identity, str, x509.Certificate] | None,
        context: "Context",
        method: str,
        rule: Rule,
        address: str,
        call: _Call | None,
    ) -> None:
        if presented is None:
            _caller.set(Caller(None, "", "", address))
            return
        identity, _, certificate = presented
        metadata = {_text(k): v for k, v in context.invocation_metadata() or () if isinstance(v, str)}
        found = await self._judge.admit(identity, certificate, rule, metadata, method)
        if call is not None and call.cut:
            raise NotCurrent(identity)
        if not rule.admits(identity.kind, found.role):
            raise NotAllowed(_label(identity.kind, found.role), method, rule.callers)
        _caller.set(dataclasses.replace(found, identity=identity, address=address, certificate=certificate))

    async def _refused(self, refusal: Refusal) -> None:
        log.info(
            "call refused",
            method=refusal.method,
            identity=str(refusal.identity or "none"),
            address=refusal.address,
            code=refusal.error.code,
        )
        if self._on_refused is not None:
            await self._on_refused(refusal)


def _label(kind: str, role: str) -> str:
    return f"user:{role}" if kind == "user" else kind


async def _drive(answer: Any, context: "Context") -> None:
    """Run a streaming handler of either style inside this task, so that cutting it can still send a status."""
    if not hasattr(answer, "__aiter__"):
        await answer
        return
    async with contextlib.aclosing(answer) as messages:
        async for message in messages:
            await context.write(message)


def _typed(error: BaseException, method: str) -> TwinsiteError:
    """The typed error inside `error` (a task group wraps it), or Internal with an id that the log has too."""
    inner: BaseException = error
    while isinstance(inner, BaseExceptionGroup):
        typed = inner.subgroup(TwinsiteError)
        inner = (typed or inner).exceptions[0]
    if isinstance(inner, TwinsiteError):
        return inner
    reference = secrets.token_hex(4)
    log.error("call failed on a defect", method=method, reference=reference, exc_info=error)
    defect = Internal()
    defect.public = f"internal error (reference {reference})"
    defect.next_step = f"look for {reference} in the log of the program that was called, and report what is there"
    return defect


async def _abort(context: "Context", error: TwinsiteError) -> None:
    detail = to_proto(error)
    for name in ("message", "cause", "still_works", "next_step"):
        text: str = getattr(detail, name)
        if len(text) > _TEXT_LIMIT:
            setattr(detail, name, text[:_TEXT_LIMIT] + "…")
    await context.abort(status_of(error), detail.message[:400], ((METADATA_KEY, detail.SerializeToString()),))


def _current_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("a call is handled in a task")
    return task


def _address(context: "Context") -> str:
    """ipv4:127.0.0.1:1 → 127.0.0.1; ipv6:%5B::1%5D:1 → ::1."""
    scheme, _, rest = context.peer().partition(":")
    host = rest.rpartition(":")[0]
    return host.replace("%5B", "").replace("%5D", "").strip("[]") if scheme in ("ipv4", "ipv6") else rest


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
