"""One module for each foreign library that reads what strangers wrote, and nobody calls the library past it."""

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "elbocli"
MODULES = sorted(PACKAGE.rglob("*.py"))
OWNERS = {
    "yaml": {"files/yaml_text.py"},
    "tarfile.open": {"images/kinds/trees.py"},
    "pickle.Unpickler": set(),
    "pickle._Unpickler": {"files/pickles.py"},
    "pickle.load": set(),
    "pickle.loads": set(),
    "safetensors.safe_open": {"files/tensor_files.py"},
    "safetensors.torch.load": set(),
    "safetensors.torch.load_file": set(),
    "h5py.File": {"files/dataset.py"},
    "PIL.Image.open": {"images/decode.py", "files/dataset.py", "train/recorder.py", "report/thumbnails.py"},
    "torch.load": {"files/tensor_files.py"},
    "torch.export.load": {"files/tensor_files.py"},
    "subprocess": {"train/loop.py"},
    "sys.executable": set(),
    "scipy.io.loadmat": {"images/labels.py"},
    "pyarrow.parquet.ParquetFile": {"images/kinds/parquet.py"},
}
"""Calls, or whole libraries, and the only modules that may use them; some of these only write."""


def dotted(node):
    """The name that attributes make: `np.lib.format`; '' for those of anything but a name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


@cache
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
    hints = set()
    for node in ast.walk(tree):
        for hint in (getattr(node, "annotation", None), getattr(node, "returns", None)):
            hints |= set(ast.walk(hint)) if isinstance(hint, ast.AST) else set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node not in hints:
            first, _, rest = dotted(node).partition(".")
            if first in names and rest:
                found.add(f"{names[first]}.{rest}")
    return found


def trespasses(path, source, owners):
    """The owned calls of a module that isn't their owner."""
    return sorted(
        {
            call
            for call, allowed in owners.items()
            for name in used(source)
            if path not in allowed and (name == call or name.startswith(f"{call}."))
        }
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_library_is_called_by_its_own_module(path):
    assert trespasses(path.relative_to(PACKAGE).as_posix(), path.read_text(), OWNERS) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.loads(b'1')",
        "from pickle import load as read",
        "import pickle as j\ndef f():\n    return j.loads",
        "import yaml",
        "def f():\n    from yaml import SafeLoader",
        "import tarfile\ntarfile.open('x')",
        "import sys\n[sys.executable, '-c']",  # it would run modules of the current folder
    ],
)
def test_a_call_past_the_boundary_is_noticed(source):
    assert trespasses("files/dataset.py", source, OWNERS) != []


def test_writing_needs_no_owner():
    assert trespasses("files/dataset.py", "import json, tarfile\njson.dumps(1)\ntarfile.TarError", OWNERS) == []
