"""A private name stays at home: neither imported (test_floors) nor reached through its module."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "elbocli"
MODULES = sorted(PACKAGE.rglob("*.py"))


def reached(source: str) -> list[str]:
    """Every `module._name` whose module is one of elbo's, by whatever name it was imported."""
    tree, own = ast.parse(source), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "elbocli":
            own |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            own |= {alias.asname or "elbocli" for alias in node.names if alias.name.split(".")[0] == "elbocli"}
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            path = ast.unparse(node.value)
            if path.split(".")[0] in own:
                found.append(f"{path}.{node.attr}")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_module_reaches_into_another(path: Path) -> None:
    assert reached(path.read_text()) == []


@pytest.mark.parametrize(
    "line",
    [
        "from elbocli.files import yamls\nyamls._Loader",
        "from elbocli.files import yamls as y\ndef f():\n    return y._Loader()",
        "import elbocli.files.strict_yaml\nelbocli.files.yamls._Loader",
        "def f():\n    import elbocli.files.strict_yaml as y\n    y._Loader",
        "from elbocli.core.weighting import Weighting\nWeighting._peaks",
    ],
)
def test_the_check_sees_every_way_in(line: str) -> None:
    assert len(reached(line)) == 1


@pytest.mark.parametrize("line", ["import torch\ntorch._C", "class A:\n    def f(self):\n        return self._x"])
def test_the_check_lets_others_be(line: str) -> None:
    assert reached(line) == []
