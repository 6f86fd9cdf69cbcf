"""Defaults of training that are fast on CUDA. An option, or a variable of torch, turns each of them off."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from elbocli.run.train_settings import TrainSettings
from elbocli.runtime.device import Precision
from elbocli.runtime.processes import World

GC_EVERY = 1000
"""Steps between two collections of garbage, where lines of the logs are further apart."""


@dataclass(frozen=True)
class CudaDefaults:
    """The defaults for a run in this process."""

    settings: TrainSettings
    world: World

    @property
    def precision(self) -> Precision:
        """The network's."""
        return Precision(self.settings.precision, self.world.device)

    @property
    def _collects(self) -> bool:
        return self.settings.manual_gc and self.world.device.type == "cuda"

    def __str__(self) -> str:
        """Say what is on, by the names that turn it off; '' on other devices."""
        if self.world.device.type != "cuda":
            return ""
        settings, allocator = self.settings, os.environ.get("PYTORCH_ALLOC_CONF", "")
        on = {
            f"--precision {self.precision}": True,
            "--cudnn-benchmark": settings.cudnn_benchmark,
            "--manual-gc": settings.manual_gc,
            f"PYTORCH_ALLOC_CONF={allocator}": bool(allocator),
            f"--nccl-timeout {settings.nccl_timeout:g}s": self.world.size > 1 and settings.nccl_timeout > 0,
        }
        return ", ".join(name for name, holds in on.items() if holds) + "; weights in fp32"

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Set torch's switches and hold the garbage collector in the block."""
        with self.precision.applied(self.settings.cudnn_benchmark), _collector_off(self._collects):
            yield

    def after(self, step: int, first: int) -> None:
        """Do what is due after a step. first: the first one of this start of the run."""
        if step == first and self.settings.nccl_timeout:
            self.world.limit_waits(timedelta(seconds=self.settings.nccl_timeout))
        if self._collects and (step == first or step % min(self.settings.log_every, GC_EVERY) == 0):
            gc.collect()
            if step == first:
                gc.freeze()  # what is there by now stays: weights, compiled code, modules


@contextmanager
def _collector_off(hold: bool) -> Iterator[None]:
    """Keep Python's garbage collector from running by itself in the block. hold: or don't."""
    if not hold or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.enable()
