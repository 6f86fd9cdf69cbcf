"""`--multiscale` reaches the loss of training and of validation, and nothing else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elbocli.core.multiscale import multiscale_error
from elbocli.core.prediction import Prediction
from elbocli.files.dataset import Dataset
from elbocli.run import settings
from elbocli.train.batches import Batches
from elbocli.train.held_out import open_held_out
from elbocli.train.step import step_losses
from elbocli.train.validate import BITS, LOSS, Validation


def test_the_loss_of_training_and_validation_changes_and_the_error_does_not(
    elbo: Callable[..., Any], digits_folder: Path, preset: Path, tmp_path: Path
) -> None:
    result = elbo("prep", digits_folder, tmp_path / "large.h5", "--size", 64, "--channels", 1, "--limit", 24)
    assert result.returncode == 0, result.stderr
    data, cpu, found = Dataset(tmp_path / "large.h5"), torch.device("cpu"), {}

    def nothing(z: torch.Tensor, logsnr: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(z)

    for multiscale in (False, True):
        options = {"preset": str(preset), "multiscale": multiscale, "prediction": "eps", "val_split": 8}
        resolved = settings.resolve(options, data)
        w, s = resolved.objective.weighting, resolved.objective.schedule
        held = open_held_out(resolved.settings, data, True)
        assert s is not None and held is not None
        batches = Batches(data, resolved, cpu)
        loss, error, _ = step_losses(nothing, batches, 0, 0, w, s, Prediction("eps"))  # type: ignore[arg-type]
        found[multiscale] = loss, error, Validation(held, resolved, cpu).partial(nothing)
    (plain, error, sums), (loss, same, seen) = found[False], found[True]
    assert torch.equal(error, same) and torch.equal(sums[:, :-2], seen[:, :-2])
    assert torch.equal(sums[:, -2:][:, BITS], seen[:, -2:][:, BITS])
    white = multiscale_error(torch.randn(64, 1, 64, 64)).mean()  # ⅓ for 64 pixels + ⅔ of a quarter for 32
    np.testing.assert_allclose((loss / plain).mean(), white, rtol=0.02)
    np.testing.assert_allclose(seen[1, -2:][LOSS] / sums[1, -2:][LOSS], white, rtol=0.02)
    assert abs(float(white) - 0.5) < 0.01
