"""`elbo eval` as a user types it: repeats, cards, saved features, several processes, mistakes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from elbocli.core.metrics import METRICS
from elbocli.core.metrics.coverage import PRC_PROTOCOLS
from elbocli.files.dataset import Dataset

Elbo = Callable[..., Any]
TINY = "frechet_distance[elbo-tiny]"


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> list[Path]:
    """Two files of 120 images."""
    folder = tmp_path_factory.mktemp("samples")
    images = Dataset(digits).batch(np.arange(240))
    for k in range(2):
        np.save(folder / f"s{k}.npy", images[k::2])
    return sorted(folder.iterdir())


def check(result: Any, code: int, what: str) -> None:
    said = result.stderr.decode()
    assert result.returncode == code and what in said and "Traceback" not in said, said


def test_features_repeats_and_a_card(elbo: Elbo, digits: Path, samples: list[Path], tmp_path: Path) -> None:
    line = ("--extractor", "elbo-tiny", "--metrics", "fid")
    check(elbo("eval", digits, *line, "--save-features", "ref.safetensors", cwd=tmp_path), 0, "")
    info = elbo("info", "ref.safetensors", cwd=tmp_path)
    assert b"features of images" in info.stdout and b"images_sha256" in info.stdout, info.stderr
    both = elbo("eval", *samples, "--ref", "ref.safetensors", "--fid-infinity", "--card", "card.md", cwd=tmp_path)
    check(both, 0, "120 images, below 10000: FID is biased upwards")
    found = json.loads(both.stdout)
    assert (
        found["extractor"] == "elbo-tiny" and len(found["repeats"]) == 2 and "frechet_distance_sd[elbo-tiny]" in found
    )
    card = (tmp_path / "card.md").read_text()
    assert card.startswith("# Score card\n") and "2 repeats" in card and f"eval {samples[0]}" in card
    check(elbo("eval", samples[0], "--ref", digits, *line, "--card", "card.md", cwd=tmp_path), 2, "already exists")


def test_mistakes_are_told(elbo: Elbo, digits: Path, samples: list[Path]) -> None:
    check(elbo("eval", samples[0], "-", "--ref", digits), 2, "a stream can't be one of several")
    options = {
        "fid": "--fid-infinity",
        "is": "--splits=3",
        "kid": "--kid-subset-size=9",
        "prc": "--prc-protocol=adm",
        "density-coverage": "--coverage-neighbours=3",
        "copying": "--copying-cells=2",
    }
    assert set(options) == {name for name, metric in METRICS.items() if metric.traits.options}
    for metric, option in options.items():
        result = elbo("eval", samples[0], "--ref", digits, "--metrics", "accuracy", option)
        check(result, 2, f"{option.partition('=')[0]} goes with --metrics {metric}")
    check(elbo("eval", samples[0], "--metrics", "fod"), 2, "no metric is called 'fod'; did you mean fid?")
    check(
        elbo("eval", samples[0], "--ref", digits, "--metrics", "kid", "--extractor", "elbo-tiny"),
        1,
        "kid needs at least 1000",
    )


def test_what_can_not_be_saved_is_told_before_the_work(
    elbo: Elbo, digits: Path, samples: list[Path], tmp_path: Path
) -> None:
    line = ("eval", samples[0], "--ref", digits, "--extractor", "nosuch.pt2")
    for option, name in (("--save-stats", "x.npz"), ("--save-features", "x.safetensors"), ("--card", "x.md")):
        check(elbo(*line, option, tmp_path / "none" / name), 1, f"there is no folder {tmp_path / 'none'}")
    same = ("--save-stats", tmp_path / "a.safetensors", "--save-features", tmp_path / "a.safetensors")
    check(elbo(*line, *same), 2, "is to hold two results")
    check(elbo(*line, "--card", "-"), 2, "standard output is for other results")


def test_help_names_every_metric_and_protocol(elbo: Elbo) -> None:
    said = " ".join(elbo("eval", "--help").stdout.decode().split())
    for metric in METRICS.values():
        assert f"{metric.name}: {metric.formula}".replace("-", "") in said.replace("- ", "-").replace("-", "")
    assert all(name in said for name in PRC_PROTOCOLS)


@pytest.mark.parametrize(
    "streamed", [pytest.param(False, id="file", marks=pytest.mark.slow), pytest.param(True, id="stream")]
)
def test_under_torchrun_the_same_object_comes_once(
    streamed: bool, elbo: Elbo, digits: Path, samples: list[Path], tmp_path: Path
) -> None:
    line = ["eval", "-" if streamed else samples[0], "--ref", digits, "--extractor", "elbo-tiny", "--batch", 16]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "elbocli"]
    result = subprocess.run(
        [*torchrun, *map(str, line)],
        input=samples[0].read_bytes() if streamed else None,
        capture_output=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHON_EXEC": sys.executable},
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count(b"below 10000") == 1
    alone = json.loads(elbo(*line[:1], samples[0], *line[2:]).stdout)
    found = json.loads(result.stdout)
    assert found[TINY] == pytest.approx(alone[TINY], rel=1e-9) and found["samples_sha256"] == alone["samples_sha256"]
