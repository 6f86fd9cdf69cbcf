"""The losses of any training step, without its update: what training follows and what its gradients are measured on."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from elbocli.core.loss import StepCoefficients, denoising_losses, step_coefficients
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import Schedule
from elbocli.core.streams import Stream, times
from elbocli.core.weighting import Weighting
from elbocli.files.dataset import Dataset
from elbocli.run.settings import Resolved
from elbocli.runtime.device import autocast, seed_dropout
from elbocli.train.batches import Batches


class StepLosses:
    """Images, labels, times and noise of a step are functions of the run's seed and the step alone.

    Dropout's masks depend on `parts` too: the positions in a step's batch that this process works on, in as many goes
    as there are ranges.
    """

    def __init__(
        self,
        dataset: Dataset,
        resolved: Resolved,
        prediction: Prediction,
        device: torch.device,
        parts: list[range] | None = None,
    ):
        self.settings, self.device, self.prediction = resolved.settings, device, prediction
        self.dropout = resolved.network.dropout > 0
        self.examples = Batches(dataset, resolved, device, parts)
        self._t, self._dropout = (Stream(self.settings.seed, name) for name in ("t", "dropout"))

    @property
    def parts(self) -> list[range]:
        """Positions in the batch, per part."""
        return self.examples.parts

    def indices(self, step: int) -> np.ndarray:
        """Rows of the dataset that the step sees, [batch]."""
        return self.examples.indices(step)

    def logsnr(self, step: int, schedule: Schedule) -> Tensor:
        """λ of each image of the step, [batch] float64 on the CPU."""
        return schedule.logsnr(times(self._t, step, self.settings.batch, self.settings.t_sampling))

    def at(
        self, forward: nn.Module, step: int, weighting: Weighting, schedule: Schedule, logsnr: Tensor, which: int = 0
    ) -> tuple[Tensor, Tensor, StepCoefficients]:
        """(weighted loss [n], unweighted ε error [n], coefficients) of a part, per dimension, on the device.

        logsnr: of the whole step, [batch].
        """
        x, eps, labels = self.examples.at(step, which)
        part = self.parts[which]
        level = logsnr[part.start : part.stop]
        c = step_coefficients(level, weighting, schedule, self.prediction, self.device)
        if self.dropout:
            seed_dropout(self.device, self._dropout.seed(step) + part.start)
        with autocast(self.device, self.settings.precision):
            loss, error = denoising_losses(forward, x, eps, labels, c, self.settings.multiscale)
        return loss, error, c
