"""Is the variance of the loss that `adapt` predicts the one that training would see? predicted_variance.py RUN [DATA]

The errors are drawn at the run's last checkpoint (as `elbo bound --log` does), the variance under each schedule is
predicted from them as `elbo adapt --report` does, and then measured: many batches of the loss under that schedule,
with independent and with low-discrepancy t. Prints predicted over measured.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial
from pathlib import Path

import numpy as np
import torch

from elbocli.bound import estimate
from elbocli.bound.measure import ALL, Measurement, MeasureSettings, open_measurement
from elbocli.core.adaptive import ErrorMoments, loss_variance
from elbocli.core.criteria import OF_ERRORS
from elbocli.core.loss import denoising_losses
from elbocli.core.schedule import Schedule
from elbocli.core.streams import T_SAMPLINGS, Stream, times
from elbocli.core.weighting import Weighting, parse_weighting
from elbocli.runtime.device import sent
from elbocli.train.batches import normalised

SCHEDULES = ("cosine", "edm", "uniform", *(f"fitted:{name}" for name in OF_ERRORS))


def moments(run: Path, data: Path | None, draws: int) -> ErrorMoments:
    """Of the errors at the last checkpoint, from every image."""
    loop = estimate.run(open_measurement(run, data, MeasureSettings(images=ALL, draws=draws, seed=1), print))
    try:
        while True:
            next(loop)
    except StopIteration as end:
        return end.value.curve.moments  # type: ignore[no-any-return]


@torch.inference_mode()
def measured(
    probe: Measurement, weighting: Weighting, schedule: Schedule, sampling: str, batch: int, batches: int
) -> tuple[float, float]:
    """(batch × Var/L² of a batch's mean loss, its standard error), over batches of random images."""
    t, rows, noise = (Stream(2, f"measured-{name}-{sampling}") for name in ("t", "rows", "noise"))
    means, singles = [], []
    for step in range(batches):
        chosen = rows.at(step).integers(len(probe.dataset), size=batch)
        x = normalised(torch.from_numpy(probe.dataset.batch(chosen)), probe.device)
        labels = torch.from_numpy(probe.dataset.labels[chosen]).to(probe.device) if probe.conditional else None
        logsnr = schedule.logsnr(times(t, step, batch, sampling))
        eps = noise.normal(range(step * batch, (step + 1) * batch), (*x.shape[2:], x.shape[1])).permute(0, 3, 1, 2)
        how = logsnr, weighting, schedule, probe.trained.prediction, partial(sent, device=probe.device)
        loss = denoising_losses(probe.trained.network, x, eps.to(probe.device), labels, *how).loss
        means.append(float(loss.double().mean()))
        singles.append(loss.double().cpu())
    level = np.mean(means)
    if sampling == "independent":
        values = torch.cat(singles).numpy()
        square = (values / level - 1) ** 2
        return float(square.mean()), float(square.std() / np.sqrt(len(square)))
    square = batch * (np.array(means) / level - 1) ** 2 * batches / (batches - 1)
    return float(square.mean()), float(square.std() / np.sqrt(batches))


def main() -> None:
    """Exit 1 when a prediction is off by more than 10 % and by more than 3 standard errors of the measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--weighting", action="append", help="may be repeated; the run's own without it")
    parser.add_argument("--draws", type=int, default=64, help="of errors, for each image")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--batches", type=int, default=400)
    options = parser.parse_args()
    probe = open_measurement(options.run, options.data, MeasureSettings(), print)
    known = moments(options.run, options.data, options.draws)
    line = "{:<16} {:<22} {:<16} {:>9} {:>9} {:>8} {:>6}"
    print(line.format("weighting", "schedule", "t", "predicted", "measured", "± s.e.", "ratio"))
    failed = False
    for weighting in [parse_weighting(w) for w in options.weighting or [probe.trained.settings.weighting]]:
        for spec in SCHEDULES:
            schedule = probe.schedule(spec, weighting)
            predictions = loss_variance(known, weighting, schedule.density, options.batch)
            for sampling, predicted in zip(reversed(T_SAMPLINGS), predictions):
                found, error = measured(probe, weighting, schedule, sampling, options.batch, options.batches)
                ratio = predicted / found
                bad = abs(ratio - 1) > 0.1 and abs(predicted - found) > 3 * error
                failed = failed or bad
                values = (f"{predicted:.4f}", f"{found:.4f}", f"{error:.4f}", f"{ratio:.3f}{' OFF' if bad else ''}")
                name = weighting.spec.partition(":mean")[0]
                print(line.format(name, schedule.base.partition(":mean")[0], sampling, *values), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
