"""Imports point down only; private names stay at home; only the command line knows click and prints."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "elbocli"
ALLOWED = {
    "core": {"core", "errors"},
    "files": {"core", "errors", "files"},
    "nn": {"core", "errors", "files", "nn"},
    "loops": {"core", "errors", "files", "nn", "loops"},
    "cli": {"core", "errors", "files", "nn", "loops", "cli"},
}
SHARED_CLI = {"options", "progress", "main"}
MODULES = sorted(PACKAGE.rglob("*.py"))


def imports(tree: ast.AST) -> list[tuple[str, str]]:
    """(module, name) of every import, however deep; name is '' for a plain import."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the floor"
            found += [(node.module or "", alias.name) for alias in node.names]
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_a_module_imports_only_what_is_below_it(path: Path) -> None:
    parts = path.relative_to(PACKAGE).parts
    floor = parts[0] if len(parts) > 1 else "top"
    tree = ast.parse(path.read_text())
    for module, name in imports(tree):
        top, _, rest = module.partition(".")
        assert top != "click" or floor == "cli", f"{path}: only cli knows click"
        if top != "elbocli":
            continue
        target = rest.split(".")[0] or name
        assert floor == "top" or target in ALLOWED[floor] or target == "__version__", f"{path}: imports {module}"
        assert not name.startswith("_") or name.startswith("__"), f"{path}: {name} is private to {module}"
        if floor == "cli" and target == "cli" and parts[-1] != "main.py":
            chosen = rest.split(".")[1] if "." in rest else name
            assert chosen in SHARED_CLI, f"{path}: commands never import each other"
    if floor != "cli":
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
        assert not any(call.func.id == "print" for call in calls), f"{path}: only cli speaks"  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_is_public_has_a_docstring(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), path
    declared = {
        "core/weighting.py",
        "core/objectives.py",
        "core/schedule.py",
        "core/prediction.py",
        "core/criteria.py",
        "core/steps.py",
    }
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            documented = ast.get_docstring(node) or (node.decorator_list and str(path.relative_to(PACKAGE)) in declared)
            assert documented, f"{path}: {node.name}"


def test_the_walk_sees_every_floor() -> None:
    assert {path.relative_to(PACKAGE).parts[0] for path in MODULES if path.parent != PACKAGE} == set(ALLOWED)
