"""The network compiled: how many graphs a run has, that it computes the same, and what happens without a compiler."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from harness import heard
from torch import nn
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.utils import counters

from elbocli.files.checkpoint import read_checkpoint
from elbocli.files.dataset import Dataset
from elbocli.nn.networks import build
from elbocli.nn.networks.transformers import UViTConfig
from elbocli.nn.networks.unet import GroupNorm
from elbocli.run.settings import resolve
from elbocli.runtime.processes import World
from elbocli.sample.draw import open_decoder
from elbocli.train import loop
from elbocli.train.recorder import Validation, open_held_out, preview
from elbocli.train.state import Parallel, TrainState
from elbocli.train.step import update

pytestmark = pytest.mark.usefixtures("short_previews")

TESTS = Path(__file__).parent.parent
UVIT = "family: uvit, channels: 8, levels: [1, 2], blocks: 1, depth: 1, heads: 2, embedding: 16, dropout: 0.1"
NETWORKS = {
    "unet": "channels: 8, levels: [1, 2], blocks: 1, attention: [4], dropout: 0.1",
    "uvit": UVIT,
    "edm2": "family: edm2, channels: 8, levels: [1, 2], blocks: 1, attention: [4], dropout: 0.1",
    "one wavelet": f"{UVIT}, patching: dwt-1",
    "two wavelets": f"{UVIT}, patching: dwt-2",
    "dit": "family: dit, width: 16, depth: 2, heads: 2, patch: 2, code: t-linear, dropout: 0.1",
}


def written(folder: Path, network: str) -> Path:
    """A preset of that network."""
    path = folder / "mine.yaml"
    path.write_text(
        f"network: {{{network}}}\n"
        "train: {logsnr_min: -10, logsnr_max: 10, batch: 16, warmup: 2, ema: 0.9, steps: 6, save_every: 3, log_every: 1}\n"
    )
    return path


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def graphs_of_a_run(data: Dataset, world: World, options: dict[str, Any]) -> tuple[TrainState, list[int]]:
    """What is compiled in the first and in the second round of training, validation and preview, and breaks of graphs."""
    state = TrainState(resolve({"val_split": 70, "preview_every": 1, **options}, data), data, world)
    held = open_held_out(state.settings, data, True)
    assert held is not None
    validation, found = Validation(held, state.resolved, state.device), list[int]()
    output = open_decoder(state.resolved.data, state.resolved.network, state.device)
    for _ in range(2):
        before = graphs()
        for _ in range(2):
            update(state)
        with state.averaged():
            validation.partial(state.spread.forward, world.rank, world.size)
        preview(state, output)
        found.append(graphs() - before)
    return state, [*found, sum(counters["graph_break"].values())]


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile finds graphs, and runs them as they are."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    torch.compiler.reset()
    counters.clear()


OTHERS = ("uvit", "one wavelet", "two wavelets", "edm2")
"""tests/nn/test_networks.py finds the one graph of each family."""
WAYS: list[dict[str, Any]] = [
    {"precision": "bf16", "activation_checkpointing": True},
    {"micro_batch": 8, "conditional": False},
]


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    ("network", "options", "norms"),
    [
        *((each, {}, None) for each in NETWORKS if each not in OTHERS),
        *(pytest.param(each, {}, None, marks=pytest.mark.slow) for each in OTHERS),
        *(pytest.param("uvit", way, None, marks=pytest.mark.slow) for way in WAYS),
        pytest.param("unet", WAYS[0], True, marks=pytest.mark.slow),
    ],
)
def test_a_run_has_three_graphs_without_a_break(
    network: str,
    options: dict[str, Any],
    norms: bool | None,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """norms: whether those of CUDA, here on a CPU."""
    monkeypatch.setattr(GroupNorm, "fused", norms)
    how = {"preset": str(written(tmp_path, NETWORKS[network])), "compile": True, **options}
    found = graphs_of_a_run(Dataset(digits), World(), how)[1]
    assert found == [2, 0, 0], "beside the one of the first pass, which training goes on with"


@pytest.mark.slow
def test_so_it_has_in_several_processes_for_each_unit_where_it_is_sharded(digits: Path, tmp_path: Path) -> None:
    preset = str(written(tmp_path, NETWORKS["uvit"]))
    code = f"""
import sys
from functools import partial
from pathlib import Path
sys.path[:0] = {[str(TESTS), str(TESTS / "train")]!r}
import group, torch
torch.compile = partial(torch.compile, backend="eager")
from elbocli.files.dataset import Dataset
from test_compile import graphs_of_a_run
data = Dataset(Path({str(digits)!r}))
def work(world):
    for parallel in ("ddp", "fsdp"):
        options = {{"preset": {preset!r}, "compile": True, "parallel": parallel}}
        state, (first, second, breaks) = graphs_of_a_run(data, world, options)
        units = len(state.network.units()) if state.spread.sharded else 1
        if world.first:
            print(units, first / units, second, breaks, flush=True)
print(group.forked(2, work))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr
    replicated, sharded, codes = result.stdout.splitlines()
    assert codes == "[0, 0]", result.stderr
    assert (replicated, sharded) == ("1 2.0 0 0", "3 2.0 0 0"), "beside those of the first pass"


@pytest.mark.usefixtures("eager")
def test_a_compiled_run_is_the_same_run_and_goes_on_uncompiled(digits: Path, tmp_path: Path) -> None:
    data, preset = Dataset(digits), str(written(tmp_path, NETWORKS["uvit"]))
    for name, steps, compile in (("plain", 6, False), ("compiled", 3, True), ("compiled", 6, None)):
        resolved = resolve({"preset": preset, "steps": steps, "compile": compile, "device": "cpu"}, data)
        loop.run(data, tmp_path / name, resolved)
    whole, parts = (
        read_checkpoint(tmp_path / name / "checkpoints" / "step-00000006") for name in ("plain", "compiled")
    )
    assert all(torch.equal(value, parts.weights("model")[name]) for name, value in whole.weights("model").items())


def test_gradients_that_are_added_up_exchanged_or_recomputed_keep_out_of_cuda_graphs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modes: list[Any] = []
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: modes.append(how.get("mode")))
    config = UViTConfig(8, 1, 0, 8, (1, 2), blocks=1, depth=1, heads=2, embedding=8)
    replica = Parallel(build(config), World(), "fp32")
    replica.compile(1)
    replica.world = World(device=torch.device("cuda"))
    replica.compile(1)
    replica.compile(2)
    replica.world = World(0, 2, torch.device("cuda"))
    replica.compile(1)
    replica.world, replica.network.recompute = World(device=torch.device("cuda")), True
    replica.compile(1)
    replica.network.recompute = False
    monkeypatch.setattr("elbocli.train.state.SMALL", 100)
    replica.compile(1)
    assert modes == [None, "reduce-overhead", None, None, None, None]


def test_without_a_compiler_it_says_once_what_is_missing_and_trains(
    elbo: Callable[..., Any], digits: Path, preset: Path, tmp_path: Path
) -> None:
    environment = {"CXX": "/nowhere/g++", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    line = ("train", digits, "-o", tmp_path / "run", "--preset", preset, "--steps", 3, "--device", "cpu", "--compile")
    result = elbo(*line, env=environment)
    assert result.returncode == 0, result.stderr
    told = [line for line in result.stderr.decode().splitlines() if "not compiled" in line]
    assert len(told) == 1 and "No working C++ compiler" in told[0] and "--no-compile" in told[0]
    assert (tmp_path / "run" / "checkpoints" / "step-00000003").is_dir()


def test_a_network_whose_backward_pass_does_not_compile_trains_uncompiled(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("no such kernel")

    broken = aot_autograd(fw_compiler=lambda graph, _: make_boxed_func(graph.forward), bw_compiler=fail)
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    torch.compiler.reset()
    preset, data = str(written(tmp_path, NETWORKS["uvit"])), Dataset(digits)
    with heard() as lines:
        states = [TrainState(resolve({"preset": preset, "compile": how}, data), data) for how in (True, False)]
    for state in states:
        update(state)
    assert any("no such kernel" in line for line in lines)
    assert all(torch.equal(value, states[1].live[name]) for name, value in states[0].live.items())
