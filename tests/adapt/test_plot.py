"""The picture of a fit by what it says: the same bytes every time, against cosine and EDM."""

import re

import pytest

from elbocli.adapt.plot import plot_fit
from elbocli.core.adaptive import ErrorMoments, bin_edges, fit_schedule
from elbocli.core.schedule import parse_schedule
from elbocli.core.weighting import parse_weighting


def texts(path):
    """What an SVG says: matplotlib draws letters as paths and leaves the text in a comment."""
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", path.read_text(), re.DOTALL)]


@pytest.fixture
def measured():
    """An error that falls towards noise, with bins seen often, seldom and never."""
    edges = bin_edges(-10, 10, 50)
    middle = 0.5 * (edges[1:] + edges[:-1])
    mean = (middle - 1).sigmoid()
    count = (200 * (-middle.abs() / 4).exp()).floor()
    count[7] = 0
    return ErrorMoments(edges, count, mean, 1.5 * mean.square())


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_a_fit_is_drawn_against_cosine_and_edm(suffix, measured, tmp_path):
    w = parse_weighting("sigmoid:bias=2")
    densities = {name: parse_schedule(name, -10, 10).density for name in ("cosine", "edm")}
    densities["fitted"] = fit_schedule(measured, w).density
    for name in "ab":
        plot_fit(measured, w, densities, tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    if suffix == "svg":
        found = texts(tmp_path / "a.svg")
        assert {"cosine", "fitted", "edm", "share of the loss, sigmoid"} <= set(found)
