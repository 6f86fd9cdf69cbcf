"""CUDA graphs without CUDA: what is done to tensors while one is captured is noted, and done again where it is replayed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

POOL = (0, 7)


class Graph(TorchDispatchMode):
    """A stand-in for torch.cuda.CUDAGraph: its output lies where it was captured, and is nothing before the first replay."""

    def __init__(self) -> None:
        super().__init__()
        self.done: list[tuple[Any, Any, Any, Any]] = []
        self.replays = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        self.done.append((function, args, kwargs or {}, out))
        return out

    def replay(self) -> None:
        self.replays += 1
        with torch.autocast("cpu", enabled=False):
            for function, args, kwargs, out in self.done:
                for place, value in zip(tree_leaves(out), tree_leaves(function(*args, **kwargs)), strict=True):
                    if isinstance(place, torch.Tensor) and place.data_ptr() != value.data_ptr():
                        place.copy_(value)


def install(monkeypatch: pytest.MonkeyPatch, fails: str = "") -> list[Graph]:
    """Put it in the place of torch's. fails: what every capture fails with. Returns the graphs, as they are captured."""
    graphs: list[Graph] = []

    @contextmanager
    def capture(graph: Graph, pool: tuple[int, int], capture_error_mode: str) -> Iterator[None]:
        assert pool == POOL and capture_error_mode == "thread_local" and not torch.is_autocast_cache_enabled()
        graphs.append(graph)
        with graph:
            yield
        if fails:
            raise RuntimeError(fails)

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: POOL)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    return graphs
