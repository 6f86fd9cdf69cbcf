"""The picture of `elbo adapt`: measured errors, and the fitted density against others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from elbocli.adapt.fit_log import fixed_density
from elbocli.adapt.fit_optimum import DataSchedule
from elbocli.cli.figure import ERROR, POINTS, brief, draw_band, draw_densities, finish, lettered, new_figure
from elbocli.core.adaptive import ErrorMoments, bin_middles
from elbocli.core.weighting import Weighting


def plot_fit(
    moments: ErrorMoments, weighting: Weighting, densities: dict[str, Callable[[Tensor], Tensor]], out: Path
) -> None:
    """Draw panels over λ: the measured ε error per dimension ± 2 standard errors; the share of the weighted loss that each
    λ has, and the densities of several schedules.
    """
    low, high = float(moments.edges[0]), float(moments.edges[-1])
    at = torch.linspace(low + 1e-9, high - 1e-9, POINTS, dtype=torch.float64)
    sheet, axes = new_figure([["error"], ["density"]], 6.0, 5.2)
    middle, seen = moments.middle, moments.count > 1
    draw_band(axes["error"], middle[seen], moments.mean[seen], moments.mean_se[seen])
    axes["error"].set_yscale("log")
    axes["error"].set_ylabel(ERROR)
    axes["error"].set_title("measured error, ± 2 standard errors")
    share = weighting(middle) * moments.smoothed().mean
    share = share / (share * moments.edges.diff()).sum()
    axes["density"].fill_between(
        middle, share, color="0.85", label=f"share of the loss, {lettered(brief(weighting.spec))}", step="mid"
    )
    draw_densities(axes["density"], densities, at)
    finish(sheet, axes, ["density"], low, high, out)


def plot_least(fitted: DataSchedule, out: Path) -> None:
    """Draw panels over λ: the least ε error per dimension ± 2 standard errors; the density that was fitted to it, beside
    others.
    """
    edges = torch.tensor(fitted.optimum.edges, dtype=torch.float64)
    low, high = float(edges[0]), float(edges[-1])
    at = torch.linspace(low + 1e-9, high - 1e-9, POINTS, dtype=torch.float64)
    sheet, axes = new_figure([["error"], ["density"]], 6.0, 5.2)
    least, se = fitted.optimum.least(edges, training=True)
    draw_band(axes["error"], bin_middles(edges), least, se)
    axes["error"].set_ylabel(ERROR)
    axes["error"].set_ylim(bottom=0)
    axes["error"].set_title("least error of a denoiser of the images, ± 2 standard errors")
    densities = {name: fixed_density(name, fitted.schedule) for name in ("cosine", "edm")}
    draw_densities(axes["density"], {**densities, "fitted": fitted.schedule.density}, at)
    finish(sheet, axes, ["density"], low, high, out)
