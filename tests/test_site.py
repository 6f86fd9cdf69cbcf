"""The site: built without a warning, with a page for every command, and nothing in it comes from the network."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import click
import pytest

pytest.importorskip("sphinx")
pytest.importorskip("furo")
pytest.importorskip("myst_parser")

from docs.sphinx import manual, reference
from elbocli.bound.command import bound
from elbocli.main import elbo

ROOT = Path(__file__).parent.parent
LOADED = {
    ("link", "href"),
    ("script", "src"),
    ("img", "src"),
    ("iframe", "src"),
    ("source", "srcset"),
    ("video", "src"),
}
CSS = re.compile(r"(?:url\(|@import)\s*[\"']?([^\"')\s;]+)")


class Resources(HTMLParser):
    """What a browser loads for a page: addresses; and where links lead to that one may follow."""

    def __init__(self, page: str):
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.loaded += CSS.findall(page)
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if (tag, name) in LOADED and value:
                self.loaded.append(value)
            elif tag == "a" and name == "href" and value:
                self.links.append(value)
            elif name == "id" and value:
                self.ids.add(value)


def build(root: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """`make site` in a copy of the repository."""
    line = [sys.executable, "-m", "docs.sphinx.build", str(out)]
    return subprocess.run(line, cwd=root, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("site") / "site"
    result = build(ROOT, out)
    assert result.returncode == 0, result.stderr
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Resources]:
    return {path: Resources(path.read_text()) for path in site.rglob("*.html")}


def test_nothing_is_loaded_from_the_network_and_all_that_is_loaded_is_there(
    site: Path, pages: dict[Path, Resources]
) -> None:
    styles = {path: CSS.findall(path.read_text()) for path in site.rglob("*.css")}
    found = {path: page.loaded for path, page in pages.items()} | styles
    assert sum(map(len, found.values())) > 100
    for path, addresses in found.items():
        for address in addresses:
            if address.startswith(("data:", "#")):
                continue
            assert not urlsplit(address).netloc, f"{path.name} loads {address}"
            assert (path.parent / urlsplit(address).path).exists(), f"{path.name} loads {address}"


def test_every_link_within_the_site_leads_somewhere(site: Path, pages: dict[Path, Resources]) -> None:
    checked = 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / parts.path).resolve() if parts.path else path
            assert target.exists(), f"{path.relative_to(site)} leads to {link}"
            if parts.fragment and target in pages:
                assert parts.fragment in pages[target].ids, f"{path.relative_to(site)} leads to {link}"
            checked += 1
    assert checked > 1000


def test_every_command_page_of_docs_and_name_of_the_api_is_in_the_site(
    site: Path, pages: dict[Path, Resources]
) -> None:
    home = {urlsplit(link).path for link in pages[site / "index.html"].links}
    for name in (path.stem for path in (ROOT / "man").glob("elbo*.[15]")):
        assert f"commands/{name}.html" in home
        assert f"<h1>{name.replace('-', ' ')}" in (site / "commands" / f"{name}.html").read_text()
    for path in (ROOT / "docs").glob("*.md"):
        assert f"docs/{path.stem}.html" in home
    listed = set(re.findall(r"<h2>(\w+)<", (site / "reference" / "elbocli.html").read_text()))
    assert set(reference.api_names()) == listed


def named_options(text: str) -> list[tuple[str, str]]:
    """(command, option) wherever code on a page has a line of elbo's."""
    code = re.findall(r"^```\w*\n(.*?)^```|`([^`]+)`", text, re.M | re.S)
    found = []
    for line in re.split(r"[\n|;&()]", "\n".join(block or inline for block, inline in code).replace("\\\n", " ")):
        words = line.partition("#")[0].split()
        if "elbo" in words[:3] or (words[:1] == ["torchrun"] and "elbo" in words):
            path = words[words.index("elbo") + 1 :]
            deep = 2 if path[:1] == ["weights"] else 1
            found += [(" ".join(path[:deep]), word.partition("=")[0]) for word in path if re.match(r"--[a-z]", word)]
    return found


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda path: path.name
)
def test_every_option_that_a_page_names_is_one_of_its_command(path: Path) -> None:
    for name, option in named_options(path.read_text()):
        if name.startswith("--"):
            continue
        command: click.Command | None = elbo
        for word in name.split():
            assert isinstance(command, click.Group)
            command = command.get_command(click.Context(command), word)
        assert command is not None, f"{path.name}: there is no elbo {name}"
        known = {each for parameter in command.params for each in (*parameter.opts, *parameter.secondary_opts)}
        assert option in {*known, "--help", "--version"}, f"{path.name}: elbo {name} has no {option}"


def test_options_on_pages_are_found() -> None:
    page = "Say `elbo sample run --steps=3 | elbo eval --ref x`.\n```\nA=1 elbo weights check edm \\\n  --json  # --no\n```\n"
    assert named_options(page) == [("sample", "--steps"), ("eval", "--ref"), ("weights check", "--json")]


def test_each_option_of_a_command_stands_on_its_page(site: Path) -> None:
    text = " ".join(re.findall("<dt>.*?</dt>", (site / "commands" / "elbo-bound.html").read_text()))
    names = [option for parameter in bound.params for option in parameter.opts if option.startswith("--")]
    assert len(names) > 10 and [name for name in names if name not in text] == []


@pytest.mark.slow
def test_the_build_notices_what_leads_nowhere(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for name in ("docs", "man", "examples", "elbocli"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        shutil.copy(ROOT / name, copy)
    for page, added in (
        ("docs/prep.md", "\n[x](nowhere.md)\n[x](datasets.md#no-such-heading)\n"),
        ("README.md", "\n![x](docs/nothing.png)\n"),
        ("docs/unlisted.md", "# A page that no list of pages names\n"),
    ):
        with (copy / page).open("a") as file:
            file.write(added)
    result = build(copy, tmp_path / "site")
    assert result.returncode != 0
    for said in ("nowhere.md", "no-such-heading", "nothing.png", "unlisted.md: WARNING: document isn't included"):
        assert said in result.stderr


def test_manual_pages_become_markdown() -> None:
    roff = '.TH ELBO-X 1 2026 "a" "b"\n.SH NAME\nelbo\\-x \\- Say *this*\n.SH OPTIONS\n.TP\n.B \\-\\-all\nDo\nit.\n.PP\n.nf\nelbo \\-x \\\\e\n.fi\n'
    assert manual.markdown(roff) == (
        "# elbo x\n\n## Name\n\nelbo-x - Say \\*this\\*\n\n## Options\n\n`--all`\n: Do it.\n\n```sh\nelbo -x \\\\\n```\n"
    )
    with pytest.raises(ValueError, match=r"\.IP"):
        manual.markdown(".IP x\n")
