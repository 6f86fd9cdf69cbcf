"""Fitting schedules to logs."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from elbocli.adapt.fit import FittedSchedule, fit_log, plot_fit
from elbocli.core.adaptive import ErrorMoments, bin_edges, floored, loss_variance
from elbocli.core.schedule import parse_schedule, schedule_of_shares
from elbocli.core.training import OF_ERRORS
from elbocli.core.weighting import parse_weighting
from elbocli.errors import FormatError, UsageError
from elbocli.files import losslog
from elbocli.files.schedule_file import resolve_schedule


def fit(*sources: Any, weighting: str = "", criterion: str = "loss", **settings: Any) -> FittedSchedule:
    return fit_log(list(sources), lambda own: parse_weighting(weighting or own), criterion=criterion, **settings)


def log_text(
    schedule: str = "cosine", count: int = 200_000, seed: int = 0, low: float = -10.0, high: float = 10.0
) -> str:
    """A log of errors with mean sigmoid(λ/2) and standard deviation 0.3 of it, drawn under a schedule."""
    draw = torch.Generator().manual_seed(seed)
    edges = bin_edges(low, high)
    lam = parse_schedule(schedule, low, high).logsnr(torch.rand(count, generator=draw, dtype=torch.float64))
    error = (lam / 2).sigmoid() * (1 + 0.3 * torch.randn(count, generator=draw, dtype=torch.float64)).clamp(min=0)
    cell = ((lam - low) / (high - low) * 100).long().clamp(0, 99)
    sums = torch.zeros(3, 100, dtype=torch.float64).index_add_(
        1, cell, torch.stack([torch.ones_like(error), error, error.square()])
    )
    return losslog.header(
        edges, dimensions=64, weighting="sigmoid:bias=2", schedule=schedule, prediction="v"
    ) + losslog.line(10, count, sums)


def stream(text: str) -> io.BytesIO:
    return io.BytesIO(text.encode())


def test_the_density_follows_weighting_times_error() -> None:
    fitted = fit(stream(log_text("uniform")), floor=1e-6)
    at = torch.linspace(-8, 8, 33, dtype=torch.float64)
    shape = (2 - at).sigmoid() * (at / 2).sigmoid()
    ratio = fitted.schedule.density(at) / shape
    assert float((ratio.max() / ratio.min()).log()) < 0.2


def test_the_fitted_schedule_has_the_least_variance_and_a_file_brings_it_back(tmp_path: Path) -> None:
    fitted = fit(stream(log_text()), criterion="second-moment")
    promised = fitted.report.schedules
    best = promised["fitted:second-moment"]["variance_independent"]
    assert all(best <= promise["variance_independent"] * 1.002 for promise in promised.values())
    assert promised["own"] == promised["cosine"]
    (tmp_path / "s.yaml").write_text(fitted.text)
    again = resolve_schedule(str(tmp_path / "s.yaml"))
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert torch.equal(again.logsnr(t), fitted.schedule.logsnr(t))


def test_concatenated_logs_add_up() -> None:
    one, two = log_text(seed=1), log_text(seed=2)
    both, apart = fit(stream(one + two)), fit(stream(one), stream(two))
    assert both.text == apart.text


def test_any_weighting_can_be_fitted_from_one_log() -> None:
    for spec in ("elbo", "edm:monotone", "schedule:cosine"):
        fitted = fit(stream(log_text()), weighting=spec)
        assert fitted.report.weighting.partition(":")[0] == spec.partition(":")[0]
    assert not torch.equal(
        fit(stream(log_text()), weighting="elbo").schedule.logsnr(torch.tensor([0.5]).double()),
        fit(stream(log_text()), weighting="fm-ot").schedule.logsnr(torch.tensor([0.5]).double()),
    )


def test_bins_merge_and_since_drops_early_intervals() -> None:
    assert fit(stream(log_text()), bins=20).report.bins == 20
    with pytest.raises(UsageError, match="100 bins"):
        fit(stream(log_text()), bins=33)
    with pytest.raises(Exception, match="no noise level"):
        fit(stream(log_text()), since=10)


def test_an_adaptive_runs_own_density_is_counted() -> None:
    text = log_text("uniform").replace('"schedule": "uniform"', '"schedule": "adaptive"')
    counted, known = fit(stream(text)), fit(stream(log_text("uniform")))
    one, other = (fitted.report.schedules["own"]["variance_independent"] for fitted in (counted, known))
    assert one == pytest.approx(other, rel=0.05)


def test_the_report_says_for_every_candidate_what_its_schedule_promises() -> None:
    fitted = fit(stream(log_text()))
    report = json.loads(json.dumps(fitted.report.json(), allow_nan=False))
    assert {key: value for key, value in report.items() if key != "schedules"} == {
        "weighting": "sigmoid:bias=2",
        "criterion": "loss",
        "images": 200_000,
        "version": 1,
        "intervals": 1,
        "batch": 20_000,
        "logsnr_min": -10,
        "logsnr_max": 10,
        "bins": 100,
    }
    assert list(report["schedules"]) == ["own", "cosine", "edm", "uniform", *(f"fitted:{name}" for name in OF_ERRORS)]
    for kind, best in (("independent", "fitted:second-moment"), ("low_discrepancy", "fitted:std")):
        rows = report["schedules"].values()
        least = min(row[f"variance_{kind}"] for row in rows)
        assert all(row[f"ratio_{kind}"] == pytest.approx(row[f"variance_{kind}"] / least) for row in rows)
        assert report["schedules"][best][f"ratio_{kind}"] < 1.005
        assert report["schedules"]["edm"][f"ratio_{kind}"] > 1.5


@pytest.mark.parametrize("floor", [None, 0.01])
def test_a_bin_that_a_short_adaptive_run_missed_by_chance_makes_no_infinity(floor: float | None) -> None:
    """A schedule's density in one bin is the floor's: of 12,800 draws 1.28 are expected there, and none came.

    What is said is what the schedule itself promises, if the log knows its floor; without it, what is likely, and a number.
    """
    edges, width = bin_edges(-10, 10), torch.full((100,), 0.2, dtype=torch.float64)
    share = floored(torch.cat([torch.zeros(1), torch.full((99,), 1 / 99)]).double(), width, 0.01)
    draw, error = torch.Generator().manual_seed(0), torch.full((100,), 0.5, dtype=torch.float64)
    count = torch.multinomial(share, 12_800, replacement=True, generator=draw).bincount(minlength=100).double()
    count[0] = 0
    sums = torch.stack([count, count * error, 1.09 * count * error.square()])
    about = {"dimensions": 64, "weighting": "elbo", "floor": floor}
    text = losslog.header(edges, schedule="adaptive", **about) + losslog.line(100, 12_800, sums)
    fitted = fit(stream(text))
    own, exact = fitted.report.schedules["own"], schedule_of_shares(edges, share, "exact")
    said = own["variance_independent"], own["variance_low_discrepancy"]
    moments = ErrorMoments.of_sums(edges, sums)
    true = loss_variance(moments, parse_weighting("elbo"), exact.density, 128)
    assert said == pytest.approx(true, rel=0.05 if floor else 2)


def test_what_is_infinite_is_null_in_the_report_and_does_not_stop_the_fit() -> None:
    """An adaptive run that never visited some bins, and a range where EDM's schedule has nothing."""
    text = log_text("uniform", low=30.0, high=50.0).replace('"schedule": "uniform"', '"schedule": "adaptive"')
    head, line = text.splitlines()
    row = json.loads(line)
    row |= {key: [0] * 50 + row[key][50:] for key in ("count", "sum", "sumsq")}
    report = fit(stream(f"{head}\n{json.dumps(row)}\n"), weighting="elbo").report.json()
    json.dumps(report, allow_nan=False)
    assert set(report["schedules"]["edm"].values()) == {None}
    assert None not in report["schedules"]["own"].values()
    assert report["schedules"]["fitted:std"]["ratio_low_discrepancy"] == 1


@pytest.mark.parametrize("schedule", ["cosine", "uniform"])
def test_the_predicted_variance_of_the_own_schedule_is_that_of_the_logged_errors(schedule: str) -> None:
    """By drawing again what the log was made of, in batches of 64 of either kind of t."""
    text = log_text(schedule).replace('"step": 10,', f'"step": {200_000 // 64},')
    fitted = fit(stream(text))
    assert fitted.report.batch == 64
    p, draw = parse_schedule(schedule, -10, 10), torch.Generator().manual_seed(9)
    t = torch.rand(40_000, 64, generator=draw, dtype=torch.float64)
    comb = (t[:, :1] + torch.arange(64) / 64) % 1
    own = fitted.report.schedules["own"]
    for times, predicted in ((t, own["variance_independent"]), (comb, own["variance_low_discrepancy"])):
        lam = p.logsnr(times)
        noise = (1 + 0.3 * torch.randn(lam.shape, generator=draw, dtype=torch.float64)).clamp(min=0)
        loss = (parse_weighting(fitted.report.weighting)(lam) / p.density(lam) * (lam / 2).sigmoid() * noise).mean(1)
        assert 64 * float(loss.var() / loss.mean().square()) == pytest.approx(predicted, rel=0.05)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: "", "no header"),
        (lambda text: "hello\n", "line 1: "),
        (lambda text: text.splitlines()[1], "no header"),
        (lambda text: text.replace("elbo-losslog", "other"), "expected 'elbo-losslog'"),
        (lambda text: text[:-40] + "\n", "line 2: "),
        (lambda text: text.replace('"sum":', '"som":'), "line 2: .*sum"),
        (lambda text: text + log_text(low=-9), "other bins"),
        (lambda text: text.replace('"count": [', '"count": [-1, ', 1).replace(", 0.0]", "]", 0), "line 2"),
    ],
)
def test_a_log_that_is_none_is_refused_with_its_line(change: Any, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        fit(stream(change(log_text())))


def test_a_runs_log_is_found_and_its_counts_are_the_images(trained: Path) -> None:
    assert fit(trained).report.images == 40 * 16
    assert json.loads((trained / "losslog.jsonl").read_text().splitlines()[0])["dimensions"] == 64


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf"])
def test_a_fit_is_drawn_against_cosine_and_edm(suffix: str, tmp_path: Path) -> None:
    """With the same bytes every time."""
    fitted = fit(stream(log_text(count=2000)))
    for name in "ab":
        plot_fit(fitted, tmp_path / f"{name}.{suffix}")
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()
    if suffix == "svg":
        assert all(
            f"<!-- {word}" in (tmp_path / "a.svg").read_text() for word in ("cosine", "fitted", "edm", "share of")
        )
