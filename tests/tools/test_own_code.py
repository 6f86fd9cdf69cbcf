"""The tools that read elbo's own code: sizes and mutants."""

import ast
import shutil
import subprocess
import sys

import mutants
from mutants import ROOT, mutants_of
from size import tokens_of

CODE = '''"""A docstring."""
def f(x, names):  # a comment
    names.append(f"{x + 1}")
    if not x < 2 and names:
        raise ValueError
    return (x -
        "é", True)
'''


def test_a_module_is_changed_in_each_place_alone_and_stays_python(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(CODE)
    found = sorted(mutants_of(path), key=lambda mutant: (mutant.start, -mutant.end))
    source = path.read_bytes()
    for mutant in found:
        ast.parse(source[: mutant.start] + mutant.text.encode() + source[mutant.end :])
    assert [(mutant.line, mutant.text) for mutant in found] == [
        (3, "pass"),
        (4, "(not x < 2 or names)"),
        (4, "(x < 2)"),
        (4, "(x >= 2)"),
        (4, "(3)"),
        (5, "pass"),
        (6, "(x + 'é')"),
        (7, "(False)"),
    ]


def test_a_change_is_noticed_by_the_tests_of_its_module(tmp_path, monkeypatch):
    package, tests, others = (tmp_path / "whole" / name for name in ("elbocli/core", "tests/core", "tests/run"))
    for folder in (package, tests, others):
        folder.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").touch()
    (package / "zero.py").write_text("def is_zero(x):\n    return not x\n\nUSED_ELSEWHERE = 2\nUNUSED = 1\n")
    (tests / "test_numbers.py").write_text("from elbocli.core.zero import is_zero\n\ndef test_zero():\n    assert is_zero(0)\n")
    (tests / "test_other.py").write_text("def test_that_fails_anyway():\n    assert False\n")
    (others / "test_far.py").write_text("from elbocli.core import zero\n\ndef test_two():\n    assert zero.USED_ELSEWHERE == 2\n")
    shutil.copytree(tmp_path / "whole", tmp_path / "copy")
    monkeypatch.setattr(mutants, "ROOT", tmp_path / "whole")
    verdicts = {mutant.line: mutants.verdict(mutant, tmp_path / "copy") for mutant in mutants_of(package / "zero.py")}
    assert verdicts == {2: "noticed", 4: "noticed", 5: "missed"}


def test_sizes_count_code_alone(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(CODE)
    plain = tmp_path / "plain.py"
    plain.write_text(ast.unparse(ast.parse(CODE.partition("\n")[2])))
    assert tokens_of(path) == tokens_of(plain)
    done = subprocess.run([sys.executable, ROOT / "tools/size.py"], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()[:3]] == ["elbocli", "tests", "tools"]
