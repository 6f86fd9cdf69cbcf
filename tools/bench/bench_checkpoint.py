"""How long a checkpoint stops training, against a step: the snapshot, which a thread then writes."""

import tempfile
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from statistics import median

from compare import Row, seconds
from device_runs import step_of
from made_data import packed

from elbocli.files import checkpoint as store
from elbocli.runs.settings import resolve
from elbocli.training.state import TrainState

ROUNDS = 15
PRESETS = {"U-Net": "small32", "U-ViT": "small32-uvit"}


def rows(small: bool) -> Iterator[Row]:
    """Yield the snapshot and the writing, for small networks of both families."""
    for family, preset in PRESETS.items():
        with tempfile.TemporaryDirectory() as temporary:
            run = Path(temporary) / "run"
            run.mkdir()
            dataset = packed(Path(temporary), 8 if small else 32, 3)
            options = {"preset": preset, "batch_size": 2 if small else 32, "device": "cpu"}
            state = TrainState(resolve(options, dataset), dataset)
            writer = ThreadPoolExecutor(1)
            step = step_of(state)

            writing: list[Future[Path]] = []

            def save(
                state: TrainState = state,
                writer: ThreadPoolExecutor = writer,
                run: Path = run,
                writing: list[Future[Path]] = writing,
            ) -> None:
                weights, rest = state.snapshot()
                about = {"images": 0, "log_bytes": {}}
                done = state.steps_done
                writing.append(writer.submit(lambda: store.save(run, done, weights, rest, about)))

            stalls = []
            steps = []
            written = []
            for _ in range(2 if small else ROUNDS):
                steps.append(median(seconds(step) for _ in range(1 if small else 3)))
                stalls.append(seconds(save))
                written.append(seconds(writing[-1].result))  # as between two checkpoints there is time enough
            for name, times in (("stall", stalls), ("writing, in its thread", written)):
                ratio = median(a / b for a, b in zip(times[1:], steps[1:]))
                yield Row(f"checkpoint's {name}, {family} / step", median(times), median(steps), ratio, None)
