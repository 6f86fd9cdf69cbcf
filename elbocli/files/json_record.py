"""Frozen dataclasses as JSON objects: a key per field, in their order.

An optional field whose default is None is left out while it is None; one without a default is written as null. A
field whose metadata is REST stands for all keys that no other field has, at its place. A key that is not there is read as None
where None, or Any, is allowed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, fields
from types import NoneType, UnionType
from typing import Any, Self, get_args, get_origin, get_type_hints

from elbocli.errors import FormatError

REST = {"rest": True}
"""Metadata of the field for what else an object says, dict[str, Any]."""


class Record:
    """A dataclass that writes and reads its own JSON."""

    def json(self) -> dict[str, Any]:
        """The object, for json to write; records in it, in lists and in dicts too."""
        found: dict[str, Any] = {}
        for each in fields(self):  # type: ignore[arg-type]
            value = getattr(self, each.name)
            if each.metadata.get("rest"):
                found |= value
            elif value is not None or each.default is not None:
                found[each.name] = _plain(value)
        return found

    @classmethod
    def from_json(cls, content: Any, where: str = "") -> Self:
        """Read what `json` wrote. where: the keys that lead to it, for messages.

        Raises FormatError for a key that is missing or doesn't hold what it should.
        """
        if not isinstance(content, dict):
            raise FormatError(f"{where.removesuffix('.') or 'it'} is {str(content)[:40]!r}, not an object")
        own = fields(cls)  # type: ignore[arg-type]
        hints, named, found = get_type_hints(cls), {each.name for each in own}, dict[str, Any]()
        for each in own:
            hint = hints[each.name]
            if each.metadata.get("rest"):
                found[each.name] = {key: value for key, value in content.items() if key not in named}
            elif each.name in content:
                found[each.name] = typed(hint, content[each.name], f"{where}{each.name}")
            elif hint is Any or NoneType in get_args(hint):
                found[each.name] = None
            elif each.default is MISSING and each.default_factory is MISSING:
                raise FormatError(f"{where}{each.name} is missing")
        return cls(**found)


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.json()
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def typed(hint: Any, value: Any, name: str) -> Any:
    """The value of the key `name`, when it is of that type. Raises FormatError."""
    holds = get_args(hint)
    if get_origin(hint) is UnionType:
        for each in holds:
            with suppress(FormatError):
                return typed(each, value, name)
    elif isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_json(value, f"{name}.")
    elif get_origin(hint) is list and isinstance(value, list):
        return [typed(holds[0], each, name) for each in value]
    elif get_origin(hint) is dict and isinstance(value, dict):
        return {key: typed(holds[1], each, name) for key, each in value.items()}
    elif hint is float and type(value) is int:
        with suppress(OverflowError):
            return float(value)
    elif hint is Any or type(value) is hint:
        return value
    raise FormatError(f"{name} is {str(value)[:40]!r}; expected {getattr(hint, '__name__', hint)}")
