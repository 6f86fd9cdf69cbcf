"""Pictures by what they say: the same bytes every time, a line per weighting, names that can be read."""

import re

import pytest
from harness import spawn_elbo

from elbocli.core.weighting import parse_weighting
from elbocli.report.plots import plot_weights


def texts(path):
    """What an SVG says: matplotlib draws letters as paths and leaves the text in a comment."""
    return [text.strip() for text in re.findall(r"<!--(.*?)-->", path.read_text(), re.DOTALL)]


def by_spec(names):
    return {weighting.spec: weighting for weighting in map(parse_weighting, names)}


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
@pytest.mark.long
def test_the_same_sheet_is_the_same_bytes(suffix, tmp_path):
    for name in "ab":
        plot_weights(by_spec(("sigmoid", "elbo")), [], -15, 15, tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_a_sheet_names_every_weighting_and_schedule(tmp_path, elbo):
    words = [
        "sigmoid",
        "edm",
        "x-mse:snr@edm",
        "v-cosine",
        "fm-ot",
        "elbo",
        "--schedule=cosine",
        "--schedule=cosine:shift=1e-14",
        "-o",
        "a.svg",
    ]
    assert elbo("weights", "plot", *words, cwd=tmp_path).returncode == 0
    found = texts(tmp_path / "a.svg")
    assert {"sigmoid", "edm", "x-mse:snr@edm", "cosine", "= cosine:shift=1e-14"} <= set(found)
    assert {"v-cosine", "= fm-ot"} <= set(found)  # the same function
    masses = [text for text in found if text.startswith("mass 1 at $")]
    assert len(masses) == 1 and masses[0].endswith(": elbo")  # all of its p_w is a point mass
    assert r"$w(\lambda) / w(0)$" in found and any("rises" in text for text in found)


@pytest.mark.parametrize("spec", ["elbo", "eps-mse@edm-sample", "edm:shift=30"])
@pytest.mark.long
def test_odd_weightings_can_be_drawn_alone_and_out_of_sight(spec, tmp_path):
    w = parse_weighting(spec)
    plot_weights({w.spec: w}, [], -15, 15, tmp_path / "a.png")
    plot_weights({w.spec: w}, [], 20, 30, tmp_path / "b.png")


@pytest.mark.parametrize("content", [b"text.usetex: True\nlines.linewidth: 9\n", bytes(range(256))])
@pytest.mark.long
def test_a_matplotlibrc_of_the_working_directory_is_not_read(content, tmp_path):
    (tmp_path / "matplotlibrc").write_bytes(content)
    plot_weights(by_spec(["sigmoid"]), [], -15, 15, tmp_path / "here.svg")
    with spawn_elbo("weights", "plot", "sigmoid:bias=2", "-o", "there.svg", cwd=tmp_path) as process:
        assert process.wait() == 0
    assert (tmp_path / "here.svg").read_bytes() == (tmp_path / "there.svg").read_bytes()
