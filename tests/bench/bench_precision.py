"""A training step compiled, in bf16, and both, against fp32 as it is: on this CPU, or on CUDA where there is one."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from compare import Row, compare
from made_data import packed
from step_loops import step_of

from elbocli.run.settings import resolve
from elbocli.train.state import TrainState

WAYS = ({"precision": "bf16"}, {"compile": True}, {"precision": "bf16", "compile": True})


def rows() -> Iterator[Row]:
    """Small networks of both families on a CPU; imagenet64's on CUDA."""
    cuda = torch.cuda.is_available()
    device = "cuda" if cuda else "cpu"
    where = torch.cuda.get_device_name() if cuda else "cpu"
    with tempfile.TemporaryDirectory() as temporary:
        dataset = packed(Path(temporary), 64 if cuda else 32, 3)
        presets = [("imagenet64", 64)] if cuda else [("small64", 32), ("small32-uvit", 32)]
        for preset, batch in presets:

            def state(preset: str = preset, batch: int = batch, **way: object) -> TrainState:
                return TrainState(
                    resolve({"preset": preset, "batch": batch, "device": device, **way}, dataset), dataset
                )

            def job(one: TrainState) -> object:
                step = step_of(one)
                return (lambda: (step(), torch.cuda.synchronize())) if cuda else step

            plain = job(state())
            for way in WAYS:
                name = f"{where}, {preset}: {' '.join(map(str, way.values())).replace('True', 'compiled')} / fp32"
                yield compare(name, job(state(**way)), plain, None, rounds=20)  # type: ignore[arg-type]
