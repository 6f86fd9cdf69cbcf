"""Three estimates of one number: each exact for exact denoisers, with errors that hold, image by image too."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from exact import Levels, Mixture

from elbocli.bound.estimate import ESTIMATORS, Found, estimate_likelihoods, flat, parse_estimators
from elbocli.bound.measure import Images, MeasuredNetwork
from elbocli.bound.result import Bound, Likelihoods
from elbocli.core.elbo import fit_gaussian
from elbocli.core.estimate import image_errors
from elbocli.core.prediction import Prediction
from elbocli.core.schedule import parse_schedule
from elbocli.errors import UsageError
from elbocli.files.losslog import read_table
from elbocli.main import run

LOW, HIGH = -12.0, 13.0
NORMAL, MIXED = Mixture([1.0], [0.4], [0.6]), Mixture([0.3, 0.7], [-1.0, 0.5], [0.2, 0.3])
SHARES = torch.linspace(-2, 2, 256, dtype=torch.float64).square().neg().exp()
TOY = Levels(SHARES / SHARES.sum())
ALL = ("variational", "information", "ode")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def estimated(network: Any, content: torch.Tensor, specs: Any = ALL, high: float = HIGH, **options: Any) -> Found:
    """Estimates on images of an exact denoiser."""
    how = {"draws": options.pop("draws", 16), "seed": options.pop("seed", 0), "population": len(content)}
    measured = MeasuredNetwork(network, Prediction("eps"), LOW, high, batch=4096, **how)
    images = [Images(content, None, range(len(content)))]
    if "information" in specs:
        options.setdefault("gaussian", fit_gaussian(flat(content)))
    schedule = parse_schedule("uniform", LOW, high)
    return estimate_likelihoods(measured, images, schedule, parse_estimators(specs), **options)


def test_every_estimator_is_tested_here() -> None:
    assert set(ESTIMATORS) == set(ALL)


@pytest.mark.parametrize("data", [NORMAL, MIXED, TOY], ids=["normal", "mixture", "levels"])
def test_three_estimates_agree_with_the_exact_one_and_each_other(data: Any) -> None:
    content = data.draw(60, 2, 1, 1) if data is TOY else data.draw(60, 1, 2, 1)
    found = estimated(data, content, draws=32)
    exact = float(data.nats(content).mean())
    for each in found.result.estimates:
        assert abs(each.nats - exact) < 4 * each.nats_se + 2e-4, each
        assert sum(each.terms.values()) == pytest.approx(each.nats, rel=1e-9)
        error = np.hypot(each.nats_se_noise, each.solver_nats or 0)
        assert each.nats_se == pytest.approx(error, rel=1e-9), "all images were asked about"
    by_name = {each.estimator.partition(":")[0]: each for each in found.result.estimates}
    assert by_name["ode"].nats_se_noise < 0.2 * by_name["variational"].nats_se_noise
    assert len(found.result.differences) == 3 and all(abs(pair.in_se) < 4 for pair in found.result.differences)
    told = found.result.json()
    assert Likelihoods.of(json.loads(json.dumps(told, allow_nan=False))) == found.result
    assert all(("bpd" in each) == (data is TOY) for each in told["estimates"])


@pytest.mark.parametrize("data", [MIXED, TOY], ids=["mixture", "levels"])
def test_intervals_hold_the_exact_value(data: Any) -> None:
    """40 seeds of the noise, 95 % intervals; the flow's in few steps, too."""
    content = data.draw(40, 1, 1, 1)
    exact = float(data.nats(content).mean())
    hits = dict.fromkeys(("variational", "information", "ode:steps=16"), 0)
    for seed in range(40):
        for spec, each in zip(hits, estimated(data, content, hits, draws=8, seed=seed).result.estimates, strict=True):
            hits[spec] += abs(each.nats - exact) < 1.96 * each.nats_se
    assert min(hits.values()) >= 36, hits


def test_nothing_is_left_to_chance_where_the_data_are_the_gaussian() -> None:
    """β = γ = 1, so that each image's number is −log p itself."""
    x = NORMAL.draw(64, 1, 2, 1)
    known = fit_gaussian(NORMAL.draw(4, 1, 2, 1))
    eye = torch.eye(2, dtype=torch.float64)
    exact = type(known)(torch.full((2,), 0.4, dtype=torch.float64), eye, torch.full((2,), 0.36, dtype=torch.float64), 1)
    found = estimated(NORMAL, x, ["variational", "information"], draws=16, gaussian=exact)
    variational, information = found.result.estimates
    assert information.nats_se_noise < 1e-3 * variational.nats_se_noise
    assert found.parts["information"].nats.sum(2).mean(1).numpy() == pytest.approx(NORMAL.nats(x).numpy(), abs=2e-3)


def test_any_gaussian_gives_the_same_number() -> None:
    """It is a control variate: a wrong one costs precision alone."""
    x = MIXED.draw(100, 1, 2, 1)
    wrong = fit_gaussian(3 + 5 * MIXED.draw(50, 1, 2, 1, seed=1))
    found = estimated(MIXED, x, ["information"], draws=32, gaussian=wrong).result.estimates[0]
    assert abs(found.nats - float(MIXED.nats(x).mean())) < 4 * found.nats_se_noise + 0.01


def test_rounding_tightens_the_bound_of_a_network_that_doesnt_know_levels() -> None:
    """The denoiser of a normal on two pixels of 256 levels: from 13 on each λ costs a nat, where rounding errs no more."""
    pixels = torch.full((40, 1, 2, 1), 140, dtype=torch.uint8)
    data = Mixture([1.0], [0.1], [0.3])
    variational, information = estimated(data, pixels, ["variational", "information"], 18.0, draws=64).result.estimates
    assert 4 < variational.nats - information.nats < 7


def test_the_draws_are_those_of_the_plain_bound(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["bound", str(trained), "-q", "-n", "40", "--draws", "4"]
    assert run(line) == 0
    plain = Bound.of(json.loads(capsys.readouterr().out))
    assert run([*line, "--estimator", "variational", "--estimator", "information"]) == 0
    several = Likelihoods.of(json.loads(capsys.readouterr().out))
    first = several.estimates[0]
    assert first.bpd == pytest.approx(plain.bpd, rel=1e-6) and first.bpd_se == pytest.approx(plain.bpd_se, rel=1e-4)
    assert first.terms["diffusion"] == pytest.approx(plain.diffusion.nats, rel=1e-6)


def test_a_difference_is_said_with_all_that_it_may_be_wrong_by() -> None:
    """With few images, `information` takes the variational draws as they are; the flow's steps add to the noise."""
    found = estimated(MIXED, MIXED.draw(8, 1, 1, 1), ["variational", "information", "ode:steps=4"], draws=4)
    same, flow, _ = found.result.differences
    assert same.in_se == 0 and same.se < 1e-9
    solver = found.result.estimates[2].solver_nats
    assert solver is not None and flow.in_se == pytest.approx(flow.nats / np.hypot(flow.se, solver))


def test_errors_of_images_are_honest() -> None:
    """Variances from an inverse chi-square of 8 degrees, known by half a difference each: intervals hold as Student's do
    of 9. Half a difference alone would hold in 70 %.
    """
    random = np.random.default_rng(0)
    spread = np.sqrt(8 / random.chisquare(8, 4000))
    halves = random.normal(size=(4000, 2)) * spread[:, None]
    inside = (np.abs(halves.mean(1)) < 1.96 * image_errors(halves)).mean()
    assert inside == pytest.approx(0.918, abs=0.015)
    same = random.normal(size=(4000, 2))
    assert image_errors(same) == pytest.approx(np.full(4000, 0.5**0.5), rel=0.1)
    assert (image_errors(np.ones((2, 2))) == 0).all()


# The command


Bound_ = Callable[..., tuple[int, str, str]]


@pytest.fixture
def bound(capsys: pytest.CaptureFixture[str]) -> Bound_:
    def call(*line: Any) -> tuple[int, str, str]:
        code = run(["bound", *map(str, line)])
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("ending", [".tsv", ".txt"])
def test_numbers_of_images_add_up_to_the_bound(bound: Bound_, trained: Path, tmp_path: Path, ending: str) -> None:
    out = tmp_path / f"each{ending}"
    code, told, err = bound(trained, "-n", 30, "--draws", 4, "--per-image", out)
    assert code == 0, err
    result, table = json.loads(told), read_table(out)
    assert result["per_image"] == str(out) and [*table][2:] == ["nats", "nats_se", "bpd"]
    assert table["nats"].sum() == pytest.approx(30 * result["nats"], rel=1e-9)
    assert table["bpd"].mean() == pytest.approx(result["bpd"], rel=1e-9)
    assert (np.diff(table["index"]) > 0).all() and len(table["index"]) == 30 and (table["nats_se"] > 0).all()
    assert bound(trained, "--per-image", out)[0] == 2, "it is not overwritten"


def test_several_estimates_have_columns_each_and_pictures_on_the_page(
    bound: Bound_, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = Path(shutil.copytree(trained, tmp_path / "run"))
    specs = [word for spec in ("information", "ode:steps=4") for word in ("--estimator", spec)]
    out = copy / "each.tsv"
    code, told, err = bound(copy, "-n", 20, "--draws", 2, *specs, "--per-image", out)
    assert code == 0, err
    (copy / "likelihood.json").write_text(told)
    table, found = read_table(out), json.loads(told)["estimates"]
    for name, each in zip(("information", "ode"), found, strict=True):
        assert table[f"nats_{name}"].mean() == pytest.approx(each["nats"], rel=1e-9)
    assert run(["report", str(copy), "-o", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "The least likely images" in page and "ode:steps=4,draws=2" in page and "not chosen" in page
    assert run(["report", str(copy), "--scores", str(out), "-o", str(tmp_path / "other.html")]) == 0
    assert (tmp_path / "other.html").read_text().count("The likeliest images") == 2
    out.write_text(out.read_text().replace("\n", "\n9", 1))
    assert run(["report", str(copy), "--scores", str(out), "-o", str(tmp_path / "no.html")]) == 1
    assert "each.tsv: index" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--estimator", "nope"], "no estimator is called 'nope'"),
        (["--estimator", "ode:steps=5"], "even number"),
        (["--estimator", "ode:draws=2.5"], "even number"),
        (["--estimator", "ode:stepp=8"], "no parameter"),
        (["--estimator", "ode", "--estimator", "flow"], "named twice"),
        (["--estimator", "ode", "--curve", "c.tsv"], "--curve can't go with --estimator ode"),
        (["--estimator", "ode", "--target-se", "0.1"], "--target-se can't go with --estimator ode"),
        (["--per-image", "x.tsv", "--target-se", "0.1"], "--per-image can't go with --target-se"),
        (["--per-image", "-"], "standard output is for other results"),
        (["--per-image", "x.csv"], "name a file that ends in .tsv"),
        (["--check", "--estimator", "ode"], "--estimator can't go with --check"),
        (["--check", "--per-image", "x.tsv"], "--per-image can't go with"),
        (["--classify", "--curve", "x.tsv"], "--curve can't go with"),
        (["--classify", "--check"], "--classify can't go with --check"),
    ],
)
def test_what_makes_no_sense_is_refused(
    bound: Bound_, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = bound(trained, "-n", 4, "--draws", 2, *options)
    assert code == 2 and words in err and out == "" and not any(tmp_path.iterdir())


def test_it_is_one_process(bound: Bound_, trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, out, err = bound(trained, "-n", 4)
    assert code == 2 and "without torchrun" in err and out == ""


def test_one_image_has_no_error() -> None:
    with pytest.raises(UsageError):
        estimated(NORMAL, NORMAL.draw(1, 1, 1, 1), ["variational"])
