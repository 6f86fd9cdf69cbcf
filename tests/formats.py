"""elbo's own formats: made up from their schemas, mutated, and listed.

`python tests/formats.py docs/formats.md` prints that page with a new table; `python -m tests.formats 20000` reads as many
mutated objects, and prints how many of each format were read, refused, or neither.
"""

from __future__ import annotations

import importlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from elbocli.errors import ElboError
from elbocli.files import strict_json
from elbocli.files.schema import SCHEMAS, Bounds, Declared, Record

PACKAGE = Path(__file__).parent.parent / "elbocli"
BEGIN, END = "<!-- tests/formats.py -->", "<!-- end -->"
WORDS = ("", "a", "sigmoid:bias=2", "0", "λ", "x" * 30, "1e5", "null")
NUMBERS = (0, 1, -1, 7, 0.5, -2.25, 1e-30, 10**6)


@cache
def declared() -> list[Declared]:
    """All formats, of whatever module."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if any(base in path.read_text() for base in ("(Record, ", "    Record,\n", "FolderMeta,\n")):
            importlib.import_module(
                ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
            )
    return sorted(SCHEMAS, key=lambda each: each.file)


def made(rng: random.Random, hint: Any, bounds: Bounds | None = None) -> Any:
    """JSON content that a type hint allows."""
    if get_origin(hint) is Annotated:
        return made(rng, *get_args(hint)[:2])
    bounds, holds = bounds or Bounds(), get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        return made(rng, rng.choice(holds))
    if hint in (NoneType, None):
        return None
    if hint is bool:
        return rng.random() < 0.5
    if hint in (int, float):
        value = rng.choice(
            [*filter(lambda n: bounds.low <= n <= bounds.high, NUMBERS), bounds.low if bounds.low > -1e30 else 0]
        )
        return int(value) if hint is int else float(value)
    if hint is str:
        fitting = [word for word in bounds.choices or WORDS if len(word) <= bounds.longest]
        return rng.choice(fitting)
    if get_origin(hint) in (list, tuple):
        return [made(rng, holds[0]) for _ in range(rng.randint(bounds.least, min(bounds.most, bounds.least + 3)))]
    if get_origin(hint) is dict:
        return {
            f"{rng.choice(WORDS)}{n}": made(rng, holds[1]) for n in range(rng.randint(bounds.least, bounds.least + 2))
        }
    if is_dataclass(hint):
        return object_of(rng, hint)  # type: ignore[arg-type]
    return rng.choice([None, True, 3, 0.5, "text", [1, "a"], {"b": [2.5]}])


def object_of(rng: random.Random, schema: type[Any]) -> dict[str, Any]:
    """JSON content that a schema allows: any keys that may be missing are, now and then."""
    hints, found = get_type_hints(schema, include_extras=True), dict[str, Any]()
    if issubclass(schema, Record):
        found |= schema.head() if schema.FORMAT or rng.random() < 0.7 else {}
    for each in fields(schema):
        if each.metadata.get("rest"):
            found |= {f"other{n}": made(rng, Any) for n in range(rng.randint(0, 2))}
        elif (each.default is MISSING and each.default_factory is MISSING) or rng.random() < 0.7:
            found[each.name] = made(rng, hints[each.name])
    if "edges" in found:  # which rise
        found["edges"] = [float(n) for n in range(len(found["edges"]))]
    return found


def content_of(rng: random.Random, each: Declared) -> dict[str, Any]:
    """JSON content of a file of a format."""
    from elbocli.evaluate.result import EvalResult, Facts

    if each.schema is EvalResult:
        return {**object_of(rng, Facts), "extractor": rng.choice(WORDS), "kernel_inception_distance_mean": 0.5}
    return object_of(rng, each.schema)


def nested(depth: int) -> Any:
    """Lists inside each other."""
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


MUTATIONS: dict[str, Callable[[random.Random, Any], Any]] = {
    "retype": lambda rng, value: rng.choice([None, True, "text", 3, 0.5, [], {}, [value], {"a": value}]),
    "nest": lambda rng, value: nested(rng.choice([2, 20, 60, 100])),
    "enlarge": lambda rng, value: rng.choice(["x" * 100_000, [value] * 3000, {str(n): value for n in range(3000)}]),
    "not a number": lambda rng, value: rng.choice([float("nan"), float("inf"), -float("inf")]),
    "huge": lambda rng, value: rng.choice([10**30, -(10**30), 10**350, 2**63, -1, 1e308]),
    "null": lambda rng, value: None,
}


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all values inside."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place for key, value in inner for place in [(*path, key), *places(value, (*path, key))]]


def mutated(rng: random.Random, content: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """(how, the content with one thing changed)."""
    content = json.loads(json.dumps(content))
    how = rng.choice([*MUTATIONS, "delete", "unknown key", "wrong version"])
    if how == "unknown key":
        content[rng.choice(["stranger", "x" * 5000, "", "\x1b[31m"])] = rng.choice([1, nested(60), "x"])
    elif how == "wrong version":
        content |= {"format": rng.choice(["elbo-other", None, 3]), "version": rng.choice([0, 2, "1", None])}
    elif content:
        *path, last = rng.choice(places(content))
        inside: Any = content
        for key in path:
            inside = inside[key]
        if how == "delete":
            del inside[last]
        else:
            inside[last] = MUTATIONS[how](rng, inside[last])
    return how, content


def outcome(each: Declared, content: Any) -> str:
    """Read it, and say whether it was read or refused. Raises whatever is neither."""
    try:
        each.schema.of(strict_json.load(json.dumps(content), "it"), "it")
    except ElboError as error:
        assert str(error).startswith("it")
        return "refused"
    return "read"


def run(count: int, seed: int = 0) -> None:
    """Read mutated objects of all formats in turn, and print a table."""
    rng, found, slowest = random.Random(seed), Counter[tuple[str, str]](), 0.0
    for number in range(count):
        each = declared()[number % len(declared())]
        _, content = mutated(rng, content_of(rng, each))
        begun = time.process_time()
        try:
            found[each.file, outcome(each, content)] += 1
        except Exception as error:  # what must not be
            found[each.file, f"{type(error).__name__}: {error}"[:80]] += 1
        slowest = max(slowest, time.process_time() - begun)
    for (file, what), times in sorted(found.items()):
        print(f"{file:64} {what:10} {times}")
    print(f"{count} inputs, the slowest {slowest:.3f} s")


def page() -> str:
    """The table of formats."""
    rows = ["| file | format | version | schema | owner | read by |", "|---|---|---|---|---|---|"]
    for each in declared():
        owner = Path(str(sys.modules[each.schema.__module__].__file__)).relative_to(PACKAGE).as_posix()
        readers = (
            ", ".join(f"`{name.removeprefix('elbocli.')}`" for name in each.reader.split(", "))
            if each.reader
            else "none"
        )
        format_ = f"`{each.schema.FORMAT}`" if each.schema.FORMAT else ""
        rows.append(
            f"| {each.file} | {format_} | {each.schema.VERSION or 'elsewhere in the file'} | `{each.schema.__name__}` | `{owner}` | {readers} |"
        )
    return "\n".join([BEGIN, "", *rows, "", END])


def renewed(text: str) -> str:
    """A page with the table in place of the one that it has."""
    return text[: text.index(BEGIN)] + page() + text[text.index(END) + len(END) :]


if __name__ == "__main__":
    if sys.argv[1].isdigit():
        run(int(sys.argv[1]))
    else:
        print(renewed(Path(sys.argv[1]).read_text("utf-8")), end="")
