"""Cards that are none: memory, random numbers, and copies to the host that arrive only when somebody waits for them."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pretend.records import Records
from pretend.shim import CARDS, shim

MEMORY = 64 << 30
_pinned: dict[int, weakref.finalize] = {}
"""Addresses of pinned memory, as long as any tensor holds it."""


def pin(value: Tensor) -> Tensor:
    """Copy it into pinned memory."""
    array = np.empty(max(1, value.numel()) * value.element_size(), np.uint8)
    address = array.ctypes.data
    _pinned[address] = weakref.finalize(array, _pinned.pop, address)
    whole = torch.from_numpy(array).view(value.dtype)[: value.numel()]
    stride = torch.empty_like(value, device="meta").stride()
    return whole.as_strided(value.size(), stride).copy_(value)


def empty(*size: Any, make: Callable[..., Tensor] = torch.empty, pin_memory: bool = False, **options: Any) -> Tensor:
    """torch.empty; threads besides the main one would ask CUDA for pinned memory."""
    made = make(*size, **options)
    return pin(made) if pin_memory else made


def is_pinned(value: Tensor) -> bool:
    """Tell whether a device could fetch it by itself."""
    return value.device.type == "cpu" and value.untyped_storage().data_ptr() in _pinned


class Card:
    """A device. memory: its bytes, to be set by who wants them to be few. generator: of its random numbers.

    made: bytes of all that was made on it since its peak was last reset: nothing is ever freed.
    """

    def __init__(self, index: int):
        self.device = torch.device("cuda", index)
        self.generator = torch.Generator()
        self.memory = MEMORY
        self.made = 0
        self.issued = 0
        self._on_their_way: deque[tuple[int, Tensor, Tensor]] = deque()

    def send(self, host: Tensor, value: Tensor) -> None:
        """Begin a copy to the host. Until somebody waits for it, the host finds garbage there."""
        self.issued += 1
        self._on_their_way.append((self.issued, host, value.clone()))
        host.fill_(math.nan if host.is_floating_point() else 85)

    def arrive(self, upto: float = math.inf) -> None:
        """Finish the copies up to that number."""
        while self._on_their_way and self._on_their_way[0][0] <= upto:
            _, host, value = self._on_their_way.popleft()
            host.copy_(value)


def drawn_by(card: Card, draw: Callable[[], Any]) -> Any:
    """Call a function that draws random numbers, and let them be the card's."""
    host = torch.default_generator
    before = host.get_state()
    host.set_state(card.generator.get_state())
    try:
        return draw()
    finally:
        card.generator.set_state(host.get_state())
        host.set_state(before)


def stand_ins(cards: tuple[Card, ...], waits: Records) -> dict[str, Any]:
    """Return what takes the place of names of torch.cuda."""

    def chosen(device: Any = None) -> Card:
        if device is None:
            return cards[shim().current_card()]
        if isinstance(device, int):
            return cards[device]
        index = torch.device(device).index
        return cards[shim().current_card() if index is None else index]

    class Stream:
        """The one stream of a card."""

        def __init__(self, device: Any = None, **_: Any):
            self.card = chosen(device)
            self.device = self.card.device

        def synchronize(self) -> None:
            waits.note("stream.synchronize()")
            self.card.arrive()

    class Event:
        """A moment of a stream: the current card's where none is named."""

        def __init__(self, **_: Any):
            self._card = cards[0]
            self._number = 0

        def record(self, stream: Stream | None = None) -> None:
            self._card = chosen() if stream is None else stream.card
            self._number = self._card.issued

        def synchronize(self) -> None:
            waits.note("event.synchronize()")
            self._card.arrive(self._number)

    def synchronize(device: Any = None) -> None:
        waits.note("torch.cuda.synchronize()")
        chosen(device).arrive()

    def exchange(index: int) -> int:
        before = shim().current_card()
        if index >= 0:
            shim().make_current(index)
        return before

    def manual_seed_all(seed: int) -> None:
        for card in cards:
            card.generator.manual_seed(seed)

    def forget_peak(device: Any = None) -> None:
        chosen(device).made = 0

    return {
        "_initialized": True,
        "_lazy_init": lambda: None,
        "_exchange_device": exchange,
        "_maybe_exchange_device": exchange,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "is_bf16_supported": lambda *_, **__: True,
        "device_count": lambda: CARDS,
        "current_device": lambda: shim().current_card(),
        "set_device": lambda device: shim().make_current(chosen(device).device.index),
        "get_device_name": lambda device=None: f"pretend card {chosen(device).device.index}",
        "get_device_properties": lambda device=None: SimpleNamespace(total_memory=chosen(device).memory),
        "get_device_capability": lambda device=None: (9, 0),
        "Stream": Stream,
        "Event": Event,
        "current_stream": Stream,
        "default_stream": Stream,
        "synchronize": synchronize,
        "manual_seed": lambda seed: chosen().generator.manual_seed(seed),
        "manual_seed_all": manual_seed_all,
        "get_rng_state": lambda device="cuda": chosen(device).generator.get_state(),
        "set_rng_state": lambda state, device="cuda": chosen(device).generator.set_state(state),
        "empty_cache": lambda: None,
        "memory_allocated": lambda device=None: 0,
        "memory_reserved": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: chosen(device).made,
        "max_memory_reserved": lambda device=None: chosen(device).made,
        "reset_peak_memory_stats": forget_peak,
        "mem_get_info": lambda device=None: (chosen(device).memory, chosen(device).memory),
    }
