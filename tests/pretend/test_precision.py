"""fp32 is strict on a pretend CUDA device, and λ is never rounded."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typed_settings import typed

from elbocli.bound import estimate
from elbocli.bound.measure import open_measurement
from elbocli.core.metrics import asked
from elbocli.evaluate import scoring
from elbocli.evaluate.settings import EvalSettings
from elbocli.prep.encode_latents import LatentEncoder
from elbocli.runtime.processes import World
from elbocli.sample import draw
from pretend import pretending
from pretend.runs import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    return train(digits, tmp_path_factory.mktemp("run") / "run", "uvit-none", device="cpu")


def rounded_by(work: Any) -> list[str]:
    """What a device would multiply in TF32, if before all that was allowed which torch allows by default."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        with pretending() as device:
            work()
    finally:
        torch.backends.cudnn.allow_tf32 = before
    return [str(record) for record in device.rounded]


def test_fp32_samples_are_strict(run: Path, tmp_path: Path) -> None:
    settings = typed(n=2, steps=2, device="cuda", precision="fp32")
    assert rounded_by(lambda: draw.draw_samples(run, tmp_path / "x.npy", settings)) == []


def test_an_fp32_bound_is_strict(run: Path) -> None:
    settings: Any = {"images": 2, "draws": 2, "device": "cuda", "precision": "fp32"}
    assert rounded_by(lambda: estimate.measure_bound(open_measurement(run, None, **settings))) == []


def test_fp32_latents_are_strict(autoencoder: Path, photos: np.ndarray) -> None:
    assert (
        rounded_by(lambda: LatentEncoder(autoencoder, 16, device="cuda", precision="fp32").rows(list(photos[:1]))) == []
    )


def test_features_are_strict(photos: np.ndarray, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", photos[:2])
    settings = EvalSettings(asked(("is",), splits=2), extractor="elbo-tiny")
    world = World(device=torch.device("cuda"))
    assert rounded_by(lambda: scoring.run([tmp_path / "x.npy"], None, settings, world)) == []


@pytest.mark.parametrize(("network", "inputs"), [("unet", 8), ("uvit-none", 1)])
def test_fp32_training_is_strict_and_tf32_rounds_all_but_the_noise_level(
    network: str, inputs: int, digits: Path, tmp_path: Path
) -> None:
    """inputs: of the layer that sees the noise level."""

    def trained(precision: str) -> list[str]:
        out = tmp_path / precision
        return rounded_by(lambda: train(digits, out, network, device="cuda", precision=precision))

    assert trained("fp32") == []
    multiplied = [each for each in trained("tf32") if each.startswith("aten.addmm")]
    assert any("self.second(" in each for each in multiplied), "the layer after it may be rounded"
    assert not [each for each in multiplied if f", {inputs}] and [{inputs}, " in each]
