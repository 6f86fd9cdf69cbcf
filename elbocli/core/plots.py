"""Curves over the log-SNR λ for notebooks, drawn by matplotlib."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from numpy.typing import ArrayLike


def draw_curve(
    at: ArrayLike, value: ArrayLike, name: str, quantity: str, axis: Axes | None = None, se: ArrayLike | None = None
) -> Axes:
    """Draw a quantity against λ; return the axis.

    at, value: λ and values, [N]. name: of the curve, for the legend. quantity: label of the vertical axis.
    axis: matplotlib's axis to draw on; None: the current one. se: standard errors, [N], drawn as a band of ± 2.
    """
    import numpy as np
    from matplotlib import pyplot

    axis = axis or pyplot.gca()
    at = np.asarray(at)
    value = np.asarray(value)
    (line,) = axis.plot(at, value, label=name)
    if se is not None:
        axis.fill_between(at, value - 2 * np.asarray(se), value + 2 * np.asarray(se), color=line.get_color(), alpha=0.3)
    axis.set(xlabel="λ = log SNR", ylabel=quantity)
    axis.legend()
    return axis
