"""Speeds on a card: training beside a bare loop, sampling, Inception beside torch-fidelity's, and a profile of a step."""

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import device_runs as on
import made_data
import torch
from device_runs import Bare, step_of
from environment import has
from torch.profiler import ProfilerActivity, profile
from worker import Row, Session, Skipped

from elbocli.core.samplers import parse_sampler
from elbocli.files.dataset import Dataset
from elbocli.files.sample_files import FileSink
from elbocli.run.settings import Resolved
from elbocli.sample import draw
from elbocli.train.state import TrainState

EAGER_S, COMPILED_S = 6.0, 25.0
"""Seconds without which a way isn't begun."""
TIMED_S = 4.0
TINY = {"channels": 16, "levels": (1, 2), "blocks": 1}
TINY_UVIT = {**TINY, "depth": 2, "heads": 2, "embedding": 32}


@dataclass(frozen=True)
class Way:
    """precision, and whether compiled; bare: in plain torch, against elbo's own of that precision."""

    precision: str
    compile: bool = False
    bare: bool = False

    @property
    def name(self) -> str:
        """Name in training."""
        return f"{self.precision}{' compiled' * self.compile}{', bare loop' * self.bare}"


@dataclass(frozen=True)
class Case:
    """A preset's network for images of `size`. most: images at a time. network: changes of it. small: changes on a CPU."""

    preset: str
    size: int
    classes: int
    batch: int
    most: int
    network: dict[str, Any] = field(default_factory=dict)
    small: dict[str, Any] = field(default_factory=lambda: TINY_UVIT)
    latents: bool = False


BF16, BF16_COMPILED = Way("bf16"), Way("bf16", compile=True)
BARE, BARE_COMPILED = replace(BF16, bare=True), replace(BF16_COMPILED, bare=True)
ALL = (Way("fp32"), Way("tf32"), BF16, BARE, BF16_COMPILED, BARE_COMPILED, Way("tf32", compile=True))
SHORT = (BF16, BARE, BF16_COMPILED, Way("tf32"), Way("fp32"), BARE_COMPILED)
"""The ways in their order: the first are there when time is short."""
IMAGENET64 = Case("imagenet64", 64, 1000, 256, 64, small=TINY)
IMAGENET256 = Case("imagenet256", 256, 1000, 64, 16, network={"depth": 8})
"""The whole has a depth of 36 and 2 billion parameters: with their optimizer and averages, a card is full of them."""


def data_of(case: Case, session: Session) -> Dataset:
    """Noise of the case's shape; on a CPU of few pixels."""
    size, count = (case.size, 512) if not session.small else (8 if case.latents else 16, 64)
    if case.latents:
        return made_data.packed_latents(session.folder, size, count, case.classes)
    return made_data.packed(session.folder, size, 3, count, case.classes)


def settings_of(case: Case, session: Session, data: Dataset, way: Way, micro_batch: int) -> Resolved:
    """A preset's own settings, but for its batch."""
    batch = 8 if session.small else case.batch
    options = {"preset": case.preset, "batch_size": batch, "micro_batch": micro_batch or min(case.most, batch)}
    network = case.small if session.small else case.network
    return on.resolved(data, session.device, network=network, precision=way.precision, compile=way.compile, **options)


def rate(step: Callable[[], None], images: int, session: Session) -> float:
    """Images a second, after two steps to warm up."""
    cuda = session.device == "cuda"

    def seconds(times: int) -> float:
        if cuda:
            torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(times):
            step()
        if cuda:
            torch.cuda.synchronize()
        return time.perf_counter() - begun

    seconds(2)
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    times = 1 if session.small else max(1, min(100, int(TIMED_S / seconds(1))))
    return images * times / seconds(times)


def measured(case: Case, session: Session, data: Dataset, way: Way, micro_batch: int) -> tuple[float, float]:
    """(images a second, GB at the worst moment) of one way; on a CPU, nobody counts its memory."""
    settings = settings_of(case, session, data, way, micro_batch)
    batch = settings.settings.batch_size
    with on.arithmetic(way.precision, session.device):
        if way.bare:
            device = torch.device(session.device)
            bare = Bare(data, settings.network, batch, device, way.precision, way.compile, settings.settings.micro_batch)
            found = rate(bare.step, batch, session)
        else:
            found = rate(step_of(TrainState(settings, data)), batch, session)
    return found, torch.cuda.max_memory_allocated() / 1e9 if session.device == "cuda" else 0.0


def released() -> None:
    """Leave nothing of one way to the next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.compiler.reset()
        torch.cuda.empty_cache()


def fits(case: Case, session: Session, data: Dataset, way: Way, micro_batch: int) -> bool:
    """Tell whether two steps of two parts fit: the last part of the second has all beside it that training holds."""
    settings = settings_of(replace(case, batch=2 * micro_batch), session, data, way, micro_batch)
    try:
        with on.arithmetic(way.precision, session.device):
            state = TrainState(settings, data)
            for _ in range(2):
                step_of(state)()
            state.interval()  # waits for the device
    except torch.OutOfMemoryError:
        return False
    return True


def fitting(case: Case, session: Session, data: Dataset, way: Way) -> int:
    """Images at a time, found once for all ways, so that these can be compared: as many as fit this one."""
    micro_batch = 4 if session.small else case.most
    while micro_batch > 1 and not fits(case, session, data, way, micro_batch):
        micro_batch //= 2
        released()
    return micro_batch


def training(case: Case, ways: tuple[Way, ...], session: Session) -> Iterator[Row]:
    """A rate for each way, with its memory; for a bare loop the overhead, elbo's time over its own."""
    data, rates = data_of(case, session), dict[Way, float]()
    micro_batch = fitting(case, session, data, Way("fp32"))
    yield Row(f"{case.preset}: images at a time", micro_batch, "images")
    for way in ways:
        name = f"{case.preset}: {way.name}"
        if session.left < (COMPILED_S if way.compile else EAGER_S) and not session.small:
            yield Row(name, "skipped", note=f"no time: {max(session.left, 0):.0f} s are left")
            continue
        released()
        begun = time.perf_counter()
        try:
            rates[way], memory = measured(case, session, data, way, micro_batch)
        except Exception as error:  # one way that fails leaves the others to be measured
            yield Row(name, "failed", ok=False, note=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
            continue
        yield Row(name, rates[way], "images/s", note=f"{time.perf_counter() - begun:.0f} s with starting and compiling")
        if memory:
            yield Row(f"{name}, memory", memory, "GB")
        own = replace(way, bare=False)
        if way.bare and own in rates:
            yield Row(f"{case.preset}: {own.name}, overhead over the bare loop", rates[way] / rates[own], "ratio")


def imagenet64(session: Session) -> Iterator[Row]:
    """ADM's U-Net."""
    return training(IMAGENET64, ALL, session)


def imagenet256(session: Session) -> Iterator[Row]:
    """A U-ViT behind one wavelet level, less deep than the preset's."""
    return training(IMAGENET256, SHORT, session)


def latents256(session: Session) -> Iterator[Row]:
    """A U-ViT for latents."""
    return training(Case("latents256", 32, 1000, 256, 64, latents=True), SHORT, session)


def cifar(session: Session) -> Iterator[Row]:
    """A U-Net of 39 million parameters."""
    return training(Case("cifar", 32, 10, 512, 256, small=TINY), SHORT, session)


EVALUATIONS, BATCH, BATCHES = 32, 32, 4
LEAST_S = 8.0


@dataclass(frozen=True)
class Drawing:
    """A way to draw. compile: graphs, of CUDA, are the default, and nothing on a CPU."""

    precision: str
    compile: str = "graphs"

    @property
    def name(self) -> str:
        """Name in rows."""
        return f"{self.precision}{ {'off': '', 'graphs': ', CUDA graphs', 'on': ', CUDA graphs, compiled'}[self.compile] }"


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
        steps=2 if session.small else EVALUATIONS,
        batch_size=batch,
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


def sampling(session: Session) -> Iterator[Row]:
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


def inception(session: Session) -> Iterator[Row]:
    """Both rates, and the ratio of times. The weights are random, the same on both sides."""
    for module, package in (("torch_fidelity", "torch-fidelity"), ("scipy", "scipy")):
        if not has(module):
            raise Skipped(f"{package} is not installed")
    from bench_scores import inception
    from inception import random_weights

    batch, rounds = (2, 1) if session.small else (256, 5)
    found = inception(random_weights(session.folder / "inception.pth"), session.device, batch, rounds)
    yield Row("elbo", 1 / found.ours, "images/s")
    yield Row("torch-fidelity", 1 / found.peer, "images/s")
    yield Row("time, elbo / torch-fidelity", found.ratio, "ratio")


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


def kernels(session: Session) -> Iterator[Row]:
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
        events = [(e.key, e.self_device_time_total if cuda else e.self_cpu_time_total, e.count) for e in seen.key_averages()]
        whole = sum(took for _, took, _ in events)
        yield Row(f"{way.name}: time of all kernels", whole / 1e3, "ms", ok=whole > 0)
        for key, took, count in sorted(events, key=lambda event: -event[1])[:SHOWN]:
            yield Row(f"{way.name}: {key[:90]}", 100 * took / whole, "%", note=f"{count} times")
