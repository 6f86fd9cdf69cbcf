"""Networks of one's own: a class in a plug-in (examples/networks), through all commands."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
import yaml
from calls import trains, works
from harness import BIN, declarations_kept
from safetensors.torch import load_file, save_file
from torch import Tensor

import elbocli
from elbocli.files.plugins import run_plugin
from elbocli.nn.networks import build
from elbocli.nn.networks.own_network import ModuleConfig

Elbo = Callable[..., CompletedProcess[bytes]]
EXAMPLE = Path(__file__).parents[2] / "examples" / "networks"
RANGE = ("--prediction", "v", "--logsnr-min", -10, "--logsnr-max", 10)
SAID = (*RANGE, "--size", 8, "--channels", 1)
SMALL = "small.py:Small:channels=8,depth=1"
CLASSES = ("--num-classes", 10, "--null-class", -1)
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

class Labels(torch.nn.Module):
    def forward(self, z, level, labels):
        return 0 * z + labels[:, None, None, None]

class Wants(torch.nn.Module):
    def __init__(self, width):
        super().__init__()

Linear = torch.nn.Linear
number = 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The example's files, its network small, and mine.py."""
    for name in ("small.py", "small.yaml"):
        shutil.copy(EXAMPLE / name, tmp_path)
    preset = yaml.safe_load((tmp_path / "small.yaml").read_text())
    preset["network"]["arguments"] = "channels=8,depth=1"
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(preset))
    (tmp_path / "mine.py").write_text(DECLARED)
    return tmp_path


def layer(*shape: int) -> dict[str, Tensor]:
    return {"layer.weight": torch.ones(shape), "layer.bias": torch.zeros(shape[0])}


def network_of(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())["network"]


def test_the_example_is_trained_imported_sampled_and_bounded(elbo, folder, digits):
    """Its weights as another program would save them."""
    plugin = ("--plugin", "small.py")
    words = ("train", digits, "-o", "trained", "--preset", "small.yaml", "--steps", 20, *plugin)
    result = elbo(*words, cwd=folder)
    assert result.returncode == 0, result.stderr
    held = load_file(max((folder / "trained/checkpoints").iterdir()) / "ema-0.995.safetensors")
    other = {f"net.{name.removeprefix('network.')}": value for name, value in held.items()}
    torch.save({"ema": {name.replace("leave.", "out."): value for name, value in other.items()}}, folder / "w.pt")
    how = ("--network", SMALL, "--prefix", "net.", "--rename", "out.=leave.", *SAID, *CLASSES)
    result = elbo("import", "w.pt", "run", *how, cwd=folder)
    assert (result.returncode, result.stdout) == (0, b"run\n"), result.stderr
    works(elbo, folder / "run", digits, *plugin)
    trains(elbo, folder / "run", digits, *plugin)
    measure = (digits, "-n", 20, "--draws", 4, "--schedule", "uniform", *plugin)
    bounds = [json.loads(elbo("bound", run, *measure, cwd=folder).stdout)["bpd"] for run in ("run", "trained")]
    assert bounds[0] == pytest.approx(bounds[1], rel=1e-6)
    draw = ("-n", 2, "--steps", 2, "--guidance-scale", 2)
    drawn = [elbo("sample", run, *draw, *plugin, cwd=folder).stdout for run in ("run", "trained")]
    assert drawn[0] == drawn[1] and len(drawn[0]) > 128
    result = elbo("sample", "run", "-o", "unnamed.npz", cwd=folder)
    assert result.returncode == 2 and b"plug-in small.py" in result.stderr, result.stderr


def test_a_plain_class_gets_its_level_and_gives_variances(elbo, folder):
    save_file(layer(2, 1, 1, 1), folder / "w.safetensors")
    said = ("--network", "mine.py:Pair:drop=0.2", "--noise-input", "sigma")
    assert elbo("import", "w.safetensors", "run", *said, *SAID, cwd=folder).returncode == 0
    result = elbo("sample", "run", "-n", 2, "--steps", 2, "-o", "s.npz", "--plugin", "mine.py", cwd=folder)
    assert result.returncode == 0, result.stderr
    config = network_of(folder / "run")
    assert (config["name"], config["arguments"], config["variance"]) == ("mine.py:Pair", "drop=0.2", True)
    z, logsnr = torch.randn(2, 1, 8, 8), torch.tensor([-4.0, 4.0])
    with declarations_kept():
        run_plugin(folder / "mine.py")
        network = elbocli.open_run(folder / "run", "cpu").network
        outputs, found = network.outputs(z, logsnr), network(z, logsnr)
    sigma = (-logsnr / 2).exp()[:, None]
    wanted = z + (sigma * torch.linspace(0, 1, 4)).sin().sum(1)[:, None, None, None]
    assert torch.allclose(found, wanted, atol=1e-5) and outputs.shape == (2, 2, 8, 8)
    path, text = folder / "run/config.yaml", (folder / "run/config.yaml").read_text()
    for name in ("mine.py:Linear", "/tmp/x.py:Pair", "torch.py:nn"):  # classes that the plug-in doesn't define
        path.write_text(text.replace("mine.py:Pair", name))
        result = elbo("sample", "run", "-o", "t.npz", "--plugin", "mine.py", cwd=folder)
        assert result.returncode in (1, 2) and b"Traceback" not in result.stderr, result.stderr


def test_a_declared_network_is_imported_as_itself(elbo, folder):
    extra = {"extra.weight": torch.ones(5, 2), "extra.bias": torch.zeros(5)}
    save_file({**layer(1, 1, 1, 1), **extra}, folder / "w.safetensors")
    said = ("--network", "mine.py:Declared:widths=[3,5]", "--noise-input", "sigma")
    result = elbo("import", "w.safetensors", "run", *said, *SAID, cwd=folder)
    assert result.returncode == 0, result.stderr
    config = network_of(folder / "run")
    assert (config["family"], config["widths"], config["code"]) == ("declared-of-a-test", [3, 5], "sigma")
    result = elbo("sample", "run", "-n", 2, "--steps", 2, "-o", "s.npz", "--plugin", "mine.py", cwd=folder)
    assert result.returncode == 0, result.stderr


def test_no_class_is_the_label_that_was_named(folder):
    with declarations_kept():
        run_plugin(folder / "mine.py")
        network = build(ModuleConfig(8, 1, 4, name="mine.py:Labels", null_class=(4,)))
    for labels, wanted in ((torch.tensor([2, -1]), [2, 4]), (None, [4, 4])):
        assert network(torch.zeros(2, 1, 8, 8), torch.zeros(2), labels)[:, 0, 0, 0].tolist() == wanted


@pytest.mark.parametrize(
    ("network", "said", "code", "word"),
    [
        ("mine.py", SAID, 2, "FILE.py:CLASS"),
        ("mine.py:Gone", SAID, 2, "Gone"),
        ("mine.py:Wants", SAID, 2, "can't be made"),
        ("mine.py:Pair:{", SAID, 1, "YAML"),
        ("mine.py:Pair", (*SAID, "--num-classes", 3), 2, "labels"),
        ("mine.py:Pair", (*RANGE, "--size", 8), 2, "--channels"),
        ("mine.py:Pair", (*SAID, "--noise-input", "sigmas"), 2, "sigma?"),
        ("mine.py:Pair", SAID, 1, "[3, 64]"),
        ("mine.py:Flat", SAID, 1, "[2, 3] for z of shape [2, 1, 8, 8]"),
        ("mine.py:Flat", (*SAID, "--size", 9), 1, "fails"),
        ("mine.py:Declared:wide=3", SAID, 1, "wide"),
        ("mine.py:Declared", (*SAID, "--null-class", 3), 2, "--null-class"),
    ],
    ids=range(12),
)
def test_a_class_that_does_not_fit_is_named(network, said, code, word, elbo, folder):
    save_file(layer(3, 64), folder / "w.safetensors")
    result = elbo("import", "w.safetensors", "run", "--network", network, *said, cwd=folder)
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
    assert result.returncode == 1 and b"net.pt2: not usable as a checkpoint: an archive without data.pkl" in result.stderr
