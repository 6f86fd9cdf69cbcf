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
    own = [each.replace(annotation=written(each.annotation)) for each in found.parameters.values() if each.name != "self"]
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
    depth = 0
    lines = ""
    for sign in call:
        depth += (sign in "([") - (sign in ")]")
        if sign == "(" and depth == 1:
            lines += "(\n    "
        elif sign == ")" and depth == 0:
            lines += ",\n)"
        else:
            lines += ",\n   " if sign == "," and depth == 1 else sign
    return lines


ITEM = r"(?:- |[\w*]+(?:, [\w*]+)*(?: \([^)]*\))?: |Returns |Raises |Source: )"
"""Beginning of a line about one parameter, an error or the source."""


def text_of(thing: Any) -> str:
    """Its docstring: running text as Markdown, lines about parameters as lists, indented blocks as code."""
    first, *more = (inspect.getdoc(thing) or "").replace("``", "`").replace("::\n", ":\n").split("\n\n")
    blocks = [escaped(first)]
    for block in more:
        head, _, rest = block.partition("\n")
        inside = textwrap.dedent(rest)
        if block.startswith("    "):
            code = textwrap.dedent(block)
            blocks.append(f"```{'python' if is_python(code) else ''}\n{code}\n```")
        elif head.endswith(":") and inside != rest:
            blocks += [f"**{escaped(head)}**", listed(inside)]
        else:
            blocks.append(listed(block) if "\n" in block else escaped(block))
    return "\n\n".join(blocks)


def is_python(code: str) -> bool:
    """Tell whether code is Python, or an example of its prompt."""
    try:
        return ">>>" in code or bool(ast.parse(code))
    except SyntaxError:
        return False


def listed(text: str) -> str:
    """Text with a list item for each line about one thing."""
    intro, *items = re.split(rf"\n(?={ITEM})", f"\n{text}")
    lines = [f"- {escaped(item.removeprefix('- '))}" for item in items]
    return "\n\n".join(filter(None, [escaped(intro.strip("\n")), "\n".join(lines)]))
