"""Images a second that `elbo sample` draws with imagenet64's network, 32 evaluations each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from record import Row
from throughput import IMAGENET64, Way, data_of, released, settings_of
from worker import Session

from elbocli.core.samplers.walk import parse_sampler
from elbocli.files import checkpoint as store
from elbocli.sample import draw
from elbocli.train.state import TrainState

STEPS, BATCH, BATCHES = 32, 32, 4
LEAST_S = 8.0
WAYS = (Way("bf16"), Way("bf16", compile=True), Way("tf32"), Way("fp32"))


def new_run(session: Session) -> Path:
    """A run whose network has not been trained: how fast it is doesn't depend on that."""
    run, data = session.folder / "imagenet64", data_of(IMAGENET64, session)
    resolved = settings_of(IMAGENET64, session, data, Way("fp32"), 1)
    state = TrainState(resolved, data)
    weights, rest = state.snapshot()
    run.mkdir()
    store.write_config(run, resolved.config())
    store.save(run, 0, weights, rest, {"images": 0, "log_bytes": {}})
    return run


def drawn(run: Path, way: Way, session: Session) -> float:
    """Images a second, from the end of the first batch to the end of the last."""
    batch, n = (2, 4) if session.small else (BATCH, BATCH * BATCHES)
    steps = 2 if session.small else STEPS
    settings = draw.SampleSettings(
        n=n,
        sampler=parse_sampler("ddim"),
        steps=steps,
        batch=batch,
        device=session.device,
        precision=way.precision,
        compile=way.compile,
        overwrite=True,
    )
    ends = [
        (report.done, time.perf_counter())
        for report in draw.run(run, run / "samples.npy", settings)
        if report.done and report.unit == "img"
    ]
    (first, begun), (last, ended) = ends[0], ends[-1]
    return (last - first) / (ended - begun)


def rows(session: Session) -> Iterator[Row]:
    """A rate for each precision, and compiled."""
    run = new_run(session)
    for way in WAYS:
        if session.left < LEAST_S and not session.small:
            yield Row(way.name, "skipped", note=f"no time: {max(session.left, 0):.0f} s are left")
            continue
        released()
        begun = time.perf_counter()
        yield Row(way.name, drawn(run, way, session), "images/s", note=f"{time.perf_counter() - begun:.0f} s in all")
