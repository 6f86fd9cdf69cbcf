"""CUDA graphs of calls: what is captured, what replays compute, and what happens where nothing can be captured."""

import fake_cuda_graph
import pytest
import torch
from torch import Tensor

from elbocli.runtime.device import WARM_UPS, CudaGraphs


class Told:
    """A function that counts how often Python runs it."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, z: Tensor, level: Tensor, labels: Tensor | None) -> Tensor:
        self.runs += 1
        out = z * level[:, None]
        return out if labels is None else out + labels[:, None]


def asked(graphs: CudaGraphs, function: Told, size: int, start: int, labels: bool = True) -> None:
    """One call, whose answer is checked."""
    z = torch.arange(size * 3.0).view(size, 3) + start
    level, named = torch.full((size,), 2.0 + start), torch.arange(size) - start if labels else None
    wanted = z * (2.0 + start) + (0 if named is None else named[:, None])
    assert torch.equal(graphs.call(function, z, level, named), wanted)


def test_each_shape_is_captured_once_and_replayed_with_the_inputs_of_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    captured = fake_cuda_graph.install(monkeypatch)
    graphs, function = CudaGraphs(), Told()
    for start in range(6):
        asked(graphs, function, 4, start)
    assert len(captured) == 1 and captured[0].replays == 6 - WARM_UPS and function.runs == WARM_UPS + 1
    for start in range(5):
        asked(graphs, function, 2, start)
        asked(graphs, function, 4, start, labels=False)
    assert len(captured) == 3
    asked(graphs, function, 4, 9)
    assert captured[0].replays == 7 - WARM_UPS and function.runs == 3 * (WARM_UPS + 1)
    other = Told()
    asked(graphs, other, 4, 0)
    assert other.runs == 1 and len(captured) == 3


def test_an_output_stays_when_the_next_call_is_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_cuda_graph.install(monkeypatch)
    graphs, function = CudaGraphs(), Told()
    found = [graphs.call(function, torch.full((1, 1), float(k)), torch.ones(1), None) for k in range(6)]
    assert [float(out) for out in found] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("caching", [True, False])
def test_the_cache_of_autocast_is_off_in_a_capture_and_after_it_as_before(
    caching: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    captured = fake_cuda_graph.install(monkeypatch)
    graphs = CudaGraphs()
    weight = torch.randn(3, 3, requires_grad=True)

    def layer(x: Tensor) -> Tensor:
        return x @ weight

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, cache_enabled=caching):
        for start in range(4):
            x = torch.randn(2, 3) + start
            assert torch.equal(graphs.call(layer, x), layer(x))
        assert torch.is_autocast_cache_enabled() == caching
    assert len(captured) == 1


def test_where_a_capture_fails_calls_go_on_without_and_it_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    captured = fake_cuda_graph.install(monkeypatch, fails="operation not permitted when stream is capturing\nmore")
    graphs, function = CudaGraphs(), Told()
    for start in range(6):
        asked(graphs, function, 4, start)
        asked(graphs, function, 2, start)
    assert len(captured) == 1
    assert caplog.messages == [
        "drawn without CUDA graphs, which takes longer for small networks: operation not permitted when stream is capturing"
    ]
