"""`elbo import FILE.pt2`: a trained run, exported, is the same run again; and a program alone is asked what it doesn't say."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import numpy as np
import pytest
import torch
from import_chain import works
from safetensors.torch import load_file
from torch import Tensor, nn

import elbocli
from elbocli.core.schedule_curves import SCHEDULES
from elbocli.files.plugins import run_plugin

Elbo = Callable[..., CompletedProcess[bytes]]
SAID = ("--prediction", "v", "--levels", "logsnr", "--logsnr-min", -10, "--logsnr-max", 10)
CLASSES = ("--classes", 10, "--null-class", -1)
TRUST = ("--plugin", "run/network.pt2")


@pytest.fixture(scope="module")
def program(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The network of `trained` as a program."""
    path = tmp_path_factory.mktemp("program") / "net.pt2"
    elbocli.export_network(elbocli.open_run(trained, "cpu").network, path)
    return path


class Steps(nn.Module):
    """Takes whole timesteps, any size, and gives variances too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.tied = nn.Conv2d(1, 2, 1), nn.Conv2d(1, 2, 1)
        self.tied.weight = self.layer.weight

    def forward(self, z: Tensor, step: Tensor) -> Tensor:
        return self.layer(z) + self.tied(z) * step[:, None, None, None] / 1000


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("program") / "steps.pt2"
    auto = torch.export.Dim.AUTO
    inputs = torch.zeros(2, 1, 8, 8), torch.zeros(2).long()
    torch.export.save(
        torch.export.export(Steps(), inputs, dynamic_shapes=({0: auto, 2: auto, 3: auto}, {0: auto})), path
    )
    return path


@pytest.mark.slow
def test_a_run_exported_and_imported_is_the_same_run_also_elsewhere(
    elbo: Elbo, program: Path, trained: Path, digits: Path, tmp_path: Path
) -> None:
    result = elbo("import", program, "first", *SAID, *CLASSES, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, b"first\n"), result.stderr
    shutil.move(tmp_path / "first", tmp_path / "run")
    bound = works(elbo, tmp_path / "run", digits, *TRUST)
    same = json.loads(elbo("bound", trained, digits, "-n", 20, "--draws", 4, "--schedule", "uniform").stdout)
    ours = json.loads(
        elbo("bound", "run", digits, "-n", 20, "--draws", 4, "--schedule", "uniform", *TRUST, cwd=tmp_path).stdout
    )
    assert ours["bpd"] == pytest.approx(same["bpd"], rel=1e-5) and bound["bpd"] > 0
    draw = ("-n", 4, "--steps", 3, "--guidance", 2, "--seed", 3, "-o")
    for run, name in ((tmp_path / "run", "ours.npy"), (trained, "theirs.npy")):
        assert elbo("sample", run, *draw, name, *TRUST, cwd=tmp_path).returncode == 0
    drawn, wanted = (np.load(tmp_path / name).astype(int) for name in ("ours.npy", "theirs.npy"))
    assert np.abs(drawn - wanted).max() <= 1


def test_whole_timesteps_any_size_and_variances(elbo: Elbo, steps: Path, tmp_path: Path) -> None:
    said = ("--prediction", "eps", "--levels", "t:linear", "--size", 8)
    result = elbo("import", steps, "run", *said, cwd=tmp_path)
    assert result.returncode == 0 and b"what lies between two is rounded" in result.stderr, result.stderr
    run_plugin(tmp_path / "run" / "network.pt2")
    config = elbocli.open_run(tmp_path / "run", "cpu")
    ends = SCHEDULES["t-linear"]().support
    assert ends == (config.settings.logsnr_min, config.settings.logsnr_max)
    assert config.network.config.variance and config.settings.label_dropout == 0
    assert elbo("sample", "run", "-n", 2, "--steps", 2, "-o", "s.npz", *TRUST, cwd=tmp_path).returncode == 0
    held = load_file(tmp_path / "run/checkpoints/step-00000000/model.safetensors")
    once = [held[name] for name in ("program.layer.weight", "program.tied.weight") if name in held]
    assert len(once) == 2 and torch.equal(once[0], once[-1])


@pytest.mark.parametrize(
    ("name", "said", "code", "told"),
    [
        ("net", (*SAID[:2], *CLASSES), 2, "doesn't say what its network is told of the noise; add --levels"),
        ("net", (*SAID, "--classes", 0), 2, "--null-class"),
        ("net", (*SAID, *CLASSES, "--size", 9), 1, "its network fails"),
        ("net", (*SAID, *CLASSES, "--prefix", "a"), 2, "--prefix: says nothing of the format program"),
        ("steps", SAID, 2, "takes images of any size; add --size"),
        ("steps", (*SAID, "--size", 8, "--classes", 3), 1, "takes no labels"),
    ],
    ids=range(6),
)
def test_what_a_program_does_not_say_is_asked(
    name: str, said: tuple[Any, ...], code: int, told: str, elbo: Elbo, program: Path, steps: Path, tmp_path: Path
) -> None:
    result = elbo("import", {"net": program, "steps": steps}[name], "run", *said, cwd=tmp_path)
    assert (result.returncode, list(tmp_path.iterdir())) == (code, []), result.stderr
    assert told in result.stderr.decode() and b"Traceback" not in result.stderr


def test_no_class_is_refused_where_none_was_named(elbo: Elbo, program: Path, tmp_path: Path) -> None:
    assert elbo("import", program, "run", *SAID, "--classes", 10, cwd=tmp_path).returncode == 0
    result = elbo("sample", "run", "--guidance", 2, "-o", "s.npz", *TRUST, cwd=tmp_path)
    assert result.returncode == 2 and b"--label-dropout" in result.stderr


def test_a_run_runs_its_program_only_where_the_user_names_it(elbo: Elbo, program: Path, tmp_path: Path) -> None:
    assert elbo("import", program, "run", *SAID, *CLASSES, cwd=tmp_path).returncode == 0
    result = elbo("sample", "run", "-n", 1, "--steps", 1, "-o", "s.npz", cwd=tmp_path)
    assert result.returncode in (1, 2) and b"add --plugin run/network.pt2" in result.stderr, result.stderr
    assert elbo("sample", "run", "-n", 1, "--steps", 1, "-o", "s.npz", *TRUST, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x05\x06" + bytes(18)])
def test_what_is_no_program_is_refused(content: bytes, elbo: Elbo, tmp_path: Path) -> None:
    (tmp_path / "x.pt2").write_bytes(content)
    result = elbo("import", "x.pt2", "run", *SAID, cwd=tmp_path)
    assert result.returncode == 1 and b"x.pt2: " in result.stderr and b"Traceback" not in result.stderr


def test_a_program_that_changed_in_its_run_is_refused(elbo: Elbo, program: Path, steps: Path, tmp_path: Path) -> None:
    assert elbo("import", program, "run", *SAID, *CLASSES, cwd=tmp_path).returncode == 0
    shutil.copy(steps, tmp_path / "run" / "network.pt2")
    for words in (("sample", "run", "-o", "s.npz"), ("info", "run", "--verify")):
        result = elbo(*words, cwd=tmp_path)
        assert result.returncode == 1 and b"network.pt2: has changed since it was imported" in result.stderr


def test_a_program_is_not_trained(elbo: Elbo, program: Path, digits: Path, tmp_path: Path) -> None:
    assert elbo("import", program, "run", *SAID, *CLASSES, cwd=tmp_path).returncode == 0
    section = "network: {family: program, file: network.pt2, sha256: abc}\ntrain: {steps: 3}\n"
    (tmp_path / "p.yaml").write_text(section)
    for words in (("--preset", "p.yaml"), ("--init", "run", "--plugin", "run/network.pt2")):
        result = elbo("train", digits, "-o", "new", *words, cwd=tmp_path)
        assert result.returncode == 2 and b"can't be trained" in result.stderr, result.stderr
