"""Speeds on a card: training beside a bare loop, sampling, Inception beside torch-fidelity's, and a profile of a step."""

import gc
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import device_runs as on
import made_data
import torch
from device_runs import Bare, step_of
from environment import has
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from worker import Row, Session, Skipped

from elbocli.files.dataset import Dataset
from elbocli.files.sample_files import FileSink
from elbocli.runs.settings import Resolved
from elbocli.runtime.progress import log
from elbocli.sampling import draw
from elbocli.sampling.samplers import parse_sampler
from elbocli.training.state import TrainState
from elbocli.training.step import step_losses

TIMED_S = 4.0
TINY = {"channels": 16, "levels": (1, 2), "blocks": 1}
TINY_UVIT = {**TINY, "depth": 2, "heads": 2, "embedding": 32}


@dataclass(frozen=True)
class Way:
    """precision, and whether compiled; bare: in plain torch, against elbo's own of that precision."""

    precision: str
    compile: bool = False
    bare: bool = False

    @classmethod
    def named(cls, name: str) -> "Way":
        """Parse a name such as 'bf16 compiled, bare loop'."""
        return cls(name.replace(",", " ").split()[0], "compiled" in name, "bare loop" in name)


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


CASES = (
    Case("imagenet64", 64, 1000, 256, 64, small=TINY),
    # The whole has a depth of 36 and 2 billion parameters: with their optimizer and averages, a card is full of them.
    Case("imagenet256", 256, 1000, 64, 16, network={"depth": 8}),
    Case("latents256", 32, 1000, 256, 64, latents=True),
    Case("latents256-dit", 32, 1000, 256, 64, small={"width": 32, "depth": 2, "heads": 2}, latents=True),
    Case("latents512-edm2", 64, 1000, 256, 64, small=TINY, latents=True),
    Case("cifar", 32, 10, 512, 512, small=TINY),  # in one micro-batch, so that CUDA graphs replay its steps
)


def case_of(preset: str, session: Session) -> Case:
    """Return the case of a preset; on a CPU a small one."""
    case = next(case for case in CASES if case.preset == preset)
    most = 8 if case.most == case.batch else 4
    small = replace(case, size=8 if case.latents else 16, batch=8, most=most, network=case.small)
    return small if session.small else case


def data_of(case: Case, session: Session) -> Dataset:
    """Noise of the case's shape."""
    count = max(64, 2 * case.batch)
    if case.latents:
        return made_data.packed_latents(session.folder, case.size, count, case.classes)
    return made_data.packed(session.folder, case.size, 3, count, case.classes)


def settings_of(case: Case, session: Session, data: Dataset, way: Way) -> Resolved:
    """A preset's own settings, but for its batch."""
    options = {"preset": case.preset, "batch_size": case.batch, "micro_batch": min(case.most, case.batch)}
    return on.resolved(data, session.device, network=case.network, precision=way.precision, compile=way.compile, **options)


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


def measured(case: Case, session: Session, data: Dataset, way: Way) -> tuple[float, float]:
    """(images a second, GB at the worst moment) of one way; on a CPU, nobody counts its memory."""
    settings = settings_of(case, session, data, way)
    with on.arithmetic(way.precision, session.device):
        if way.bare:
            device = torch.device(session.device)
            most = settings.settings.micro_batch
            step = Bare(data, settings.network, case.batch, device, way.precision, way.compile, most).step
        else:
            step = step_of(TrainState(settings, data))
        found = rate(step, case.batch, session)
    return found, torch.cuda.max_memory_allocated() / 1e9 if session.device == "cuda" else 0.0


def released() -> None:
    """Leave nothing of one way to the next."""
    gc.collect()
    if torch.cuda.is_available():
        torch.compiler.reset()
        torch.cuda.empty_cache()


@contextmanager
def warnings() -> Iterator[list[str]]:
    """Collect elbo's warnings: where compiling or capturing a CUDA graph fails, elbo warns and continues without it."""
    texts = list[str]()
    with patch.object(log, "warning", lambda text, *values: texts.append(text % values if values else text)):
        yield texts


def training(session: Session, preset: str, name: str) -> Iterator[Row]:
    """Speed and memory of one way, with half as many images at a time when memory runs out."""
    case = case_of(preset, session)
    begun = time.perf_counter()
    data = data_of(case, session)
    while True:
        released()
        try:
            with warnings() as texts:
                found, memory = measured(case, session, data, Way.named(name))
            break
        except torch.OutOfMemoryError:
            if case.most == 1:
                raise
        case = replace(case, most=case.most // 2)
    about = f"{min(case.most, case.batch)} images at a time; {time.perf_counter() - begun:.0f} s with starting and compiling"
    yield Row("speed", found, "images/s", ok=not texts, note="; ".join([about, *texts]))
    if memory:
        yield Row("memory", memory, "GB")


def gradients(session: Session, way: Way) -> tuple[Tensor, Tensor]:
    """(losses, gradients) of one micro-batch of imagenet64, on the CPU. Weights that start at zero get other values."""
    released()
    case = case_of("imagenet64", session)
    data = data_of(case, session)
    with on.arithmetic(way.precision, session.device), warnings() as texts:
        state = TrainState(settings_of(replace(case, batch=case.most), session, data, way), data)
        torch.manual_seed(0)
        for weight in state.network.parameters():
            if not weight.any():
                torch.nn.init.normal_(weight, 0, 0.02)
        losses = step_losses(state.spread.forward, state.batches, 0, 0, state.objective)[0]
        losses.mean().backward()
        found = [weight.grad.flatten().float().cpu() for weight in state.network.parameters()]
    if texts:
        raise RuntimeError(texts[0])
    return losses.detach().float().cpu(), torch.cat(found)


def compiled(session: Session) -> Iterator[Row]:
    """Differences of losses and gradients from fp32: compiled bf16 may have twice those of eager bf16."""
    names = ("fp32", "bf16", "bf16 compiled")
    exact, eager, fused = (gradients(session, Way.named(name)) for name in names)
    for index, what in enumerate(("losses", "gradients")):
        errors = [float((found[index] - exact[index]).norm() / exact[index].norm()) for found in (eager, fused)]
        note = f"eager bf16: {errors[0]:.3g}"
        yield Row(f"{what}, compiled bf16 against fp32", errors[1], "relative", ok=errors[1] <= 2 * errors[0] + 1e-3, note=note)


EVALUATIONS = 32
BATCH = 32
BATCHES = 4


def drawn(run: Path, precision: str, compile: str, session: Session) -> float:
    """Images a second, from the end of the first batch to the end of the last."""
    batch, n = (2, 4) if session.small else (BATCH, BATCH * BATCHES)
    settings = draw.SampleSettings(
        n=n,
        sampler=parse_sampler("ddim"),
        steps=2 if session.small else EVALUATIONS,
        batch_size=batch,
        device=session.device,
        precision=precision,
        compile=compile,
        overwrite=True,
    )
    ends = list[tuple[int, float]]()
    put = FileSink.put

    def timed(sink: FileSink, images: Any) -> None:
        put(sink, images)
        ends.append((sink.done, time.perf_counter()))

    with patch.object(FileSink, "put", timed):
        draw.draw_samples(run, run / "samples.npy", settings)
    (first, begun) = ends[0]
    (last, ended) = ends[-1]
    return (last - first) / (ended - begun)


def sampling(session: Session, _: str, name: str) -> Iterator[Row]:
    """Speed of `elbo sample` with a precision and a --compile, such as 'auto, graphs', the default."""
    case = case_of("imagenet64", session)
    way = Way("bf16")
    (precision, compile) = name.split(", ")
    released()
    # another process may have left half a run
    run = session.folder / f"imagenet64 {os.getpid()}"
    begun = time.perf_counter()
    if not run.exists():
        data = data_of(case, session)
        on.untrained(data, run, settings_of(case, session, data, way))
    with warnings() as texts:
        found = drawn(run, precision, compile, session)
    note = "; ".join([f"{time.perf_counter() - begun:.0f} s in all", *texts])
    yield Row("speed", found, "images/s", ok=not texts, note=note)


def inception(session: Session) -> Iterator[Row]:
    """Both rates, and the ratio of times. The weights are random, the same on both sides."""
    for module, package in (("torch_fidelity", "torch-fidelity"), ("scipy", "scipy")):
        if not has(module):
            raise Skipped(f"{package} is not installed")
    from bench_scores import inception
    from made_data import random_weights

    batch, rounds = (2, 1) if session.small else (256, 5)
    found = inception(random_weights(session.folder / "inception.pth"), session.device, batch, rounds)
    yield Row("elbo", 1 / found.ours, "images/s")
    yield Row("torch-fidelity", 1 / found.peer, "images/s")
    yield Row("time, elbo / torch-fidelity", found.ratio, "ratio")


SHOWN = 15


def profiled(step: Callable[[], None], cuda: bool) -> profile:
    """Profile a step, after two to warm up."""
    for _ in range(2):
        step()
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]) as seen:
        step()
        if cuda:
            torch.cuda.synchronize()
    return seen


def kernels(session: Session, _: str, name: str) -> Iterator[Row]:
    """The share of each of the slowest kernels in a micro-batch of imagenet64, and a chrome trace beside the report."""
    case = case_of("imagenet64", session)
    way = Way.named(name)
    cuda = session.device == "cuda"
    data = data_of(case, session)
    released()
    with on.arithmetic(way.precision, session.device):
        state = TrainState(settings_of(replace(case, batch=case.most), session, data, way), data)
        seen = profiled(step_of(state), cuda)
    events = [(e.key, e.self_device_time_total if cuda else e.self_cpu_time_total, e.count) for e in seen.key_averages()]
    whole = sum(took for _, took, _ in events)
    yield Row("time of all kernels", whole / 1e3, "ms", ok=whole > 0)
    for key, took, count in sorted(events, key=lambda event: -event[1])[:SHOWN]:
        yield Row(key[:90], 100 * took / whole, "%", note=f"{count} times")
    trace = session.beside.with_name(f"{session.beside.name}-{name.replace(' ', '-')}.trace.json.gz")
    seen.export_chrome_trace(str(trace))
    yield Row("trace", trace.name)
