"""How long a checkpoint stops training, against a step: the snapshot, which a thread then writes."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from compare import Row
from made_data import packed
from step_loops import step_of

from elbocli.files import checkpoint as store
from elbocli.run.settings import resolve
from elbocli.train.saver import Saver
from elbocli.train.state import TrainState

ROUNDS = 15


def seconds(job: Callable[[], object]) -> float:
    """Of one call."""
    begun = time.perf_counter()
    job()
    return time.perf_counter() - begun


def rows() -> Iterator[Row]:
    """For small networks of both families."""
    with tempfile.TemporaryDirectory() as temporary:
        dataset = packed(Path(temporary), 32, 3)
        for name, options in (
            ("U-Net, small64", {"preset": "small64", "batch": 32}),
            ("U-ViT, small32-uvit", {"preset": "small32-uvit", "batch": 32}),
        ):
            state, saver = TrainState(resolve({**options, "device": "cpu"}, dataset), dataset), Saver()
            step = step_of(state)

            def save(state: TrainState = state, saver: Saver = saver) -> None:
                weights, rest = state.snapshot()
                about, done = {"images": 0, "log_bytes": {}}, state.steps_done
                saver.start(lambda: store.save(Path(temporary) / "run", done, weights, rest, about))

            stalls, steps, written = [], [], []
            for _ in range(ROUNDS):
                steps.append(median(seconds(step) for _ in range(3)))
                stalls.append(seconds(save))
                written.append(seconds(saver.finish))  # as between two checkpoints there is time enough
            ratio = median(a / b for a, b in zip(stalls[1:], steps[1:]))
            yield Row(f"checkpoint's stall, {name} / step", median(stalls), median(steps), ratio, None)
            ratio = median(a / b for a, b in zip(written[1:], steps[1:]))
            yield Row(
                f"checkpoint's writing, in its thread, {name} / step", median(written), median(steps), ratio, None
            )
