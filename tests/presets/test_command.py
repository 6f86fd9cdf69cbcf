"""`elbo presets` lists what there is, shows a file as it is, and writes one to edit that means the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from elbocli.files.checkpoint import RunData
from elbocli.files.dataset import Dataset
from elbocli.files.yaml_text import parse_yaml
from elbocli.nn.presets import FOLDER, NAMES, load_preset
from elbocli.presets.command import editable
from elbocli.run.settings import preset_data, resolve

Elbo = Callable[..., CompletedProcess[bytes]]
PAGE = Path(__file__).parents[2] / "docs/presets.md"
KEY = re.compile(r"^  #(?=\w+: )", re.M)


def data_of(name: str) -> RunData:
    found = preset_data(name)
    assert found is not None
    return found


def test_the_list_says_of_each_what_its_file_says(elbo: Elbo) -> None:
    rows = {row["name"]: row for row in json.loads(elbo("presets", "list", "--json").stdout)}
    assert list(rows) == list(NAMES)
    for name, row in rows.items():
        preset = load_preset(name)
        assert row["sizes"] == "{}-{}".format(*preset.about.pixels)
        assert (row["least_images"], row["device"] == "GPU") == (preset.about.images, preset.about.gpu)
        assert (row["steps"], row["batch"]) == (preset.train["steps"], preset.train["batch"])
        assert f"{row['parameters']:,} parameters" in " ".join(re.findall(r"[^\s#]+", preset_comment(name)))


def preset_comment(name: str) -> str:
    return "\n".join(line for line in (FOLDER / f"{name}.yaml").read_text().splitlines() if line.startswith("#"))


def test_the_table_has_a_line_for_each(elbo: Elbo) -> None:
    heading, *lines = elbo("presets", "list").stdout.decode().splitlines()
    assert heading.split()[:3] == ["NAME", "OF", "SIZES"]
    assert [line.split()[0] for line in lines] == list(NAMES)


def test_one_is_shown_as_its_file_has_it(elbo: Elbo, tmp_path: Path) -> None:
    assert elbo("presets", "show", "cifar").stdout == (FOLDER / "cifar.yaml").read_bytes()
    (tmp_path / "mine.yaml").write_text("network: {channels: 8}\ntrain: {lr: 1e-4}\n")
    assert b"channels: 8" in elbo("presets", "show", "mine.yaml", cwd=tmp_path).stdout


@pytest.mark.parametrize("words", [("show", "cifr"), ("write", "cifr", "a.yaml")])
def test_an_unknown_name_is_answered_with_the_known(words: tuple[str, ...], elbo: Elbo, tmp_path: Path) -> None:
    result = elbo("presets", *words, cwd=tmp_path)
    assert result.returncode == 2 and b"cifar" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_one_written_to_edit_means_the_same_also_with_every_key_that_it_shows(name: str, tmp_path: Path) -> None:
    """Keys that the preset leaves out are shown with what they are when left out."""
    path, preset = tmp_path / "mine.yaml", load_preset(name)
    wanted = resolve({"preset": name, "device": "cpu"}, data_of(name)).config()
    text = editable(name, preset)
    assert max(map(len, text.splitlines())) < 130
    hidden = [line for line in text.splitlines() if line.startswith("  #kind:")]
    for content in (text, KEY.sub("  ", text.replace("\n".join(hidden), ""))):
        path.write_text(content)
        read = load_preset(str(path))
        assert (read.data, read.about.gpu) == (preset.data, preset.about.gpu)
        found = resolve({"preset": str(path), "device": "cpu"}, data_of(name)).config()
        found.settings["preset"] = name
        assert found == wanted


def test_every_key_that_is_shown_is_explained() -> None:
    lines = editable("small32-uvit", load_preset("small32-uvit")).splitlines()
    for before, line in pairwise(lines):
        if re.match(r"  #?\w+: ", line):
            assert re.match(r"  # \S", before), line


def test_a_file_is_written_and_trains_as_its_preset(elbo: Elbo, digits: Path, tmp_path: Path) -> None:
    assert elbo("presets", "write", "digits", "mine.yaml", cwd=tmp_path).returncode == 0
    assert elbo("presets", "write", "digits", cwd=tmp_path).stdout == (tmp_path / "mine.yaml").read_bytes()
    plans = [
        parse_yaml(elbo("train", digits, "--dry-run", "--preset", each, cwd=tmp_path).stdout.decode(), each)
        for each in ("digits", "mine.yaml")
    ]
    assert [plan.pop("preset") for plan in plans] == ["digits", "mine.yaml"]
    assert plans[0] == plans[1]


def test_nothing_is_replaced_unasked_and_the_name_must_be_one_that_is_read(elbo: Elbo, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("mine")
    result = elbo("presets", "write", "digits", "mine.yaml", cwd=tmp_path)
    assert result.returncode == 2 and b"--overwrite" in result.stderr
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    assert elbo("presets", "write", "digits", "mine.yaml", "--overwrite", cwd=tmp_path).returncode == 2
    assert (tmp_path / "mine.yaml").read_text() == "mine"
    result = elbo("presets", "write", "digits", "mine.txt", cwd=tmp_path)
    assert result.returncode == 2 and b"ends in .yaml" in result.stderr


def test_the_page_says_what_the_command_says() -> None:
    line = [sys.executable, Path(__file__).with_name("page.py"), PAGE]
    said = subprocess.run(line, capture_output=True, text=True, check=True).stdout
    assert PAGE.read_text() == said, "make docs writes it anew"


def test_a_dataset_takes_the_preset_that_is_listed_for_it(digits: Path) -> None:
    assert resolve({"device": "cpu"}, Dataset(digits)).settings.preset == "digits"
