"""elbo's own formats: objects made of their records, mutated objects, the table of docs/datasets.md and the man page of formats.

`python tools/formats.py docs/datasets.md` prints that page with a new table, and `man/elbo-formats.5` that page with a new list.
"""

import importlib
import inspect
import json
import random
import sys
import textwrap
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from msgspec import NODEFAULT, Meta
from msgspec.structs import fields

from elbocli.files.records import FORMATS, ExtraKeys, Record, StoredFormat
from elbocli.runs.train_settings import TrainSettings

PACKAGE = Path(__file__).resolve().parent.parent / "elbocli"
MARKS = {".md": ("<!-- tools/formats.py -->", "<!-- end -->"), ".5": ('.\\" tools/formats.py', '.\\" end')}
"""Suffix of a page → lines around its generated part."""
WORDS = ("", "a", "sigmoid:bias=2", "0", "λ", "x" * 30, "1e5", "null")
NUMBERS = (0, 1, -1, 7, 0.5, -2.25, 1e-30, 10**6)
WRONG = (None, True, "text", 3, 0.5, [], {}, [[1]], -1, 10**30, 2**63, 1e308, float("nan"), "x" * 1000)


@cache
def declared() -> list[StoredFormat]:
    """All formats of all modules."""
    for path in sorted(PACKAGE.rglob("*.py")):
        if "@stored(" in path.read_text():
            name = ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
            importlib.import_module(name.removesuffix(".__init__"))
    return sorted(FORMATS.values(), key=lambda each: each.file)


def made(rng: random.Random, hint: Any, meta: Meta | None = None) -> Any:
    """JSON content that a type hint allows."""
    holds = get_args(hint)
    meta = meta or Meta()
    if get_origin(hint) is Annotated:
        return made(rng, *holds)
    if get_origin(hint) is Literal:
        return rng.choice(holds)
    if get_origin(hint) in (Union, UnionType):
        return made(rng, rng.choice(holds))
    if hint in (bool, str, NoneType):
        return {bool: rng.random() < 0.5, str: rng.choice(WORDS)}.get(hint)
    if hint in (int, float):
        low, high = (default if bound is None else bound for bound, default in ((meta.ge, -1e30), (meta.le, 1e30)))
        return hint(rng.choice([*(each for each in NUMBERS if low <= each <= high), max(low, -1)]))
    if isinstance(hint, type) and issubclass(hint, tuple) and get_type_hints(hint):
        return [made(rng, each) for each in get_type_hints(hint).values()]
    if get_origin(hint) is tuple and Ellipsis not in holds:
        return [made(rng, each) for each in holds]
    if get_origin(hint) in (list, tuple, Sequence):
        return [made(rng, holds[0]) for _ in range(meta.min_length or rng.randint(0, 3))]
    if get_origin(hint) is dict:
        return {f"{rng.choice(WORDS)}{n}": made(rng, holds[1]) for n in range(rng.randint(0, 2))}
    if isinstance(hint, type) and issubclass(hint, Record):
        return object_of(rng, hint)
    if hint is TrainSettings:
        return {"lr": rng.choice([0.5, 1e-30]), **({"steps": 7} if rng.random() < 0.5 else {})}
    return rng.choice([None, True, 3, 0.5, "text", [1, "a"], {"b": [2.5]}])


def object_of(rng: random.Random, record: type[Record]) -> dict[str, Any]:
    """JSON content that a record allows: keys that may be missing are, now and then."""
    hints = get_type_hints(record, include_extras=True)
    found = dict[str, Any](record.head())
    for each in fields(record):
        if each.type == ExtraKeys:
            found |= {f"other{n}": made(rng, Any) for n in range(rng.randint(0, 2))}
        elif (each.default is NODEFAULT and each.default_factory is NODEFAULT) or rng.random() < 0.7:
            found[each.name] = made(rng, hints[each.name])
    if "edges" in found:  # which rise
        found["edges"] = [float(n) for n in range(len(found["edges"]))]
    return found


def content_of(rng: random.Random, each: StoredFormat) -> dict[str, Any]:
    """JSON content of a file of a format."""
    from elbocli.scoring.result import EvalResult, Facts, Score

    if each.record is EvalResult:
        return {**EvalResult.head(), "scores": {"precision": object_of(rng, Score)}, **object_of(rng, Facts)}
    return object_of(rng, each.record)


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths to all values inside."""
    inner = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    return [place for key, value in inner for place in [(*path, key), *places(value, (*path, key))]]


def mutated(rng: random.Random, content: dict[str, Any]) -> dict[str, Any]:
    """The content with one value replaced or deleted, a key added, or another format."""
    content = json.loads(json.dumps(content))
    how = rng.choice(["replace", "replace", "delete", "add", "format"])
    if how == "add":
        content[rng.choice(["stranger", "x" * 5000, "", "\x1b[31m"])] = rng.choice(WRONG)
    elif how == "format":
        content |= {"format": rng.choice(["elbo-other", None, 3]), "version": rng.choice([0, 2, "1", None])}
    elif content:
        *path, last = rng.choice(places(content))
        inside: Any = content
        for key in path:
            inside = inside[key]
        if how == "delete":
            del inside[last]
        else:
            inside[last] = rng.choice(WRONG)
    return content


def table() -> list[str]:
    """Return the lines of the table in docs/datasets.md."""
    rows = ["| file | format | version | record |", "|---|---|---|---|"]
    for each in declared():
        name = f"`{each.name}`" if each.name else ""
        record = f"{each.record.__module__}.{each.record.__name__}"
        rows.append(f"| {each.file} | {name} | {each.version or ''} | `{record}` |")
    return ["", *rows, ""]


def sections() -> list[str]:
    """Return the sections of elbo-formats.5. Each file has a section with the docstring and the keys of its record."""
    lines = []
    for each in declared():
        about = inspect.getdoc(each.record) or ""
        head = [f"format {each.name}"] * bool(each.name) + [f"version {each.version}"] * bool(each.version)
        keys = [key.name + ("" if key.required else " (optional)") for key in fields(each.record) if key.type != ExtraKeys]
        paragraphs = [", ".join(head) + "." * bool(head), *about.splitlines(), f"Keys: {', '.join(keys)}." * bool(keys)]
        lines += [f".SS {roff(each.file)}", "\n.PP\n".join(roff(paragraph) for paragraph in paragraphs if paragraph)]
    return lines


def roff(text: str) -> str:
    """Escape and wrap a line of text for man(7)."""
    text = text.replace("`", "").replace("\\", "\\e").replace("-", "\\-")
    return "\n".join(f"\\&{line}" if line[0] in ".'" else line for line in textwrap.wrap(text, 56, break_on_hyphens=False))


def renewed(path: Path) -> str:
    """Return the text of a page, with a new generated part."""
    text = path.read_text("utf-8")
    (begin, end) = MARKS[path.suffix]
    made_anew = "\n".join([begin, *(table() if path.suffix == ".md" else sections()), end])
    return text[: text.index(begin)] + made_anew + text[text.index(end) + len(end) :]


if __name__ == "__main__":
    print(renewed(Path(sys.argv[1])), end="")
