"""Two processes of one thread each, under torchrun's environment, against one process of two threads, and of one."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from compare import Row
from made_data import packed

GROUP = Path(__file__).parents[1]
STEPS = 60
TIMED = f"""
import json, sys, time
sys.path.insert(0, {str(GROUP)!r})
from pathlib import Path
import group
data, preset, batch, size, threads, parallel = sys.argv[1:]
def work(world):
    import torch
    torch.set_num_threads(int(threads))
    from elbocli.files.dataset import Dataset
    from elbocli.run.settings import resolve
    from elbocli.train.state import TrainState
    from elbocli.train.step import update
    dataset = Dataset(Path(data))
    resolved = resolve({{"preset": preset, "batch": int(batch), "device": "cpu", "parallel": parallel}}, dataset)
    state = TrainState(resolved, dataset, world)
    def step():
        state.batches.ready(state.steps_done)
        world.most([0, 0])
        update(state)
    for _ in range(10):
        step()
    begun = time.perf_counter()
    for _ in range({STEPS}):
        step()
    if world.first:
        print(json.dumps((time.perf_counter() - begun) / {STEPS}), flush=True)
assert not any(group.forked(int(size), work))
"""


def seconds(data: Path, preset: str, batch: int, size: int, threads: int, parallel: str = "ddp") -> float:
    """Of one step of the whole batch."""
    line = [sys.executable, "-c", TIMED, str(data), preset, *map(str, (batch, size, threads)), parallel]
    return float(json.loads(subprocess.run(line, check=True, capture_output=True, text=True).stdout.splitlines()[-1]))


def rows() -> Iterator[Row]:
    """Ratios of the time of a step."""
    with tempfile.TemporaryDirectory() as temporary:
        data = packed(Path(temporary), 32, 3).path
        for preset in ("small64", "small32-uvit"):
            two = [seconds(data, preset, 32, 2, 1, way) for way in ("ddp", "fsdp")]
            for threads in (2, 1):
                one = seconds(data, preset, 32, 1, threads)
                for way, ours in zip(("ddp", "fsdp"), two):
                    name = f"{preset}: 2 processes ({way}) / 1 of {threads} threads"
                    yield Row(name, ours, one, ours / one, None)
