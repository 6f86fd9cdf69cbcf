"""Bound, theorem, gradients and scores on a pretend CUDA device: the CPU's, with one wait for each batch."""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from network_runs import NETWORKS, train
from pretend import Pretence, plain_attention, pretending

from elbocli import api
from elbocli.bound import estimate
from elbocli.bound.measure import RunMeasurement, open_measurement
from elbocli.networks import build, config_of
from elbocli.runtime.device import sent
from elbocli.runtime.processes import World
from elbocli.scoring import scoring
from elbocli.scoring.metrics import asked
from elbocli.scoring.settings import EvalSettings

IMAGES = 6
DRAWS = 4
BATCH = 8
TIMES = IMAGES * DRAWS // BATCH
"""Batches that show all draws of all images to the network."""
IMAGES_OF = {"image_size": 8, "image_channels": 1, "num_classes": 4}
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


def measured(run: Path, device: str) -> RunMeasurement:
    settings: Any = {"images": IMAGES, "draws": DRAWS, "batch_size": BATCH, "device": device, "weights": "model"}
    return open_measurement(run, None, **settings)


def pretended(ask: Any, run: Path) -> tuple[Any, Any, Pretence]:
    """What is found on the pretend device and on the CPU."""
    with plain_attention():
        cpu = ask(measured(run, "cpu"))
    with pretending() as device:
        cuda = ask(measured(run, "cuda"))
    assert device.copies.outside(*ONCE) == []
    return cuda, cpu, device


def test_the_bound(run):
    cuda, cpu, device = pretended(lambda asked: estimate.measure_bound(asked).bound, run)
    assert (cuda.bpd, cuda.bpd_se) == pytest.approx((cpu.bpd, cpu.bpd_se), rel=1e-6)
    assert len(device.waits.outside(*ONCE)) == len(device.waits.within("Measurement.draw")) == TIMES
    assert device.waits.within("Objective.losses") == []


@pytest.mark.parametrize(
    ("network", "metrics", "count"),
    [("elbo-tiny", ("fid", "kid", "prc", "is"), 48), pytest.param("inception-v3-compat", ("is",), 2, marks=pytest.mark.long)],
)
def test_scores(network, metrics, count, photos, inception_weights, tmp_path):
    np.save(tmp_path / "ours.npy", photos[:count])
    np.save(tmp_path / "theirs.npy", photos[:count, ::-1])
    weights = None if network == "elbo-tiny" else inception_weights
    options = asked(",".join(metrics), splits=2, kid_subset_size=16)
    settings = EvalSettings(options, extractor=network, extractor_weights=weights, batch_size=32, allow_mismatch=True)
    ref = tmp_path / "theirs.npy" if "fid" in metrics else None

    def score(device: str) -> Any:
        world = World(device=torch.device(device))
        found = scoring.run([tmp_path / "ours.npy"], ref, settings, world)
        assert found is not None
        return found.repeats[0].values

    cpu = score("cpu")
    with pretending() as device:
        cuda = score("cuda")
    assert cuda.keys() == cpu.keys()
    for name, value in cpu.items():  # numbers, intervals and None
        assert cuda[name] == (value if value is None else pytest.approx(value, rel=1e-4, abs=1e-6)), name
    batches = -(-count // 32) * (1 if ref is None else 2)
    seeing = (*ONCE, "score_set")  # when all is seen, pairs are compared block by block
    assert len(device.waits.outside(*seeing)) == 2 * batches, "features and logits come to the host"
    assert device.copies.outside(*seeing) == []


def test_the_api_in_anyones_own_loop():
    """Batches, labels and pixels that are on the device already stay there; those that aren't are sent."""

    def ask(device: str, given: str) -> tuple[Any, ...]:
        torch.manual_seed(0)
        network = build(config_of({**yaml.safe_load(NETWORKS["uvit-none"]), **IMAGES_OF}, "test")).to(device).eval()
        labels = torch.arange(4).to(given)
        pixels = torch.arange(256, dtype=torch.uint8).view(4, 8, 8, 1).to(given)
        x = torch.linspace(-1, 1, 256).view(4, 1, 8, 8)
        loss = api.DiffusionLoss()
        for _ in range(2):
            loss(network, sent(x, torch.device(device)), sent(labels, torch.device(device))).loss.sum().backward()
        drawn = api.draw(network, "v", (1, 8, 8), 4, labels=labels, steps=2, device=device)
        bound = api.variational_bound(network, "v", pixels, labels, draws=2, device=device)
        return loss.take_sums().tolist(), drawn.tolist(), bound.bpd

    cpu = ask("cpu", "cpu")
    with pretending() as device:
        for given in ("cpu", "cuda"):
            device.clear()
            for ours, theirs in zip(ask("cuda", given), cpu, strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
            assert [copy for copy in device.copies if copy.inside] == []  # those of elbo, not of this test
            assert device.waits.within("walk") == []
            assert len(device.waits.within("DiffusionLoss.__call__")) == 1, "the scale of the first batch"
