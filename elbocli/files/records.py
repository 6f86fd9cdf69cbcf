"""Records: what elbo's own files and results hold, as frozen msgspec structs with a field for each key.

`of` makes a record of what JSON, YAML or HDF5 gave, or raises FormatError with the key's path; `json` gives the object
back, in the order of the fields. Bounds are declared in the type: Annotated[int, Meta(ge=1)].

A field with the default None is left out while it is None; a field that may be None and has no default is written as
null, and may be missing when `of` reads it. The field that REST names takes all keys that no other field has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, ClassVar, NamedTuple, Self, TypeVar, get_args

import msgspec
from msgspec import Meta
from msgspec.structs import fields

from elbocli.files.reading import check_format, read_bytes, reading

Count = Annotated[int, Meta(ge=0, le=10**15)]
"""Steps, images, bytes."""
R = TypeVar("R", bound="type[Record]")
_fields = cache(fields)


class StoredFormat(NamedTuple):
    """A format of elbo's own: the record that it holds, what its files are, the name and version that they say."""

    record: type[Record]
    file: str
    name: str
    version: int
    remedy: str


FORMATS: dict[type[Record], StoredFormat] = {}
"""The formats of all modules that have been imported."""


def stored(file: str, name: str = "", version: int = 1, remedy: str = "") -> Callable[[R], R]:
    """Declare a record as a format of its own.

    file: what holds it, for docs/datasets.md. name: what the file's key `format` says; "" where there is no such key.
    version: raised when an earlier elbo would misread the file; 0 for a record without it. remedy: the end of the
    message about a file of another format.
    """

    def declare(record: R) -> R:
        FORMATS[record] = StoredFormat(record, file, name, version, remedy)
        return record

    return declare


class Record(msgspec.Struct, frozen=True):
    """Base of all records. REST: the name of the field that takes keys without a field of their own."""

    REST: ClassVar[str] = ""

    def json(self) -> dict[str, Any]:
        """The object to write, with its format and version first."""
        return {**self.head(), **self.facts()}

    @classmethod
    def head(cls) -> dict[str, Any]:
        """The keys `format` and `version`, where this is a format that has them."""
        known = FORMATS.get(cls)
        head = {} if known is None else {"format": known.name, "version": known.version}
        return {key: value for key, value in head.items() if value}

    def facts(self) -> dict[str, Any]:
        """The fields as JSON holds them, without format and version."""
        values = {each.name: (getattr(self, each.name), each.default) for each in _fields(type(self))}
        rest = values.pop(self.REST, ({}, None))[0]
        facts = {
            key: plain(value) for key, (value, default) in values.items() if value is not None or default is not None
        }
        return {**facts, **plain(rest)}

    @classmethod
    def of(cls, content: Any, where: object = "it") -> Self:
        """Read the object that `json` wrote. where: the file, for messages. Raises FormatError, DataError."""
        cls.check_head(content, where)
        if isinstance(content, Mapping):
            content = {key: value for key, value in content.items() if key not in ("format", "version")}
            known = [each for each in _fields(cls) if each.name != cls.REST]
            names = {each.name for each in known}
            if cls.REST:
                content[cls.REST] = {key: content.pop(key) for key in [*content] if key not in names}
            for each in known:
                if each.required and (each.type is Any or NoneType in get_args(each.type)):
                    content.setdefault(each.name, None)
        return convert(content, cls, where)

    @classmethod
    def check_head(cls, content: Any, where: object) -> None:
        """Raise FormatError for an object of another format, DataError for one of a later version."""
        known = FORMATS.get(cls)
        if known and known.version and isinstance(content, dict):
            check_format(where, content, known.name, known.version, known.remedy)


def convert(content: Any, hint: Any, where: object) -> Any:
    """A value of that type, made of what a file holds. Raises FormatError with the key's path."""
    with reading(where, on=(msgspec.ValidationError,)):
        return msgspec.convert(content, hint)


def plain(value: Any) -> Any:
    """A value as JSON has it: records as objects, tuples as lists."""
    if isinstance(value, Record):
        return value.json()
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


def parse_json(text: bytes | str, where: object) -> dict[str, Any]:
    """The object of a JSON text. where: the file, for messages. Raises FormatError."""
    with reading(f"{where}: not usable JSON"):
        return msgspec.json.decode(text, type=dict[str, Any])


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises FormatError, DataError."""
    return parse_json(read_bytes(path), path)
