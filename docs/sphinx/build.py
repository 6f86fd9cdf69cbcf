"""Build the site: `python -m docs.sphinx.build FOLDER`, from the repository's root. Any warning is an error.

The pages are README.md and docs/*.md as they stand, the man pages, and a reference of the Python API from its docstrings.
They are put together in a folder of their own, each where it lies in the repository, so that links lead on.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from sphinx.cmd.build import main as sphinx

from docs.sphinx.manual import linked, markdown
from docs.sphinx.reference import api_names, page
from elbocli import plugin

ROOT = Path(__file__).parents[2]
CONTENTS = {
    "": ["docs/README"],
    "Tutorial": ["docs/tutorial"],
    "How-to": [
        "docs/prep",
        "docs/training",
        "docs/models",
        "docs/sampling",
        "docs/scores",
        "docs/python",
        "docs/extending",
        "docs/gpu",
    ],
    "Explanation": ["docs/weightings", "docs/theory"],
    "Reference": [
        "docs/commands",
        "commands/index",
        "docs/instruments",
        "docs/datasets",
        "docs/samplers",
        "docs/extractors",
        "docs/measurements",
        "examples/ablation/RESULTS",
        "examples/sweep/RESULTS",
        "docs/glossary",
        "docs/security",
        "Python API <reference/elbocli>",
        "Plug-in API <reference/plugin>",
        "docs/presets",
        "docs/odd-images",
    ],
    "The project": ["CONTRIBUTING", "CHANGELOG"],
}
"""Heading in the margin → its pages. Sphinx says which page is missing here."""


def toctree(pages: list[str], caption: str = "") -> str:
    """A list of pages for the margin."""
    head = f":caption: {caption}\n" if caption else ""
    return f"```{{toctree}}\n:hidden:\n{head}\n" + "\n".join(pages) + "\n```\n"


def write_sources(out: Path) -> None:
    """Everything that Sphinx reads, in a new folder."""
    shutil.copytree(ROOT / "docs", out / "docs", ignore=shutil.ignore_patterns("sphinx", "__pycache__"))
    shutil.copytree(ROOT / "examples", out / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, out / name)
    for path in (out / "docs").glob("*.md"):
        path.write_text(linked(path.read_text(), "../commands/"))
    home = linked((ROOT / "README.md").read_text(), "commands/")
    trees = "\n".join(toctree(pages, caption) for caption, pages in CONTENTS.items())
    (out / "index.md").write_text(f"{home}\n{trees}")
    (out / "commands").mkdir()
    manual = {path.stem: path for path in sorted((ROOT / "man").glob("elbo*.[15]"), key=lambda path: path.stem)}
    for name, path in manual.items():
        (out / "commands" / f"{name}.md").write_text(markdown(path.read_text()))
    rows = "\n".join(f"- [{name.replace('-', ' ')}]({name}.md): {summary(path)}" for name, path in manual.items())
    (out / "commands" / "index.md").write_text(f"# Man pages\n\n{rows}\n\n{toctree([*manual])}")
    (out / "reference").mkdir()
    (out / "reference" / "elbocli.md").write_text(page("elbocli", api_names()))
    (out / "reference" / "plugin.md").write_text(page("elbocli.plugin", plugin.__all__))


def summary(path: Path) -> str:
    """A man page's own line about itself."""
    name = markdown(path.read_text()).partition("## Name\n\n")[2].partition("\n\n")[0]
    return name.partition(" - ")[2]


def main() -> int:
    """Exit status of Sphinx."""
    out = Path(sys.argv[1])
    shutil.rmtree(out, ignore_errors=True)  # no page stays whose source has gone
    with TemporaryDirectory() as sources:
        write_sources(Path(sources, "pages"))
        settings = ["-c", str(Path(__file__).parent), "-d", str(Path(sources, "cache"))]
        return sphinx(["-W", "--keep-going", "-n", "-q", *settings, str(Path(sources, "pages")), str(out)])


if __name__ == "__main__":
    sys.exit(main())
