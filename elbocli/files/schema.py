"""Formats as frozen dataclasses: a field for each key, whose type hint says what it holds, and within which bounds.

`of` makes the object of what JSON, YAML or HDF5 gave, or refuses it in a sentence that names the key; `json` gives it
back, a key per field, in their order. Nothing else takes such files apart.

An optional field whose default is None is left out while it is None; one without a default is written as null. A field
whose metadata is REST stands for all keys that no other field has, at its place. A key that is not there is read as
None where None, or Any, is allowed. Annotated[HINT, Bounds(…)] has bounds of its own; without, they are those of Bounds().
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import MISSING, Field, dataclass, fields
from functools import cache, partial
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, NamedTuple, Self, Union, get_args, get_origin, get_type_hints

from elbocli.core.registry import nearest
from elbocli.errors import FormatError
from elbocli.files.reading import LARGEST_TEXT, check_format, naming

REST = {"rest": True}
"""Metadata of the field for what else an object says, dict[str, Any]."""
DEEPEST = 16
"""Lists and objects inside each other, where a hint says Any."""


@dataclass(frozen=True)
class Bounds:
    """low to high: of numbers, which are finite. longest: letters of a text. most: values of a list, keys of an object.

    least: letters, or values. choices: all that a text may be.
    """

    low: float = -(2**63)
    high: float = 2**63 - 1
    longest: int = LARGEST_TEXT
    most: int = 1 << 25
    least: int = 0
    choices: tuple[str, ...] = ()

    def words(self, kind: type) -> str:
        """Words for what is expected."""
        if kind in (int, float):
            what = "a whole number" if kind is int else "a finite number"
            unbounded = (self.low, self.high) == (Bounds.low, Bounds.high)
            return what if unbounded else f"{what} from {self.low:g} to {self.high:g}"
        if kind is str:
            return f"one of {', '.join(self.choices)}" if self.choices else "text" + self._size(self.longest, "letters")
        return ("a list" if kind is list else "an object") + self._size(self.most, "values")

    def _size(self, most: int, what: str) -> str:
        usual = (0, Bounds.longest if what == "letters" else Bounds.most)
        return "" if (self.least, most) == usual else f" of {self.least} to {most} {what}"


Count = Annotated[int, Bounds(0, 10**15)]
"""Steps, images, bytes."""
Digest = Annotated[str, Bounds(longest=64)]
"""A sha256, or a shorter identity."""
Word = Annotated[str, Bounds(longest=4096)]
"""A name, a SPEC, a path."""
Seen = Callable[[Any, str], Any]
"""Takes a value and the name of its key; returns what it is read as. Raises FormatError."""


class Declared(NamedTuple):
    """A format of elbo's own. file: what is of it; reader: the functions that read one, by their whole names; '' for none."""

    schema: type[Record]
    file: str
    reader: str


SCHEMAS: list[Declared] = []
"""All formats that have been imported."""


class Record:
    """A dataclass that is read and written by its fields.

    format: what a file says that it is; '' where it doesn't say. file, reader: as Declared has them, for a format of its own.
    version: which this elbo writes; it reads those before, too. 0 is for a part of a file that says it elsewhere.
    remedy: what to do about a file that isn't one. strict: whether other keys are refused.
    """

    FORMAT: ClassVar[str] = ""
    VERSION: ClassVar[int] = 0
    REMEDY: ClassVar[str] = ""
    STRICT: ClassVar[bool] = False

    def __init_subclass__(
        cls,
        format: str = "",
        version: int = 1,
        file: str = "",
        reader: str = "",
        remedy: str = "",
        strict: bool = False,
    ) -> None:
        cls.FORMAT, cls.REMEDY, cls.STRICT, cls.VERSION = format, remedy, strict, version if file else 0
        if file:
            SCHEMAS.append(Declared(cls, file, reader))

    def json(self) -> dict[str, Any]:
        """The object, for json to write; records in it, in lists and in dicts too."""
        return {**self.head(), **self.facts()}

    @classmethod
    def head(cls) -> dict[str, Any]:
        """Keys that say which format it is, and which version of it."""
        return {**({"format": cls.FORMAT} if cls.FORMAT else {}), **({"version": cls.VERSION} if cls.VERSION else {})}

    def facts(self) -> dict[str, Any]:
        """All that it says, without the head."""
        found = dict[str, Any]()
        for each in fields(self):  # type: ignore[arg-type]
            value = getattr(self, each.name)
            if each.metadata.get("rest"):
                found |= value
            elif value is not None or each.default is not None:
                found[each.name] = plain(value)
        return found

    @classmethod
    def from_json(cls, content: Any, where: str = "") -> Self:
        """Read what `json` wrote. where: the keys that lead to it, for messages. Raises FormatError, NewerVersion."""
        cls.check_head(content, where or "it")
        return from_keys(cls, content, where)

    @classmethod
    def check_head(cls, content: Any, where: object) -> None:
        """Raise FormatError for an object that says it is of another format, NewerVersion for one of a later version."""
        if cls.VERSION and isinstance(content, dict):
            check_format(where, content, cls.FORMAT, cls.VERSION, cls.REMEDY)

    @classmethod
    def of(cls, content: Any, where: object) -> Self:
        """Read what a file holds. where: the file, for messages. Raises FormatError, NewerVersion."""
        cls.check_head(content, where)
        with naming(where, FormatError):
            return cls.from_json(content)


def plain(value: Any) -> Any:
    """A value as JSON has it: records as objects, tuples as lists."""
    if isinstance(value, Record):
        return value.json()
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    return [plain(each) for each in value] if isinstance(value, list | tuple) else value


class _Plan(NamedTuple):
    """The way to read a dataclass. keys: of fields, in their order, with what sees them and what stands for a missing one."""

    keys: dict[str, tuple[Seen, Any]]
    rest: str | None


@cache
def _plan(cls: type[Any]) -> _Plan:
    hints, keys, rest = get_type_hints(cls, include_extras=True), dict[str, tuple[Seen, Any]](), None
    for each in fields(cls):
        if each.metadata.get("rest"):
            rest = each.name
        elif each.metadata.get("stored", True):
            keys[each.name] = seen(hints[each.name]), _otherwise(each, hints[each.name])
    return _Plan(keys, rest)


def _otherwise(each: Field[Any], hint: Any) -> Any:
    """Stands for a key that is missing: ... where the dataclass has a default, MISSING where there must be one."""
    if each.default is not MISSING or each.default_factory is not MISSING:
        return ...
    return None if hint is Any or NoneType in get_args(hint) else MISSING


def from_keys(cls: type[Any], content: Any, where: str = "", known: Collection[str] | None = None) -> Any:
    """A dataclass made of an object's values. where: the keys that lead to it. known: keys, where others are refused.

    Raises FormatError, and what the dataclass itself raises.
    """
    if not isinstance(content, dict):
        raise FormatError(f"{where.removesuffix('.') or 'it'} is {shown(content)}, not an object")
    plan, found = _plan(cls), dict[str, Any]()  # type: ignore[arg-type]
    others = [key for key in content if key not in plan.keys and key not in ("format", "version")]
    if others and (known is not None or getattr(cls, "STRICT", False)):
        raise FormatError(f"{where}{others[0][:40]!r} is unknown; {nearest(others[0][:40], known or plan.keys)}")
    for key, (see, otherwise) in plan.keys.items():
        if key in content:
            found[key] = see(content[key], where + key)
        elif otherwise is MISSING:
            raise FormatError(f"{where}{key} is missing")
        elif otherwise is None:
            found[key] = None
    if plan.rest is not None:
        found[plan.rest] = {key: _anything(content[key], where + key[:40]) for key in others}
    return cls(**found)


def shown(value: Any) -> str:
    """A value from a file for a message, cut short."""
    return repr(str(value)[:40])


def typed(hint: Any, value: Any, name: str) -> Any:
    """The value of the key `name`, when it is of that type. Raises FormatError."""
    return seen(hint)(value, name)


@cache
def seen(hint: Any) -> Seen:
    """The way to read values of a type hint."""
    bounds = Bounds()
    if get_origin(hint) is Annotated:
        hint, bounds, *_ = get_args(hint)
    origin, holds = get_origin(hint), get_args(hint)
    if origin in (UnionType, Union):
        own = [seen(Annotated[each, bounds] if bounds != Bounds() else each) for each in holds if each is not NoneType]
        return partial(_one_of, NoneType in holds, own)
    if hint is Any:
        return _anything
    if origin in (list, tuple):
        return partial(_list, origin, seen(holds[0]), bounds)
    if origin is dict:
        return partial(_object, seen(holds[1]), bounds)
    if hint in (bool, int, float, str):
        return partial(_scalar, hint, bounds)
    return lambda value, name: from_keys(hint, value, f"{name}.")


def _one_of(nothing: bool, each: list[Seen], value: Any, name: str) -> Any:
    if value is None and nothing:
        return None
    for see in each[:-1]:
        try:
            return see(value, name)
        except FormatError:
            continue
    return each[-1](value, name)


def _scalar(kind: type, bounds: Bounds, value: Any, name: str) -> Any:
    found: Any = float(value) if kind is float and type(value) is int and abs(value) < 2**1023 else value
    good = type(found) is kind
    if good and isinstance(found, str):
        good = bounds.least <= len(found) <= bounds.longest and (not bounds.choices or found in bounds.choices)
    elif good and kind is not bool:
        usual = kind is float and (bounds.low, bounds.high) == (Bounds.low, Bounds.high)
        good = math.isfinite(found) if usual else bounds.low <= found <= bounds.high
    if not good:
        expected = "true or false" if kind is bool else bounds.words(kind)
        raise FormatError(f"{name} is {shown(value)}; expected {expected}")
    return found


def _list(kind: type, see: Seen, bounds: Bounds, value: Any, name: str) -> Any:
    if not isinstance(value, list | tuple) or not bounds.least <= len(value) <= bounds.most:
        raise FormatError(f"{name} is {shown(value)}; expected {bounds.words(list)}")
    scalar = see.args if isinstance(see, partial) and see.func is _scalar else None
    if scalar and (quick := _numbers(scalar[0], scalar[1], value)) is not None:
        return kind(quick)
    return kind(see(each, name) for each in value)


def _numbers(kind: type, bounds: Bounds, value: Sequence[Any]) -> Sequence[Any] | None:
    """The values of a long list at once, where they are numbers within bounds."""
    kinds = set(map(type, value))
    if len(value) < 8 or kind not in (int, float) or not kinds <= ({int} if kind is int else {int, float}):
        return None
    usual = kind is float and (bounds.low, bounds.high) == (Bounds.low, Bounds.high)
    if not usual and (min(value) < bounds.low or max(value) > bounds.high):
        return None
    with suppress(OverflowError):
        found = value if kinds == {kind} else list(map(float, value))
        return found if kind is int or all(map(math.isfinite, found)) else None
    return None


def _object(see: Seen, bounds: Bounds, value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not bounds.least <= len(value) <= bounds.most:
        raise FormatError(f"{name} is {shown(value)}; expected {bounds.words(dict)}")
    return {key: see(each, f"{name}.{key[:40]}") for key, each in value.items()}


def _anything(value: Any, name: str, deeper: int = DEEPEST) -> Any:
    """A plain value within the usual bounds."""
    if value is None or type(value) is bool:
        return value
    if type(value) in (int, float, str):
        return _scalar(type(value), Bounds(), value, name)
    if not deeper:
        raise FormatError(f"{name} is deeper than {DEEPEST} lists and objects inside each other")
    if isinstance(value, dict):
        return _object(partial(_anything, deeper=deeper - 1), Bounds(), value, name)
    return _list(list, partial(_anything, deeper=deeper - 1), Bounds(), value, name)
