"""TOML → one frozen dataclass tree per program: file, then `FILE.d/*.toml` by name, then `TWINSITE_<PROGRAM>_<A>__<B>`.

An unknown key, a wrong type or a missing value stops the start with the file, the key and a suggestion.
"""

import dataclasses
import difflib
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from twinsite.errors import InvalidInput

Tree = TypeVar("Tree")


class SettingsError(InvalidInput):
    public = "{error.origin}: {error.problem}"
    still_works = "nothing was started"
    next_step = "{error.advice}"

    def __init__(self, origin: str, problem: str, advice: str) -> None:
        self.origin, self.problem, self.advice = origin, problem, advice


def load(kind: type[Tree], path: Path | None, *, program: str, environment: Mapping[str, str] | None = None) -> Tree:
    """The settings of one program; `path` None means defaults and environment only. Raises SettingsError."""
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    if path is not None:
        files = [path, *sorted(path.with_name(path.name + ".d").glob("*.toml"))]
        for file in files:
            _overlay(tree, _read(file), origins, str(file))
    prefix = f"TWINSITE_{program.upper()}_"
    for name, text in sorted((os.environ if environment is None else environment).items()):  # noqa: TID251  # the one reader
        if name.startswith(prefix):
            nested: dict[str, Any] = {}
            place = nested
            *parents, last = name.removeprefix(prefix).lower().split("__")
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = _FromEnvironment(text)
            _overlay(tree, nested, origins, name)
    return typing.cast("Tree", _build(kind, tree, "", origins, str(path or "settings")))


def parse(kind: type[Tree], content: bytes, origin: str) -> Tree:
    """The same from content that was read before; `origin` names it in errors. Raises SettingsError."""
    tree: dict[str, Any] = {}
    origins: dict[str, str] = {}
    _overlay(tree, _toml(content, origin), origins, origin)
    return typing.cast("Tree", _build(kind, tree, "", origins, origin))


class _FromEnvironment(str):
    """Text whose type is decided by the field it lands in."""

    __slots__ = ()


def _read(file: Path) -> dict[str, Any]:
    try:
        return _toml(file.read_bytes(), str(file))
    except FileNotFoundError:
        raise SettingsError(str(file), "there is no such file", "name the settings file with --config") from None
    except PermissionError:
        raise SettingsError(str(file), "may not be read", "give the program's user read permission") from None


def _toml(content: bytes, origin: str) -> dict[str, Any]:
    try:
        return tomllib.loads(content.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(origin, f"is not TOML: {error}", "correct the line") from None


def _overlay(into: dict[str, Any], over: dict[str, Any], origins: dict[str, str], origin: str, at: str = "") -> None:
    for key, value in over.items():
        place = f"{at}{key}"
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _overlay(into[key], value, origins, origin, place + ".")
            continue
        into[key] = value
        origins[place] = origin
        if isinstance(value, dict):
            into[key] = {}
            _overlay(into[key], value, origins, origin, place + ".")


def _build(kind: type, tree: dict[str, Any], at: str, origins: dict[str, str], default_origin: str) -> object:
    hints = typing.get_type_hints(kind)
    fields = {field.name.rstrip("_"): field for field in dataclasses.fields(kind)}  # `from_` is written `from`
    values: dict[str, Any] = {}
    for key, value in tree.items():
        place = f"{at}{key}"
        origin = origins.get(place, default_origin)
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            advice = f"did you mean {at}{near[0]}?" if near else f"known here: {', '.join(sorted(fields))}"
            raise SettingsError(origin, f"unknown key {place}", advice)
        values[fields[key].name] = _convert(hints[fields[key].name], value, place, origins, origin)
    for name, field in ((field.name, field) for field in fields.values()):
        if name in values:
            continue
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            if dataclasses.is_dataclass(hints[name]):
                values[name] = _build(hints[name], {}, f"{at}{name}.", origins, default_origin)
                continue
            raise SettingsError(default_origin, f"{at}{name} is missing", f"set {at}{name}")
    try:
        return kind(**values)
    except ValueError as error:  # a dataclass checks its own ranges in __post_init__
        raise SettingsError(default_origin, f"{at.rstrip('.') or 'settings'}: {error}", "correct the value") from None


def _convert(hint: Any, value: Any, place: str, origins: dict[str, str], origin: str) -> Any:
    if isinstance(hint, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
        return _convert(kinds[0], value, place, origins, origin)
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise SettingsError(origin, f"{place} must be a table", f"write it as [{place}]")
        return _build(typing.cast("type", hint), value, place + ".", origins, origin)
    if typing.get_origin(hint) is tuple:
        items = value.split(",") if isinstance(value, _FromEnvironment) else value
        if not isinstance(items, list):
            raise SettingsError(origin, f"{place} must be a list", f'write it as {place} = ["…"]')
        inner = typing.get_args(hint)[0]
        return tuple(_convert(inner, item, f"{place}[{number}]", origins, origin) for number, item in enumerate(items))
    if isinstance(value, _FromEnvironment):
        value = _from_text(hint, str(value))
    if hint is Path and isinstance(value, str):
        return Path(value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        wanted = getattr(hint, "__name__", str(hint))
        raise SettingsError(origin, f"{place} must be {wanted}, it is {value!r}", "correct the value")
    return value


def _from_text(hint: Any, text: str) -> Any:
    if hint is bool:
        return {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            return text
    return text
