"""Things with a name and parameters: declared once, used by the command line, the docs and the tests."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from inspect import signature
from typing import Any, Generic, NamedTuple, TypeVar

from elbocli.errors import UsageError

LARGEST = 1e6
T = TypeVar("T")
M = TypeVar("M", bound=Callable[..., Any])


@dataclass(frozen=True)
class Declaration(Generic[T]):
    """One named thing: how to make it, how to write it down, and where it comes from; with values for its parameters.

    traits: what only things of its kind have, as the dataclass that the kind's registry names; None where there is
    nothing.
    """

    name: str
    make: Callable[..., Any]
    formula: str
    source: str
    params: dict[str, float]
    positive: frozenset[str]
    within: Mapping[str, tuple[float, float]]
    traits: T

    def __call__(self, *args: Any) -> Any:
        """Make it, with its parameters."""
        return self.make(*args, **self.params)

    def bind(self, given: Mapping[str, float]) -> Declaration[T]:
        """The same, the given parameters over those that it has. Raises UsageError for an unknown or bad one."""
        for key, value in given.items():
            if key not in self.params:
                known = ", ".join(self.params) or "none"
                raise UsageError(f"{self.name!r} has no parameter {key!r}; its parameters: {known}")
            if key in self.positive and not value > 0:
                raise UsageError(f"{self.name}: {key} is {value:g}; it must be above 0")
            low, high = self.within.get(key, (-math.inf, math.inf))
            if not low <= value <= high:
                allowed = f"at least {low:g}" if value < low else f"at most {high:g}"
                raise UsageError(f"{self.name}: {key} is {value:g}; it must be {allowed}")
        return replace(self, params={**self.params, **given})

    @property
    def spec(self) -> str:
        """`name:key=value,…` with every parameter, so that it means the same when defaults change."""
        words = ",".join(f"{key}={plain(value)}" for key, value in self.params.items())
        return f"{self.name}:{words}" if words else self.name


def plain(value: float) -> str:
    """The shortest text that reads back as the same float: 2, 0.1, -1.386294361119891."""
    return repr(value).removesuffix(".0")


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


class Registry(dict[str, Declaration[T]], Generic[T]):
    """All declarations of one kind, by name. T: the dataclass of their traits."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def declare(
        self,
        name: str,
        *,
        formula: str = "",
        source: str = "",
        positive: Iterable[str] = (),
        within: Mapping[str, tuple[float, float]] | None = None,
        traits: T = None,  # type: ignore[assignment]
        **params: float,
    ) -> Callable[[M], M]:
        """Decorator that enters a function or class under `name`. Its parameters are those that have a float for a default,
        in its signature or here in `params`.

        positive: names of those that must be above 0. within: the least and the most that others may be. Raises
        UsageError when the name is taken.
        """
        if name in self:
            raise UsageError(f"a {self.kind} is called {name!r} already; choose another name")

        def enter(make: M) -> M:
            said = {
                key: each.default for key, each in signature(make).parameters.items() if type(each.default) is float
            }
            own = {**said, **params}
            self[name] = Declaration(name, make, formula, source, own, frozenset(positive), within or {}, traits)
            return make

        return enter

    def find(self, name: str) -> Declaration[T]:
        """The declaration of that name. Raises UsageError, with the nearest names, when there is none."""
        if name not in self:
            load_installed()
        if name in self:
            return self[name]
        near = difflib.get_close_matches(name, self, n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(self)}"
        raise UsageError(f"no {self.kind} is called {name!r}; {hint}")

    def parse(self, text: str, largest: float = LARGEST) -> Declaration[T]:
        """The declaration that `name:key=value,…` names, with these parameters. Raises UsageError."""
        spec = parse_spec(text)
        return self.find(spec.name).bind(numbers(spec.params, largest))


class Spec(NamedTuple):
    """A thing as a user writes it: `name`, `name:key=value,…`, with flags such as `monotone`."""

    name: str
    params: dict[str, str]
    flags: frozenset[str]


def parse_spec(text: str, flags: Iterable[str] = ()) -> Spec:
    """Split `name:key=value,flag,…`. Raises UsageError for anything else."""
    name, _, rest = text.strip().partition(":")
    params: dict[str, str] = {}
    seen = set()
    for item in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = item.partition("=")
        key = key.strip().replace("-", "_")
        if not equals and key in flags:
            seen.add(key)
        elif not equals or not value:
            raise UsageError(f"{text!r}: expected key=value after ':', found {item!r}")
        elif key in params:
            raise UsageError(f"{text!r}: {key} is given twice")
        else:
            params[key] = value.strip()
    return Spec(name, params, frozenset(seen))


def number(text: str | float, what: str = "value", largest: float = LARGEST) -> float:
    """A finite float of sane size. Raises UsageError otherwise."""
    try:
        value = float(text)
    except (TypeError, ValueError):
        raise UsageError(f"{what}: {text!r} is not a number") from None
    if not math.isfinite(value) or abs(value) > largest:
        raise UsageError(f"{what}: {text} is not a number between -{largest:g} and {largest:g}")
    return value


def numbers(params: dict[str, str], largest: float = LARGEST) -> dict[str, float]:
    """Every parameter of a spec as a number."""
    return {key: number(value, key, largest) for key, value in params.items()}
