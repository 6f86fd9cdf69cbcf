"""A network of one's own by a plug-in, examples/networks: trained, imported, sampled, bounded, through the shell."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
import yaml
from harness import BIN
from import_chain import trains, works
from safetensors.torch import load_file, save_file

Elbo = Callable[..., CompletedProcess[bytes]]
EXAMPLE = Path(__file__).parents[2] / "examples" / "networks"
SAID = ("--prediction", "v", "--size", 8, "--channels", 1, "--logsnr-min", -10, "--logsnr-max", 10)
SMALL = "small.py:Small:channels=8,depth=1"
CLASSES = ("--classes", 10, "--null-class", -1)
DECLARED = """
from dataclasses import dataclass
import torch
import elbocli.plugin as elbo

@dataclass(frozen=True)
class Config(elbo.NetworkConfig):
    widths: tuple[int, ...] = (4,)
    code: str = "logsnr"

@elbo.network("declared-of-a-test", config=Config, source="here")
class Declared(elbo.Network):
    def __init__(self, config):
        super().__init__(config)
        self.layer = torch.nn.Conv2d(config.image_channels, config.image_channels, 1)
        self.extra = torch.nn.Linear(len(config.widths), config.widths[-1])
    def forward(self, z, logsnr, labels=None):
        return self.layer(z) + self.extra.weight.sum()

class Pair(torch.nn.Module):
    def __init__(self, image_channels, drop=0.1):
        super().__init__()
        self.drops = torch.linspace(0, drop, 3).tolist()
        self.rates = torch.linspace(0, 1, 4)
        self.layer = torch.nn.Conv2d(image_channels, 2 * image_channels, 1)
    def forward(self, z, sigma):
        return self.layer(z) + (sigma[:, None] * self.rates).sin().sum(1)[:, None, None, None]

class Flat(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 3)
    def forward(self, z, level, labels):
        return self.layer(z.flatten(1))

class Wants(torch.nn.Module):
    def __init__(self, width):
        super().__init__()

Linear = torch.nn.Linear
number = 3
"""

COMPARED = """
import sys
from pathlib import Path
import torch
import elbocli
from elbocli.files.plugins import run_plugin

run_plugin(Path(sys.argv[1]) / "mine.py")
network = elbocli.open_run(Path(sys.argv[1]) / "run", "cpu").network
z, logsnr = torch.randn(2, 1, 8, 8), torch.tensor([-4.0, 4.0])
sigma = (-logsnr / 2).exp()[:, None]
wanted = z + (sigma * torch.linspace(0, 1, 4)).sin().sum(1)[:, None, None, None]
assert torch.allclose(network(z, logsnr), wanted, atol=1e-5)
assert network.outputs(z, logsnr).shape == (2, 2, 8, 8)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The example's files, its network small, with a state dict of it as another program would save it."""
    for name in ("small.py", "small.yaml"):
        shutil.copy(EXAMPLE / name, tmp_path)
    preset = yaml.safe_load((tmp_path / "small.yaml").read_text())
    preset["network"]["arguments"] = "channels=8,depth=1"
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(preset))
    (tmp_path / "mine.py").write_text(DECLARED)
    return tmp_path


def test_the_example_is_trained_imported_sampled_and_bounded(elbo: Elbo, folder: Path, digits: Path) -> None:
    plugin = ("--plugin", "small.py")
    words: tuple[Any, ...] = ("train", digits, "-o", "trained", "--preset", "small.yaml", *plugin)
    for steps in (10, 20):  # goes on
        result = elbo(*words, "--steps", steps, cwd=folder)
        assert result.returncode == 0, result.stderr
    held = load_file(max((folder / "trained/checkpoints").iterdir()) / "ema-0.995.safetensors")
    other = {f"net.{name.removeprefix('network.')}": value for name, value in held.items()}
    torch.save({"ema": {name.replace("leave.", "out."): value for name, value in other.items()}}, folder / "w.pt")
    words = ("import", "w.pt", "run", "--network", SMALL, "--prefix", "net.", "--rename", "out.=leave.")
    result = elbo(*words, *SAID, *CLASSES, cwd=folder)
    assert (result.returncode, result.stdout) == (0, b"run\n"), result.stderr
    works(elbo, folder / "run", digits, *plugin)
    trains(elbo, folder / "run", digits, *plugin)
    measure = (digits, "-n", 20, "--draws", 4, "--schedule", "uniform", *plugin)
    bounds = [json.loads(elbo("bound", run, *measure, cwd=folder).stdout)["bpd"] for run in ("run", "trained")]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-6)
    draw = ("-n", 2, "--steps", 2, "--guidance", 2)
    drawn = [elbo("sample", run, *draw, *plugin, cwd=folder).stdout for run in ("run", "trained")]
    assert drawn[0] == drawn[1] and len(drawn[0]) > 128
    result = elbo("sample", "run", "-o", "unnamed.npz", cwd=folder)
    assert result.returncode == 2 and b"was trained with the plug-in small.py" in result.stderr, result.stderr


def test_a_plain_class_is_told_a_level_and_gives_variances(elbo: Elbo, folder: Path, python: Any) -> None:
    save_file({"layer.weight": torch.ones(2, 1, 1, 1), "layer.bias": torch.zeros(2)}, folder / "w.safetensors")
    said = ("--network", "mine.py:Pair:drop=0.2", "--levels", "sigma")
    assert elbo("import", "w.safetensors", "run", *said, *SAID, cwd=folder).returncode == 0
    result = elbo("sample", "run", "-n", 2, "--steps", 2, "-o", "s.npz", "--plugin", "mine.py", cwd=folder)
    assert result.returncode == 0, result.stderr
    config = yaml.safe_load((folder / "run/config.yaml").read_text())["network"]
    assert (config["name"], config["arguments"], config["variance"]) == ("mine.py:Pair", "drop=0.2", True)
    python(COMPARED, folder)  # in a process of its own, which alone runs the plug-in


def test_a_declared_network_is_imported_as_what_it_is(elbo: Elbo, folder: Path) -> None:
    tensors = {"layer.weight": torch.ones(1, 1, 1, 1), "layer.bias": torch.zeros(1)}
    save_file({**tensors, "extra.weight": torch.ones(5, 2), "extra.bias": torch.zeros(5)}, folder / "w.safetensors")
    said = ("--network", "mine.py:Declared:widths=[3,5]", "--levels", "sigma")
    result = elbo("import", "w.safetensors", "run", *said, *SAID, cwd=folder)
    assert result.returncode == 0, result.stderr
    config = yaml.safe_load((folder / "run/config.yaml").read_text())["network"]
    assert (config["family"], config["widths"], config["code"]) == ("declared-of-a-test", [3, 5], "sigma")
    result = elbo("sample", "run", "-n", 2, "--steps", 2, "-o", "s.npz", "--plugin", "mine.py", cwd=folder)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize(
    ("network", "said", "code", "told"),
    [
        ("mine.py", SAID, 2, "expected FILE.py:CLASS"),
        ("gone.py:Net", SAID, 2, "no such plug-in"),
        ("mine.py:Gone", SAID, 2, "mine.py: defines no torch.nn.Module Gone"),
        ("mine.py:Wants", SAID, 2, "Wants: can't be made with"),
        ("mine.py:Pair:{", SAID, 1, "not usable YAML"),
        ("mine.py:Pair", (*SAID, "--classes", 3), 2, "its forward takes no labels"),
        ("mine.py:Pair", SAID[:4], 2, "--channels"),
        ("mine.py:Pair", (*SAID, "--levels", "sigmas"), 2, "did you mean sigma?"),
        ("mine.py:Flat", SAID, 1, "network.layer.weight"),
        ("mine.py:Declared:wide=3", SAID, 1, "wide"),
        ("mine.py:Declared", (*SAID, "--null-class", 3), 2, "Declared"),
    ],
    ids=range(11),
)
def test_wrong_ones_are_told(
    network: str, said: tuple[Any, ...], code: int, told: str, elbo: Elbo, folder: Path
) -> None:
    save_file({"weight": torch.ones(3)}, folder / "w.safetensors")
    result = elbo("import", "w.safetensors", "run", "--network", network, *said, cwd=folder)
    assert result.returncode == code and told in result.stderr.decode(), result.stderr
    assert b"Traceback" not in result.stderr and not (folder / "run").exists()


def test_a_network_that_gives_another_shape_is_told_at_once(elbo: Elbo, folder: Path) -> None:
    save_file({"layer.weight": torch.ones(3, 64), "layer.bias": torch.zeros(3)}, folder / "w.safetensors")
    result = elbo("import", "w.safetensors", "run", "--network", "mine.py:Flat", *SAID, cwd=folder)
    assert result.returncode == 1 and b"w.safetensors: the network gives [2, 3] for z [2, 1, 8, 8]" in result.stderr
    result = elbo(
        "import", "w.safetensors", "run", "--network", "mine.py:Flat", *SAID[:2], *SAID[4:], "--size", 9, cwd=folder
    )
    assert result.returncode == 1 and b"w.safetensors: its network fails" in result.stderr, result.stderr


def test_a_run_names_no_class_that_its_plug_in_does_not_define(elbo: Elbo, folder: Path) -> None:
    save_file({"layer.weight": torch.ones(2, 1, 1, 1), "layer.bias": torch.zeros(2)}, folder / "w.safetensors")
    assert elbo("import", "w.safetensors", "run", "--network", "mine.py:Pair", *SAID, cwd=folder).returncode == 0
    path = folder / "run/config.yaml"
    for name in ("mine.py:Linear", "/tmp/x.py:Pair", "torch.py:nn"):
        path.write_text(path.read_text().replace("mine.py:Pair", name))
        result = elbo("sample", "run", "-o", "s.npz", "--plugin", "mine.py", cwd=folder)
        assert result.returncode in (1, 2) and b"Traceback" not in result.stderr, result.stderr
        path.write_text(path.read_text().replace(name, "mine.py:Pair"))


@pytest.mark.slow
def test_the_demo_runs(tmp_path: Path) -> None:
    result = subprocess.run(
        ["sh", EXAMPLE / "demo.sh", tmp_path / "demo"],
        env={**os.environ, "STEPS": "20", "PYTHON": sys.executable, "PATH": BIN},
        capture_output=True,
        timeout=900,
        check=False,
    )
    assert result.returncode == 0 and b"bits per dimension: trained" in result.stdout, result.stderr
