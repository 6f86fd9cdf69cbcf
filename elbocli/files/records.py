"""Records: frozen msgspec structs with the contents of elbo's files and results, one field per key.

Bounds are declared in the type: Annotated[int, Meta(ge=1)].
None in a field with default None: omitted from files.
None in a field without default: written as null; a missing key is read as None.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self, TypeAlias, TypeVar, dataclass_transform, get_args

import msgspec
from msgspec import Meta
from msgspec.structs import fields

from elbocli.files.reading import check_format, read_bytes, reading

if TYPE_CHECKING:
    JSON: TypeAlias = Mapping[str, "JSON"] | Sequence["JSON"] | str | float | bool | None
else:
    JSON = Any  # msgspec has no recursive types

Count = Annotated[int, Meta(ge=0, le=10**15)]  # of steps, images or bytes
Positive = Annotated[int, Meta(ge=1, le=10**15)]
ExtraKeys = Annotated[Mapping[str, JSON], "keys that are no fields"]
R = TypeVar("R", bound="type[Record]")
T = TypeVar("T")
_fields = cache(fields)


class StoredFormat(NamedTuple):
    """A file format. record: class of the content. Other fields: arguments of `stored`."""

    record: type[Record]
    file: str
    name: str
    version: int
    remedy: str


FORMATS: dict[type[Record], StoredFormat] = {}  # only of modules imported so far


def stored(file: str, name: str = "", version: int = 1, remedy: str = "") -> Callable[[R], R]:
    """Return a decorator that declares a Record class as a file format.

    file: description, for docs/datasets.md, of the file or part of a file that holds the record.
    name: value of the file's key `format`; "": no such key.
    version: incremented when an earlier elbo would misread the file; 0: no version.
    remedy: end of the error message about a file of another format.
    """

    def declare(record: R) -> R:
        FORMATS[record] = StoredFormat(record, file, name, version, remedy)
        return record

    return declare


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Record(msgspec.Struct, frozen=True):
    """Base class of records, which are all frozen. Unknown keys go to the field of type ExtraKeys; without one, they are ignored."""

    def json(self) -> dict[str, JSON]:
        """Return a JSON object: format and version if declared, then the fields."""
        return {**self.head(), **self.facts()}

    @classmethod
    def head(cls) -> dict[str, JSON]:
        """Return the declared `format` and `version`, or {}."""
        head = dict[str, JSON]()
        if file_format := FORMATS.get(cls):
            head = {"format": file_format.name, "version": file_format.version}
        return {key: value for key, value in head.items() if value}

    def facts(self) -> dict[str, JSON]:
        """Return the fields as JSON values, without format and version."""
        facts = dict[str, JSON]()
        extra = dict[str, JSON]()
        for field in _fields(type(self)):
            value = getattr(self, field.name)
            if field.type == ExtraKeys:
                extra = {key: plain(extra_value) for key, extra_value in value.items()}
            elif value is not None or field.default is not None:
                facts[field.name] = plain(value)
        return facts | extra

    @classmethod
    def of(cls, content: object, where: object = "it") -> Self:
        """Make a record from a parsed file. where: the file, for messages.

        Raises FormatError: when a key is missing or wrong, or the file has another format.
        Raises DataError: when a later version of elbo wrote the file.
        """
        cls.check_head(content, where)
        if isinstance(content, Mapping):
            content = {key: value for key, value in content.items() if key not in ("format", "version")}
            names = {field.name for field in _fields(cls) if field.type != ExtraKeys}
            for field in _fields(cls):
                if field.type == ExtraKeys:
                    content[field.name] = {key: content.pop(key) for key in [*content] if key not in names}
                elif field.required and (field.type is JSON or NoneType in get_args(field.type)):
                    content.setdefault(field.name, None)
        return convert(content, cls, where)

    @classmethod
    def check_head(cls, content: object, where: object) -> None:
        """Raise FormatError for another format, DataError for a later version."""
        file_format = FORMATS.get(cls)
        if file_format and file_format.version and isinstance(content, dict):
            check_format(where, content, file_format.name, file_format.version, file_format.remedy)


def convert(content: object, hint: type[T], where: object) -> T:
    """Convert a parsed value to the type `hint`. where: the file, for messages. Raises FormatError."""
    with reading(where):
        return msgspec.convert(content, hint)


def plain(value: Record | JSON) -> JSON:
    """Convert records to objects and tuples to lists, for JSON."""
    if isinstance(value, Record):
        return value.json()
    if isinstance(value, Mapping):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def parse_json(text: bytes | str, where: object, then: str = "") -> dict[str, JSON]:
    """Parse a JSON object. where: the file, for messages. then: end of the message. Raises FormatError."""
    with reading(f"{where}: not usable JSON", then):
        return msgspec.json.decode(text, type=dict[str, JSON])


def read_json(path: Path) -> dict[str, JSON]:
    """Read a file with a JSON object. Raises FormatError, DataError."""
    return parse_json(read_bytes(path), path)
