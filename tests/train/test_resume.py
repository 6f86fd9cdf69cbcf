"""`elbo train -o RUN` goes on with RUN, and `--config RUN/config.yaml` trains that very network again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from elbocli.files.checkpoint import latest, read_config

PLUGIN = """
from dataclasses import dataclass
from torch import nn
import elbocli.plugin as elbo

@dataclass(frozen=True)
class Config(elbo.NetworkConfig):
    width: int = 8

@elbo.network("thin", config=Config, source="a test")
class Thin(elbo.Network):
    def __init__(self, config):
        super().__init__(config)
        self.layers = nn.Sequential(
            nn.Conv2d(config.image_channels, config.width, 1), nn.Conv2d(config.width, config.image_channels, 1))

    def forward(self, z, logsnr, labels):
        return self.layers(z)
"""


@pytest.fixture
def folder(tmp_path: Path, digits: Path, preset: Path) -> Path:
    """A folder with a dataset and a preset of one's own."""
    (tmp_path / "d.h5").symlink_to(digits)
    (tmp_path / "own.yaml").write_text(preset.read_text())
    return tmp_path


@pytest.fixture
def train(folder: Path, elbo: Callable[..., Any]) -> Callable[..., Any]:
    """train(*words, code=0): `elbo train` in that folder; its stderr."""

    def run(*words: Any, code: int = 0, **env: str) -> str:
        done = elbo("train", *words, cwd=folder, env=env)
        assert done.returncode == code, done.stderr.decode()
        return str(done.stderr.decode())

    return run


@pytest.fixture
def plan(folder: Path, elbo: Callable[..., Any]) -> Callable[..., dict[str, Any]]:
    """plan(*words): what `elbo train --dry-run` prints there."""

    def run(*words: Any) -> dict[str, Any]:
        done = elbo("train", "--dry-run", *words, cwd=folder)
        assert done.returncode == 0, done.stderr.decode()
        return dict(yaml.safe_load(done.stdout))

    return run


def weights_of(run: Path) -> dict[str, bytes]:
    saved = latest(run)
    assert saved is not None
    return {name: (saved.path / name).read_bytes() for name in saved.meta.files if name.endswith(".safetensors")}


def shape_of(run: Path) -> list[tuple[str, list[int]]]:
    """Names and shapes of a run's weights, as the header of their file has them."""
    content = weights_of(run)["model.safetensors"]
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return sorted((name, about["shape"]) for name, about in header.items() if name != "__metadata__")


def change(preset: Path) -> None:
    preset.write_text(preset.read_text().replace("channels: 8", "channels: 16").replace("lr: 2.0e-3", "lr: 5.0e-3"))


@pytest.mark.parametrize("became", [change, Path.unlink], ids=["changed", "deleted"])
def test_the_runs_name_alone_goes_on_to_the_same_bits_whatever_became_of_its_preset(
    became: Callable[[Path], None], train: Callable[..., str], folder: Path
) -> None:
    asked = ("d.h5", "--preset", "own.yaml", "--weighting", "edm", "--shift", 1, "--lr-decay", "linear", "--flip")
    train(*asked, "-o", "whole", "--steps", 30)
    shutil.copytree(folder / "whole", folder / "run")
    shutil.rmtree(folder / "run" / "checkpoints" / "step-00000030")  # as if it had been killed after step 20
    became(folder / "own.yaml")
    said = train("-o", "run")
    assert "dataset d.h5" in said and "going on after step 20" in said
    assert weights_of(folder / "run") == weights_of(folder / "whole")
    said = train(*asked, "-o", "run", "--steps", 31)
    assert "going on after step 30" in said
    kept, whole = ({**read_config(folder / run).settings, "steps": 0} for run in ("run", "whole"))
    assert kept == whole


def test_what_is_given_and_differs_is_refused_wherever_it_is_given(train: Callable[..., str], folder: Path) -> None:
    train("d.h5", "--preset", "own.yaml", "--weighting", "edm", "--steps", 10)
    (folder / "c.yaml").write_text("weighting: sigmoid\n")
    refused = "--weighting: the run has edm:mean=-1.2,std=1.2,sigma_data=0.5, asked for sigmoid:bias=0"
    said = [
        train("--weighting", "sigmoid:bias=0", code=2),
        train("--config", "c.yaml", "--bias", 0, code=2),
        train(code=2, ELBO_TRAIN_WEIGHTING="sigmoid:bias=0"),
    ]
    assert all(refused in each and each.count("the run has") == 1 for each in said)
    (folder / "c.yaml").write_text("steps: 11\n")
    assert "going on after step 10" in train("--config", "c.yaml")
    assert "going on after step 11" in train(ELBO_TRAIN_STEPS="12")


def test_a_dataset_that_was_moved_is_named_and_found_where_it_is_named(train: Callable[..., str], folder: Path) -> None:
    train("d.h5", "--preset", "own.yaml", "--steps", 2)
    (folder / "d.h5").rename(folder / "moved.h5")
    said = train("--steps", 3, code=1)
    assert "error: d.h5: no such dataset" in said
    train("moved.h5", "--steps", 3)
    assert "dataset moved.h5" in train("--steps", 4)


def test_other_data_in_the_datasets_place_is_refused(
    train: Callable[..., str], folder: Path, elbo: Callable[..., Any], digits_folder: Path
) -> None:
    train("d.h5", "--preset", "own.yaml", "--steps", 2)
    (folder / "d.h5").unlink()
    packed = elbo("prep", digits_folder, folder / "d.h5", "--size", 8, "--channels", 1, "--limit", 100)
    assert packed.returncode == 0
    assert "data payload_sha256: the run has" in train(code=2)


def test_a_run_that_got_nowhere_goes_on_by_its_name_and_begins_anew_with_its_data(
    train: Callable[..., str], plan: Callable[..., dict[str, Any]], folder: Path
) -> None:
    train("d.h5", "--preset", "own.yaml", "--weighting", "edm", "--steps", 2)
    for gone in ("metrics.jsonl", "checkpoints", "status.json"):
        (folder / "run" / gone).rename(folder / gone)
    (folder / "run" / "checkpoints").mkdir()
    assert plan()["weighting"] == plan("--batch", 8)["weighting"] == "edm:mean=-1.2,std=1.2,sigma_data=0.5"
    assert plan("d.h5")["preset"] == plan("--preset", "digits")["preset"] == "digits"
    assert "new run; " in train("--steps", 3, "--batch", 8)
    assert read_config(folder / "run").settings["batch"] == 8


def test_a_dry_run_plans_for_the_run(
    train: Callable[..., str], plan: Callable[..., dict[str, Any]], folder: Path
) -> None:
    train("d.h5", "--preset", "own.yaml", "--weighting", "edm", "--batch", 8, "--steps", 2)
    (folder / "own.yaml").unlink()
    planned = plan("--steps", 50)
    assert [planned[key] for key in ("preset", "batch", "steps", "data")] == ["own.yaml", 8, 50, "d.h5"]
    assert planned["weighting"].startswith("edm:")
    assert plan("--preset", "digits")["batch"] == 64


@pytest.mark.parametrize("became", [change, Path.unlink], ids=["changed", "deleted"])
def test_a_runs_config_trains_that_very_network_whatever_became_of_its_preset(
    became: Callable[[Path], None], train: Callable[..., str], folder: Path
) -> None:
    train("d.h5", "--preset", "own.yaml", "--set", "network.dropout=.2", "--steps", 2)
    became(folder / "own.yaml")
    train("d.h5", "--config", "run/config.yaml", "-o", "again")
    assert weights_of(folder / "again") == weights_of(folder / "run")
    first, again = (read_config(folder / run) for run in ("run", "again"))
    assert all(getattr(first, section) == getattr(again, section) for section in ("settings", "network", "data"))
    train("--config", "run/config.yaml", "-o", "other", "--seed", 1, "--unconditional")
    assert read_config(folder / "other").network == {**first.network, "num_classes": 0}


def test_a_plug_ins_network_goes_on_and_is_rebuilt_where_the_plug_in_is_named(
    train: Callable[..., str], folder: Path
) -> None:
    (folder / "mine.py").write_text(PLUGIN)
    (folder / "own.yaml").write_text("network: {family: thin, width: 5}\ntrain: {batch: 8, preview_every: 0}\n")
    named = ("--plugin", "mine.py")
    train("d.h5", "--preset", "own.yaml", "--steps", 2, *named)
    (folder / "own.yaml").unlink()
    assert "add --plugin mine.py" in train(code=2)
    assert "going on after step 2" in train("--steps", 3, *named)
    assert "add --plugin mine.py" in train("--config", "run/config.yaml", "-o", "again", code=2)
    train("--config", "run/config.yaml", "-o", "again", *named)
    assert shape_of(folder / "again") == shape_of(folder / "run")


def test_a_run_goes_on_from_another_folder_and_is_measured_there(
    folder: Path, train: Callable[..., Any], elbo: Callable[..., Any]
) -> None:
    train("d.h5", "-o", "runs/a", "--preset", "own.yaml", "--steps", 2, "--save-every", 1)
    elsewhere = folder / "else"
    elsewhere.mkdir()
    on = elbo("train", "-o", "../runs/a", "--steps", 3, cwd=elsewhere)
    assert on.returncode == 0, on.stderr.decode()
    assert b"dataset ../d.h5" in on.stderr and b"going on after step 2" in on.stderr
    again = elbo("train", "-o", "b", "--config", "../runs/a/config.yaml", "--dry-run", cwd=elsewhere)
    assert again.returncode == 0 and yaml.safe_load(again.stdout)["data"] == "../d.h5"
    bound = elbo("bound", "../runs/a", "-n", 2, "--batch", 8, cwd=elsewhere)
    assert bound.returncode == 0, bound.stderr.decode()
