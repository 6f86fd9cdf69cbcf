"""`elbo presets` lists what there is, shows a file as it is, and writes one to edit that means the same."""

import json
import re
from itertools import pairwise

import pytest

from elbocli.files.dataset import Dataset
from elbocli.files.yaml_text import parse_yaml
from elbocli.nn.presets import FOLDER, NAMES, load_preset
from elbocli.presets.command import editable
from elbocli.run.settings import preset_data, resolve

KEY = re.compile(r"^  #(?=\w+: )", re.M)


def test_the_list_says_of_each_what_its_file_says(elbo):
    rows = {row["name"]: row for row in json.loads(elbo("presets", "list", "--json").stdout)}
    assert list(rows) == list(NAMES)
    for name, row in rows.items():
        preset = load_preset(name)
        assert row["sizes"] == "{}-{}".format(*preset.about.pixels)
        assert (row["least_images"], row["device"] == "GPU") == (preset.about.images, preset.about.gpu)
        assert (row["steps"], row["batch_size"]) == (preset.train["steps"], preset.train["batch_size"])
        comments = "".join(re.findall("^#(.*)", (FOLDER / f"{name}.yaml").read_text(), re.M))
        assert f"{row['parameters']:,} parameters" in " ".join(comments.split())
    heading, *lines = elbo("presets", "list").stdout.decode().splitlines()
    assert heading.split()[:3] == ["NAME", "OF", "SIZES"]
    assert [line.split()[0] for line in lines] == list(NAMES)


def test_one_is_shown_as_its_file_has_it(elbo, tmp_path):
    assert elbo("presets", "show", "cifar").stdout == (FOLDER / "cifar.yaml").read_bytes()
    (tmp_path / "mine.yaml").write_text("network: {channels: 8}\ntrain: {lr: 1e-4}\n")
    assert b"channels: 8" in elbo("presets", "show", "mine.yaml", cwd=tmp_path).stdout


@pytest.mark.parametrize("name", NAMES)
def test_one_written_to_edit_means_the_same_also_with_every_key_that_it_shows(name, tmp_path):
    """Keys that the preset leaves out are shown with what they are when left out."""
    path, preset = tmp_path / "mine.yaml", load_preset(name)
    wanted = resolve({"preset": name, "device": "cpu"}, preset_data(name)).config()
    text = editable(name, preset)
    assert max(map(len, text.splitlines())) < 130
    hidden = [line for line in text.splitlines() if line.startswith("  #kind:")]
    for content in (text, KEY.sub("  ", text.replace("\n".join(hidden), ""))):
        path.write_text(content)
        read = load_preset(str(path))
        assert (read.data, read.about.gpu) == (preset.data, preset.about.gpu)
        found = resolve({"preset": str(path), "device": "cpu"}, preset_data(name)).config()
        found.settings["preset"] = name
        assert found == wanted


def test_every_key_that_is_shown_is_explained():
    lines = editable("small32-uvit", load_preset("small32-uvit")).splitlines()
    for before, line in pairwise(lines):
        if re.match(r"  #?\w+: ", line):
            assert re.match(r"  # \S", before), line


def test_a_file_is_written_and_trains_as_its_preset(elbo, digits, tmp_path):
    assert elbo("presets", "write", "digits", "mine.yaml", cwd=tmp_path).returncode == 0
    assert elbo("presets", "write", "digits", cwd=tmp_path).stdout == (tmp_path / "mine.yaml").read_bytes()
    plans = [
        parse_yaml(elbo("train", digits, "--dry-run", "--preset", each, cwd=tmp_path).stdout.decode(), each)
        for each in ("digits", "mine.yaml")
    ]
    assert [plan.pop("preset") for plan in plans] == ["digits", "mine.yaml"]
    assert plans[0] == plans[1]


def test_a_dataset_takes_the_preset_that_is_listed_for_it(digits):
    assert resolve({"device": "cpu"}, Dataset(digits)).settings.preset == "digits"
