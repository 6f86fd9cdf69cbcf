"""Training on a pretend CUDA device: equal to the CPU's, nobody waits within a step, all that is sent is pinned."""

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from group import poisoned, weights_of
from network_runs import NETWORKS, measured_by, train
from PIL import Image
from pretend import Pretence, plain_attention, pretending

from elbocli.errors import NonFiniteError
from elbocli.training.batches import Batches

pytestmark = [pytest.mark.long, pytest.mark.usefixtures("short_previews")]

MAY_WAIT = (
    *("TrainState.__init__", "TrainState.restore", "check", "TrainState.interval", "TrainState.copies"),
    *("TrainState.snapshot", "Validation.partial", "Evaluation.__init__", "Evaluation.values", "preview"),
)
"""What comes before the first step, and what is not done in every step."""
MAY_COPY = ("place", "make_extractor", "TrainState.restore")
"""What sends memory that isn't pinned, once."""
EVERYTHING: dict[str, Any] = {"schedule": "adaptive", "ema": ("0.9", "power:std=0.1"), "grad_clip": 0.5}
EVERYTHING |= {"micro_batch": 0, "val_split": 20, "val_every": 2, "preview_every": 2, "snapshot_every": 2}
EVERYTHING |= {"eval_every": 2, "eval_samples": 5}


def both(dataset: Path, folder: Path, *network: str, **options: Any) -> tuple[Path, Path, Pretence]:
    """The same run on the CPU and on the pretend device, and what that found out."""
    with plain_attention():
        cpu = train(dataset, folder / "cpu", *network, device="cpu", **options)
    with pretending() as device:
        cuda = train(dataset, folder / "cuda", *network, device="cuda", **options)
    assert device.waits.within("TrainState.snapshot"), "nothing was on the device"
    assert device.waits.outside(*MAY_WAIT) == []
    assert device.copies.outside(*MAY_COPY) == []
    return cpu, cuda, device


def alike(cuda: Path, cpu: Path, tolerance: float) -> None:
    for ours, theirs in zip(measured_by(cuda), measured_by(cpu), strict=True):
        assert ours == pytest.approx(theirs, rel=tolerance)


TOLERANCES = {"fp32": 1e-6, "bf16": 0.02, "fp16": 0.02}
# Networks cast alike in both half precisions, which differ in the factor of the loss, outside of any network.
QUICK = [("unet", "bf16"), *((network, "fp32") for network in NETWORKS)]
CASES = [pytest.param(*case, marks=[pytest.mark.slow] * (case not in QUICK)) for case in product(NETWORKS, TOLERANCES)]


@pytest.mark.parametrize(("network", "precision"), CASES)
def test_every_network_in_every_precision(network, precision, digits, tmp_path):
    """In half precision CUDA's autocast rounds in other places than the CPU's."""
    cpu, cuda, _ = both(digits, tmp_path, network, precision=precision)
    alike(cuda, cpu, TOLERANCES[precision])


@pytest.mark.parametrize(
    "options",
    [
        *({"micro_batch": 3}, {"activation_checkpointing": True}, {"t_sampling": "independent", "label_dropout": 0.0}),
    ],
    ids=str,
)
def test_ways_to_do_a_step(options, digits, tmp_path):
    cpu, cuda, _ = both(digits, tmp_path, **options)
    alike(cuda, cpu, 1e-6)


def test_all_that_is_done_between_steps(digits, tmp_path):
    cpu, cuda, device = both(digits, tmp_path, **EVERYTHING)
    alike(cuda, cpu, 1e-6)
    assert [len([*(cuda / name).iterdir()]) for name in ("previews", "snapshots")] == [2, 2]
    for picture in (cuda / "previews").iterdir():
        ours, theirs = (np.asarray(Image.open(run / "previews" / picture.name)) for run in (cuda, cpu))
        assert np.abs(ours.astype(int) - theirs).max() <= 1 and ours.std() > 1
    assert len(device.waits.within("Validation.partial")) == len(device.waits.within("preview")) == 2
    assert device.waits.within("walk") == []


def test_dropout_is_drawn_by_the_card_that_is_seeded_and_drawn_again_by_checkpointing(digits, tmp_path):
    runs = []
    with pretending() as device:
        for k, (name, again) in enumerate((("cuda", False), ("cuda", True), ("cuda:1", False))):
            for card in device.cards:
                card.generator.manual_seed(k)
            how = {"network.dropout": 0.5, "activation_checkpointing": again}
            runs.append(train(digits, tmp_path / str(k), **how, device=name))
    assert weights_of(runs[0]) == weights_of(runs[1]) == weights_of(runs[2])
    assert device.waits.outside(*MAY_WAIT) == []


def test_a_run_goes_on_as_if_it_had_not_stopped_and_on_the_cpu_too(digits, tmp_path):
    with pretending() as device:
        whole = train(digits, tmp_path / "whole", device="cuda")
        parts = train(digits, tmp_path / "parts", device="cuda", steps=2)
        train(digits, tmp_path / "parts", device="cuda")
        moved = train(digits, tmp_path / "moved", device="cuda", steps=2)
    assert device.waits.outside(*MAY_WAIT) == []
    assert weights_of(parts) == weights_of(whole)
    with plain_attention():
        alike(train(digits, moved, device="cpu"), whole, 1e-6)


def test_a_step_that_is_not_finite_ends_the_run_without_waiting(digits, tmp_path, monkeypatch):
    monkeypatch.setattr(Batches, "at", Batches.at)  # put back afterwards
    poisoned(2, 3)
    with pretending() as device, pytest.raises(NonFiniteError):
        train(digits, tmp_path / "cuda", device="cuda", log_every=4)
    assert device.waits.outside(*MAY_WAIT) == []
