"""Names that would move a terminal's cursor, colour it or turn its letters are shown escaped, on every page and in every table."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.dom import minidom

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elbocli.cli.commands import visible, visible_lines
from elbocli.cli.figure import lettered
from elbocli.files.yaml_text import read_yaml, yaml_text

Elbo = Callable[..., Any]
HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
NASTY = "a\n\x1b[31mred\r\x07\u202eb\x9b$x_{$"
SHOWN = "a\\n\\x1b[31mred\\r\\x07\\u202eb\\x9b$x_{$"
SCHEDULER = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 10,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "prediction_type": "epsilon",
}


def hidden(text: str) -> set[str]:
    return {letter for letter in text if unicodedata.category(letter) in HIDDEN} - {"\n"}


@given(st.text())
def test_what_is_shown_is_printable_in_lines_of_its_own(text: str) -> None:
    lines = visible(text).split("\n")
    assert all(line.isprintable() for line in lines)
    assert all(line.startswith("  ") for line in lines[1:])
    assert visible(visible(text)) == visible(text)


@given(st.text(alphabet=st.characters(exclude_categories=["C", "Z"])))
def test_plain_text_is_shown_as_it_is(text: str) -> None:
    assert visible(text) == text
    assert visible(f"{text}:\n  {text}") == f"{text}:\n  {text}"
    assert visible_lines(f"{text}\n{text}") == f"{text}\n{text}"


@given(st.text())
def test_a_whole_text_keeps_its_lines(text: str) -> None:
    shown = visible_lines(text)
    assert not hidden(shown) and shown.count("\n") == text.count("\n") and visible_lines(shown) == shown


@given(st.text())
def test_a_name_on_a_figure_is_no_mathematics(text: str) -> None:
    assert "$" not in lettered(text).replace(r"\$", "") and lettered(text).isprintable()


@pytest.fixture
def odd_run(trained: Path, tmp_path: Path) -> Path:
    """A run of that name, whose classes are called so."""
    run = tmp_path / NASTY
    shutil.copytree(trained, run)
    config = read_yaml(run / "config.yaml")
    config["data"]["class_names"] = [f"{NASTY}{index}" for index in range(10)]
    config["commands"] = [f"elbo train '{NASTY}'"]
    (run / "config.yaml").write_text(yaml_text(config))
    return run


def test_no_page_holds_them(elbo: Elbo, odd_run: Path, digits: Path, tmp_path: Path) -> None:
    drawn = elbo("sample", NASTY, "-n", 20, "--steps", 2, "-o", f"{NASTY}.h5", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    for runs in ([NASTY], [NASTY, NASTY]):
        samples = [word for _ in runs for word in ("--samples", f"{NASTY}.h5")]
        page = elbo("report", *runs, *samples, cwd=tmp_path).stdout.decode()
        assert "\\x1b[31mred" in page and not hidden(page)
    line = ("--ref", digits, "--extractor", "elbo-tiny", "--metrics", "fid", "--card", f"{NASTY}.md")
    assert elbo("eval", f"{NASTY}.h5", *line, cwd=tmp_path).returncode == 0
    card = (tmp_path / f"{NASTY}.md").read_text()
    assert "\\x1b[31mred" in card and not hidden(card)


def test_info_shows_them_escaped(elbo: Elbo, odd_run: Path, tmp_path: Path) -> None:
    assert elbo("sample", NASTY, "-n", 20, "--steps", 2, "-o", "x.h5", cwd=tmp_path).returncode == 0
    for name in (NASTY, "x.h5"):
        told = elbo("info", name, cwd=tmp_path).stdout.decode()
        assert "red" in told and all(text.isprintable() for text in told.split("\n"))


def test_weightings_of_such_files_are_shown_escaped(elbo: Elbo, tmp_path: Path) -> None:
    (tmp_path / f"{NASTY}.json").write_text(json.dumps(SCHEDULER))
    spec = f"eps-mse@{NASTY}.json"
    for line in (["check", spec], ["plot", spec], ["show", spec, "--points", 3]):
        done = elbo("weights", *line, cwd=tmp_path)
        assert done.returncode in (0, 1) and SHOWN in done.stdout.decode(), done.stderr
        assert not hidden(done.stdout.decode().replace("\t", ""))
    done = elbo("weights", "plot", spec, "--schedule", f"{NASTY}.json", "-o", f"{NASTY}.svg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    minidom.parse(str(tmp_path / f"{NASTY}.svg"))


def test_names_of_a_plug_in_are_shown_escaped(elbo: Elbo, tmp_path: Path) -> None:
    declared = (
        f"import elbocli.plugin as elbo\n@elbo.weighting({NASTY!r}, formula={NASTY!r}, monotone=True, source='')\n"
        "def odd(logsnr):\n    return logsnr.exp()\n"
    )
    (tmp_path / "own.py").write_text(declared)
    done = elbo("weights", "list", "--plugin", "own.py", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout.decode().count(SHOWN) == 2, done.stderr
    assert all(line.isprintable() for line in done.stdout.decode().split("\n"))


def test_a_traceback_shows_them_escaped(elbo: Elbo, tmp_path: Path) -> None:
    said = elbo("info", "-v", NASTY, cwd=tmp_path).stderr.decode()
    assert "Traceback" in said and "red" in said and not hidden(said)


def test_a_terminal_gets_no_line_that_a_preset_hides(elbo: Elbo, tmp_path: Path) -> None:
    text = elbo("presets", "show", "digits").stdout + "# nothing to see\u202e here\n".encode()
    (tmp_path / "own.yaml").write_bytes(text)
    assert elbo("presets", "show", "own.yaml", cwd=tmp_path).stdout == text
    ours, its = os.openpty()
    subprocess.run(
        [sys.executable, "-m", "elbocli", "presets", "show", "own.yaml"], cwd=tmp_path, stdout=its, check=True
    )
    os.set_blocking(ours, False)
    assert b"see\\u202e here" in os.read(ours, 1 << 16)
