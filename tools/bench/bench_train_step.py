"""A training step with all that elbo adds to it, against a bare loop of the same network and optimizer.

elbo's has a memory-mapped dataset, weighted loss, clipping, a finiteness check, EMA, loss log; the bare one has none. On a CPU these
additions take 1 to 2 ms of a step, so the bounds of the smallest networks are wider. Both use AdamW.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from compare import Row, compare
from device_runs import Bare, step_of
from made_data import packed

from elbocli.networks.unet import UNetConfig
from elbocli.runs.settings import resolve
from elbocli.training.state import TrainState

BOUND = 1.05
SMALLEST_BOUND = 1.15
SMALL32 = UNetConfig(32, 3, 10, channels=32, levels=(1, 2, 2), blocks=1, attention=(16,))


def rows(small: bool) -> Iterator[Row]:
    """Yield small networks of both families, at 8 pixels and at 32."""
    with tempfile.TemporaryDirectory() as temporary:
        for name, size, channels, preset, batch, rounds in (
            ("U-Net, digits", 8, 1, "digits", 64, 80),
            ("U-ViT, digits-uvit", 8, 1, "digits-uvit", 64, 80),
            ("U-Net, 32 pixels", 32, 3, "cifar", 32, 40),
            ("U-ViT, small32-uvit", 32, 3, "small32-uvit", 32, 40),
        ):
            dataset = packed(Path(temporary), size, channels)
            resolved: Any = resolve(
                {"preset": preset, "batch_size": 2 if small else batch, "optimizer": "adamw", "device": "cpu"}, dataset
            )
            if preset == "cifar":
                resolved = replace(resolved, network=SMALL32)
            state = TrainState(resolved, dataset)
            step = step_of(state)
            bare = Bare(dataset, resolved.network, resolved.settings.batch_size).step
            rounds = 1 if small else rounds
            bound = SMALLEST_BOUND if size == 8 else BOUND
            yield compare(f"train step, {name} / bare loop", step, bare, bound, rounds=rounds, warm_up=8)
