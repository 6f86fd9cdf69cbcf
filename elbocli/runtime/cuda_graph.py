"""CUDA graphs of calls that repeat: all kernels of one are launched at once, which small networks wait for otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

WARM_UPS = 2
"""Calls before one is captured: libraries choose their algorithms and fetch their memory in the first."""
Function = Callable[..., Tensor]


class CudaGraphs:
    """Graphs of functions that are called again and again with inputs of the same shapes, all in one pool of memory.

    warn: told once where one can't be captured; from then on every call is made as it is written.
    """

    def __init__(self, warn: Callable[[str], None]):
        self._warn, self._failed = warn, False
        self._pool = torch.cuda.graph_pool_handle()
        self._calls = Counter[Hashable]()
        self._graphs: dict[Hashable, _Graph] = {}

    def call(self, function: Function, *inputs: Tensor | None) -> Tensor:
        """Return function(*inputs), which must depend on them alone and draw no random numbers."""
        key = (function, *((x.shape, x.stride(), x.dtype) if x is not None else None for x in inputs))
        self._calls[key] += 1
        if not self._failed and self._calls[key] > WARM_UPS and key not in self._graphs:
            self._capture(key, function, inputs)
        if key in self._graphs:
            return self._graphs[key].replay(inputs)
        return function(*inputs)

    def _capture(self, key: Hashable, function: Function, inputs: tuple[Tensor | None, ...]) -> None:
        try:
            self._graphs[key] = _Graph(function, inputs, self._pool)
        except RuntimeError as error:
            self._failed = True
            self._graphs.clear()
            why = str(error).strip().partition("\n")[0]
            self._warn(f"drawn without CUDA graphs, which takes longer for small networks: {why}")


class _Graph:
    """One call, captured: its inputs and its output have places of their own."""

    def __init__(self, function: Function, inputs: tuple[Tensor | None, ...], pool: Any):
        self._inputs = [None if x is None else x.clone() for x in inputs]
        self._graph = torch.cuda.CUDAGraph()
        caching = torch.is_autocast_cache_enabled()
        torch.set_autocast_cache_enabled(False)  # what it keeps would be in the graph's memory
        try:
            # The outer block goes back to this stream even where a capture that failed can't be ended. Other threads, as
            # NCCL's, may go on meanwhile.
            with (
                torch.cuda.stream(torch.cuda.current_stream()),
                torch.cuda.graph(self._graph, pool, capture_error_mode="thread_local"),
            ):
                self._output = function(*self._inputs)
        finally:
            torch.set_autocast_cache_enabled(caching)

    def replay(self, inputs: tuple[Tensor | None, ...]) -> Tensor:
        """Return the output for these inputs, a tensor of its own."""
        for place, value in zip(self._inputs, inputs, strict=True):
            if place is not None and value is not None:
                place.copy_(value)
        self._graph.replay()
        return self._output.clone()
