"""The documentation: generated pages are current, every link and file leads somewhere, every option exists, the site needs no network."""

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
import pytest
from calls import load

from elbocli import plugin
from elbocli.commands.bound import bound
from elbocli.files.recognise import MAKERS
from elbocli.main import elbo

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
NAMED_FILE = re.compile(r"(?<![\w/])(?:elbocli|examples|man|tests|tools)/[\w/-]+\.(?:md|py|sh|yaml|toml|txt)(?!\w)")
LOADED = {("link", "href"), ("source", "srcset"), *((tag, "src") for tag in ("script", "img", "iframe", "video"))}
CSS = re.compile(r"(?:url\(|@import)\s*[\"']?([^\"')\s;]+)")


def run(*line, **options):
    return subprocess.run([sys.executable, *line], capture_output=True, text=True, check=False, **options)


# Generated pages


def test_man_pages_are_what_the_commands_say():
    done = run(ROOT / "man/build.py", "--check")
    assert done.returncode == 0, done.stdout
    if shutil.which("mandoc"):
        pages = sorted((ROOT / "man").glob("*.[15]"))
        lint = subprocess.run(["mandoc", "-T", "lint", *pages], capture_output=True, text=True, check=False)
        assert (lint.stdout, lint.returncode) == ("", 0)


@pytest.mark.long
def test_the_page_on_presets_is_what_the_command_says():
    page = ROOT / "docs/presets.md"
    assert page.read_text() == run(ROOT / "tools/fill_page.py", page).stdout, "make docs writes it anew"


def test_the_tutorial_shows_what_was_measured():
    """`make demo-fashion` writes it: no figure is typed by hand."""
    writer = load(ROOT / "examples/fashion/write_tutorial.py")
    figures = json.loads((ROOT / "docs/tutorial/figures.json").read_text())
    page = (ROOT / "docs/tutorial.md").read_text()
    assert writer.page(figures) == page, "see examples/fashion/write_tutorial.py"
    assert {*re.findall(r"!\[.*?\]\((.*?)\)", page)} == {
        f"tutorial/{name}" for name in ("first.png", "last.png", *writer.PICTURES)
    }


# Names on pages


def test_a_table_has_a_row_for_every_command_and_page():
    pages = [(ROOT / "docs" / name).read_text() for name in ("README.md", "commands.md")]
    rows = [line for page in pages for line in page.splitlines() if line.startswith("| ")]
    named = {row.split("`")[1].split()[1] for row in rows if row.startswith("| `elbo ")}
    linked = {link for row in rows for link in re.findall(r"\]\((\w[\w-]*\.md)", row)}
    assert named == set(elbo.list_commands(click.Context(elbo)))
    assert linked >= {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}


def test_each_declaration_of_contributing_is_in_its_file_and_each_decorator_of_plug_ins_has_a_row():
    table = (ROOT / "CONTRIBUTING.md").read_text().partition("## Where additions go")[2].partition("\n## ")[0]
    decorators = set()
    for row in re.findall(r"^\| .* \| (.*) \| .*\|$", table, re.M)[1:]:
        names = re.findall(r"`@?((?<=@)\w+|[A-Z]\w+)(?:\.\w+)?(?:\(.*?\))?`", row)
        folders = [ROOT / "elbocli" / place for place in re.findall(r"`([\w/]+(?:/|\.py))`", row)]
        text = "".join(
            path.read_text() for place in folders for path in ([place] if place.suffix else place.glob("*.py")) if path.exists()
        )
        assert names and [name for name in names if not re.search(rf"\b{name}\b", text)] == [], row
        decorators |= {*names}
    assert decorators >= {name for name in plugin.__all__ if name.islower()} - {"block_of", "option"}


def named_options(text):
    """(command, option) wherever code on a page has a line of elbo's."""
    code = re.findall(r"^```\w*\n(.*?)^```|`([^`]+)`", text, re.M | re.S)
    for line in re.split(r"[\n|;&()]", "\n".join(block or inline for block, inline in code).replace("\\\n", " ")):
        words = line.partition("#")[0].split()
        if "elbo" in words[:3] or (words[:1] == ["torchrun"] and "elbo" in words):
            path = words[words.index("elbo") + 1 :]
            deep = 2 if path[:1] == ["weights"] else 1
            yield from ((path[:deep], word.partition("=")[0]) for word in path if re.match(r"--[a-z]", word))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "man/build.py"], ids=lambda path: str(path.relative_to(ROOT)))
def test_each_file_and_option_that_a_page_names_is_there(page):
    text = page.read_text()
    assert [name for name in NAMED_FILE.findall(text) if not (ROOT / name).exists()] == []
    if page.suffix == ".py":
        listed = [code for examples in load(page).EXAMPLES.values() for _, code in examples]
        text = "".join(f"```\n{code}\n```\n" for code in [*listed, *re.findall("'(elbo [^']+)'", str(MAKERS))])
    named = [] if page.name == "CHANGELOG.md" else named_options(text)
    for path, option in ((path, option) for path, option in named if path[0][:2] != "--"):
        command: Any = elbo
        for word in path:
            command = command.get_command(click.Context(command), word)
        options = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
        assert option in {*options, "--help", "--version", "--plugin"}, (path, option)


# The site


class Resources(HTMLParser):
    """Addresses that a browser loads for a page, where its links lead, and names in it that links may have."""

    def __init__(self, page):
        super().__init__()
        self.loaded = CSS.findall(page)
        self.links = []
        self.ids = set()
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        for name, value in attrs:
            if (tag, name) in LOADED and value:
                self.loaded.append(value)
            elif tag == "a" and name == "href" and value:
                self.links.append(value)
            elif name == "id" and value:
                self.ids.add(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The site, built without a warning."""
    for name in ("sphinx", "furo", "myst_parser"):
        pytest.importorskip(name)
    out = tmp_path_factory.mktemp("site") / "site"
    done = run("-m", "docs.sphinx.build", out, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.long
def test_the_site_is_whole_and_needs_no_network(site):
    pages = {path: Resources(path.read_text()) for path in site.rglob("*.html")}
    loaded = {path: page.loaded for path, page in pages.items()}
    loaded |= {path: CSS.findall(path.read_text()) for path in site.rglob("*.css")}
    checked = 0
    for path, addresses in loaded.items():
        for address in addresses:
            if not address.startswith(("data:", "#")):
                assert not urlsplit(address).netloc, f"{path.name} loads {address}"
                assert (path.parent / urlsplit(address).path).exists(), f"{path.name} loads {address}"
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if not parts.scheme and not parts.netloc:
                target = (path.parent / parts.path).resolve() if parts.path else path
                assert target.exists(), f"{path.relative_to(site)} leads to {link}"
                if parts.fragment and target in pages:
                    assert parts.fragment in pages[target].ids, f"{path.relative_to(site)} leads to {link}"
                checked += 1
    assert checked > 1000 and sum(map(len, loaded.values())) > 100
    home = {urlsplit(link).path for link in pages[site / "index.html"].links}
    assert home >= {f"commands/{path.stem}.html" for path in (ROOT / "man").glob("elbo*.[15]")}
    assert home >= {f"docs/{path.stem}.html" for path in (ROOT / "docs").glob("*.md")}
    assert "<math" in (site / "docs/theory.html").read_text()
    text = (site / "commands/elbo-bound.html").read_text()
    assert all(option in text for parameter in bound.params for option in parameter.opts if option[:2] == "--")
    from docs.sphinx import reference

    reference_page = (site / "reference/elbocli.html").read_text()
    assert set(reference.api_names()) == set(re.findall(r"<h2>(\w+)<", reference_page))
