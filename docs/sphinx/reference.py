"""The Python reference as Markdown, from signatures and docstrings."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Any

from docs.sphinx.manual import escaped

ROOT = Path(__file__).parents[2]


def api_names() -> list[str]:
    """Every name that `import elbocli` gives, as the stub lists them."""
    stub = ast.parse((ROOT / "elbocli" / "__init__.pyi").read_text("utf-8"))
    return [alias.name for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names]


def page(module: str, names: Iterable[str]) -> str:
    """A page: the module's own docstring, then each name with signature and docstring."""
    home = importlib.import_module(module)
    parts = [f"# {module}", text_of(home)]
    for name in names:
        parts += entry(name, getattr(home, name), "##")
    return "\n\n".join(parts) + "\n"


def entry(name: str, thing: Any, level: str) -> list[str]:
    """Heading, signature and docstring; of a class, those of its own public methods and properties too."""
    found = [f"{level} {escaped(name)}", f"```python\n{signature(name, thing)}\n```", text_of(thing)]
    if inspect.isclass(thing):
        for own, member in vars(thing).items():
            described = member.fget if isinstance(member, property) else inspect.unwrap(getattr(thing, own))
            if not own.startswith("_") and inspect.isfunction(described) and described.__doc__:
                found += entry(f"{name}.{own}", member if isinstance(member, property) else described, level + "#")
    return found


MODULES = re.compile(r"\b(?:\w+\.)+")


class Written(str):
    """An annotation shown as it is written in the source."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def signature(name: str, thing: Any) -> str:
    """Signature as the source has it; for a property its type; for a class that nobody calls its bare name."""
    if isinstance(thing, property):
        return f"{name}: {written(inspect.get_annotations(thing.fget)['return'])}"  # type: ignore[arg-type]
    if not callable(thing) or (inspect.isclass(thing) and issubclass(thing, Exception | Enum)):
        return name
    found = inspect.signature(thing)
    own = [
        each.replace(annotation=written(each.annotation)) for each in found.parameters.values() if each.name != "self"
    ]
    line = f"{name}{found.replace(parameters=own, return_annotation=written(found.return_annotation))}"
    return line if len(line) <= 88 else one_a_line(line)


def written(annotation: Any) -> Any:
    """An annotation as the source has it, whatever the interpreter made of it; none for None."""
    if annotation in (inspect.Signature.empty, None, "None"):
        return inspect.Signature.empty
    text = getattr(annotation, "__forward_arg__", annotation)
    # Types without their modules, as the source names them.
    return Written(text if isinstance(text, str) else MODULES.sub("", inspect.formatannotation(text)))


def one_a_line(call: str) -> str:
    """A call with each parameter on a line of its own."""
    depth, lines = 0, ""
    for sign in call:
        depth += (sign in "([") - (sign in ")]")
        if sign == "(" and depth == 1:
            lines += "(\n    "
        elif sign == ")" and depth == 0:
            lines += ",\n)"
        else:
            lines += ",\n   " if sign == "," and depth == 1 else sign
    return lines


def text_of(thing: Any) -> str:
    """Its docstring: running text as Markdown, examples that are set in as code."""
    blocks = []
    for block in (inspect.getdoc(thing) or "").split("\n\n"):
        code = all(line.startswith("    ") for line in block.splitlines())
        blocks.append(f"```python\n{textwrap.dedent(block)}\n```" if code else escaped(block))
    return "\n\n".join(blocks)
