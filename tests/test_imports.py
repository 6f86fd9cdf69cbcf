"""Imports point down: each room imports only rooms below it, commands import heavy packages when they run."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "elbocli"
FLOORS = [
    {"errors", "version"},
    {"core", "runtime"},
    {"files"},
    {"networks"},
    {"data"},
    {"runs"},
    {"sampling"},
    {"bound"},
    {"scoring"},
    {"training"},
    {"report"},
    {"commands"},
    {"api", "plugin", "main", "__init__", "__main__"},
]
"""Rooms from the ground up; a module may import its own room and the floors below."""
HEAVY = {"torch", "numpy", "scipy", "matplotlib", "h5py", "PIL", "yaml", "safetensors", "torch_fidelity", "jinja2"}
LIBRARIES = {"core": {"torch", "numpy", "scipy"}}
"""Installed packages that a room may import, where they are limited."""
MODULES = {path.relative_to(PACKAGE).with_suffix("").as_posix(): ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")}


def imports(tree: ast.AST) -> list[tuple[str, ...]]:
    """Return the dotted path of every imported module or name, however deep in the file it is imported."""
    paths = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            paths += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            paths += [(*(node.module or "").split("."), alias.name) for alias in node.names]
    return paths


@pytest.mark.parametrize("name", sorted(MODULES))
def test_a_module_imports_only_what_is_below_its_room(name):
    floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
    room = name.split("/")[0]
    for package, *rest in imports(MODULES[name]):
        if package == "elbocli" and rest:
            assert rest[0] == room or floor[rest[0]] < floor[room] or room in FLOORS[-1], f"imports {'.'.join(rest)}"
            assert not rest[-1].startswith("_") or rest[-1].startswith("__"), f"{rest[-1]} is private"
        if package == "click":
            assert room in ("commands", "main"), "only the command line knows click"


def test_no_files_import_each_other_in_a_circle():
    graph = {}
    for name, tree in MODULES.items():
        paths = ["/".join(path[1:]) for path in imports(tree) if path[0] == "elbocli"]
        named = {part for path in paths for part in (path, path.rpartition("/")[0])}
        graph[name] = {part for each in named for part in (each, f"{each}/__init__") if part in MODULES} - {name}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("commands/")))
def test_a_command_imports_heavy_packages_only_when_it_runs(name):
    statements = [node for node in MODULES[name].body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert not {path[0] for path in imports(ast.Module(statements, []))} & HEAVY
