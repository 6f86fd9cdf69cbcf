"""Bound, theorem, gradients and scores on a pretend CUDA device: the CPU's, with one wait for each batch."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elbocli.bound import estimate, gradients, theorem
from elbocli.bound.measure import Measurement, MeasureSettings, open_measurement
from elbocli.core.metrics import asked
from elbocli.core.weighting import parse_weighting
from elbocli.evaluate import scoring
from elbocli.evaluate.settings import EvalSettings
from elbocli.runtime.processes import World
from pretend import Pretence, plain_attention, pretending
from pretend.runs import train

IMAGES, DRAWS, BATCH = 6, 4, 8
TIMES = IMAGES * DRAWS // BATCH
"""Batches that show all draws of all images to the network."""
ONCE = ("place", "make_extractor")
"""What is done before the first batch."""


def last(reports: Generator[Any, None, Any]) -> Any:
    while True:
        try:
            next(reports)
        except StopIteration as end:
            return end.value


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, digits: Path) -> Path:
    return train(digits, tmp_path_factory.mktemp("run") / "run", device="cpu")


def measured(run: Path, device: str) -> Measurement:
    settings = MeasureSettings(images=IMAGES, draws=DRAWS, batch=BATCH, device=device, weights="model")
    return open_measurement(run, None, settings, print)


def pretended(ask: Any, run: Path) -> tuple[Any, Any, Pretence]:
    """What is found on the pretend device and on the CPU."""
    with plain_attention():
        cpu = ask(measured(run, "cpu"))
    with pretending() as device:
        cuda = ask(measured(run, "cuda"))
    assert device.copies.outside(*ONCE) == []
    return cuda, cpu, device


def test_the_bound(run: Path) -> None:
    cuda, cpu, device = pretended(lambda asked: last(estimate.run(asked)).bound, run)
    assert (cuda.bpd, cuda.bpd_se) == pytest.approx((cpu.bpd, cpu.bpd_se), rel=1e-6)
    assert len(device.waits.outside(*ONCE)) == len(device.waits.within("MeasuredNetwork._losses")) == TIMES
    assert device.waits.within("denoising_losses", "step_coefficients") == []


def test_the_theorem(run: Path) -> None:
    weighting = parse_weighting("sigmoid:bias=2")
    cuda, cpu, device = pretended(lambda asked: last(theorem.run(asked, [weighting])).checks[0], run)
    for side in ("left", "right"):
        assert getattr(cuda, side).nats == pytest.approx(getattr(cpu, side).nats, rel=1e-6)
    assert len(device.waits.outside(*ONCE)) == 2 * TIMES


def test_the_variance_of_gradients(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradients, "BINS", 2)
    monkeypatch.setattr(gradients, "PER_BIN", 2)

    def ask(asked: Measurement) -> Any:
        return last(gradients.run(asked, [parse_weighting("elbo")], ["fitted:gradient"], 16))[0]

    cuda, cpu, device = pretended(ask, run)
    ours, theirs = (found.gradient_variance[0] for found in (cuda, cpu))
    assert (ours.ratio, ours.ratio_se) == pytest.approx((theirs.ratio, theirs.ratio_se), rel=1e-4)
    assert device.waits.within("step_losses", "Gradients.at") == []


@pytest.mark.parametrize(
    ("network", "metrics", "count"),
    [("elbo-tiny", ("fid", "kid", "prc", "is"), 48), ("inception-v3-compat", ("is",), 2)],
)
def test_scores(
    network: str, metrics: tuple[str, ...], count: int, photos: np.ndarray, inception_weights: Path, tmp_path: Path
) -> None:
    np.save(tmp_path / "ours.npy", photos[:count])
    np.save(tmp_path / "theirs.npy", photos[:count, ::-1])
    weights = None if network == "elbo-tiny" else inception_weights
    options = asked(metrics, splits=2, kid_subset_size=16)
    settings = EvalSettings(options, extractor=network, extractor_weights=weights, batch=32, allow_mismatch=True)
    ref = tmp_path / "theirs.npy" if "fid" in metrics else None

    def score(device: str) -> Any:
        world = World(device=torch.device(device))
        return last(scoring.run([tmp_path / "ours.npy"], ref, settings, world)).repeats[0].values

    cpu = score("cpu")
    with pretending() as device:
        assert score("cuda") == pytest.approx(cpu, rel=1e-4, abs=1e-6)
    batches = -(-count // 32) * (1 if ref is None else 2)
    assert len(device.waits.outside(*ONCE)) == 2 * batches, "features and logits come to the host"
    assert device.copies.outside(*ONCE) == []
