"""What a run needs from the machine: a device, a precision, signals."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

import torch

from elbocli.errors import Interrupted, UsageError

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CAUGHT = (signal.SIGINT, signal.SIGTERM)


def choose_device(name: str) -> torch.device:
    """`auto` (CUDA if there is one), or a torch device that works here. Raises UsageError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(
            f"device {name!r} can't be used here: {str(error).splitlines()[0]}; leave --device out, or use cpu"
        ) from error
    if device.type == "meta":
        raise UsageError("device 'meta' holds no numbers; use --dry-run to plan")
    return device


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision for the network; off for fp32."""
    dtype = PRECISIONS[precision]
    return torch.autocast(
        device.type, dtype=dtype if dtype != torch.float32 else torch.bfloat16, enabled=dtype != torch.float32
    )


class Signals:
    """Remembers the first SIGINT or SIGTERM; a second one acts at once."""

    def __init__(self) -> None:
        self.received: int | None = None

    def _remember(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        for caught in CAUGHT:
            signal.signal(caught, signal.default_int_handler if caught == signal.SIGINT else signal.SIG_DFL)

    def interrupted(self, saved: str) -> Interrupted:
        """The error that ends the run with 128 + signal."""
        assert self.received is not None
        return Interrupted(f"{signal.Signals(self.received).name}: {saved}", self.received)


@contextlib.contextmanager
def catching_signals() -> Iterator[Signals]:
    """Signals are noted, not acted on, during the block."""
    signals = Signals()
    try:
        before = {caught: signal.signal(caught, signals._remember) for caught in CAUGHT}
    except ValueError:  # not the main thread: somebody else's business
        before = {}
    try:
        yield signals
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)
