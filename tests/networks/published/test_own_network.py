"""Networks of one's own, declared in a plug-in (examples/networks), through all commands."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
import yaml
from calls import trains, works
from harness import BIN
from safetensors.torch import load_file, save_file

Elbo = Callable[..., CompletedProcess[bytes]]
EXAMPLE = Path(__file__).parents[3] / "examples" / "networks"
RANGE = ("--prediction", "v", "--logsnr-min", -10, "--logsnr-max", 10)
SAID = (*RANGE, "--size", 8, "--channels", 1)
DECLARED = """
from dataclasses import dataclass
import torch
import elbocli.plugin as elbo

@dataclass(frozen=True)
class Config(elbo.NetworkConfig):
    widths: tuple[int, ...] = (4,)
    code: str = "logsnr"
    variance: bool = True

@elbo.network("pair", config=Config, source="here")
class Pair(elbo.Network):
    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Conv2d(config.image_channels, 2 * config.image_channels, 1)
        self.extra = torch.nn.Linear(len(config.widths), config.widths[-1])
    def outputs(self, z, logsnr, labels=None):
        return self.layer(z)

@elbo.network("flat", config=elbo.NetworkConfig, source="here")
class Flat(elbo.Network):
    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Linear(64, 3)
    def forward(self, z, logsnr, labels=None):
        return self.layer(z.flatten(1))
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The example's files, its network small, and mine.py with weights of its networks."""
    for name in ("small.py", "small.yaml"):
        shutil.copy(EXAMPLE / name, tmp_path)
    preset = yaml.safe_load((tmp_path / "small.yaml").read_text())
    preset["network"] |= {"channels": 8, "depth": 1}
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(preset))
    (tmp_path / "mine.py").write_text(DECLARED)
    pair = {"layer.weight": torch.ones(2, 1, 1, 1), "layer.bias": torch.zeros(2)}
    save_file({**pair, "extra.weight": torch.ones(5, 2), "extra.bias": torch.zeros(5)}, tmp_path / "pair.safetensors")
    save_file({"layer.weight": torch.ones(3, 64), "layer.bias": torch.zeros(3)}, tmp_path / "flat.safetensors")
    return tmp_path


@pytest.mark.long
def test_the_example_is_trained_imported_sampled_and_bounded(elbo, folder, digits):
    """Its weights as another program would save them."""
    plugin = ("--plugin", "small.py")
    words = ("train", digits, "-o", "trained", "--preset", "small.yaml", "--steps", 20, *plugin)
    result = elbo(*words, cwd=folder)
    assert result.returncode == 0, result.stderr
    held = load_file(max((folder / "trained/checkpoints").iterdir()) / "ema-0.995.safetensors")
    torch.save({"ema": {f"net.{name.removeprefix('network.')}": value for name, value in held.items()}}, folder / "w.pt")
    how = ("--network", "small:channels=8,depth=1", "--prefix", "net.", "--rename", "=network.", *SAID, "--num-classes", 10)
    result = elbo("import", "w.pt", "run", *how, *plugin, cwd=folder)
    assert (result.returncode, result.stdout) == (0, b"run\n"), result.stderr
    works(elbo, folder / "run", digits, *plugin)
    trains(elbo, folder / "run", digits, *plugin)
    bound = json.loads(elbo("bound", "run", digits, "-n", 20, "--draws", 4, *plugin, cwd=folder).stdout)
    assert bound["dimensions"] == 64
    draw = ("-n", 2, "--steps", 2, "--guidance-scale", 2)
    drawn = [elbo("sample", run, *draw, *plugin, cwd=folder).stdout for run in ("run", "trained")]
    assert drawn[0] == drawn[1] and len(drawn[0]) > 128
    result = elbo("sample", "run", "-o", "unnamed.npz", cwd=folder)
    assert result.returncode == 2 and b"plug-in small.py" in result.stderr, result.stderr


def test_a_declared_network_gets_its_settings(elbo, folder):
    plugin = ("--plugin", "mine.py")
    words = ("--network", "pair:widths=[3,5],code=sigma", *SAID, *plugin)
    result = elbo("import", "pair.safetensors", "run", *words, cwd=folder)
    assert result.returncode == 0, result.stderr
    config = yaml.safe_load((folder / "run/config.yaml").read_text())["network"]
    assert (config["family"], config["widths"], config["code"]) == ("pair", [3, 5], "sigma")
    result = elbo("sample", "run", "-n", 2, "--steps", 2, "-o", "s.npz", *plugin, cwd=folder)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("network", "said", "code", "word"),
    [
        ("gone", SAID, 1, "gone"),
        ("pair:{", SAID, 1, "YAML"),
        ("pair:wide=3", SAID, 1, "wide"),
        ("pair:code=sigmas", SAID, 2, "sigma?"),
        ("pair", (*RANGE, "--size", 8), 2, "--channels"),
        ("pair", SAID, 1, "[3, 64]"),
        ("flat", SAID, 1, "[2, 3] for z of shape [2, 1, 8, 8]"),
        ("flat", (*SAID, "--size", 9), 1, "fails"),
    ],
)
def test_a_network_that_does_not_fit_is_named(network, said, code, word, elbo, folder):
    result = elbo("import", "flat.safetensors", "run", "--network", network, *said, "--plugin", "mine.py", cwd=folder)
    assert result.returncode == code and word in result.stderr.decode(), result.stderr
    assert b"Traceback" not in result.stderr and not (folder / "run").exists()


@pytest.mark.slow
def test_the_demo_runs(tmp_path):
    variables = {**os.environ, "STEPS": "20", "PYTHON": sys.executable, "PATH": BIN}
    line = ["sh", EXAMPLE / "demo.sh", tmp_path / "demo"]
    result = subprocess.run(line, env=variables, capture_output=True, check=False)
    assert result.returncode == 0 and b"bits per dimension: trained" in result.stdout, result.stderr


def test_a_program_is_no_checkpoint(elbo, tmp_path):
    with zipfile.ZipFile(tmp_path / "net.pt2", "w") as archive:
        archive.writestr("net/models/model.json", "{}")
    result = elbo("import", "net.pt2", "run", *SAID, cwd=tmp_path)
    assert result.returncode == 1 and b"net.pt2: not usable as a checkpoint: the archive has no data.pkl" in result.stderr
