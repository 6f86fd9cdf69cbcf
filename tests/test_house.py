"""The rules of the house: imports point down and in no circle, doors between commands are few, private names stay at home, commands
import what is heavy only when they run, and only the command line knows click and prints.
"""

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "elbocli"
MODULES = sorted(PACKAGE.rglob("*.py"))
COMMANDS = {path.parent.name for path in PACKAGE.glob("*/command.py")}
BELOW = {
    "errors": set(),
    "version": set(),
    "core": {"errors"},
    "runtime": {"errors"},
    "files": {"errors", "version", "core", "runtime"},
    "images": {"errors", "version", "core", "runtime", "files"},
    "nn": {"errors", "version", "core", "runtime", "files"},
    "run": {"errors", "version", "core", "runtime", "files", "images", "nn"},
    "cli": {"errors", "version", "core", "runtime", "files", "nn", "run"},
    **{command: {"errors", "version", "core", "runtime", "files", "images", "nn", "run", "cli"} for command in COMMANDS},
}
"""Package → packages that it may import besides itself: only those below it."""
DOORS = {
    ("train", "sample.draw"): "previews are drawn, and latents decoded, as `elbo sample` does",
    ("train", "evaluate.opening"): "samples are scored while training as `elbo eval` scores them",
    ("train", "evaluate.extract"): "the same",
    ("train", "evaluate.scoring"): "the same",
    ("train", "evaluate.settings"): "the same",
    ("grid", "sample.draw"): "a grid is made for the guided denoiser that `elbo sample` walks with",
    ("report", "evaluate.result"): "the page reads what `elbo eval` found",
    ("report", "evaluate.settings"): "the page says what a protocol is",
    ("compare", "evaluate.result"): "it compares what `elbo eval` found",
    ("compare", "evaluate.opening"): "features and their reference must be made alike, as for `elbo eval`",
    ("compare", "bound.result"): "it compares bounds as it does scores",
    ("report", "bound.result"): "the page reads what `elbo bound` found",
    ("report", "info.describe"): "samples are shown as `elbo info --sheet` shows them",
}
"""Which module of another subcommand a subcommand's package may import, and why."""
HEAVY = {"torch", "numpy", "scipy", "matplotlib", "h5py", "PIL", "yaml", "safetensors", "torch_fidelity", "jinja2"}
SPEAKING = {"cli", "main"}
"""Rooms that know click and may print, besides every command.py."""


def room_of(path: str) -> str:
    """The package, or the module of the top floor, that a file belongs to."""
    return path.split("/")[0].removesuffix(".py")


def imports(tree: ast.AST) -> list[tuple[str, str]]:
    """(module, name) of every import, however deep; name is '' for a plain import."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import hides the floor"
            found += [(node.module or "", alias.name) for alias in node.names]
    return found


def outside_functions(tree: ast.Module) -> ast.Module:
    """Return the statements that run on import, without imports under TYPE_CHECKING."""
    kept = [
        node
        for node in tree.body
        if not isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    ]
    return ast.Module(kept, [])


def reached(tree: ast.AST) -> list[str]:
    """Every `module._name` whose module is one of elbo's, by whatever name it was imported."""
    own = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "elbocli":
            own |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            own |= {alias.asname or "elbocli" for alias in node.names if alias.name.split(".")[0] == "elbocli"}
    return [
        f"{ast.unparse(node.value)}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and node.attr.startswith("_")
        and not node.attr.startswith("__")
        and ast.unparse(node.value).split(".")[0] in own
    ]


def broken_rules(path: str, source: str) -> list[str]:
    """List the rules that a module at `path` within the package breaks."""
    tree = ast.parse(source)
    room = room_of(path)
    found = []
    speaks = room in SPEAKING or path.endswith("/command.py")
    for module, name in imports(tree):
        if module.split(".")[0] == "click" and not speaks:
            found.append("only the command line knows click")
        if module.split(".")[0] != "elbocli":
            continue
        target = [*module.split(".")[1:], name] if name else module.split(".")[1:]
        if name.startswith("_") and not name.startswith("__"):
            found.append(f"{name} is private to {module}")
        if target[-1] == "command" or (len(target) > 1 and target[1] == "command"):
            if room != "main":
                found.append(f"nobody imports a command: {module}")
        elif room in BELOW and target[0] in BELOW and target[0] not in (room, *BELOW[room]):
            if target[0] not in COMMANDS or room not in COMMANDS:
                found.append(f"{module} is not below {room}")
            elif (room, ".".join(target[:2])) not in DOORS:
                found.append(f"no door leads from {room} to {module}")
    if path.endswith("/command.py"):
        heavy = {module.split(".")[0] for module, _ in imports(outside_functions(tree))} & HEAVY
        found += [f"{module} is imported before the command runs" for module in sorted(heavy)]
    if room in ("core", "nn"):
        texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
        found += [f"only the command line knows options: {text}" for text in texts if re.search(r"(?<![-\w])--[a-z]", text)]
    if not speaks:
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        found += ["only the command line speaks" for call in calls if ast.unparse(call.func) == "print"]
    return found + [f"{name} is reached into" for name in reached(tree)]


def undocumented(source: str) -> list[str]:
    """Public functions and classes without a docstring; one that a decorator declares says its own."""
    tree = ast.parse(source)
    lacking = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            declares = any(isinstance(d, ast.Call) and ".declare" not in ast.unparse(d) for d in node.decorator_list)
            declared = declares or any(".declare(" in ast.unparse(d) for d in node.decorator_list)
            if not ast.get_docstring(node) and not declared:
                lacking.append(node.name)
    return lacking


def test_every_module_keeps_the_rules():
    broken = {}
    for path in MODULES:
        source = path.read_text()
        name = path.relative_to(PACKAGE).as_posix()
        long = ["a file is a chapter"] * (len(source.splitlines()) > 600)
        broken[name] = broken_rules(name, source) + undocumented(source) + long
    assert not {name: rules for name, rules in broken.items() if rules}


def test_every_room_is_known_and_every_door_is_used():
    rooms = {room_of(path.relative_to(PACKAGE).as_posix()) for path in MODULES}
    assert rooms == {*BELOW, "main", "api", "plugin", "__init__", "__main__"}
    used = set()
    for path in MODULES:
        room = room_of(path.relative_to(PACKAGE).as_posix())
        for module, name in imports(ast.parse(path.read_text())):
            used.add((room, ".".join([*module.split(".")[1:], name][:2])))
    assert set(DOORS) <= used


def circle(sources: dict[str, str]) -> list[str]:
    """Return modules that import each other in a circle, also inside functions; [] if there are none. sources: by name."""
    graph = {}
    for module, source in sources.items():
        named = {at for place, name in imports(ast.parse(source)) for at in (place, f"{place}.{name}")}
        graph[module] = {at for at in named - {module} if at in sources}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_files_import_each_other():
    sources = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text() for path in MODULES
    }
    assert not circle(sources)


BROKEN = """
core/objective.py: from elbocli.files import yaml_text
core/objective.py: import elbocli.nn.unet
core/objective.py: def f(): from elbocli.runtime.device import sent
files/dataset.py: from elbocli.images.decode import decode
run/open.py: from elbocli.train.loop import run
train/loop.py: from elbocli.bound import judge
report/page.py: from elbocli.evaluate import command
core/objective.py: import click
core/objective.py: print(1)
nn/denoiser.py: raise UsageError("add --guide")
train/command.py: import torch
core/objective.py: from elbocli.core.monotone import _rising
core/objective.py: import elbocli.core.streams; elbocli.core.streams._seed
core/objective.py: from elbocli.core.weighting import Weighting; Weighting._peaks
"""
KEPT = """
train/previews.py: from elbocli.sample.draw import draw_batch
train/command.py: def train(): import torch
train/command.py: import click; print(1)
core/objective.py: import torch; torch._C
"""


@pytest.mark.parametrize(("lines", "broken"), [(BROKEN, True), (KEPT, False)])
def test_each_rule_notices_a_module_that_breaks_it_and_no_other(lines, broken):
    for line in lines.strip().splitlines():
        assert bool(broken_rules(*line.split(": ", 1))) == broken, line
