"""The kernels that a training step of imagenet64 spends its time in."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import device_runs as on
import torch
from record import Row
from step_loops import step_of
from throughput import COMPILED_S, IMAGENET64, Way, data_of, released, settings_of
from torch.profiler import ProfilerActivity, profile
from worker import Session

from elbocli.train.state import TrainState

SHOWN, MICRO_BATCH = 15, 16


def profiled(step: Callable[[], None], cuda: bool) -> profile:
    """Profile a step, after two to warm up."""
    for _ in range(2):
        step()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        step()
        if cuda:
            torch.cuda.synchronize()
    return seen


def rows(session: Session) -> Iterator[Row]:
    """The share of each of the first ones, of bf16 as it is, and compiled."""
    data, cuda = data_of(IMAGENET64, session), session.device == "cuda"
    for way in (Way("bf16"), Way("bf16", compile=True)):
        if way.compile and (session.small or session.left < COMPILED_S):
            yield Row(way.name, "skipped", note="on a CPU nothing is compiled" if session.small else "no time")
            continue
        released()
        settings = settings_of(IMAGENET64, session, data, way, 4 if session.small else MICRO_BATCH)
        with on.arithmetic(way.precision, session.device):
            seen = profiled(step_of(TrainState(settings, data)), cuda)
        events = [
            (e.key, e.self_device_time_total if cuda else e.self_cpu_time_total, e.count) for e in seen.key_averages()
        ]
        whole = sum(took for _, took, _ in events)
        yield Row(f"{way.name}: time of all kernels", whole / 1e3, "ms", ok=whole > 0)
        for key, took, count in sorted(events, key=lambda event: -event[1])[:SHOWN]:
            yield Row(f"{way.name}: {key[:90]}", 100 * took / whole, "%", note=f"{count} times")
