"""Reading ahead changes nothing but the time it takes."""

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from elbocli.files.dataset import ENCODED, ENCODINGS, IMAGES, BlockLayout, Dataset, DatasetWriter, encode
from elbocli.run.settings import resolve
from elbocli.train import batches as module
from elbocli.train.state import TrainState
from elbocli.train.step import update


def threads() -> int:
    return sum(thread.name == "elbo-ahead" for thread in threading.enumerate())


@pytest.fixture
def stores(tmp_path: Path) -> dict[str, Dataset]:
    """The same 50 images kept in each way."""
    rows = np.random.default_rng(0).integers(0, 256, (50, 8, 8, 1), np.uint8)
    found = {}
    for store in ("raw", *ENCODINGS):
        raw = store == "raw"
        layout = BlockLayout(IMAGES, (8, 8, 1)) if raw else BlockLayout(ENCODED, (), 300)
        about: dict[str, Any] = {"num_classes": 2, "image_size": 8, **({} if raw else {"store": store, "channels": 1})}
        with DatasetWriter(tmp_path / f"{store}.h5", layout, 50, "test").held() as writer:
            writer.append(rows if raw else [encode(row, store) for row in rows], 50, {})
            writer.finish({"labels": np.arange(50) % 2}, {"class_names": ["a", "b"]}, about)
        found[store] = Dataset(tmp_path / f"{store}.h5")
    return found


def settings(dataset: Dataset, preset: Path) -> Any:
    return resolve({"preset": str(preset), "device": "cpu", "flip": True, "batch": 16}, dataset)


def test_batches_and_losses_are_the_same_bits_from_every_store_ahead_or_not(
    stores: dict[str, Dataset], preset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = [0, 1, 2, 3, 4, 9, 3, 4, 5, 6, 7]

    def seen(dataset: Dataset) -> tuple[list[Any], list[float]]:
        resolved = settings(dataset, preset)
        examples = module.Batches(dataset, resolved, torch.device("cpu"))
        batches = [examples.at(step) for step in order]
        state = TrainState(resolved, dataset)
        losses = []
        for _ in range(5):
            update(state)
            losses.append(float(state.totals[0]))
        return batches, losses

    batches, losses = seen(stores["raw"])
    for store, dataset in stores.items():
        again, same = seen(dataset)
        assert same == losses, store
        for one, other in zip(batches, again, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_damaged_image_stops_training_with_a_message(
    stores: dict[str, Dataset], preset: Path, elbo: Callable[..., Any], tmp_path: Path
) -> None:
    content = stores["png"].path.read_bytes()
    start = content.index(b"\x89PNG", content.index(b"\x89PNG") + 1)
    (tmp_path / "bad.h5").write_bytes(content[:start] + bytes(8) + content[start + 8 :])
    result = elbo("train", tmp_path / "bad.h5", "-o", tmp_path / "run", "--preset", preset, "--steps", 20)
    assert result.returncode == 1 and b"bad.h5: damaged: row 1" in result.stderr
    assert b"Traceback" not in result.stderr
