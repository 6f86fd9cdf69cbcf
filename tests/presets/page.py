"""Print docs/presets.md with what `elbo presets` says now: python page.py docs/presets.md."""

import subprocess
import sys
from pathlib import Path

SHOWN = "small32"
"""The preset that the page shows as a file to edit."""


def said(*words: str) -> str:
    """Return the output of `elbo presets` as a block of code."""
    line = [sys.executable, "-m", "elbocli", "presets", *words]
    kind = "yaml" if words[0] == "write" else ""
    return f"```{kind}\n{subprocess.run(line, capture_output=True, text=True, check=True).stdout}```\n"


def page(text: str) -> str:
    """The page anew: what comes before its tables is written by hand."""
    written = text.partition("## All presets")[0]
    keys = f"This is `elbo presets write {SHOWN}`: it has every key that a preset may have."
    return f"{written}## All presets\n\n{said('list')}\n## Every key\n\n{keys}\n\n{said('write', SHOWN)}"


if __name__ == "__main__":
    print(page(Path(sys.argv[1]).read_text()), end="")
