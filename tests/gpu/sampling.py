"""Images a second that `elbo sample` draws with imagenet64's network, 32 evaluations each."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import device_runs as on
from record import Row
from throughput import IMAGENET64, Way, data_of, released, settings_of
from worker import Session

from elbocli.core.samplers import parse_sampler
from elbocli.files.sample_files import FileSink
from elbocli.sample import draw

STEPS, BATCH, BATCHES = 32, 32, 4
LEAST_S = 8.0


@dataclass(frozen=True)
class Drawing:
    """A way to draw. compile: graphs, of CUDA, are the default, and nothing on a CPU."""

    precision: str
    compile: str = "graphs"

    @property
    def name(self) -> str:
        """Name in rows."""
        return (
            f"{self.precision}{ {'off': '', 'graphs': ', CUDA graphs', 'on': ', CUDA graphs, compiled'}[self.compile] }"
        )


DRAWINGS = (
    Drawing("bf16"),
    Drawing("bf16", compile="off"),
    Drawing("tf32"),
    Drawing("bf16", compile="on"),
    Drawing("fp32"),
    Drawing("fp32", compile="off"),
)
"""In their order: the first are there when time is short. fp32 with graphs is what `elbo sample` does unasked."""


def drawn(run: Path, way: Drawing, session: Session) -> float:
    """Images a second, from the end of the first batch to the end of the last."""
    batch, n = (2, 4) if session.small else (BATCH, BATCH * BATCHES)
    settings = draw.SampleSettings(
        n=n,
        sampler=parse_sampler("ddim"),
        steps=2 if session.small else STEPS,
        batch=batch,
        device=session.device,
        precision=way.precision,
        compile=way.compile,
        overwrite=True,
    )
    ends, put = list[tuple[int, float]](), FileSink.put

    def timed(sink: FileSink, images: Any) -> None:
        put(sink, images)
        ends.append((sink.done, time.perf_counter()))

    with patch.object(FileSink, "put", timed):
        draw.draw_samples(run, run / "samples.npy", settings)
    (first, begun), (last, ended) = ends[0], ends[-1]
    return (last - first) / (ended - begun)


def rows(session: Session) -> Iterator[Row]:
    """A rate for each way."""
    data = data_of(IMAGENET64, session)
    run = on.untrained(data, session.folder / "imagenet64", settings_of(IMAGENET64, session, data, Way("fp32"), 1))
    for way in DRAWINGS:
        if session.left < LEAST_S and not session.small:
            yield Row(way.name, "skipped", note=f"no time: {max(session.left, 0):.0f} s are left")
            continue
        released()
        begun = time.perf_counter()
        yield Row(way.name, drawn(run, way, session), "images/s", note=f"{time.perf_counter() - begun:.0f} s in all")
