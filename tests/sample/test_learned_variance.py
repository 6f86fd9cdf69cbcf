"""A network that learned its variance, as a plug-in brings it: sampled, guided, compiled, captured, in half precision."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fake_cuda_graph
import h5py
import numpy as np
import pytest
import torch
from typed_settings import typed

from elbocli.core.samplers import time_grid
from elbocli.core.sampling import Guidance
from elbocli.errors import UsageError
from elbocli.files import plugins
from elbocli.files.plugins import run_plugin
from elbocli.nn.networks import NETWORKS
from elbocli.run.open import open_run
from elbocli.runtime.device import WARM_UPS, CudaGraphs
from elbocli.sample import draw as sample
from elbocli.sample.draw import GuidedRun, open_decoder

CPU = torch.device("cpu")
PLUGIN = """
from dataclasses import dataclass

import torch
from torch import nn

from elbocli import plugin as elbo


@dataclass(frozen=True)
class Config(elbo.NetworkConfig):
    width: int = 16
    variance: bool = True


@elbo.network("learned-of-a-test", config=Config, source="a test")
class Learned(elbo.Network):
    def __init__(self, config):
        super().__init__(config)
        self.classes = nn.Embedding(config.num_classes + 1, config.width)
        self.first = nn.Conv2d(config.image_channels, config.width, 3, padding=1)
        self.last = nn.Conv2d(config.width, (1 + config.variance) * config.image_channels, 3, padding=1)

    def outputs(self, z, logsnr, labels=None):
        code = self.classes(labels % self.classes.num_embeddings) + (logsnr / 5).sin()[:, None]
        return self.last((self.first(z) + code[:, :, None, None]).tanh()) * 3

    def forward(self, z, logsnr, labels=None):
        return self.outputs(z, logsnr, labels)[:, : self.config.image_channels].contiguous()
"""
PRESET = """
network: {family: learned-of-a-test}
train: {prediction: eps, schedule: t-linear, logsnr_min: -10, logsnr_max: 9, steps: 2, batch: 16, ema: 0.9, save_every: 2,
        label_dropout: 0.1, preview_every: 0, log_every: 1}
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    file = tmp_path_factory.mktemp("plugin") / "learned.py"
    file.write_text(PLUGIN)
    run_plugin(file)
    yield file
    NETWORKS.pop("learned-of-a-test", None)
    plugins._RUN.pop(file.resolve())


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory, plugin: Path, digits: Path, elbo: Callable[..., Any]) -> Path:
    folder = tmp_path_factory.mktemp("learned")
    (folder / "preset.yaml").write_text(PRESET)
    done = elbo("train", digits, "-o", folder / "run", "--preset", folder / "preset.yaml", "--plugin", plugin)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def drawn(run: Path, out: Path, **how: Any) -> tuple[np.ndarray, dict[str, Any]]:
    """Images, and what they say of themselves."""
    settings = {"n": 6, "steps": 5, "sampler": "ddpm-learned", "schedule": "run", "overwrite": True, **how}
    sample.draw_samples(run, out, typed(**settings))
    with h5py.File(out) as file:
        return file["images"][()], json.loads(str(file.attrs["samples"]))


def test_it_is_drawn_through_the_shell_and_another_network_is_refused(
    learned: Path, plugin: Path, trained: Path, elbo: Callable[..., Any], tmp_path: Path
) -> None:
    line = ("--sampler", "ddpm-learned", "--schedule", "run", "--steps", 6, "-n", 3)
    done = elbo("sample", learned, *line, "--plugin", plugin, "--guidance", 2, "-o", tmp_path / "a.npy")
    assert done.returncode == 0, done.stderr
    assert b"12 network evaluations each" in done.stderr
    refused = elbo("sample", trained, *line, "-o", tmp_path / "b.npy")
    assert refused.returncode == 2
    said = refused.stderr.decode()
    assert f"{trained}: its network has learned no variance; use --sampler ddpm:gamma=G" in said
    assert not (tmp_path / "b.npy").exists()


def test_the_variance_is_that_of_each_value_and_of_no_constant(learned: Path, tmp_path: Path) -> None:
    images, about = drawn(learned, tmp_path / "a.h5", batch=4)
    assert about["sampler"] == "ddpm-learned" and about["nfe"] == 5 and about["spacing"] == "timesteps"
    again, _ = drawn(learned, tmp_path / "b.h5")
    assert np.abs(images.astype(int) - again).max() <= 1
    for gamma in (0, 0.5, 1):
        constant, _ = drawn(learned, tmp_path / "b.h5", sampler=f"ddpm:gamma={gamma}")
        assert np.abs(images.astype(int) - constant).max() > 1


def test_guided_by_itself_it_is_one_network_and_by_channels_it_is_recorded(learned: Path, tmp_path: Path) -> None:
    _, about = drawn(learned, tmp_path / "a.h5", guidance=Guidance(2.0))
    assert about["nfe"] == 10 and "guidance_channels" not in about
    _, about = drawn(learned, tmp_path / "a.h5", guidance=Guidance(2.0, channels=1))
    assert about["guidance_channels"] == 1
    with pytest.raises(UsageError, match=r"--guidance-channels 2: .*run draws 1 channels"):
        drawn(learned, tmp_path / "a.h5", guidance=Guidance(2.0, channels=2))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_graphs_draw_the_same_and_guidance_replays_the_same_graph(
    precision: str, learned: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = fake_cuda_graph.install(monkeypatch)
    how, labels = typed(n=4, sampler="ddpm-learned", precision=precision), torch.tensor([3, 1, 4, 1])
    images = []
    for graphs in (None, CudaGraphs()):
        run = open_run(learned, CPU)
        config = run.network.config
        output, shape = open_decoder(run.data, config, CPU), (8, 8, 1)
        drawer = GuidedRun(run, Guidance(2.0)).with_variance()
        if graphs is not None:
            drawer = drawer.hastened(False, graphs)
        grid = time_grid(run.schedule(), 8)
        images.append(sample.draw(drawer.denoiser(labels), range(4), shape, grid, how, CPU, output))
    assert torch.equal(*images)
    assert len(captured) == 1 and captured[0].replays == 16 - WARM_UPS
