"""Mutation test: change elbo at N random places, one at a time, and print the share of changes that tests notice.

    python tools/mutants.py 200 --seed 0 [elbocli/core elbocli/files/atomic.py …]

A change flips a comparison, + and -, * and /, `and` and `or`, True and False, adds 1 to a number, or removes `not` or a statement.
It is made in a copy of the checkout. First run the test files of the folder that mirrors the module's package, if they import the
module, by themselves or through a helper, name its command, or have its name. Then run files of other folders that import the module
or name its command, and, if the first kind is lacking, the rest of the folder, up to six files in all. A change counts as noticed if
a test fails that passes without it.
"""

import argparse
import ast
import functools
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
SECONDS = 600
"""Limit of a run of tests; a change that makes the tests exceed it counts as noticed."""
FILES = 6
"""Most files of tests that run for a change, unless more of its folder import the module."""
PAIRS: list[tuple[type[ast.AST], type[ast.AST]]] = [
    *((ast.Lt, ast.GtE), (ast.Gt, ast.LtE), (ast.Eq, ast.NotEq), (ast.Is, ast.IsNot), (ast.In, ast.NotIn)),
    *((ast.And, ast.Or), (ast.Add, ast.Sub), (ast.Mult, ast.Div)),
]
SWAPPED = {one: other for pair in PAIRS for one, other in (pair, pair[::-1])}


class Mutant(NamedTuple):
    """A change of the bytes [start, end) of a file."""

    path: Path
    line: int
    start: int
    end: int
    text: str


def changed(node: ast.AST) -> str | None:
    """Return the source that replaces a node; None for a node that is not changed."""
    match node:
        case ast.Compare(left, [operator], [right]):
            return ast.unparse(ast.Compare(left, [SWAPPED[type(operator)]()], [right]))  # type: ignore[list-item]
        case ast.BinOp(left, operator, right) if type(operator) in SWAPPED:
            return ast.unparse(ast.BinOp(left, SWAPPED[type(operator)](), right))  # type: ignore[arg-type]
        case ast.BoolOp(operator, values):
            return ast.unparse(ast.BoolOp(SWAPPED[type(operator)](), values))  # type: ignore[arg-type]
        case ast.UnaryOp(ast.Not(), operand):
            return ast.unparse(operand)
        case ast.Constant(bool(value)):
            return repr(not value)
        case ast.Constant(int(value) | float(value)):
            return repr(value + 1)
        case ast.Expr(ast.Call()) | ast.AugAssign() | ast.Raise():
            return "pass"
    return None


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Yield all changes of a module, without those in f-strings, whose places Python 3.11 doesn't tell."""
    source = path.read_bytes()
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    nodes: list[ast.AST] = [ast.parse(source)]
    while nodes:
        node = nodes.pop()
        nodes += [child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.JoinedStr)]
        if isinstance(node, ast.expr | ast.stmt) and (text := changed(node)) is not None:
            start = lines[node.lineno - 1] + node.col_offset
            end = lines[node.end_lineno - 1] + node.end_col_offset
            yield Mutant(path, node.lineno, start, end, text if isinstance(node, ast.stmt) else f"({text})")


@functools.cache
def names_in(path: Path) -> set[str]:
    """Return the dotted names that a file imports, the modules it imports them from, and its texts, such as names of commands."""
    names = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        match node:
            case ast.Import():
                names |= {alias.name for alias in node.names}
            case ast.ImportFrom():
                names |= {f"{node.module}", *(f"{node.module}.{alias.name}" for alias in node.names)}
            case ast.Constant(str(text)):
                names.add(text)
    return names


def names_in_helpers(path: Path) -> set[str]:
    """Return the names in the modules of tests/ that a file imports."""
    return set().union(*(names_in(helper) for helper in (ROOT / "tests").glob("*.py") if helper.stem in names_in(path)))


def tests_of(module: Path) -> list[str]:
    """Return the test files for a module, as paths below ROOT, those of its folder first."""
    parts = module.relative_to(ROOT).with_suffix("").parts
    package = ".".join(parts[:-1])
    name = parts[-1]
    asked = {package if name == "__init__" else f"{package}.{name}", *([parts[1]] if name == "command" else [])}
    folder = ROOT.joinpath("tests", *parts[1:-1][:1])
    near = sorted(folder.rglob("test_*.py") if parts[1:-1] else folder.glob("test_*.py"))
    far = sorted(set((ROOT / "tests").rglob("test_*.py")) - set(near))
    ours = [path for path in near if path.stem == f"test_{name}" or asked & (names_in(path) | names_in_helpers(path))]
    others = [path for path in far if asked & names_in(path)]
    files = [*ours, *others, *([] if ours else near)][: max(FILES, len(ours))]
    return [str(path.relative_to(ROOT)) for path in files]


def passes(copy: Path, *words: str) -> bool:
    """Tell whether tests pass in a copy of the checkout."""
    line = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow and not long", *words]
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        return subprocess.run(line, cwd=copy, env=environment, capture_output=True, timeout=SECONDS, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def verdict(mutant: Mutant, copy: Path) -> str:
    """Run the tests with a change; return noticed, missed, or broken if the same test fails without it."""
    path = copy / mutant.path.relative_to(ROOT)
    tests = tests_of(mutant.path)
    source = mutant.path.read_bytes()
    path.write_bytes(source[: mutant.start] + mutant.text.encode() + source[mutant.end :])
    try:
        missed = passes(copy, *tests)
    finally:
        path.write_bytes(source)
    return "missed" if missed else "noticed" if passes(copy, "--last-failed", *tests) else "broken"


def main() -> None:
    """Print a line for each change, and the share noticed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("count", type=int, metavar="N", help="changes")
    parser.add_argument(
        "places", nargs="*", type=Path, default=[Path("elbocli")], metavar="PATH", help="modules, or folders of them"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_intermixed_args()
    roots = [ROOT / place for place in options.places]
    modules = sorted({path for root in roots for path in ([root] if root.suffix else root.rglob("*.py"))})
    chosen = random.Random(options.seed).sample([mutant for path in modules for mutant in mutants_of(path)], options.count)
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="elbo-mutants-") as folder:
        copy = Path(folder) / "elbo"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "*.egg-info", "__pycache__"))
        for mutant in chosen:
            verdicts.append(verdict(mutant, copy))
            before = mutant.path.read_bytes()[mutant.start : mutant.end].decode().partition("\n")[0]
            print(f"{verdicts[-1]:<8} {mutant.path.relative_to(ROOT)}:{mutant.line}: {before} → {mutant.text}", flush=True)
    judged = len(verdicts) - verdicts.count("broken")
    print(f"{verdicts.count('noticed')} of {judged} noticed")


if __name__ == "__main__":
    main()
