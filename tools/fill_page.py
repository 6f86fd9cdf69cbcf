"""Print docs/presets.md with what its commands print now: python tools/fill_page.py docs/presets.md."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def block(found: re.Match[str]) -> str:
    """A block with the output of the line of Python that its first comment names; elbo's output is code."""
    line = [sys.executable, *found[1].split()]
    said = subprocess.run(line, capture_output=True, text=True, check=True, cwd=ROOT).stdout.strip()
    code = ("```yaml\n" if "show" in line else "```text\n", "\n```") if "elbocli" in line else ("", "")
    return f"<!-- {found[1]} -->\n\n{said.join(code)}\n\n<!-- end -->"


if __name__ == "__main__":
    text = Path(sys.argv[1]).read_text()
    print(re.sub(r"<!-- (.*?) -->\n.*?<!-- end -->", block, text, flags=re.S), end="")
