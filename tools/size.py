"""Print the size of the package, its tests and its tools, and the largest chapters: `python tools/size.py`.

Tokens are those of Python outside comments and docstrings, so that they don't depend on how lines are broken.
"""

import ast
import tokenize
from pathlib import Path

ROOT = Path(__file__).parents[1]
COUNTED = {tokenize.NAME, tokenize.OP, tokenize.NUMBER, tokenize.STRING}
LARGEST = 8


def tokens_of(path: Path) -> int:
    """Return the number of tokens of a file."""
    strings = [
        node.value
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    starts = {(string.lineno, string.col_offset) for string in strings}
    with tokenize.open(path) as file:
        return sum(token.type in COUNTED and token.start not in starts for token in tokenize.generate_tokens(file.readline))


def main() -> None:
    """Print a line for each folder, and the largest files of the package."""
    for folder in ("elbocli", "tests", "tools"):
        sizes = {path: tokens_of(path) for path in (ROOT / folder).rglob("*.py")}
        lines = sum(len(path.read_text("utf-8").splitlines()) for path in sizes)
        print(f"{folder:<8} {len(sizes):>4} files {lines:>7,} lines {sum(sizes.values()):>8,} tokens")
        if folder == "elbocli":
            chapters = sorted(sizes, key=sizes.__getitem__, reverse=True)[:LARGEST]
    for path in chapters:
        print(f"  {path.relative_to(ROOT)}: {tokens_of(path):,} tokens")


if __name__ == "__main__":
    main()
