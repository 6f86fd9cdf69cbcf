"""Runs for measurements on any device, the loops of a step that are compared, and how devices are watched."""

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from elbocli.bound import estimate
from elbocli.bound.measure import open_measurement
from elbocli.bound.settings import BoundSettings
from elbocli.files import checkpoint as store
from elbocli.files.dataset import Dataset
from elbocli.files.resumable import LATENTS
from elbocli.networks import NetworkConfig, build, place
from elbocli.runs.config import write_config
from elbocli.runs.settings import Resolved, resolve
from elbocli.runtime.device import Precision
from elbocli.sampling import draw
from elbocli.sampling.settings import SampleSettings
from elbocli.training import loop
from elbocli.training.state import TrainState
from elbocli.training.step import update

LIMIT = 2 << 30
"""Bytes of a device that are left to a search for memory."""


def resolved(data: Dataset, device: str, network: dict[str, Any] | None = None, **options: Any) -> Resolved:
    """Settings for a device, without dropout, whose masks are the device's own. network: changes of its config."""
    found = resolve({"network.dropout": 0.0, "compile": False, **options, "device": device}, data)
    return replace(found, network=replace(found.network, **(network or {})))


def arithmetic(precision: str, device: str) -> AbstractContextManager[None]:
    """Torch's switches as `elbo train` sets them: around whatever is done without its loop."""
    return Precision(precision, torch.device(device)).applied(benchmark=True)


def losses(data: Dataset, device: str, steps: int, **options: Any) -> list[float]:
    """The loss of each of the first steps."""
    state = TrainState(resolved(data, device, **options), data)
    found = []
    with arithmetic(state.settings.precision, device):
        for _ in range(steps):
            update(state)
            found.append(state.interval()[1])
    return found


def trained(data: Dataset, out: Path, device: str, **options: Any) -> list[float]:
    """A run as `elbo train` makes it; the losses of its log."""
    loop.run(data, out, resolved(data, device, **options))
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


def untrained(data: Dataset, out: Path, settings: Resolved) -> Path:
    """A run before its first step: neither speed nor waits depend on what it has learned."""
    weights, rest = TrainState(settings, data).snapshot()
    out.mkdir()
    write_config(out, settings.config())
    store.save(out, 0, weights, rest, {"images": 0, "log_bytes": {}})
    return out


def samples(run: Path, out: Path, device: str, **settings: Any) -> np.ndarray:
    """Images that `elbo sample` draws, [n, H, W, C]."""
    draw.draw_samples(run, out, SampleSettings(**{"sampler": "ddim", "device": device, **settings}))
    return np.load(out)


def bits(run: Path, device: str, images: int = 32) -> float:
    """Bits per dimension as `elbo bound` finds them on the run's own images."""
    settings: Any = {"images": images, "draws": 8, "device": device}
    return float(estimate.measure_bound(open_measurement(run, None, BoundSettings(**settings))).bound.bpd or 0)


@contextmanager
def little_memory(device: str) -> Iterator[None]:
    """Within the block, this process may use LIMIT bytes of a CUDA device. A CPU's memory has no such limit."""
    if device != "cuda":
        yield
        return
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, LIMIT / total))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


@contextmanager
def no_waits(device: str) -> Iterator[None]:
    """Within the block, an operation that makes the host wait for a CUDA device raises RuntimeError."""
    if device != "cuda":
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


LOWERED = {"bf16": torch.bfloat16, "fp16": torch.float16}
CPU = torch.device("cpu")


class Bare:
    """Cosine schedule, v prediction, squared error, fused AdamW, autocast in bf16 and fp16. micro_batch: 0 is the batch."""

    def __init__(
        self,
        dataset: Dataset,
        config: NetworkConfig,
        batch: int,
        device: torch.device = CPU,
        precision: str = "fp32",
        compile: bool = False,
        micro_batch: int = 0,
    ):
        network = place(build(config), device)
        self.network = torch.compile(network) if compile else network
        self.optimizer = torch.optim.AdamW(network.parameters(), 1e-4, weight_decay=0.0, fused=True)
        stored = torch.from_numpy(dataset.read(np.arange(len(dataset))))
        if dataset.kind == LATENTS:
            self.images = stored[:, : config.image_channels].to(device).float()
        else:
            self.images = stored.to(device).permute(0, 3, 1, 2) / 127.5 - 1
        self.labels = torch.from_numpy(dataset.labels).to(device)
        self.batch = batch
        self.device = device
        self.micro_batch = micro_batch or batch
        self.lowered = LOWERED.get(precision)

    def step(self) -> None:
        """One update."""
        for rows in torch.randint(len(self.images), (self.batch,), device=self.device).split(self.micro_batch):
            x = self.images[rows]
            labels = self.labels[rows]
            angle = torch.rand(len(rows), device=self.device) * 0.998 + 0.001
            alpha, sigma = (f(angle * torch.pi / 2).view(-1, 1, 1, 1) for f in (torch.cos, torch.sin))
            eps = torch.randn_like(x)
            with torch.autocast(self.device.type, self.lowered or torch.bfloat16, enabled=self.lowered is not None):
                out = self.network(alpha * x + sigma * eps, 2 * (alpha / sigma).log().flatten(), labels)
            loss = (out.float() - (alpha * eps - sigma * x)).square().mean()
            (loss * (len(rows) / self.batch)).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def step_of(state: TrainState) -> Callable[[], None]:
    """Return a function that does one step as the training loop does between two lines of the log."""

    def step() -> None:
        state.world.most([0, 0])
        update(state)

    return step
