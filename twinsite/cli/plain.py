"""Messages of the admin API as plain JSON values: numbers are numbers, enums lower_snake, times RFC 3339 UTC."""

import json
from collections.abc import Iterator
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
        elif _is_unix(field):
            plain[_name(field)] = units.rfc3339(getattr(message, field.name)) if getattr(message, field.name) else None
        elif field.containing_oneof is None or message.HasField(field.name):
            plain[field.name] = _scalar(field, getattr(message, field.name))
    return plain


def to_flat(message: Message) -> dict[str, object]:
    """By dotted name, in the same order for every message of its kind: the values of `to_plain`, lists as JSON text.

    What is absent is empty.
    """
    return dict(_leaves(message.DESCRIPTOR, to_plain(message), ""))


def flat_names(descriptor: Any) -> list[str]:
    """What `to_flat` names."""
    return [name for name, _ in _leaves(descriptor, {}, "")]


def _leaves(descriptor: Any, plain: dict[str, Any], prefix: str) -> Iterator[tuple[str, object]]:
    for field in descriptor.fields:
        value = plain.get(_name(field))
        single = field.type == FieldDescriptor.TYPE_MESSAGE and not field.is_repeated
        if single and field.message_type.full_name != Timestamp.DESCRIPTOR.full_name:
            yield from _leaves(field.message_type, value or {}, f"{prefix}{field.name}.")
        elif value is None:
            yield f"{prefix}{_name(field)}", ""
        elif isinstance(value, bool | list | dict):
            yield f"{prefix}{field.name}", json.dumps(value, ensure_ascii=False)
        else:
            yield f"{prefix}{_name(field)}", value


def rfc3339(instant: Timestamp) -> str | None:
    """None for an unset time."""
    if not instant.seconds and not instant.nanos:
        return None
    return units.rfc3339(instant.seconds + instant.nanos / 1e9)


def _is_unix(field: Any) -> bool:
    return bool(field.name.endswith("_unix") and not field.is_repeated)


def _name(field: Any) -> str:
    """An instant has no suffix, whatever it travels as."""
    return str(field.name).removesuffix("_unix") if _is_unix(field) else str(field.name)


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
