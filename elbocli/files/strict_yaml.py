"""YAML without surprises: what JSON has and no more, no duplicate keys, no aliases, and 1e-4 is a number; within bounds.

Nothing else in elbo reads or writes YAML. libyaml finds the parts of a text, and they become values here, so that a
text from a stranger can take neither time nor memory beyond its own size.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from yaml import events as seen

from elbocli.errors import FormatError
from elbocli.files.reading import one_line, read_text

DEEPEST = 32
"""Lists and mappings inside each other."""
MOST_VALUES = 600_000
"""Keys and values of a file; a schedule of 100,000 knots has 500,000."""
LONGEST_NUMBER = 64
"""Characters. To make an integer, or one in base 60 (1:30:00), takes time by the square of them."""
CORE = "tag:yaml.org,2002:"
TEXT = CORE + "str"


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        """Whether a value is written again rather than referred to: always."""
        return True


class _Scalars(yaml.constructor.SafeConstructor, yaml.resolver.Resolver):
    """Makes values of words that are no text: null, true, numbers."""

    def __init__(self) -> None:
        yaml.constructor.SafeConstructor.__init__(self)
        yaml.resolver.Resolver.__init__(self)


NUMBER = re.compile(
    r"^[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)|\.[0-9]+(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*\.[0-9_]*|\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$|^[-+]\.(?:inf|Inf|INF)$"
)
LIKE_A_NUMBER = re.compile(r"[-+0-9_.:eE]+")
_Dumper.add_implicit_resolver(CORE + "float", NUMBER, list("-+0123456789."))  # what looks so must be quoted
_Scalars.add_implicit_resolver(CORE + "float", NUMBER, list("-+0123456789."))
_Scalars.yaml_implicit_resolvers = {  # a date is text
    first: [pair for pair in pairs if pair[0].removeprefix(CORE) in ("null", "bool", "int", "float")]
    for first, pairs in _Scalars.yaml_implicit_resolvers.items()
}
MAKE: dict[str, Any] = {
    CORE + "null": _Scalars.construct_yaml_null,
    CORE + "bool": _Scalars.construct_yaml_bool,
    CORE + "int": _Scalars.construct_yaml_int,
    CORE + "float": _Scalars.construct_yaml_float,
}
PARSER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, or ten times slower
HALF_A_LETTER = re.compile(r"\\u[dD][89a-fA-F]")
"""The escape for a byte of a name that is not UTF-8, which libyaml refuses."""
LONGEST_SLOW = 1 << 18
"""Characters of a text with such a name: a config has a hundredth of them."""


class _Reader:
    """Makes the values of a text, one event after the other. Raises ValueError, with the line, for what isn't as JSON."""

    def __init__(self, text: str):
        slow = len(text) <= LONGEST_SLOW and HALF_A_LETTER.search(text)
        self.events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader if slow else PARSER)
        self.values, self.scalars = 0, _Scalars()

    def document(self) -> Any:
        """The value of the only document; None where there is none."""
        next(self.events)
        if isinstance(next(self.events), seen.StreamEndEvent):
            return None
        value = self.value(next(self.events), DEEPEST)
        next(self.events)
        if not isinstance(event := next(self.events), seen.StreamEndEvent):
            raise self.wrong("a second document", event)
        return value

    def value(self, event: Any, deeper: int) -> Any:
        """The value that begins with an event. deeper: how many may lie inside each other."""
        self.values += 1
        if self.values > MOST_VALUES:
            raise self.wrong(f"more than {MOST_VALUES} values", event)
        if isinstance(event, seen.AliasEvent):
            raise self.wrong(f"an alias, *{str(event.anchor)[:40]}; write it out", event)
        if isinstance(event, seen.ScalarEvent):
            return self.scalar(event)
        kind = "map" if isinstance(event, seen.MappingStartEvent) else "seq"
        if event.tag not in (None, "!", CORE + kind):
            raise self.wrong(f"{event.tag[:60]!r}, which is none of text, numbers, lists and mappings", event)
        if not deeper:
            raise self.wrong(f"deeper than {DEEPEST} lists and mappings inside each other", event)
        return self.mapping(deeper - 1) if kind == "map" else list(self.items(seen.SequenceEndEvent, deeper - 1))

    def items(self, end: type, deeper: int) -> Iterator[Any]:
        """Yield values until an event of that kind."""
        while not isinstance(event := next(self.events), end):
            yield self.value(event, deeper)

    def mapping(self, deeper: int) -> dict[str, Any]:
        """The mapping that has begun."""
        found: dict[str, Any] = {}
        while not isinstance(event := next(self.events), seen.MappingEndEvent):
            key = self.value(event, deeper)
            if not isinstance(key, str) or key in found:
                wrong = "given twice" if isinstance(key, str) else "not text"
                raise self.wrong(f"key {str(key)[:40]!r} is {wrong}", event)
            found[key] = self.value(next(self.events), deeper)
        return found

    def scalar(self, event: Any) -> Any:
        """Text, or what it stands for."""
        word = event.value
        tag = event.tag
        if len(word) > LONGEST_NUMBER and event.implicit[0] and LIKE_A_NUMBER.fullmatch(word):
            raise self.wrong(f"a number of {len(word)} characters", event)
        if tag in (None, "!"):
            short = len(word) <= LONGEST_NUMBER
            tag = self.scalars.resolve(yaml.ScalarNode, word, event.implicit) if short else TEXT
            if "_" in word and tag in (CORE + "int", CORE + "float"):
                tag = TEXT  # 1_000 is no number anywhere else in elbo
        if tag == TEXT:
            return word
        if tag not in MAKE or len(word) > LONGEST_NUMBER:
            raise self.wrong(f"{tag[:60]!r}, which is none of text, numbers, lists and mappings", event)
        try:
            return MAKE[tag](self.scalars, yaml.ScalarNode(tag, word))
        except (ValueError, KeyError) as error:
            raise self.wrong(f"{word!r} is no {tag.removeprefix(CORE)}", event) from error

    @staticmethod
    def wrong(what: str, event: Any) -> ValueError:
        """An error at an event's place."""
        return ValueError(f"{what}, in line {event.start_mark.line + 1}")


def load(text: str, name: str) -> dict[str, Any]:
    """The mapping that a YAML text holds. Raises FormatError, with the line, for anything else."""
    try:
        value = _Reader(text).document()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FormatError(f"{name}: not usable YAML: {one_line(error)}") from error
    if not isinstance(value, dict):
        found = {"NoneType": "nothing", "list": "a list", "str": "a line of text"}.get(
            type(value).__name__, "one value"
        )
        raise FormatError(f"{name}: expected 'key: value' lines, found {found}")
    return value


def read(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises FormatError."""
    return load(read_text(path, "a settings file"), str(path))


def dump(value: dict[str, Any]) -> str:
    """Plain block YAML in the order given."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return text if "\x85" not in text else yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=100)
