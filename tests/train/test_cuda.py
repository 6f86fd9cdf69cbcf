"""The same code on a CUDA device: close to the CPU's numbers, compiled and in half precision too."""

from pathlib import Path

import numpy as np
import pytest
import torch
from typed_settings import typed

from elbocli.files.dataset import Dataset
from elbocli.run import settings
from elbocli.sample import draw
from elbocli.train import loop
from elbocli.train.state import TrainState
from elbocli.train.step import update

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def state(dataset: Path, preset: Path, **options: object) -> TrainState:
    return TrainState(
        settings.resolve({"preset": str(preset), "dropout": 0.0, **options}, Dataset(dataset)), Dataset(dataset)
    )


def test_first_steps_agree_with_the_cpu(digits: Path, preset: Path) -> None:
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    curves = []
    for device in ("cpu", "cuda"):
        one = state(digits, preset, device=device)
        for _ in range(5):
            update(one)
        sums, loss, _, _ = one.interval()
        curves.append((loss, sums))
    assert curves[0][0] == pytest.approx(curves[1][0], rel=1e-3)
    assert torch.equal(curves[0][1][0], curves[1][1][0])


@pytest.mark.parametrize(
    "options", [{"precision": "bf16"}, {"precision": "fp16"}, {"precision": "bf16", "compile": True}]
)
def test_half_precision_and_compiling_learn(
    options: dict[str, object], digits: Path, preset: Path, tmp_path: Path
) -> None:
    resolved = settings.resolve({"preset": str(preset), "device": "cuda", "steps": 40, **options}, Dataset(digits))
    losses = [
        report.values["loss"] for report in loop.run(Dataset(digits), tmp_path / "run", resolved) if report.values
    ]
    assert losses[-1] < 0.8 * losses[0]


def test_samples_agree_with_the_cpus(trained: Path, tmp_path: Path) -> None:
    for device in ("cpu", "cuda"):
        list(
            draw.run(
                trained,
                tmp_path / f"{device}.npy",
                typed(n=16, steps=8, batch=5, sampler="ddim", device=device),
            )
        )
    cpu, cuda = (np.load(tmp_path / f"{device}.npy").astype(int) for device in ("cpu", "cuda"))
    assert np.abs(cpu - cuda).mean() < 1
