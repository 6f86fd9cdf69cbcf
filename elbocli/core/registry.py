"""Registries of named functions and classes with parameters, such as weightings.

A parameter is an argument whose default is a number, or a word out of `Literal[…]`. Its annotation gives its bounds:

    @weighting("sigmoid", monotone=True)
    def sigmoid(logsnr: Tensor, bias: float = 2.0) -> Tensor: ...

    @weighting("min-snr", monotone=False)
    def min_snr(logsnr: Tensor, gamma: Positive = 5.0) -> Tensor: ...
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from inspect import getsourcefile, getsourcelines, signature, unwrap
from types import SimpleNamespace
from typing import (
    TYPE_CHECKING,
    Annotated,
    ClassVar,
    Generic,
    Literal,
    ParamSpec,
    Self,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

from elbocli.errors import PluginError, UsageError

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 1e15  # largest absolute value of a parameter
Arguments = ParamSpec("Arguments")
Result = TypeVar("Result", covariant=True)
Function = TypeVar("Function", bound=Callable[..., object])
Value = float | str


@dataclass(frozen=True)
class Bounds:
    """Bounds of a parameter, in its annotation `Annotated[float, Bounds(…)]`: least ≤ value ≤ most, and value > above."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf

    def check(self, value: float, parameter: str) -> None:
        """Raise UsageError unless the value of the parameter is within the bounds."""
        if value <= self.above:
            raise UsageError(f"{parameter} is {value:g}; it must be above {self.above:g}")
        if not self.least <= value <= self.most:
            raise UsageError(f"{parameter} is {value:g}; it must be from {self.least:g} to {self.most:g}")


Positive = Annotated[float, Bounds(above=0)]
NotNegative = Annotated[float, Bounds(least=0)]
UnitInterval = Annotated[float, Bounds(0, 1)]


@dataclass(frozen=True)
class ParameterType:
    """Type of a parameter: a number within `bounds`, or one of `words`."""

    bounds: Bounds = Bounds()
    words: tuple[str, ...] = ()

    def convert(self, text: Value, parameter: str) -> Value:
        """Return the value that a text means. parameter: name, for messages. Raises UsageError for an invalid value."""
        if self.words:
            word = alike(str(text))
            if word not in self.words:
                raise UsageError(f"{parameter} is {text!r}; it must be {' or '.join(self.words)}")
            return word
        value = number(text, parameter)
        self.bounds.check(value, parameter)
        return value


def parameters_of(make: Callable[..., object]) -> dict[str, tuple[Value, ParameterType]]:
    """Return the parameters of a function or class: name → (default, type)."""
    function = unwrap(make)
    scope = vars(sys.modules[function.__module__])
    arguments = {name: argument for name, argument in signature(make).parameters.items() if isinstance(argument.default, Value)}
    # Of arguments without a default, the annotation may name a type that is imported for type checkers alone.
    annotations = SimpleNamespace(__annotations__={name: argument.annotation for name, argument in arguments.items()})
    hints = get_type_hints(annotations, scope, include_extras=True)
    found: dict[str, tuple[Value, ParameterType]] = {}
    for name, argument in arguments.items():
        annotation = hints[name]
        if get_origin(annotation) is Literal:
            found[name] = argument.default, ParameterType(words=get_args(annotation))
        elif type(argument.default) is float:
            bounds = next((part for part in get_args(annotation) if isinstance(part, Bounds)), Bounds())
            found[name] = argument.default, ParameterType(bounds)
    return found


@dataclass(frozen=True, repr=False)
class Declaration(Generic[Arguments, Result]):
    """Registered function or class, with values of its parameters. Calling a Declaration calls `make` with these values.

    Subclasses add properties of their kind as fields, such as `monotone` of a weighting.
    formula, source: text for docs and help.
    params: parameter → value. types: parameter → its type.
    known_as: other name → values of the parameters that the name sets.
    """

    name: str
    make: Callable[..., Result]
    formula: str
    source: str
    params: Mapping[str, Value]
    types: Mapping[str, ParameterType]
    known_as: Mapping[str, Mapping[str, str]]

    has_parameters: ClassVar[bool] = True  # False: arguments with a default are settings of another kind

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.spec!r})"

    def __call__(self, *args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        return self.make(*args, **kwargs, **self.params)

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

    def expect_like(self, value: object, logsnr: Tensor, call: str) -> Tensor:
        """Return the result of a call for a tensor λ. Raises PluginError unless it is a float tensor of λ's shape."""
        import torch

        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.shape == logsnr.shape:
            return value
        kind = f"{value.dtype} of shape {[*value.shape]}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise self.fault(f"returns {kind} from {call}; return a float tensor of the argument's shape, here {[*logsnr.shape]}")

    def bind(self, given: Mapping[str, Value]) -> Self:
        """Return a copy with the given values of parameters.

        given: parameter → value or text; the key "" is allowed if there is only one parameter.
        Raises UsageError for an unknown parameter or an invalid value.
        """
        values: dict[str, Value] = {}
        for word, text in given.items():
            key = self._parameter(word)
            if key in values:
                raise UsageError(f"{self.name}: {key} is given twice; give it once")
            values[key] = self.types[key].convert(text, f"{self.name}: {key}")
        return replace(self, params={**self.params, **values})

    def _parameter(self, word: str) -> str:
        if not word and len(self.params) == 1:
            return next(iter(self.params))
        for spelling in (word, word.lower()):
            if spelling in self.params:
                return spelling
        raise UsageError(f"{self.name} has no parameter {word!r}; it has {', '.join(self.params) or 'no parameters'}")

    @property
    def spec(self) -> str:
        """SPEC `name:key=value,…` with all parameters."""
        words = ",".join(f"{key}={plain(value)}" for key, value in self.params.items())
        return f"{self.name}:{words}" if words else self.name


Entry = TypeVar("Entry", bound=Declaration[..., object])


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


class Registry(dict[str, Entry]):
    """Registry: name → Declaration.

    kind: noun for messages, such as `weighting`.
    entry: class of the declarations, whose own fields are properties of the kind.
    check: function that raises an error if a Declaration's results are wrong; applied to Declarations of plug-ins.
    """

    def __init__(self, kind: str, entry: type[Entry], check: Callable[[Entry], None] | None = None):
        super().__init__()
        self.kind = kind
        self.entry = entry
        self._check = check

    def verify(self, declared: Entry) -> None:
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
        self, name: str, *, formula: str = "", source: str = "", known_as: Iterable[str] = (), **properties: object
    ) -> Callable[[Function], Function]:
        """Return a decorator that registers a function or class under `name`.

        formula, source: text for docs and help.
        known_as: aliases as `ALIAS`, or `ALIAS:key=value,…` for an alias that sets these parameters.
        properties: fields that the registry's class of entries adds, such as `monotone` of a weighting.
        Raises UsageError if the name is taken, or if a property is missing or unknown.
        Raises PluginError for a faulty function of a plug-in.
        """
        own = fields(self.entry)[len(fields(Declaration)) :]
        if name in self:
            raise UsageError(f"a {self.kind} named {name!r} exists already; choose another name")
        for missing in (each.name for each in own if each.default is MISSING and each.name not in properties):
            raise UsageError(f"the {self.kind} {name!r} is declared without {missing}=; add {missing}=VALUE")
        for unknown in properties.keys() - {each.name for each in own}:
            raise UsageError(
                f"the {self.kind} {name!r} is declared with {unknown}=, which is no property of it; "
                f"a parameter is an argument of the function with its default, such as {unknown}: float = 1.0"
            )

        def enter(make: Function) -> Function:
            parameters = parameters_of(make) if self.entry.has_parameters else {}
            declared = self.entry(
                name,
                make,
                formula,
                source,
                params={key: default for key, (default, _) in parameters.items()},
                types={key: kind for key, (_, kind) in parameters.items()},
                known_as={alike(other): values for other, values in map(parse_spec, known_as)},
                **properties,
            )
            self.verify(declared)
            self[name] = declared
            return make

        return enter

    def lookup(self, name: str) -> Entry | None:
        """Find a name or alias, ignoring case; None for an unknown name."""
        declared = self._lookup(name)
        if declared is None:
            load_installed()
        return declared or self._lookup(name)

    def _lookup(self, name: str) -> Entry | None:
        if name in self:
            return self[name]
        word = alike(name)
        for declared in self.values():
            if word == alike(declared.name):
                return declared
            if word in declared.known_as:
                return declared.bind(declared.known_as[word])
        return None

    def find(self, name: str) -> Entry:
        """Find a name or alias, ignoring case. Raises UsageError for an unknown name."""
        declared = self.lookup(name)
        if declared is None:
            raise UsageError(f"no {self.kind} is called {name!r}; {nearest(name, self)}")
        return declared

    def parse(self, text: str) -> Entry:
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
