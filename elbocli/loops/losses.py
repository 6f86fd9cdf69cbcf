"""The losses of any training step, without its update: what training follows and what its gradients are measured on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from elbocli.core.draws import Stream, times
from elbocli.core.objective import StepCoefficients, denoising_losses, step_coefficients
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import Schedule
from elbocli.core.weighting import Weighting
from elbocli.files.dataset import Dataset
from elbocli.loops.examples import Examples
from elbocli.loops.runtime import autocast
from elbocli.loops.settings import Resolved


class StepLosses:
    """Images, labels, times, noise and dropout of a step are functions of the run's seed and the step alone."""

    def __init__(self, dataset: Dataset, resolved: Resolved, prediction: Prediction, device: torch.device):
        self.settings, self.device, self.prediction = resolved.settings, device, prediction
        self.dropout = resolved.network.dropout > 0
        self.examples = Examples(dataset, resolved, device)
        self._t, self._noise, self._dropout = (Stream(self.settings.seed, name) for name in ("t", "noise", "dropout"))

    def indices(self, step: int) -> np.ndarray:
        """Rows of the dataset that the step sees, [batch]."""
        return self.examples.indices(step)

    def logsnr(self, step: int, schedule: Schedule) -> Tensor:
        """λ of each image of the step, [batch] float64 on the CPU."""
        return schedule.logsnr(times(self._t, step, self.settings.batch, self.settings.t_sampling))

    def at(
        self, forward: nn.Module, step: int, weighting: Weighting, schedule: Schedule, logsnr: Tensor
    ) -> tuple[Tensor, Tensor, StepCoefficients]:
        """(weighted loss [batch], unweighted ε error [batch], coefficients), per dimension, on the device."""
        x, labels = self.examples.at(step)
        first = step * self.settings.batch
        eps = self._noise.normal(range(first, first + self.settings.batch), (*x.shape[2:], x.shape[1]))
        eps = eps.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
        c = step_coefficients(logsnr, weighting, schedule, self.prediction, self.device)
        if self.dropout:
            torch.manual_seed(self._dropout.seed(step))
        with autocast(self.device, self.settings.precision):
            loss, error = denoising_losses(forward, x, eps, labels, c, self.settings.multiscale)
        return loss, error, c
