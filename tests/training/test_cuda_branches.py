"""What training does on a CUDA card, tested without one: no step waits for the device, and copies to it are pinned."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import device_runs
import made_data
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from elbocli.runtime.device import DTYPES, Precision, sent
from elbocli.training.state import TrainState
from elbocli.training.step import check, update

CARD = torch.device("cuda", 0)
WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::is_nonzero", "aten::equal")
"""Operators whose result the host needs, so that on a card it waits for all kernels that were launched before."""


class NoWaits(TorchDispatchMode):
    """Raise RuntimeError where an operator's result is needed by the host."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function.name().partition(".")[0] in WAITS:
            raise RuntimeError(f"{function.name()} makes the host wait")
        return function(*args, **(kwargs or {}))


@pytest.fixture
def state_of(tmp_path) -> Callable[..., TrainState]:
    data = made_data.packed_digits(tmp_path)

    def make(**options: Any) -> TrainState:
        how = {"preset": "digits", "batch_size": 8, "micro_batch": 4, **options}
        return TrainState(device_runs.resolved(data, "cpu", network={"channels": 8}, **how), data)

    return make


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("options", [{}, {"optimizer": "muon"}, {"ema": ("0.9", "power:std=0.1")}], ids=str)
def test_a_step_never_waits_for_the_device(precision, options, state_of):
    state = state_of(precision=precision, **options)
    update(state)  # the first step makes what later steps keep
    with NoWaits():
        update(state)
    assert state.steps_done == 2


def test_a_wait_would_be_noticed(state_of):
    state = state_of()
    with NoWaits(), pytest.raises(RuntimeError):
        float(state.totals.sum())
    check(state)  # which reads the device between steps


def test_the_optimizer_is_fused_and_weights_are_channels_last(state_of):
    state = state_of()
    assert state.optimizer.defaults["fused"]
    kernels = [weight for weight in state.network.parameters() if weight.dim() == 4 and min(weight.shape) > 1]
    assert kernels and all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_copies_to_a_card_are_pinned_and_those_to_a_cpu_are_not(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor.shape) or tensor)
    with FakeTensorMode():
        copy = sent(torch.empty(3, 2), CARD)
        assert copy.device == CARD and pinned == [(3, 2)]
        assert sent(torch.empty(3), torch.device("cpu")).device.type == "cpu" and len(pinned) == 1


@pytest.mark.parametrize("precision", DTYPES)
def test_switches_for_tf32_are_set_and_put_back(precision):
    matmul = torch.backends.cuda.matmul
    before = (matmul.allow_tf32, torch.backends.cudnn.benchmark)
    applied: AbstractContextManager[None] = Precision(precision, CARD).applied(benchmark=True)
    with applied:
        assert matmul.allow_tf32 == (precision != "fp32") and torch.backends.cudnn.benchmark
    assert (matmul.allow_tf32, torch.backends.cudnn.benchmark) == before


def test_a_snapshot_is_on_the_cpu_and_apart_from_the_weights(state_of):
    """The background thread writes it while later steps change the weights."""
    state = state_of()
    update(state)
    weights, rest = state.snapshot()
    before = {name: tensor.clone() for name, tensor in weights["model"].items()}
    update(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights["model"].items())
    assert not torch.equal(weights["model"]["first.weight"], state.network.state_dict()["first.weight"])
    assert {tensor.device.type for tensor in [*weights["model"].values(), rest["totals"]]} == {"cpu"}
