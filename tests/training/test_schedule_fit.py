"""Schedules fitted to loss logs: their density, the variance that they promise, and what a short run makes of it."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from elbocli.core.adaptive import ErrorMoments, bin_edges, floored, loss_variance
from elbocli.core.schedule import parse_schedule, schedule_of_shares
from elbocli.core.weighting import parse_weighting
from elbocli.errors import DataError
from elbocli.files import losslog
from elbocli.files.schedule_file import resolve_schedule
from elbocli.report.plots import plot_fit
from elbocli.training.schedule_fit import FittedSchedule, fit_log


def fit(log: str | Path, weighting: str | None = None, **settings: Any) -> FittedSchedule:
    source = log if isinstance(log, Path) else io.BytesIO(log.encode())
    return fit_log([source], weighting, **settings)


def log_text(schedule: str = "cosine", count: int = 200_000, ends: tuple[float, float] = (-10, 10)) -> str:
    """A log of errors with mean sigmoid(λ/2) and standard deviation 0.3 of it, drawn under a schedule."""
    draw = torch.Generator().manual_seed(0)
    (low, high) = ends
    lam = parse_schedule(schedule, low, high).logsnr(torch.rand(count, generator=draw, dtype=torch.float64))
    error = (lam / 2).sigmoid() * (1 + 0.3 * torch.randn(count, generator=draw, dtype=torch.float64)).clamp(min=0)
    cell = ((lam - low) / (high - low) * 100).long().clamp(0, 99)
    values = torch.stack([torch.ones_like(error), error, error.square()])
    sums = torch.zeros(3, 100, dtype=torch.float64).index_add_(1, cell, values)
    how = {"weighting": "sigmoid:bias=2", "schedule": schedule, "prediction": "v"}
    head = losslog.header(bin_edges(low, high), dimensions=64, **how)
    return head + losslog.line(10, count, sums)


def test_the_fitted_schedule_has_little_variance_and_a_file_brings_it_back(tmp_path):
    fitted = fit(log_text())
    promised = fitted.report.schedules
    assert list(promised) == ["own", "cosine", "edm", "uniform", "fitted"]
    best = promised["fitted"]["variance_independent"]
    assert all(best <= promise["variance_independent"] * 1.02 for promise in promised.values())
    assert promised["own"] == promised["cosine"]
    (tmp_path / "s.yaml").write_text(fitted.text)
    again = resolve_schedule(str(tmp_path / "s.yaml"))
    t = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert torch.equal(again.logsnr(t), fitted.schedule.logsnr(t))


def test_any_weighting_can_be_fitted_from_one_log():
    middle = torch.tensor([0.5], dtype=torch.float64)
    fitted = {spec: fit(log_text(), weighting=spec) for spec in ("elbo", "edm:monotone", "eps-mse@cosine")}
    assert all(each.report.weighting.partition(":")[0] == spec.partition(":")[0] for spec, each in fitted.items())
    assert len({float(each.schedule.logsnr(middle)) for each in fitted.values()}) == 3


def test_a_log_that_no_smooth_curve_fits_is_refused():
    edges = torch.arange(101, dtype=torch.float64) * 1e-12
    head, row = log_text().splitlines(keepends=True)
    for log in (
        losslog.header(edges, weighting="elbo", schedule="cosine") + row,
        head + losslog.line(1, 900, torch.tensor([[9.0], [1e-50], [1.0]], dtype=torch.float64).expand(3, 100)),
    ):
        with pytest.raises(DataError):
            fit(log)


@pytest.mark.parametrize("floor", [None, 0.01])
def test_a_bin_that_a_short_adaptive_run_missed_by_chance_makes_no_infinity(floor):
    """A schedule's density in one bin is the floor's: of 12,800 draws 1.28 are expected there, and none came."""
    edges = bin_edges(-10, 10)
    share = floored(torch.cat([torch.zeros(1), torch.full((99,), 1 / 99)]).double(), edges.diff(), 0.01)
    count = 12_800 * share
    error = torch.full((100,), 0.5, dtype=torch.float64)
    count[0] = 0
    sums = torch.stack([count, count * error, 1.09 * count * error.square()])
    head = losslog.header(edges, dimensions=64, schedule="adaptive", weighting="elbo", floor=floor)
    exact = schedule_of_shares(edges, share, "exact")
    own = fit(head + losslog.line(100, 12_800, sums)).report.schedules["own"]
    true = loss_variance(ErrorMoments.of_sums(edges, sums), parse_weighting("elbo"), exact.density, 128)
    found = own["variance_independent"], own["variance_low_discrepancy"]
    assert found == pytest.approx(true, rel=0.05 if floor else 2)


def test_what_is_infinite_is_null_in_the_report_and_does_not_stop_the_fit():
    """An adaptive run that never visited some bins, and a range where EDM's schedule has nothing."""
    text = log_text("uniform", ends=(30, 50))
    head, line = text.replace('"schedule": "uniform"', '"schedule": "adaptive"').splitlines()
    row = json.loads(line)
    row |= {key: [0] * 50 + row[key][50:] for key in ("count", "sum", "sumsq")}
    report = fit(f"{head}\n{json.dumps(row)}\n", weighting="elbo").report.json()
    json.dumps(report, allow_nan=False)
    assert set(report["schedules"]["edm"].values()) == {None}
    assert None not in report["schedules"]["own"].values()
    assert report["schedules"]["fitted"]["ratio_independent"] is not None


def test_a_runs_log_is_found_and_its_counts_are_the_images(trained):
    assert fit(trained).report.images == 40 * 16


def test_a_fit_is_drawn_against_cosine_and_edm(tmp_path):
    plot_fit(fit(log_text(count=2000)), tmp_path / "a.svg")
    text = (tmp_path / "a.svg").read_text()
    assert all(word in text for word in ("<!-- = cosine", "<!-- fitted", "<!-- edm", "<!-- share of"))
