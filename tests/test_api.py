"""The Python API does what the commands do, to the bit where they share the draws."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import elbocli
from elbocli.core.rounding import to_levels
from elbocli.errors import UsageError
from elbocli.files.losslog import read_logs
from elbocli.nn.networks import build
from elbocli.run.settings import resolve
from elbocli.train.batches import Batches
from elbocli.train.step import step_losses

CPU = torch.device("cpu")


def test_importing_it_imports_nothing_heavy_and_every_name_is_there() -> None:
    code = (
        "import sys, elbocli; heavy = {'torch', 'numpy', 'click', 'ast'} & set(sys.modules)\n"
        "from elbocli import *; missing = [n for n in dir(elbocli) if getattr(elbocli, n, None) is None and n[0] != '_']\n"
        "print(sorted(heavy), missing)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "[] []\n"
    assert {"DiffusionLoss", "draw", "open_run", "variational_bound", "weighting"} <= set(dir(elbocli))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(elbocli, "nothing")  # noqa: B009 - type checkers know that there is none


@pytest.mark.parametrize("schedule", ["cosine", "adaptive"])
def test_the_loss_is_that_of_training_to_the_bit(schedule: str, digits: Path, preset: Path) -> None:
    data = elbocli.open_dataset(digits)
    resolved = resolve({"preset": str(preset), "schedule": schedule, "dropout": 0.0, "seed": 3}, data)
    network, batches = build(resolved.network).eval(), Batches(data, resolved, CPU)
    loss = elbocli.DiffusionLoss("sigmoid", schedule, "v", logsnr_min=-10, logsnr_max=10, seed=3)
    for step in range(3):
        x, _, labels = batches.at(step, 0)
        given = (loss.weighting, loss.schedule, loss.prediction)
        expected, error, logsnr = step_losses(network, batches, step, 0, *given)
        found = loss(network, x, labels)
        assert torch.equal(found.loss, expected) and torch.equal(found.eps_mse, error)
        assert torch.equal(found.logsnr, logsnr)


def same(z: torch.Tensor, logsnr: torch.Tensor, labels: Any) -> torch.Tensor:
    return z


@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 4, 4)])
def test_ranks_share_a_batch_and_a_saved_loss_goes_on(shape: tuple[int, ...]) -> None:
    x = torch.randn(12, *shape, generator=torch.Generator().manual_seed(0))
    whole = elbocli.DiffusionLoss("edm", "adaptive", "eps")
    parts = [elbocli.DiffusionLoss("edm", "adaptive", "eps", rank=rank, ranks=3) for rank in range(3)]
    for _ in range(2):
        expected = whole(same, x)
        found = [part(same, x[4 * rank : 4 * rank + 4]) for rank, part in enumerate(parts)]
        assert torch.equal(torch.cat([each.loss for each in found]), expected.loss)
        sums = whole.take_sums()
        torch.testing.assert_close(torch.stack([part.take_sums() for part in parts]).sum(0), sums)
        for one in (whole, *parts):
            one.adapt(sums)
    again = elbocli.DiffusionLoss("edm", "adaptive", "eps")
    again.load_state_dict(whole.state_dict())
    assert torch.equal(again(same, x).loss, whole(same, x).loss)
    with pytest.raises(UsageError, match="rank 3 of 3"):
        elbocli.DiffusionLoss(rank=3, ranks=3)


def test_a_loss_log_is_read_as_one_of_training(tmp_path: Path) -> None:
    loss = elbocli.DiffusionLoss("sigmoid", "cosine", "v")
    log = elbocli.LossLogWriter(tmp_path / "l.jsonl", loss.edges, dimensions=6, weighting=loss.weighting.spec)
    total = torch.zeros(3, len(loss.edges) - 1, dtype=torch.float64)
    for _ in range(3):
        loss(same, torch.randn(8, 6))
        sums = loss.take_sums()
        log.write(loss.step, loss.images, sums)
        total += sums
    found = read_logs([tmp_path / "l.jsonl"])
    assert torch.equal(found.sums, total) and (found.images, found.lines) == (24, 3) and total[0].sum() == 24


def test_what_it_draws_is_what_elbo_sample_draws(elbo: Callable[..., Any], trained: Path, tmp_path: Path) -> None:
    result = elbo("sample", trained, "-n", 6, "--steps", 4, "--sampler", "ddpm", "-o", tmp_path / "s.npy")
    assert result.returncode == 0, result.stderr
    run = elbocli.open_run(trained, "cpu")
    schedule, labels = elbocli.schedule("cosine", -10, 10), torch.arange(6) % 10
    drawn = elbocli.draw(
        run.network, run.prediction, (1, 8, 8), 6, labels=labels, steps=4, schedule=schedule, device="cpu", batch=6
    )
    assert np.array_equal(to_levels(drawn).numpy(), np.load(tmp_path / "s.npy"))
    with pytest.raises(UsageError, match="2 labels for 6"):
        elbocli.draw(run.network, "v", (1, 8, 8), 6, labels=labels[:2])


def test_the_bound_is_that_of_elbo_bound(elbo: Callable[..., Any], trained: Path, digits: Path) -> None:
    result = elbo("bound", trained, digits, "-n", 300, "--draws", 2, "--schedule", "uniform", "--device", "cpu")
    expected, data, run = json.loads(result.stdout), elbocli.open_dataset(digits), elbocli.open_run(trained, "cpu")
    found = elbocli.variational_bound(
        run.network,
        run.prediction,
        data.batch(range(300)),
        torch.from_numpy(data.labels),
        logsnr_min=-10,
        logsnr_max=10,
        draws=2,
        population=300,
        device="cpu",
    )
    for key in ("bpd", "bpd_se", "bpd_se_noise", "nats"):
        assert getattr(found, key) == pytest.approx(expected[key], rel=1e-5), key
    assert found.prior.nats == pytest.approx(expected["prior"]["nats"], rel=1e-9)
