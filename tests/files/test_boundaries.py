"""One module for each foreign library that reads what strangers wrote, and nobody calls the library past it."""

import ast
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "elbocli"
MODULES = sorted(PACKAGE.rglob("*.py"))
OWNERS = {
    "json.load": set(),
    "json.loads": {"images/labels.py", "images/samples.py", "images/kinds/parquet.py"},
    "msgspec.json.decode": {"files/records.py"},
    "yaml": {"files/reading.py"},
    "tarfile.open": {"images/kinds/tar.py"},
    "pickle.Unpickler": set(),
    "pickle._Unpickler": {"files/pickles.py"},
    "pickle.load": set(),
    "pickle.loads": set(),
    "safetensors.safe_open": {"files/tensor_files.py"},
    "safetensors.torch.load": set(),
    "safetensors.torch.load_file": set(),
    "h5py.File": {"files/dataset.py", "files/dataset_writer.py"},
    "PIL.Image.open": {"images/decode.py", "files/dataset.py", "train/tensorboard.py"},
    "torch.load": {"files/tensor_files.py"},
    "torch.export.load": {"files/tensor_files.py"},
    "subprocess": {"train/checkpoint_hook.py"},
    "sys.executable": set(),
    "scipy.io.loadmat": {"images/labels.py"},
    "pyarrow.parquet.ParquetFile": {"images/kinds/parquet.py"},
}
"""Calls, or whole libraries, and the only modules that may use them; some of these only write."""
OPENERS = {
    "files/reading.py": "the way to open a file of others",
    "files/atomic.py": "its own, which it has just written",
    "images/image_refs.py": "only to tell the kernel that it comes",
    "runtime/device.py": "the kernel's",
    "files/losslog.py": "a log, which may be a pipe",
    "images/samples.py": "samples, which may be a pipe",
    "run/folder.py": "the run's lock, of which nothing is read",
    "__init__.py": "the package's own",
}
"""Modules that open files to read them by other ways than files/reading.py, and which."""


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


def test_every_owner_uses_what_it_owns():
    nobodys = {
        "json.load",
        "json.loads",
        "safetensors.torch.load",
    }
    for call, owners in OWNERS.items():
        for owner in owners if call not in nobodys else ():
            assert any(name == call or name.startswith(f"{call}.") for name in used((PACKAGE / owner).read_text())), (
                call
            )


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
        "import sys\n[sys.executable, '-c']",  # it would run modules of the current folder
    ],
)
def test_a_call_past_the_boundary_is_noticed(source):
    assert trespasses("files/dataset.py", source, OWNERS) != []


def test_writing_needs_no_owner():
    assert trespasses("files/dataset.py", "import json, tarfile\njson.dumps(1)\ntarfile.TarError", OWNERS) == []


def opens(source):
    """Calls that open a file to read it: open without a mode that writes, os.open to read, read_text and read_bytes of a path."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        modes = [*node.args[1:2], *(word.value for word in node.keywords if word.arg == "mode")]
        writes = any(isinstance(mode, ast.Constant) and str(mode.value)[:1] in ("w", "a", "x") for mode in modes)
        if (
            (called in ("open", "io.open") and not writes)
            or (
                called == "os.open"
                and not any("O_WRONLY" in ast.unparse(mode) or "O_RDWR" in ast.unparse(mode) for mode in modes)
            )
            or (isinstance(node.func, ast.Attribute) and node.func.attr in ("read_text", "read_bytes"))
        ):
            found.append(called)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_strangers_file_is_opened_by_the_helper_alone(path):
    """Anything else would wait for the writer of a pipe, and read a device for ever."""
    name = path.relative_to(PACKAGE).as_posix()
    assert (opens(path.read_text()) == []) or name in OPENERS


def test_every_opener_opens():
    for name in OPENERS:
        assert opens((PACKAGE / name).read_text()), name


@pytest.mark.parametrize(
    "source",
    [
        "open(p)",
        "open(p, 'rb')",
        "io.open(p, mode='r')",
        "os.open(p, os.O_RDONLY)",
        "Path(p).read_text()",
        "p.read_bytes()",
    ],
)
def test_an_opening_past_the_helper_is_noticed(source):
    assert opens(source) != []


def test_writing_needs_no_helper():
    assert opens("open(p, 'wb'), open(p, mode='ab'), os.open(p, os.O_RDWR | os.O_CREAT), read_bytes(p)") == []
