"""Pictures by what they say: the same bytes every time, a line per weighting, names that can be read."""

import re

import pytest
import torch

from elbocli.adapt.plot import plot_fit
from elbocli.cli.figure import brief
from elbocli.core.adaptive import ErrorMoments, bin_edges, fit_schedule
from elbocli.core.schedule import parse_schedule
from elbocli.core.schedule_curves import SCHEDULES
from elbocli.core.weighting import parse_weighting
from elbocli.core.weighting_curves import WEIGHTINGS
from elbocli.errors import UsageError
from elbocli.weights.plot import labels, plot_weights, text_plot


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("sigmoid", "sigmoid"),
        ("sigmoid:bias=2", "sigmoid"),
        ("sigmoid:bias=0", "sigmoid (bias=0)"),
        ("edm:mean=-1.2,std=1.2,sigma_data=0.5,monotone", "edm (monotone)"),
        ("edm:mean=-0.4,std=1,sigma_data=0.5,shift=-1.5", "edm (mean=-0.4, std=1, shift=-1.5)"),
        ("v-mse@cosine", "v-mse@cosine"),
        ("v-mse@cosine:shift=2", "v-mse@cosine (shift=2)"),
        ("eps-mse:min-snr:gamma=5@linear-beta:beta_min=0.1,beta_max=20", "eps-mse:min-snr@linear-beta"),
        ("edm-mse:sigma_data=0.5@edm:mean=-1.2,std=1.2", "edm-mse@edm"),
        ("edm-mse:sigma_data=1@edm:mean=-1.2,std=1.2", "edm-mse (sigma_data=1)@edm"),
        ("schedule:cosine", "schedule:cosine"),
        ("x-mse:snr,monotone@cosine", "x-mse:snr,monotone@cosine"),
        ("v-mse@runs/a/scheduler_config.json", "v-mse@runs/a/scheduler_config.json"),
    ],
)
def test_a_legend_says_what_is_not_default(spec, wanted):
    assert brief(spec) == wanted


@pytest.mark.parametrize("name", sorted(WEIGHTINGS))
def test_a_weighting_at_its_defaults_is_called_by_its_name(name):
    assert brief(parse_weighting(name).spec) == name


def test_files_are_called_by_their_names_unless_two_would_be_alike():
    assert labels(["runs/a/s.yaml", "cosine"]) == ["s.yaml", "cosine"]
    assert labels(["v-mse@a/s.json", "eps-mse@a/s.json"]) == ["v-mse@s.json", "eps-mse@s.json"]
    assert labels(["a/s.yaml", "b/s.yaml", "b/t.yaml"]) == ["a/s.yaml", "b/s.yaml", "t.yaml"]


def texts(path):
    """What an SVG says: matplotlib draws letters as paths and leaves the text in a comment."""
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", path.read_text(), re.DOTALL)]


@pytest.fixture(scope="module")
def everything():
    return [parse_weighting(name) for name in WEIGHTINGS], [
        parse_schedule(name, -15, 15, clip=True) for name in SCHEDULES
    ]


def test_one_sheet_names_every_weighting_and_schedule_once(everything, tmp_path):
    plot_weights(*everything, -15, 15, tmp_path / "all.svg")
    found = texts(tmp_path / "all.svg")
    alike = {"v-cosine", "fm-ot"}  # the same function
    for name in {*WEIGHTINGS} - alike - {"elbo"}:
        assert found.count(name) == 1 + (name in SCHEDULES)
    assert " = ".join(name for name in WEIGHTINGS if name in alike) in found
    masses = [text for text in found if text.startswith("1 at $") or text == "elbo"]
    assert len(masses) == 2 and masses[1].endswith(": elbo")  # all of its p_w is a point mass
    assert "monotone: the loss is an ELBO" in found and "not monotone" in found


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_the_same_sheet_is_the_same_bytes(suffix, everything, tmp_path):
    for name in "ab":
        plot_weights(*everything, -15, 15, tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_few_weightings_stand_in_one_column(tmp_path):
    plot_weights(
        [parse_weighting(text) for text in ("sigmoid", "edm", "x-mse:snr@edm")], [], -10, 10, tmp_path / "a.svg"
    )
    found = texts(tmp_path / "a.svg")
    assert {"sigmoid", "edm", "x-mse:snr@edm"} <= set(found)
    assert "not monotone" not in found
    assert any("rises" in text for text in found)


@pytest.mark.parametrize("spec", ["elbo", "eps-mse@edm-sample", "schedule:edm-sample", "edm:shift=30"])
def test_odd_weightings_can_be_drawn_alone_and_out_of_sight(spec, tmp_path):
    w = parse_weighting(spec)
    plot_weights([w], [], -15, 15, tmp_path / "a.png")
    plot_weights([w], [], 20, 30, tmp_path / "b.png")
    assert len(text_plot([w], -15, 15, 60, " .#")) == 2


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
    densities = {"cosine": parse_schedule("cosine", -10, 10).density, "fitted": fit_schedule(measured, w).density}
    for name in "ab":
        plot_fit(measured, w, densities, tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    if suffix == "svg":
        found = texts(tmp_path / "a.svg")
        assert {"cosine", "fitted", "edm", "share of the loss, sigmoid"} <= set(found)


def test_a_fit_where_edm_has_nothing_is_drawn_without_it(tmp_path):
    edges = bin_edges(-45, -35, 10)
    ones = torch.ones(10, dtype=torch.float64)
    plot_fit(ErrorMoments(edges, 9 * ones, ones, 2 * ones), parse_weighting("elbo"), {}, tmp_path / "a.svg")
    assert "edm" not in texts(tmp_path / "a.svg")


def test_another_format_is_refused(everything, tmp_path):
    with pytest.raises(UsageError, match="unknown picture format"):
        plot_weights(*everything, -15, 15, tmp_path / "a.jpg")
