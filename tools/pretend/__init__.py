"""A pretend CUDA device: tensors that say cuda:0 or cuda:1, are computed on the CPU, and tell what a card waits for.

    with pretending() as device:
        ...                                       # any code that works with torch.device("cuda")
        assert not device.waits.within("update")  # or print them: each names its line of elbocli

A tensor on another device than the others of its operation raises, as on a card. Copies to the host arrive when
somebody waits for the stream that they are on, and are garbage until then. Each of the two cards has its own random
numbers, stream and memory (`device.cards[1].memory = 1 << 20`). Backward passes work, autocast is CUDA's, CUDA graphs
are captured and replayed; attention is computed as `plain_attention()` makes the CPU do it, so that results are equal.

Whoever uses it imports it before the process's first backward pass, which starts a thread for each device it knows.
Where `lacking()` says why, it can't be used.
Not pretended: time, memory that is freed, streams besides each card's own, torch.compile, NCCL.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from unittest.mock import patch

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._device import _device_constructors

from pretend import cards, graphs
from pretend.cards import Card
from pretend.records import Records
from pretend.shim import CARDS, lacking, shim
from pretend.tensor import Calls, methods


@dataclass(frozen=True)
class Pretence:
    """Cards, and what was found out about the code that used them.

    waits: what made the host wait for a card. copies: those to a card from memory that isn't pinned. rounded:
    multiplications of float32 that a card would do in TF32.
    """

    cards: tuple[Card, ...] = field(default_factory=lambda: tuple(map(Card, range(CARDS))))
    waits: Records = field(default_factory=Records)
    copies: Records = field(default_factory=Records)
    rounded: Records = field(default_factory=Records)

    def clear(self) -> None:
        """Forget what was found out."""
        for records in (self.waits, self.copies, self.rounded):
            records.clear()


def plain_attention() -> AbstractContextManager[None]:
    """Let attention on the CPU be computed as on the pretend device."""
    return sdpa_kernel(SDPBackend.MATH)  # type: ignore[return-value]


@contextmanager
def pretending() -> Iterator[Pretence]:
    """Have two CUDA devices during the block."""
    device = Pretence()
    with ExitStack() as stack:
        for name, value in {**cards.stand_ins(device.cards, device.waits), **graphs.stand_ins()}.items():
            stack.enter_context(patch.object(torch.cuda, name, value))
        for name, value in methods().items():
            stack.enter_context(patch.object(torch.Tensor, name, value))
        _device_constructors()  # `with torch.device(…)` looks for torch.empty once: the real one
        stack.enter_context(patch("torch.empty", cards.empty))
        stack.enter_context(patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        shim().stand_in(True)
        stack.callback(shim().stand_in, False)
        shim().make_current(0)
        # Modules take new parameters when they move, and `torch.tensor` copies its numbers where the copy is seen.
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
        torch._C._set_only_lift_cpu_tensors(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        Calls.now = stack.enter_context(Calls(device.cards, device.waits, device.copies, device.rounded))
        _check_backward()
        device.clear()
        yield device


@cache
def _check_backward() -> None:
    """Raise RuntimeError where a backward pass came before this module."""
    try:
        torch.ones(1, device="cuda", requires_grad=True).sum().backward()
    except RuntimeError as error:
        raise RuntimeError("import pretend before the first backward pass of the process") from error


if not lacking():
    shim()

__all__ = ["Pretence", "lacking", "plain_attention", "pretending"]
