"""`elbo report` as typed, and its page in a browser: no errors, readable at any width, light and dark."""

import html
import json
import os
import pty
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from elbocli.files.yaml_text import read_yaml, yaml_text

CHROMIUM = shutil.which("chromium")
ALERT = "<script>alert(1)</script>"
LEAST_TEXT = 8.5
"""Pixels: no text is smaller, in drawings on a telephone either."""
MEASURE = """
onload = () => {
  const page = document.getElementById("frame").contentDocument, root = page.documentElement
  const view = page.defaultView
  const drawn = [...page.querySelectorAll("svg text")].map(text => {
    const svg = text.ownerSVGElement
    return parseFloat(view.getComputedStyle(text).fontSize) * svg.getBoundingClientRect().width / svg.viewBox.baseVal.width
  })
  const plain = [...page.querySelectorAll("body *:not(svg, svg *)")].map(e => parseFloat(view.getComputedStyle(e).fontSize))
  document.getElementById("found").textContent = JSON.stringify({
    width: root.clientWidth, needed: root.scrollWidth, height: root.scrollHeight,
    cut: [...page.querySelectorAll(".scroll")].filter(e => e.scrollWidth > e.clientWidth).length,
    drawn: Math.min(...drawn), plain: Math.min(...plain),
    paper: view.getComputedStyle(page.body).backgroundColor, ink: view.getComputedStyle(page.body).color,
    line: view.getComputedStyle(page.querySelector("svg path[style*='--one']")).stroke,
    images: [...page.images].map(image => image.naturalWidth), text: page.body.innerText
  })
}
"""


@pytest.fixture(scope="module")
def run(elbo: Callable[..., Any], trained: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with validation, samples, scores and a bound beside it, a class named by a stranger, and very long words."""
    folder = tmp_path_factory.mktemp("report")
    copy = Path(shutil.copytree(trained, folder / "run"))
    config = read_yaml(copy / "config.yaml")
    config["data"]["class_names"][3] = ALERT
    config |= {"device_name": "x" * 300, "commands": ["elbo train " + "x" * 300]}
    (copy / "config.yaml").write_text(yaml_text(config))
    (copy / "validation.jsonl").write_bytes((copy / "losslog.jsonl").read_bytes())
    line = {
        "step": 40,
        "images": 640,
        "val_images": 9,
        "val_loss": 0.5,
        "val_loss_se": 0.01,
        "val_bpd": 4.5,
        "val_bpd_se": 0.02,
    }
    with open(copy / "metrics.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
    assert elbo("sample", trained, "-n", 40, "--steps", 2, "-o", "s.h5", cwd=folder).returncode == 0
    options = ("--extractor", "elbo-tiny", "--metrics", "fid")
    for name, words in {
        "fid.json": ("eval", "s.h5", "--ref", digits, *options),
        "bound.json": ("bound", trained, "-n", 20),
        "theorem.json": ("bound", trained, "--check", "-n", 20, "--draws", 64),
    }.items():
        result = elbo(*words, cwd=folder)
        assert result.returncode == 0, result.stderr
        (folder / name).write_bytes(result.stdout)
    return copy


@pytest.fixture(scope="module")
def page(elbo: Callable[..., Any], run: Path) -> Path:
    scores = [word for name in ("fid", "bound", "theorem") for word in ("--scores", f"{name}.json")]
    result = elbo("report", "run", "--samples", "s.h5", *scores, "-o", "report.html", cwd=run.parent)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    return run.parent / "report.html"


def test_the_page_goes_to_a_file_or_to_standard_output(elbo: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    assert elbo("report", run, "-o", "a.html", cwd=tmp_path).returncode == 0
    plain = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    result = elbo("report", run, cwd=tmp_path, env=plain)
    page = result.stdout
    assert (result.returncode, result.stderr) == (0, b"") and page == (tmp_path / "a.html").read_bytes()
    (tmp_path / "a.html").write_text("mine")
    result = elbo("report", run, "-o", "a.html", cwd=tmp_path)
    assert result.returncode == 2 and b"already exists" in result.stderr
    assert (tmp_path / "a.html").read_text() == "mine"
    (tmp_path / "a.html").write_text("<!doctype html>")
    assert elbo("report", run, "-o", "a.html", "--overwrite", cwd=tmp_path).returncode == 0
    assert (tmp_path / "a.html").read_bytes() == page
    assert [path.name for path in tmp_path.iterdir()] == ["a.html"]


def test_facts_are_one_json_object(elbo: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    result = elbo("report", run, "--json", cwd=tmp_path)
    facts = json.loads(result.stdout)
    assert result.stderr == b"" and not list(tmp_path.iterdir())
    assert facts["objective"]["verdict"].startswith("never rises") and facts["data"]["class_names"][3] == ALERT
    both = elbo("report", run, "--json", "-o", "a.html", cwd=tmp_path)
    assert both.stdout == result.stdout and (tmp_path / "a.html").exists()


def test_everything_that_was_given_is_in_the_facts(elbo: Callable[..., Any], run: Path) -> None:
    words = ("--scores", "fid.json", "--scores", "bound.json", "--samples", "s.h5")
    facts = json.loads(elbo("report", "run", "--json", *words, cwd=run.parent).stdout)
    for kind, name in (("scores", "fid.json"), ("bound", "bound.json")):
        (found,) = facts[kind]
        assert found.pop("file") == name and found == json.loads((run.parent / name).read_text())
    assert facts["samples"] == {"file": "s.h5", "classes": [*"012", ALERT, *"456789"]}
    commands = {each["command"] for each in facts["commands"]}
    assert any(command.startswith("elbo sample") and "-o s.h5" in command for command in commands)
    assert any(command.startswith("elbo prep") for command in commands)


def test_the_command_that_is_shown_trains_the_same_again(elbo: Callable[..., Any], run: Path, tmp_path: Path) -> None:
    facts = json.loads(elbo("report", run, "--json").stdout)
    again = next(each["command"] for each in facts["commands"] if "--config" in each["command"])
    words = again.split()[1:]
    assert elbo(*words[:-1], tmp_path / "again", "--steps", 5, cwd=tmp_path).returncode == 0
    assert read_yaml(tmp_path / "again" / "config.yaml")["settings"] == {**facts["settings"], "steps": 5}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "nowhere: no such run"),
        (
            ["run", "--scores", "run/status.json"],
            "status.json: not a result of 'elbo eval', 'elbo bound' or 'elbo optimum'",
        ),
        (["run", "--scores", "none.json"], "none.json: could not read"),
        (["run", "--samples", "fid.json"], "fid.json"),
    ],
)
def test_what_is_no_run_no_result_and_no_image_is_refused(
    words: list[str], said: str, elbo: Callable[..., Any], run: Path
) -> None:
    result = elbo("report", *words, "-o", "none.html", cwd=run.parent)
    assert result.returncode == 1 and said in result.stderr.decode() and b"Traceback" not in result.stderr
    assert not (run.parent / "none.html").exists()


@pytest.mark.parametrize("words", [["report"], ["report", "--json"], ["info"]])
def test_a_full_disk_is_told(words: list[str], run: Path) -> None:
    with open("/dev/full", "wb") as out:
        line = [sys.executable, "-m", "elbocli", *words, str(run)]
        result = subprocess.run(line, stdout=out, stderr=subprocess.PIPE, timeout=120, check=False)
    said = f"elbo {words[0]}: error: standard output: No space left on device\n"
    assert (result.returncode, result.stderr.decode()) == (1, said)


def test_a_page_never_goes_onto_a_terminal(run: Path) -> None:
    parent, child = pty.openpty()
    line = [sys.executable, "-m", "elbocli", "report", str(run)]
    result = subprocess.run(line, stdout=child, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(child)
    os.close(parent)
    assert result.returncode == 2 and b"standard output is a terminal; add -o FILE" in result.stderr


def browse(page: Path, width: int, dark: bool, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """What a browser finds on the page in a frame of that width, and what its console says."""
    frame = f'<iframe id="frame" style="border: 0; color-scheme: light dark" width="{width}" height="900"'
    wrapper = folder / "wrapper.html"
    wrapper.write_text(
        f'<!doctype html><meta charset="utf-8">{frame} srcdoc="{html.escape(page.read_text())}"></iframe>'
        f'<p id="found"></p><script>{MEASURE}</script>'
    )
    line = [str(CHROMIUM), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--dump-dom"]
    line += [f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", f"--window-size={width + 20},1000"]
    line += [f"--blink-settings=preferredColorScheme={0 if dark else 1}", wrapper.as_uri()]
    result = subprocess.run(line, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r'<p id="found">(.*?)</p>', result.stdout, re.DOTALL)
    assert found, result.stderr
    console = [each for each in result.stderr.splitlines() if ":CONSOLE" in each]
    return json.loads(html.unescape(found[1])), console


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
@pytest.mark.parametrize("width", [400, 1400])
def test_a_browser_shows_all_of_it_without_errors(width: int, page: Path, tmp_path: Path) -> None:
    light, console = browse(page, width, False, tmp_path)
    assert console == []
    assert (light["width"], light["needed"], light["cut"]) == (width, width, 0)
    assert light["drawn"] >= LEAST_TEXT and light["plain"] >= 12
    assert len(light["images"]) == 12 and min(light["images"]) > 0
    assert ALERT in light["text"] and "frechet distance" in light["text"]
    assert light["height"] < (12_000 if width == 400 else 6_000)
    dark, console = browse(page, width, True, tmp_path)
    assert console == []
    assert (
        sum(map(int, re.findall(r"\d+", dark["paper"])[:3]))
        < 128
        < 600
        < sum(map(int, re.findall(r"\d+", light["paper"])[:3]))
    )
    assert dark["ink"] != light["ink"] and dark["line"] != light["line"]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_shows_several_runs_side_by_side(
    elbo: Callable[..., Any], run: Path, trained: Path, tmp_path: Path
) -> None:
    samples = ("--samples", run.parent / "s.h5") * 2
    assert elbo("report", run, trained, *samples, "-o", "several.html", cwd=tmp_path).returncode == 0
    for width, dark in ((400, True), (1400, False)):
        found, console = browse(tmp_path / "several.html", width, dark, tmp_path)
        assert console == [] and (found["width"], found["needed"]) == (width, width)
        assert found["drawn"] >= LEAST_TEXT and found["plain"] >= 12
        assert len(found["images"]) == 20 and min(found["images"]) > 0 and ALERT in found["text"]


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_the_browser_would_notice(page: Path, tmp_path: Path) -> None:
    """What breaks the page is found: something wide, something that wants to run, something from elsewhere."""
    broken = tmp_path / "broken.html"
    wide = '<div style="width: 900px">x</div><script>1</script><img src="file:///nowhere.png">'
    broken.write_text(page.read_text().replace("</header>", f"{wide}</header>"))
    found, console = browse(broken, 400, False, tmp_path)
    assert found["needed"] > 400 and 0 in found["images"]
    assert sum("Content Security Policy" in each for each in console) == 2
