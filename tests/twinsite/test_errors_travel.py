"""An error keeps its kind and its four texts from where it arose to the person."""

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twinsite import errors, status
from twinsite.api.types.v1 import types_pb2


class DiskFull(errors.Exhausted):
    public = "{error.disk} is full"
    cause = "of {error.total} bytes none is free"
    still_works = "other VMs go on"
    next_step = "make room on {error.disk}"

    def __init__(self, disk: str, total: int) -> None:
        self.disk, self.total = disk, total


TEXTS = ("public", "cause", "still_works", "next_step")


def test_a_code_is_made_of_the_class_name_and_stays_what_it_is_when_written_down() -> None:
    class KeyExpired(errors.Precondition):
        pass

    class Renamed(errors.Precondition):
        code = "KEY_EXPIRED"

    assert KeyExpired.code == Renamed.code == "KEY_EXPIRED"


@pytest.mark.parametrize("category", list(status.TABLE), ids=lambda row: row.__name__)
def test_each_category_survives_the_wire(category: type[errors.TwinsiteError]) -> None:
    sent = category()
    received = status.from_proto(status.to_proto(sent), status.status_of(sent))
    assert status.category(received) is category
    assert [received.text(name) for name in TEXTS] == [sent.text(name) for name in TEXTS]
    assert received.code == sent.code


@given(st.text(max_size=60), st.integers())
def test_texts_arrive_as_they_were_whatever_the_facts_hold(disk: str, total: int) -> None:
    """Braces of a hostile name are not filled in again on the other side."""
    sent = DiskFull(disk, total)
    received = status.from_proto(status.to_proto(sent), status.status_of(sent))
    assert [received.text(name) for name in TEXTS] == [sent.text(name) for name in TEXTS]
    assert str(received) == f"{disk} is full"


def test_every_category_has_its_own_status_and_an_exit_code() -> None:
    rows = list(status.TABLE.values())
    assert len({code for code, _ in rows}) == len(rows)
    assert status.exit_code(DiskFull("vda", 1)) == 1
    assert status.exit_code(errors.Denied()) == 4
    assert status.category(errors.TwinsiteError()) is errors.Internal


def _failed(code: grpc.StatusCode, details: str, trailing: grpc.aio.Metadata | None = None) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailing or grpc.aio.Metadata(), details)


def test_a_failure_of_the_transport_gets_a_text_for_people() -> None:
    error = status.from_rpc(_failed(grpc.StatusCode.UNAVAILABLE, "Socket closed"))
    assert isinstance(error, errors.Unreachable)
    assert str(error) == "the other side does not answer"
    assert error.text("cause") == "Socket closed"
    assert isinstance(status.from_rpc(_failed(grpc.StatusCode.DATA_LOSS, "{odd}")), errors.Internal)
    assert isinstance(status.from_rpc(grpc.RpcError()), errors.Internal)


def test_a_detail_that_cannot_be_read_does_not_hide_the_failure() -> None:
    trailing = grpc.aio.Metadata((status.METADATA_KEY, b"\xff\xff"))
    error = status.from_rpc(_failed(grpc.StatusCode.PERMISSION_DENIED, "no", trailing))
    assert isinstance(error, errors.Denied)


def test_the_peers_detail_wins_over_the_transports_text() -> None:
    detail = types_pb2.ErrorDetail(code="X", message="m", next_step="n")
    trailing = grpc.aio.Metadata((status.METADATA_KEY, detail.SerializeToString()))
    error = status.from_rpc(_failed(grpc.StatusCode.ABORTED, "other", trailing))
    assert (error.code, str(error), error.text("next_step")) == ("X", "m", "n")
    assert isinstance(error, errors.Aborted)
