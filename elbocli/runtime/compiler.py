"""torch.compile, where it works."""

from __future__ import annotations

import torch
from torch import Tensor


def _trial(x: Tensor) -> Tensor:
    return 2 * x + 1


def to_compile(said: bool | None, device: torch.device) -> bool:
    """Tell whether to compile on a device, where one may have said so: on CUDA unless not."""
    return device.type == "cuda" if said is None else said


def compiler_trouble(device: torch.device) -> str:
    """Return why torch.compile can't be used on a device here, in a line; nothing where it can.

    It compiles something small, which takes seconds: what it needs (Triton, a C compiler, Python's headers, a card that is
    not too old) differs from release to release, and the compiler itself names what it misses.
    """
    try:
        torch.compile(_trial, dynamic=False)(torch.ones(8, device=device))
    except Exception as error:
        return next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ""
