"""Messages of the admin API as plain JSON values: numbers are numbers, enums lower_snake, times RFC 3339 UTC."""

from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from twinsite import units


def to_plain(message: Message) -> Any:
    """The message as JSON values. Absent sub-messages are left out; an absent Timestamp is null: unknown."""
    if isinstance(message, Timestamp):
        return rfc3339(message)
    plain: dict[str, Any] = {}
    field: Any  # the stubs know two descriptor classes, the runtime one
    for field in message.DESCRIPTOR.fields:
        if field.is_repeated:
            plain[field.name] = _repeated(field, getattr(message, field.name))
        elif field.type == FieldDescriptor.TYPE_MESSAGE:
            if message.HasField(field.name):
                plain[field.name] = to_plain(getattr(message, field.name))
            elif field.message_type.full_name == Timestamp.DESCRIPTOR.full_name:
                plain[field.name] = None
        elif field.containing_oneof is None or message.HasField(field.name):
            plain[field.name] = _scalar(field, getattr(message, field.name))
    return plain


def rfc3339(instant: Timestamp) -> str | None:
    """None for an unset time."""
    if not instant.seconds and not instant.nanos:
        return None
    return units.rfc3339(instant.seconds + instant.nanos / 1e9)


def _repeated(field: Any, values: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        value_field = field.message_type.fields_by_name["value"]
        return {str(key): _scalar(value_field, value) for key, value in sorted(values.items())}
    return [_scalar(field, value) for value in values]


def _scalar(field: Any, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return to_plain(value)
    if field.type == FieldDescriptor.TYPE_ENUM:
        return enum_word(field.enum_type, value)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return value.hex()
    return value


def enum_word(enum: Any, number: int) -> str:
    """POWER_STATE_RUNNING of enum PowerState → ``running``; a number this version does not know → ``unknown_<n>``."""
    value = enum.values_by_number.get(number)
    if value is None:
        return f"unknown_{number}"
    words = enum.values[0].name.removesuffix("UNSPECIFIED")  # the prefix all its names share
    return str(value.name).removeprefix(words).lower()
