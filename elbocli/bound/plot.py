"""The picture of `elbo bound`: the error and the bound over λ."""

from __future__ import annotations

from pathlib import Path

from elbocli.bound.estimate import BoundCurve
from elbocli.cli.figure import ERROR, draw_band, finish, new_figure


def plot_curve(curve: BoundCurve, out: Path) -> None:
    """Draw panels over λ: the ε error per dimension and L(t;x) in nats, each ± 2 standard errors."""
    moments, edges, seen = curve.moments, curve.moments.edges, curve.moments.count > 1
    sheet, axes = new_figure([["error"], ["bound"]], 6.0, 5.2)
    draw_band(axes["error"], moments.middle[seen], moments.mean[seen], moments.mean_se[seen])
    draw_band(axes["bound"], edges[1:], curve.bound, curve.bound_se)
    axes["error"].set_yscale("log")
    axes["error"].set_ylabel(ERROR)
    axes["error"].set_title("error, and bound on data as noisy as λ, ± 2 standard errors")
    axes["bound"].set_ylabel(r"$L(\lambda; x)$ in nats")
    axes["bound"].set_ylim(bottom=0)
    finish(sheet, axes, ["bound"], float(edges[0]), float(edges[-1]), out)
