import ast
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from limits import renewed

ROOT = Path(__file__).parents[2]
BOUND = re.compile(r"(MOST|LARGEST|LONGEST|DEEPEST)(_\w+)?")
OTHERS = {
    "files": {
        "LONGEST_NAME",
        "MOST_LOOKS",
        "MOST_FILES",
        "LARGEST_GRID",
        "LARGEST_PICTURE",
        "MOST_LETTERS",
    },
    "images": {"MOST_PACKED", "LARGEST_RATIO", "MOST_FILES", "LARGEST_DECODED", "MOST_BYTES"},
}
"""Bounds that no table needs: of a part of something, of what elbo writes itself, or of what another bound follows."""


def test_the_page_has_the_limits_of_the_code():
    """`make docs` writes them there."""
    text = (ROOT / "docs" / "limits.md").read_text("utf-8")
    assert text == renewed(text)


def test_every_limit_of_a_reader_is_in_the_table():
    table = (ROOT / "tests" / "limits.py").read_text()
    missing = []
    for path in [*(ROOT / "elbocli/files").glob("*.py"), *(ROOT / "elbocli/images").glob("*.py")]:
        for node in ast.parse(path.read_text()).body:
            names = [
                each.id
                for target in getattr(node, "targets", [])
                for each in ast.walk(target)
                if isinstance(each, ast.Name)
            ]
            for name in names:
                if BOUND.fullmatch(name) and name not in OTHERS.get(path.parent.name, ()):
                    missing += [] if name in table else [f"{path.stem}.{name}"]
    assert not missing, " ".join(missing)
