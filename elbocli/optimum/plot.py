"""The picture of `elbo optimum`: the least error over λ."""

from __future__ import annotations

from pathlib import Path

import torch

from elbocli.cli.figure import ERROR, draw_band, finish, new_figure
from elbocli.core.adaptive import bin_middles
from elbocli.files.optimum_file import Optimum


def plot_optimum(found: Optimum, out: Path) -> None:
    """Draw the least ε error per dimension, ± 2 standard errors."""
    edges, value, se = (
        torch.tensor(each, dtype=torch.float64) for each in (found.edges, found.eps_mse, found.eps_mse_se)
    )
    sheet, axes = new_figure([["error"]], 6.0, 3.2)
    draw_band(axes["error"], bin_middles(edges), value, se)
    axes["error"].set_ylabel(ERROR)
    axes["error"].set_ylim(bottom=0)
    axes["error"].set_title(f"the least error of a denoiser of {found.images} images, ± 2 standard errors")
    finish(sheet, axes, ["error"], float(edges[0]), float(edges[-1]), out)
