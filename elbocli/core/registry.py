"""Registries of named functions and classes with parameters, such as weightings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from inspect import getsourcefile, getsourcelines, signature
from typing import Any, TypeVar

from elbocli.errors import PluginError, UsageError

LARGEST = 1e15  # largest absolute value of a parameter
M = TypeVar("M", bound=Callable[..., Any])


@dataclass(frozen=True, repr=False)
class Declaration:
    """Registered function or class, with values of its parameters. Calling a Declaration calls `make` with these values.

    formula, source: text for docs and help.
    params: parameter → value.
    positive: parameters that must be above 0.
    within: parameter → (least, greatest) value.
    choices: parameter → words, of parameters that aren't numbers.
    traits: other properties, such as `monotone` of a weighting; None for none.
    known_as: other name → values of the parameters that the name sets.
    """

    name: str
    make: Callable[..., Any]
    formula: str
    source: str
    params: dict[str, Any]
    positive: frozenset[str]
    within: Mapping[str, tuple[float, float]]
    choices: Mapping[str, tuple[str, ...]]
    traits: Any
    known_as: Mapping[str, Mapping[str, str]]

    def __repr__(self) -> str:
        return f"Declaration({self.spec!r})"

    def __call__(self, *args: Any) -> Any:
        return self.make(*args, **self.params)

    @property
    def of_plugin(self) -> bool:
        """Whether code outside elbo declared the function or class."""
        return not getattr(self.make, "__module__", "").startswith("elbocli.")

    @property
    def place(self) -> str:
        """File and line of the function or class, for messages; the module's name if there is no file."""
        with suppress(OSError, TypeError):
            return f"{getsourcefile(self.make)}, line {getsourcelines(self.make)[1]}"
        return str(getattr(self.make, "__module__", self.name))

    def fault(self, text: str) -> PluginError:
        """Return the error that says what is wrong with the function or class. text: what it does, and what to do."""
        return PluginError(f"{self.place}: {self.name!r} {text}")

    def expect_like(self, value: Any, logsnr: Any, call: str) -> Any:
        """Return the result of a call for a tensor λ. Raises PluginError unless it is a float tensor of λ's shape."""
        import torch

        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape == logsnr.shape:
            return value
        kind = f"{value.dtype} of shape {[*value.shape]}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise self.fault(f"returns {kind} from {call}; return a float tensor of the argument's shape, here {[*logsnr.shape]}")

    def bind(self, given: Mapping[str, str | float]) -> Declaration:
        """Return a copy with the given values of parameters.

        given: parameter → value or text; the key "" is allowed if there is only one parameter.
        Raises UsageError for an unknown parameter or an invalid value.
        """
        values: dict[str, Any] = {}
        for word, text in given.items():
            key = self._parameter(word)
            if key in values:
                raise UsageError(f"{self.name}: {key} is given twice; give it once")
            if key in self.choices:
                values[key] = alike(str(text))
                if values[key] not in self.choices[key]:
                    raise UsageError(f"{self.name}: {key} is {text!r}; it must be {' or '.join(self.choices[key])}")
                continue
            value = values[key] = number(text, key)
            low, high = self.within.get(key, (-math.inf, math.inf))
            not_positive = key in self.positive and value <= 0
            if not_positive or not low <= value <= high:
                bounds = "above 0" if not_positive else f"from {low:g} to {high:g}"
                raise UsageError(f"{self.name}: {key} is {value:g}; it must be {bounds}")
        return replace(self, params={**self.params, **values})

    def _parameter(self, word: str) -> str:
        if not word and len(self.params) == 1:
            return next(iter(self.params))
        for own in (word, word.lower()):
            if own in self.params:
                return own
        raise UsageError(f"{self.name} has no parameter {word!r}; it has {', '.join(self.params) or 'no parameters'}")

    @property
    def spec(self) -> str:
        """SPEC `name:key=value,…` with all parameters."""
        words = ",".join(f"{key}={plain(value)}" for key, value in self.params.items())
        return f"{self.name}:{words}" if words else self.name


def plain(value: float | str) -> str:
    """Return the shortest text that parses to the same float; a word stays as it is."""
    return value if isinstance(value, str) else repr(value).removesuffix(".0")


def alike(name: str) -> str:
    """Return a name in lower case, with '_' replaced by '-'."""
    return name.strip().lower().replace("_", "-")


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown word: similar names, or some known names."""
    import difflib  # imported here because only errors need it

    spelt = {alike(name): name for name in known}
    near = difflib.get_close_matches(alike(word), spelt, n=2)
    if near:
        return f"did you mean {' or '.join(spelt[each] for each in near)}?"
    return f"known: {', '.join([*spelt.values()][:30])}"


@cache
def load_installed() -> None:
    """Import installed plug-ins: entry points of the group `elbo.plugins`.

    Raises UsageError for a plug-in that can't be imported.
    """
    from importlib.metadata import entry_points

    for point in entry_points(group="elbo.plugins"):
        try:
            point.load()
        except PluginError:
            raise
        except Exception as error:
            raise UsageError(
                f"importing the installed plug-in {point.value} failed; mend or uninstall it: {type(error).__name__}: {error}"
            ) from error


class Registry(dict[str, Declaration]):
    """Registry: name → Declaration.

    kind: noun for messages, such as `weighting`.
    traits: class (a NamedTuple) of every Declaration's `traits`; None: no such class.
    check: function that raises an error if a Declaration's results are wrong; applied to Declarations of plug-ins.
    """

    def __init__(self, kind: str, traits: Any = None, check: Callable[[Declaration], None] | None = None):
        super().__init__()
        self.kind = kind
        self.traits = traits
        self._check = check

    def verify(self, declared: Declaration) -> None:
        """Check what a plug-in declared, with its values of parameters. Raises PluginError."""
        if self._check is None or not declared.of_plugin:
            return
        try:
            self._check(declared)
        except PluginError:
            raise
        except Exception as error:
            raise declared.fault(f"fails: {type(error).__name__}: {error}; correct this {self.kind}") from error

    def declare(
        self,
        name: str,
        *,
        formula: str = "",
        source: str = "",
        positive: Iterable[str] = (),
        within: Mapping[str, tuple[float, float]] | None = None,
        choices: Mapping[str, tuple[str, ...]] | None = None,
        traits: Any = None,
        known_as: Iterable[str] = (),
        **params: Any,
    ) -> Callable[[M], M]:
        """Return a decorator that registers a function or class under `name`.

        Arguments of the function with a float default, and those in `choices`, become parameters.
        formula, source: text for docs and help.
        positive: parameters that must be above 0.
        within: parameter → (least, greatest) value.
        choices: parameter → words, of parameters that aren't numbers.
        traits: `traits` of the Declaration, in a registry whose own `traits` is None.
        known_as: aliases as `ALIAS`, or `ALIAS:key=value,…` for an alias that sets these parameters.
        params: default values of further parameters, and values of fields of the registry's class `traits`.
        Raises UsageError if the name is taken or a field of `traits` is missing, PluginError for a faulty function of a plug-in.
        """
        aka = {alike(other): sets for other, sets in map(parse_spec, known_as)}
        if self.traits:
            traits = {**self.traits._field_defaults, **{key: params.pop(key) for key in self.traits._fields if key in params}}
            if missing := [key for key in self.traits._fields if key not in traits]:
                raise UsageError(f"the {self.kind} {name!r} is declared without {missing[0]}=; add {missing[0]}=VALUE")
            traits = self.traits(**traits)
        if name in self:
            raise UsageError(f"a {self.kind} named {name!r} exists already; choose another name")

        def enter(make: M) -> M:
            arguments = signature(make).parameters.items()
            defaults = {key: each.default for key, each in arguments if type(each.default) is float or key in (choices or {})}
            declared = Declaration(
                name,
                make,
                formula,
                source,
                {**defaults, **params},
                frozenset(positive),
                within or {},
                choices or {},
                traits,
                aka,
            )
            self.verify(declared)
            self[name] = declared
            return make

        return enter

    def lookup(self, name: str) -> Declaration | None:
        """Find a name or alias, ignoring case; None for an unknown name."""
        declared = self._lookup(name)
        if declared is None:
            load_installed()
        return declared or self._lookup(name)

    def _lookup(self, name: str) -> Declaration | None:
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
        """Find a name or alias, ignoring case. Raises UsageError for an unknown name."""
        declared = self.lookup(name)
        if declared is None:
            raise UsageError(f"no {self.kind} is called {name!r}; {nearest(name, self)}")
        return declared

    def parse(self, text: str) -> Declaration:
        """Return the Declaration of a SPEC `name:key=value,…`. Raises UsageError."""
        name, params = parse_spec(text)
        return self.find(name).bind(params)


def parse_spec(text: str) -> tuple[str, dict[str, str]]:
    """Split `name:key=value,…` into name and {key: value}; a value without `key=` gets key "". Raises UsageError."""
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
    """Convert `text` to a float. what: its name in errors. Raises UsageError: not a number within ±LARGEST."""
    with suppress(TypeError, ValueError):
        if abs(value := float(text)) <= LARGEST:
            return value
    raise UsageError(f"{what}: {text!r} is not a number between -{LARGEST:g} and {LARGEST:g}")
