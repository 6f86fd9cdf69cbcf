"""`elbo presets` lists what there is, and shows a file as it is."""

import json
import re
from dataclasses import fields
from pathlib import Path

from elbocli.files.dataset import Dataset
from elbocli.files.yaml_text import parse_yaml
from elbocli.networks import NETWORKS
from elbocli.runs.presets import FOLDER, NAMES, load_preset
from elbocli.runs.settings import resolve

ROOT = Path(__file__).parents[2]


def test_the_list_says_of_each_what_its_file_says(elbo):
    rows = {row["name"]: row for row in json.loads(elbo("presets", "list", "--json").stdout)}
    assert list(rows) == list(NAMES)
    for name, row in rows.items():
        preset = load_preset(name)
        assert row["sizes"] == "{}-{}".format(*preset.about.pixels)
        assert (row["least_images"], row["device"] == "GPU") == (preset.about.images, preset.about.gpu)
        assert row["channels"] == preset.about.channels
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


def test_a_preset_that_is_shown_into_a_file_trains_as_itself(elbo, digits, tmp_path):
    (tmp_path / "mine.yaml").write_bytes(elbo("presets", "show", "digits").stdout)
    plans = [
        parse_yaml(elbo("train", digits, "--dry-run", "--preset", each, cwd=tmp_path).stdout.decode(), each)
        for each in ("digits", "mine.yaml")
    ]
    assert [plan.pop("preset") for plan in plans] == ["digits", "mine.yaml"]
    assert all(plan.pop("time") for plan in plans)
    assert plans[0] == plans[1]


def test_a_dataset_takes_the_preset_that_is_listed_for_it(digits):
    assert resolve({"device": "cpu"}, Dataset(digits)).settings.preset == "digits"


def test_every_key_of_a_network_is_on_the_page():
    table = (ROOT / "docs/presets.md").read_text().partition("## Keys of the network")[2].partition("\n## ")[0]
    for family in ("unet", "edm2", "uvit", "dit", "jit"):
        rows = [
            cells[2]
            for line in table.splitlines()
            if (cells := line.split("|"))[1:] and {f"`{family}`", "all"} & set(cells[1].replace(",", "").split())
        ]
        known = {each.name for each in fields(NETWORKS[family].config)} - {"image_size", "image_channels", "num_classes"}
        assert known <= set(re.findall(r"`(\w+)`", " ".join(rows))), family
