"""A run's device, its precision and its CUDA graphs are as asked for, on cards that this machine need not have."""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from harness import heard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from elbocli.errors import UsageError
from elbocli.runtime import device
from elbocli.runtime.device import (
    DTYPES,
    WARM_UPS,
    CudaGraphs,
    Precision,
    card_bytes,
    choose_device,
    name_of,
    resolve_device,
    seed_dropout,
    usual_precision,
)

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


CPU = torch.device("cpu")
CARD = torch.device("cuda", 1)


class Cards:
    """Two CUDA devices without memory: which is current, and which was seeded."""

    def __init__(self, monkeypatch):
        self.current = 0
        self.seeds = dict[int, int]()
        real = torch.empty
        for name, stand_in in {
            "is_available": lambda: True,
            "current_device": lambda: self.current,
            "set_device": self.set_device,
            "get_device_name": lambda device: f"Card {device.index}",
            "device": self.device,
            "manual_seed": lambda seed: self.seeds.update({self.current: seed}),
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(torch, "empty", lambda *shape, device=None, pin_memory=False, **how: real(*shape, **how))
        monkeypatch.delenv("ELBO_DEVICE")

    def set_device(self, device):
        """Do what torch.cuda's function of this name does, on two pretend cards."""
        if device.index >= 2:
            raise RuntimeError("CUDA error: invalid device ordinal\nand more")
        self.current = device.index

    @contextmanager
    def device(self, device):
        """Do what torch.cuda's function of this name does, on two pretend cards."""
        before = self.current
        self.current = device.index
        yield
        self.current = before


@pytest.fixture
def cards(monkeypatch):
    return Cards(monkeypatch)


def test_a_cuda_device_has_an_index_and_becomes_the_current_one(cards):
    assert choose_device("cuda:1") == CARD and cards.current == 1
    assert choose_device("cuda") == choose_device("auto") == CARD and name_of(CARD) == "Card 1"
    assert choose_device("cuda:0") == torch.device("cuda", 0) and cards.current == 0
    assert choose_device("cpu") == CPU and cards.current == 0 and "threads: " in name_of(CPU)
    assert card_bytes("cpu") is None


def test_a_device_that_can_not_be_used_is_refused_by_its_name_with_the_reason(cards, monkeypatch):
    def full(*shape, device):
        raise RuntimeError("CUDA error: out of memory\nand more")

    for name in ("tape", "gpu", "0", "mps", "cuda:7"):
        with pytest.raises(UsageError, match=f"'{name}' "):
            choose_device(name)
    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(UsageError, match=r"out of memory;"):
        choose_device("cuda:1")


def test_auto_is_the_variables_device_else_cuda_where_there_is_one(cards, monkeypatch):
    for said, meant in (("cpu", "cpu"), ("cuda:1", "cuda:1"), ("", "cuda"), ("auto", "cuda")):
        monkeypatch.setenv("ELBO_DEVICE", said)
        assert resolve_device("auto") == meant and resolve_device("cpu") == "cpu"
    monkeypatch.delenv("ELBO_DEVICE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert resolve_device("auto") == "cpu"


OLD = "The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver"


@pytest.mark.parametrize(
    ("built_for", "trouble", "node", "refused", "warnings"),
    [
        ("12.8", OLD, True, True, 0),
        ("12.8", "Found no NVIDIA driver on your system.", True, True, 0),
        ("12.8", "No CUDA GPUs are available", True, False, 0),  # hidden by CUDA_VISIBLE_DEVICES or by Slurm
        ("12.8", OLD, False, False, 0),
        (None, "", True, False, 1),
        (None, "", False, False, 0),
    ],
)
def test_auto_is_no_cpu_by_accident(built_for, trouble, node, refused, warnings, cards, monkeypatch, tmp_path):
    """The device node is a file of this test."""

    def start():
        raise RuntimeError(trouble)

    if node:
        (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(device, "CARD", tmp_path / "nvidia0")
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "init", start)
    device._warn_of_cpu_build.cache_clear()
    with heard() as lines, pytest.raises(UsageError) if refused else nullcontext() as error:
        assert [choose_device("auto"), choose_device("auto")] == [CPU, CPU]
    if refused:
        assert "12.8" in str(error.value)
    assert len(lines) == warnings and choose_device("cpu") == CPU


def test_dropout_is_seeded_on_its_own_card(cards):
    seed_dropout(CARD, 5)
    assert cards.seeds == {1: 5} and cards.current == 0 and torch.initial_seed() == 5


# --- precision ---


@pytest.mark.parametrize(
    ("name", "on_cpu", "tf32", "dtype"),
    [
        *(("fp32", "fp32", False, None), ("tf32", "fp32", True, None)),
        *(("bf16", "bf16", True, torch.bfloat16), ("fp16", "fp16", True, torch.float16)),
    ],
)
def test_a_precision_says_what_it_is_on_its_device(name, on_cpu, tf32, dtype):
    here = Precision(name, CPU)
    there = Precision(name, CARD)
    assert (str(here), here.tf32, str(there), there.tf32) == (on_cpu, False, name, tf32)
    with here.autocast():
        assert torch.is_autocast_enabled("cpu") == (dtype is not None)
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == DTYPES[name] == (dtype or torch.float32)
    with pytest.raises(UsageError, match="fp8"):
        Precision("fp8", CPU)


def switches():
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark


@pytest.fixture
def any_switches():
    """Torch's switches as they were, afterwards."""
    before = switches()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before


@pytest.mark.usefixtures("any_switches")
@pytest.mark.parametrize("name", DTYPES)
def test_matrices_and_convolutions_are_switched_alike_and_back(name):
    """By default cuDNN's convolutions are in TF32, whatever matrices are."""
    matmul = torch.backends.cuda.matmul
    cudnn = torch.backends.cudnn
    for before in ((True, True, True), (True, False, False), (False, True, True), (False, False, False)):
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
        with pytest.raises(KeyError), Precision(name, CARD).applied(benchmark=not before[2]):
            assert switches() == (name != "fp32", name != "fp32", not before[2])
            raise KeyError
        assert switches() == before
        with Precision(name, CPU).applied(benchmark=not before[2]):
            assert switches() == before


def test_training_is_in_bf16_on_a_card_that_has_it_for_a_network_made_for_gpus(monkeypatch):
    """It is planned for a card that need not be there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    usual = [usual_precision(device, True) for device in ("auto", "cpu", "cuda", "cuda:1")]
    assert usual == ["fp32", "fp32", "bf16", "bf16"] and usual_precision("cuda", False) == "tf32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for has, wanted in ((True, "bf16"), (False, "tf32")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert (usual_precision("cuda", True), usual_precision("cuda", False)) == (wanted, "tf32")
        assert usual_precision("cpu", True) == "fp32"


# --- CUDA graphs ---


class Counted:
    """A function that counts how often Python runs it."""

    def __init__(self):
        self.runs = 0

    def __call__(self, z, level, labels):
        self.runs += 1
        out = z * level[:, None]
        return out if labels is None else out + labels[:, None]


def asked(graphs, function, size, start, labels=True):
    """Call the function once through graphs, and check its answer."""
    z = torch.arange(size * 3.0).view(size, 3) + start
    level = torch.full((size,), 2.0 + start)
    named = torch.arange(size) - start if labels else None
    wanted = z * (2.0 + start) + (0 if named is None else named[:, None])
    assert torch.equal(graphs.call(function, z, level, named), wanted)


def test_each_shape_is_captured_once_and_replayed_with_the_inputs_of_each_call(monkeypatch):
    captured = install(monkeypatch)
    graphs = CudaGraphs()
    function = Counted()
    other = Counted()
    for start in range(6):
        asked(graphs, function, 4, start)
    assert len(captured) == 1 and captured[0].replays == 6 - WARM_UPS and function.runs == WARM_UPS + 1
    for start in range(5):
        asked(graphs, function, 2, start)
        asked(graphs, function, 4, start, labels=False)
    asked(graphs, function, 4, 9)
    asked(graphs, other, 4, 0)
    assert len(captured) == 3 and captured[0].replays == 7 - WARM_UPS
    assert function.runs == 3 * (WARM_UPS + 1) and other.runs == 1
    assert torch.is_autocast_cache_enabled(), "off in a capture alone"
    outputs = [graphs.call(function, torch.full((4, 3), float(k)), torch.ones(4), torch.zeros(4)) for k in range(6)]
    assert [float(out[0, 0]) for out in outputs] == [0, 1, 2, 3, 4, 5], "an output stays when the next call is replayed"


def test_where_a_capture_fails_calls_go_on_without_and_it_is_told_once(monkeypatch):
    captured = install(monkeypatch, fails="operation not permitted when stream is capturing\nmore")
    graphs = CudaGraphs()
    function = Counted()
    with heard() as lines:
        for start in range(6):
            asked(graphs, function, 4, start)
            asked(graphs, function, 2, start)
    assert len(captured) == len(lines) == 1 and lines[0].endswith("not permitted when stream is capturing")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_the_memory_of_freed_tensors_serves_the_next_ones():
    """A subprocess allocates and frees 30 tensors of 4 MB ten times; the tenth time causes few page faults."""
    code = """
import ctypes, resource, torch
ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: huge pages would hide the faults
from elbocli.runtime.device import choose_device
choose_device("cpu")
torch.set_num_threads(1)
for _ in range(10):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(1_000_000) for _ in range(30)]
    del tensors
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    plain = {**os.environ, "GLIBC_TUNABLES": ""}
    assert int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=plain).stdout) < 5000
