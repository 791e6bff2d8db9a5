"""The beginning of a connection: what the export is like, and which contexts the server grants."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from hyperv_host_agent.nbd import wire
from hyperv_host_agent.nbd.errors import ContextMissing, NbdBroken, NbdRefused
from hyperv_host_agent.nbd.stream import Stream
from twinsite.units import MiB

_REPLY_BYTES: Final = 8192  # of one reply to an option; names have 4096 at most
_REPLIES: Final = 64  # to one option
_NAME_BYTES: Final = 4096
_MOST: Final = 32 * MiB  # what may be asked for at once, as long as the server says nothing else


@dataclass(frozen=True, slots=True)
class Export:
    size: int  # bytes
    multi_conn: bool  # several connections see the same
    smallest: int  # bytes; offsets and lengths of requests are multiples of it
    largest: int  # bytes of one read
    contexts: dict[int, str]  # by the number the server gave them


def negotiate(stream: Stream, export: str, contexts: Sequence[str]) -> Export:
    """Raises NbdGone, NbdRefused, ContextMissing, NbdBroken."""
    name = export.encode()
    if len(name) > _NAME_BYTES or any(len(context.encode()) > _NAME_BYTES for context in contexts):
        raise NbdRefused(stream.server, "a name", "names have up to 4096 bytes")
    magic, option_magic, flags = wire.GREETING.unpack(stream.take(wire.GREETING.size))
    if (magic, option_magic) != (wire.MAGIC, wire.HAVE_OPTION):
        raise NbdBroken(stream.server, "this is not the greeting of an NBD server")
    if not flags & wire.FIXED_NEWSTYLE:
        raise NbdRefused(stream.server, "fixed newstyle", "it does not know it")
    stream.send(wire.NUMBER.pack(flags & (wire.FIXED_NEWSTYLE | wire.NO_ZEROES)))
    _ask(stream, wire.OPT_STRUCTURED_REPLY, "structured replies", b"")
    return _go(stream, name, export, _granted(stream, name, export, contexts))


def _ask(stream: Stream, option: int, what: str, data: bytes) -> list[tuple[int, bytes]]:
    """Everything the server answers until it says that this was all."""
    stream.send(wire.OPTION.pack(wire.HAVE_OPTION, option, len(data)) + data)
    answers: list[tuple[int, bytes]] = []
    while True:
        magic, answered, kind, length = wire.OPTION_REPLY.unpack(stream.take(wire.OPTION_REPLY.size))
        if magic != wire.OPTION_REPLY_MAGIC or answered != option:
            raise NbdBroken(stream.server, f"its answer is not one to {what}")
        if length > _REPLY_BYTES:
            raise NbdBroken(stream.server, f"an answer to {what} of {length} bytes")
        payload = stream.take(length)
        if kind & wire.REP_ERROR:
            raise NbdRefused(stream.server, what, wire.printable(payload) or f"code {kind:#x}")
        if kind == wire.REP_ACK:
            if payload:
                raise NbdBroken(stream.server, f"its consent to {what} has a content")
            return answers
        if len(answers) >= _REPLIES:
            raise NbdBroken(stream.server, f"its answers to {what} do not end")
        answers.append((kind, payload))


def _granted(stream: Stream, name: bytes, export: str, contexts: Sequence[str]) -> dict[int, str]:
    if not contexts:
        return {}
    data = wire.NUMBER.pack(len(name)) + name + wire.NUMBER.pack(len(contexts))
    data += b"".join(wire.NUMBER.pack(len(one.encode())) + one.encode() for one in contexts)
    granted: dict[int, str] = {}
    for kind, payload in _ask(stream, wire.OPT_SET_META_CONTEXT, f"contexts of export {export!r}", data):
        if kind != wire.REP_META_CONTEXT or len(payload) < wire.NUMBER.size:
            raise NbdBroken(stream.server, "its answer names no context")
        found = payload[wire.NUMBER.size :].decode(errors="replace")
        (number,) = wire.NUMBER.unpack_from(payload)
        if found not in contexts or found in granted.values() or number in granted:
            raise NbdBroken(stream.server, f"it grants a context that nobody asked for: {wire.printable(payload[4:])}")
        granted[number] = found
    for context in contexts:
        if context not in granted.values():
            raise ContextMissing(stream.server, export, context)
    return granted


def _go(stream: Stream, name: bytes, export: str, granted: dict[int, str]) -> Export:
    request = wire.NUMBER.pack(len(name)) + name + b"\0\1" + wire.INFO_BLOCK_SIZE.to_bytes(2, "big")
    size, flags, smallest, largest = -1, 0, 1, _MOST
    for kind, payload in _ask(stream, wire.OPT_GO, f"export {export!r}", request):
        if kind != wire.REP_INFO or len(payload) < 2:
            raise NbdBroken(stream.server, "its answer says nothing of the export")
        numbers = _numbers(stream, payload)
        match next(numbers):
            case wire.INFO_EXPORT:
                size, flags = next(numbers), next(numbers)
            case wire.INFO_BLOCK_SIZE:
                smallest, _, largest = next(numbers), next(numbers), next(numbers)
    if not 0 <= size < 1 << 63:
        raise NbdBroken(stream.server, f"a size of {size} bytes" if size >= 0 else "it does not say the export's size")
    if smallest & (smallest - 1) or not 1 <= smallest <= 65536 or largest < 65536:
        raise NbdBroken(stream.server, f"block sizes from {smallest} to {largest}")
    return Export(size, bool(flags & wire.FLAG_MULTI_CONN), smallest, min(largest, _MOST), granted)


def _numbers(stream: Stream, payload: bytes) -> Iterator[int]:
    """The kind of an information about the export, then its numbers."""
    kind = int.from_bytes(payload[:2], "big")
    widths = {wire.INFO_EXPORT: (8, 2), wire.INFO_BLOCK_SIZE: (4, 4, 4)}.get(kind)
    yield kind
    if widths is None:
        return  # nobody asked, and nobody needs it
    if len(payload) != 2 + sum(widths):
        raise NbdBroken(stream.server, f"an information {kind} of {len(payload)} bytes")
    at = 2
    for width in widths:
        yield int.from_bytes(payload[at : at + width], "big")
        at += width
