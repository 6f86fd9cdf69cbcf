"""CUDA graphs that are none: operations that are done again, to the same tensors. No capture lets anybody wait."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from pretend.tensor import Calls


class Graph:
    """What was done while it was captured."""

    def __init__(self) -> None:
        self.steps: list[Callable[[], None]] = []

    def replay(self) -> None:
        """Do it again."""
        for step in self.steps:
            step()


class Capture:
    """Captures what is done in its block. Raises RuntimeError when the host has waited meanwhile, as a card does."""

    def __init__(self, graph: Graph, pool: Any = None, stream: Any = None, capture_error_mode: str = "global"):
        self._graph = graph
        self._waits = 0

    def __enter__(self) -> None:
        calls = Calls.now
        calls.waits.note("torch.cuda.graph()")
        self._waits = len(calls.waits)
        calls.capture = self._graph.steps

    def __exit__(self, *_: Any) -> None:
        calls = Calls.now
        calls.capture = None
        if len(calls.waits) > self._waits:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")


def stand_ins() -> dict[str, Any]:
    """Return what takes the place of names of torch.cuda."""
    return {
        "CUDAGraph": Graph,
        "graph": Capture,
        "graph_pool_handle": lambda: (0, 0),
        "is_current_stream_capturing": lambda: Calls.now.capture is not None,
        "stream": lambda stream: nullcontext(),
    }
