"""The only table error ⇄ gRPC status ⇄ exit code, and the form of an error on the wire."""

import contextlib
from typing import Final

import grpc
from google.protobuf.message import DecodeError

from twinsite import errors
from twinsite.api.types.v1 import types_pb2

METADATA_KEY: Final = "twinsite-error-bin"

# category → (status, exit code of the CLI). Exit codes are API: see `twinsite help exit-codes`.
TABLE: Final[dict[type[errors.TwinsiteError], tuple[grpc.StatusCode, int]]] = {
    errors.InvalidInput: (grpc.StatusCode.INVALID_ARGUMENT, 2),
    errors.NotFound: (grpc.StatusCode.NOT_FOUND, 5),
    errors.Conflict: (grpc.StatusCode.ALREADY_EXISTS, 6),
    errors.Precondition: (grpc.StatusCode.FAILED_PRECONDITION, 6),
    errors.Unauthenticated: (grpc.StatusCode.UNAUTHENTICATED, 4),
    errors.Denied: (grpc.StatusCode.PERMISSION_DENIED, 4),
    errors.Exhausted: (grpc.StatusCode.RESOURCE_EXHAUSTED, 1),
    errors.Unreachable: (grpc.StatusCode.UNAVAILABLE, 9),
    errors.Aborted: (grpc.StatusCode.ABORTED, 1),
    errors.Failed: (grpc.StatusCode.UNKNOWN, 1),
    errors.Internal: (grpc.StatusCode.INTERNAL, 1),
}
CATEGORY: Final = {status: category for category, (status, _) in TABLE.items()} | {
    grpc.StatusCode.DEADLINE_EXCEEDED: errors.Unreachable,
    grpc.StatusCode.CANCELLED: errors.Unreachable,
    grpc.StatusCode.UNIMPLEMENTED: errors.InvalidInput,
}


def category(error: errors.TwinsiteError) -> type[errors.TwinsiteError]:
    """The row of TABLE an error belongs to; Internal for one that derives from none."""
    return next((row for row in TABLE if isinstance(error, row)), errors.Internal)


def status_of(error: errors.TwinsiteError) -> grpc.StatusCode:
    return TABLE[category(error)][0]


def exit_code(error: errors.TwinsiteError) -> int:
    return TABLE[category(error)][1]


def to_proto(error: errors.TwinsiteError) -> types_pb2.ErrorDetail:
    return types_pb2.ErrorDetail(
        code=error.code,
        message=error.text("public"),
        cause=error.text("cause"),
        still_works=error.text("still_works"),
        next_step=error.text("next_step"),
    )


def from_proto(detail: types_pb2.ErrorDetail, status: grpc.StatusCode) -> errors.TwinsiteError:
    """The error a peer reported, of the category its status names and with the peer's texts."""

    def literal(text: str) -> str:
        return text.replace("{", "{{").replace("}", "}}")

    error = CATEGORY.get(status, errors.Internal)()
    # An instance attribute: a peer's code is not ours to make a class of.
    error.__dict__["code"] = detail.code or status.name
    error.public = literal(detail.message)
    error.cause = literal(detail.cause)
    error.still_works = literal(detail.still_works)
    error.next_step = literal(detail.next_step)
    return error


def from_rpc(error: grpc.RpcError) -> errors.TwinsiteError:
    """The typed error behind a failed call; texts of the transport when the peer sent no detail."""
    if not isinstance(error, grpc.aio.AioRpcError):
        return errors.Internal()
    for key, value in error.trailing_metadata() or ():
        if key == METADATA_KEY and isinstance(value, bytes):
            # Whoever answers with garbage in it has failed the call all the same.
            with contextlib.suppress(DecodeError):
                return from_proto(types_pb2.ErrorDetail.FromString(value), error.code())
    detail = types_pb2.ErrorDetail(code=error.code().name, message=error.details() or error.code().name)
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        detail.message = "the other side does not answer"
        detail.cause = error.details() or ""
        detail.next_step = "check that the program runs there, and its address and port"
    return from_proto(detail, error.code())
