"""Things with a name and parameters: declared once, used by the command line, the docs and the tests."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from inspect import signature
from typing import Any, TypeVar

from elbocli.errors import UsageError

LARGEST = 1e15
"""The largest value of a parameter, above all counts of images."""
LEARNED = "uncertainty"
"""The name of the weighting that is learned while a run trains. It is no declared one: alone it says no w(λ)."""
M = TypeVar("M", bound=Callable[..., Any])


@dataclass(frozen=True, repr=False)
class Declaration:
    """One named thing: how to make it, how to write it down, and where it comes from; with values for its parameters.

    traits: what only things of its kind have; None where there is nothing. known_as: other names for exactly this, each with the parameters that it sets. parameters_known_as: other
    names of parameters → its own.
    """

    name: str
    make: Callable[..., Any]
    formula: str
    source: str
    params: dict[str, float]
    positive: frozenset[str]
    within: Mapping[str, tuple[float, float]]
    traits: Any
    known_as: Mapping[str, Mapping[str, float]]
    parameters_known_as: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Declaration({self.spec!r})"

    def __call__(self, *args: Any) -> Any:
        """Make it, with its parameters."""
        return self.make(*args, **self.params)

    def bind(self, given: Mapping[str, str | float]) -> Declaration:
        """The same, the given parameters over those that it has. The only parameter may go without a name, under "".

        Raises UsageError for an unknown parameter, and for a value that is no number, too large or out of bounds.
        """
        values: dict[str, float] = {}
        for word, text in given.items():
            key = self._parameter(word)
            if key in values:
                raise UsageError(f"{self.name}: {key} is given twice")
            value = values[key] = number(text, key)
            low, high = self.within.get(key, (-math.inf, math.inf))
            if not low <= value <= high or (key in self.positive and value <= 0):
                bounds = "above 0" if key in self.positive and value <= 0 else f"from {low:g} to {high:g}"
                raise UsageError(f"{self.name}: {key} is {value:g}; it must be {bounds}")
        return replace(self, params={**self.params, **values})

    def _parameter(self, word: str) -> str:
        """Its own name of a parameter. Raises UsageError when it has none of that name."""
        if not word and len(self.params) == 1:
            return next(iter(self.params))
        for own in (word, self.parameters_known_as.get(word.lower(), word.lower())):
            if own in self.params:
                return own
        raise UsageError(f"{self.name} has no parameter {word!r}; with all of its own it is {self.spec}")

    @property
    def spec(self) -> str:
        """`name:key=value,…` with every parameter, so that it means the same when defaults change."""
        words = ",".join(f"{key}={plain(value)}" for key, value in self.params.items())
        return f"{self.name}:{words}" if words else self.name


def plain(value: float) -> str:
    """The shortest text that reads back as the same float: 2, 0.1, -1.386294361119891."""
    return repr(value).removesuffix(".0")


def alike(name: str) -> str:
    """A name in the one spelling that is compared: EDM and edm, dpmpp_2m and dpmpp-2m are the same."""
    return name.strip().lower().replace("_", "-")


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of a message on an unknown word: `did you mean A or B?`, else the first twenty that are known."""
    import difflib  # only after a mistake

    spelt = {alike(name): name for name in known}
    near = difflib.get_close_matches(alike(word), spelt, n=2)
    if near:
        return f"did you mean {' or '.join(spelt[each] for each in near)}?"
    return f"known: {', '.join([*spelt.values()][:20])}"


@cache
def load_installed() -> None:
    """Import the plug-ins that installed packages bring, which declare more: entry points of the group elbo.plugins.

    Raises UsageError when one can't be imported.
    """
    from importlib.metadata import entry_points

    for point in entry_points(group="elbo.plugins"):
        try:
            point.load()
        except Exception as error:
            raise UsageError(f"the installed plug-in {point.value}: {type(error).__name__}: {error}") from error


class Registry(dict[str, Declaration]):
    """All declarations of one kind, by name. traits: a NamedTuple of what only things of this kind have."""

    def __init__(self, kind: str, traits: Any = None):
        super().__init__()
        self.kind, self.traits = kind, traits

    def declare(
        self,
        name: str,
        *,
        formula: str = "",
        source: str = "",
        positive: Iterable[str] = (),
        within: Mapping[str, tuple[float, float]] | None = None,
        traits: Any = None,
        known_as: Iterable[str] = (),
        parameters_known_as: Mapping[str, str] | None = None,
        **params: Any,
    ) -> Callable[[M], M]:
        """Decorator that enters a function or class under `name`. Its parameters are those that have a float for a default,
        in its signature or here in `params`, where the traits of its kind are, too.

        positive: names of those that must be above 0. within: the least and the most that others may be. known_as: what
        others call exactly this, `name` or `name:key=value,…` with the parameters by which it is exactly that.
        parameters_known_as: lower-case names that others have for its parameters. Raises UsageError when the name is taken.
        """
        aka = {
            alike(other): {key: number(text) for key, text in sets.items()} for other, sets in map(parse_spec, known_as)
        }
        if self.traits:
            traits = self.traits(**{key: params.pop(key) for key in self.traits._fields if key in params})
        if name in self:
            raise UsageError(f"a {self.kind} is called {name!r} already; choose another name")

        def enter(make: M) -> M:
            said = {
                key: each.default for key, each in signature(make).parameters.items() if type(each.default) is float
            }
            words, bounds = parameters_known_as or {}, within or {}
            self[name] = Declaration(
                name, make, formula, source, {**said, **params}, frozenset(positive), bounds, traits, aka, words
            )
            return make

        return enter

    def named(self, name: str) -> Declaration | None:
        """The declaration that a name, or another name for exactly it, means in any case; None when there is none."""
        found = self._named(name)
        if found is None:
            load_installed()
        return found or self._named(name)

    def _named(self, name: str) -> Declaration | None:
        if name in self:
            return self[name]
        word = alike(name)
        for declared in self.values():
            if word == alike(declared.name):
                return declared
            if word in declared.known_as:
                return declared.bind(declared.known_as[word])
        return None

    def find(self, name: str) -> Declaration:
        """The declaration as `named` has it. Raises UsageError, with the nearest names, when there is none."""
        found = self.named(name)
        if found is None:
            raise UsageError(f"no {self.kind} is called {name!r}; {nearest(name, self)}")
        return found

    def parse(self, text: str) -> Declaration:
        """The declaration that `name:key=value,…` names, with these parameters. Raises UsageError."""
        name, params = parse_spec(text)
        return self.find(name).bind(params)


def parse_spec(text: str) -> tuple[str, dict[str, str]]:
    """(name, parameters) of `name:key=value,…`; one value may go without its key, and is under "". Raises UsageError."""
    name, _, rest = text.strip().partition(":")
    params: dict[str, str] = {}
    for item in filter(None, map(str.strip, rest.split(","))):
        key, equals, value = map(str.strip, item.rpartition("="))
        key = key.replace("-", "_")
        if key in params or bool(key) != bool(equals) or not value:
            raise UsageError(f"{text!r}: expected key=value after ':', each key once, found {item!r}")
        params[key] = value
    return name, params


def number(text: str | float, what: str = "value") -> float:
    """A finite float of sane size. Raises UsageError otherwise."""
    with suppress(TypeError, ValueError):
        if abs(value := float(text)) <= LARGEST:
            return value
    raise UsageError(f"{what}: {text!r} is not a number between -{LARGEST:g} and {LARGEST:g}")
