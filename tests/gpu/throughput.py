"""Images a second and memory in training, of the large presets' networks: as elbo trains them, and in a bare loop."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import device_runs as on
import made_data
import torch
from record import Row
from step_loops import Bare, step_of
from worker import Session

from elbocli.files.dataset import Dataset
from elbocli.run.settings import Resolved
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
        """Name in rows."""
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
    options = {"preset": case.preset, "batch": batch, "micro_batch": micro_batch or min(case.most, batch)}
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
    batch = settings.settings.batch
    with on.arithmetic(way.precision, session.device):
        if way.bare:
            device = torch.device(session.device)
            bare = Bare(
                data, settings.network, batch, device, way.precision, way.compile, settings.settings.micro_batch
            )
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


def rows(case: Case, ways: tuple[Way, ...], session: Session) -> Iterator[Row]:
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
    return rows(IMAGENET64, ALL, session)


def imagenet256(session: Session) -> Iterator[Row]:
    """A U-ViT behind one wavelet level, less deep than the preset's."""
    return rows(IMAGENET256, SHORT, session)


def latents256(session: Session) -> Iterator[Row]:
    """A U-ViT for latents."""
    return rows(Case("latents256", 32, 1000, 256, 64, latents=True), SHORT, session)


def cifar(session: Session) -> Iterator[Row]:
    """A U-Net of 39 million parameters."""
    return rows(Case("cifar", 32, 10, 512, 256, small=TINY), SHORT, session)
