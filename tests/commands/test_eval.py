"""`elbo eval` as a user types it: repeats, cards, saved features, pictures, mistakes."""

import json

import numpy as np
import pytest
from calls import save
from PIL import Image

from elbocli.files.dataset import Dataset
from elbocli.scoring.metrics import METRICS, metric_options
from elbocli.scoring.metrics.coverage import PRC_PROTOCOLS

LINE = ("--extractor", "elbo-tiny", "--metrics", "fid")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, digits):
    """A folder with data.h5 and two files of 120 images, a.npy and b.npy."""
    folder = tmp_path_factory.mktemp("a folder")
    (folder / "data.h5").write_bytes(digits.read_bytes())
    for k, name in enumerate("ab"):
        save(folder / f"{name}.npy", Dataset(digits).read(np.arange(k, 240, 2)))
    return folder


def test_features_repeats_and_pictures(elbo, folder):
    assert elbo("eval", "data.h5", *LINE, "--save-features", "ref.safetensors", cwd=folder).returncode == 0
    how = ("--precision", "bf16", "--allow-mismatch")
    both = elbo("eval", "a.npy", "b.npy", "--ref", "ref.safetensors", *how, cwd=folder)
    assert both.returncode == 0 and b"120 images" in both.stderr, both.stderr
    found = json.loads(both.stdout)
    assert found["extractor"] == "elbo-tiny" and len(found["repeats"]) == 2 and found["feature_precision"] == "bf16"
    line = ("eval", "a.npy", "--ref", "data.h5", *LINE, "--neighbours", "n.png")
    assert elbo(*line, cwd=folder).returncode == 0
    with Image.open(folder / "n.png") as image:
        assert image.format == "PNG"
    refused = elbo(*line, cwd=folder)
    assert refused.returncode == 2 and b"already exists" in refused.stderr


OPTIONS = {
    "is": "--splits=3",
    "kid": "--kid-subset-size=9",
    "prc": "--prc-protocol=adm",
}


@pytest.mark.parametrize(
    ("line", "code", "word"),
    [
        *((f"a.npy --metrics accuracy {option}", 2, f"--metrics {metric}") for metric, option in OPTIONS.items()),
        ("a.npy --metrics fod", 2, "did you mean fid"),
        ("a.npy --metrics kid", 1, "1000"),
        ("a.npy - --metrics fid", 2, "stream"),
        ("a.npy --precision fp16", 2, "fp16"),
        ("- --metrics fid --neighbours m.png", 2, "--neighbours"),
        ("a.npy --save-stats none/x.npz", 1, "none"),
        ("a.npy --save-features none/x.safetensors", 1, "none"),
        ("a.npy --save-stats x.safetensors --save-features x.safetensors", 2, "two"),
        ("nowhere.npy --protocol adm --splits 5", 2, "splits is 5"),
        ("nowhere.npy --protocol edm --splits 10", 2, "--metrics is"),
        ("nowhere.npy --protocol edm3", 2, "edm3"),
    ],
)
def test_mistakes_are_told(line, code, word, elbo, folder):
    assert set(OPTIONS) == {option.metric for option in metric_options()}
    extractor = () if "--protocol" in line else LINE[:2]
    stdin = (folder / "a.npy").read_bytes() if line[0] == "-" else b""
    done = elbo("eval", *line.split(), "--ref", "data.h5", *extractor, cwd=folder, stdin=stdin)
    assert done.returncode == code and word in done.stderr.decode() and not done.stdout, done.stderr


def test_every_metric_and_protocol_is_listed(elbo):
    listed = {each["name"]: each["formula"] for each in json.loads(elbo("list", "metrics", "--json").stdout)}
    assert listed == {metric.name: metric.formula for metric in METRICS.values()}
    said = elbo("eval", "--help").stdout.decode()
    assert all(name in said for name in PRC_PROTOCOLS)
