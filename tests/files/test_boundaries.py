"""One module for each foreign library that reads what strangers wrote, and nobody calls the library past it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "elbocli"
MODULES = sorted(PACKAGE.rglob("*.py"))
OWNERS = {
    "json.load": "files/strict_json.py",
    "json.loads": "files/strict_json.py",
    "json.JSONDecoder": "files/strict_json.py",
    "yaml": "files/strict_yaml.py",
    "tarfile.open": "images/tar_headers.py",
}
"""Calls, or whole libraries, and the only module that may use them."""


def used(source):
    """Dotted names, by what was imported, of all that a module reaches of other modules."""
    tree, names, found = ast.parse(source), {}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                for alias in node.names
            }
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, _, rest = ast.unparse(node).partition(".")
            if first in names and rest:
                found.add(f"{names[first]}.{rest}")
    return found


def trespasses(path, source, owners):
    """The owned calls of a module that isn't their owner."""
    return sorted(
        {
            call
            for call, owner in owners.items()
            for name in used(source)
            if path != owner and (name == call or name.startswith(f"{call}."))
        }
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_library_is_called_by_its_own_module(path):
    assert trespasses(path.relative_to(PACKAGE).as_posix(), path.read_text(), OWNERS) == []


def test_every_owner_uses_what_it_owns():
    for call, owner in OWNERS.items():
        if call not in ("json.load", "json.JSONDecoder"):  # owned so that nobody has them
            assert call in used((PACKAGE / owner).read_text()), call


@pytest.mark.parametrize(
    "source",
    [
        "import json\njson.loads('1')",
        "from json import loads",
        "from json import load as read",
        "import json as j\ndef f():\n    return j.loads",
        "import yaml",
        "def f():\n    from yaml import SafeLoader",
        "import tarfile\ntarfile.open('x')",
    ],
)
def test_a_call_past_the_boundary_is_noticed(source):
    assert trespasses("files/dataset.py", source, OWNERS) != []


def test_writing_needs_no_owner():
    assert trespasses("files/dataset.py", "import json, tarfile\njson.dumps(1)\ntarfile.TarError", OWNERS) == []
