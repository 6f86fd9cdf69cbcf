"""The device of a run and the precision of its networks, on cards that this machine need not have."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from elbocli.errors import UsageError
from elbocli.runtime.device import PRECISIONS, Precision, choose_device, meant_by, seed_dropout, usual_precision

CPU, CARD = torch.device("cpu"), torch.device("cuda", 1)


class Cards:
    """Two CUDA devices without memory: which is current, and which was seeded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.current, self.seeds = 0, dict[int, int]()
        real = torch.empty
        for name, stand_in in {
            "is_available": lambda: True,
            "device_count": lambda: 2,
            "current_device": lambda: self.current,
            "set_device": self.set_device,
            "get_device_name": lambda index: f"Card {index}",
            "device": self.device,
            "manual_seed": lambda seed: self.seeds.update({self.current: seed}),
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(torch, "empty", lambda *shape, device=None, pin_memory=False, **how: real(*shape, **how))
        monkeypatch.delenv("ELBO_DEVICE")

    def set_device(self, device: torch.device) -> None:
        """As torch.cuda's."""
        if device.index >= 2:
            raise RuntimeError("CUDA error: invalid device ordinal\nand more")
        self.current = device.index

    @contextmanager
    def device(self, device: torch.device) -> Iterator[None]:
        """As torch.cuda's."""
        before, self.current = self.current, device.index
        yield
        self.current = before


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> Cards:
    return Cards(monkeypatch)


def test_a_cuda_device_has_an_index_and_becomes_the_current_one(cards: Cards) -> None:
    assert choose_device("cuda:1") == torch.device("cuda", 1) and cards.current == 1
    assert choose_device("cuda") == choose_device("auto") == torch.device("cuda", 1) and cards.current == 1
    assert choose_device("cuda:0") == torch.device("cuda", 0) and cards.current == 0
    assert choose_device("cpu") == CPU and cards.current == 0


def test_a_device_that_is_not_there_is_refused_by_the_name_asked_for(cards: Cards) -> None:
    with pytest.raises(UsageError, match="'cuda:7' can't be used here: "):
        choose_device("cuda:7")


def test_a_device_that_is_there_and_fails_is_refused_with_the_reason(
    cards: Cards, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*shape: int, device: torch.device) -> Tensor:
        raise RuntimeError("CUDA error: out of memory\nand more")

    monkeypatch.setattr(torch, "empty", full)
    with pytest.raises(UsageError, match="'cuda:1' can't be used here: CUDA error: out of memory"):
        choose_device("cuda:1")


def test_without_cuda_it_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA")
    for name in ("cuda", "cuda:1", "tape", "gpu", "0"):
        with pytest.raises(UsageError, match=f"device '{name}' can't be used here"):
            choose_device(name)


def test_apples_is_refused_also_where_torch_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "empty", lambda *shape, device: None)
    for name in ("mps", "mps:0"):
        with pytest.raises(UsageError, match=f"'{name}' can't be used here"):
            choose_device(name)


def test_auto_is_the_variables_device_else_cuda_where_there_is_one(
    cards: Cards, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert meant_by("auto") == "cuda"
    for said, meant in (("cpu", "cpu"), ("cuda:1", "cuda:1"), ("", "cuda"), ("auto", "cuda")):
        monkeypatch.setenv("ELBO_DEVICE", said)
        assert meant_by("auto") == meant
    monkeypatch.setenv("ELBO_DEVICE", "cuda:1")
    assert meant_by("cpu") == "cpu" and choose_device("auto") == torch.device("cuda", 1)
    monkeypatch.delenv("ELBO_DEVICE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert meant_by("auto") == "cpu"


def test_tests_and_the_commands_they_run_are_on_the_cpu_whatever_there_is(
    elbo: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == CPU
    monkeypatch.setenv("ELBO_DEVICE", "tape")
    for env in ({}, {"OMP_NUM_THREADS": "1"}):  # forked, and a process of its own
        assert b"device 'tape' can't be used here" in elbo("sample", "none", "-o", "x.npy", env=env).stderr


def test_dropout_is_seeded_on_its_own_card(cards: Cards) -> None:
    seed_dropout(CARD, 5)
    assert cards.seeds == {1: 5} and cards.current == 0
    assert torch.initial_seed() == 5


@pytest.mark.parametrize(
    ("name", "on_cpu", "on_card", "tf32", "dtype"),
    [
        ("fp32", "fp32", "fp32", False, None),
        ("tf32", "fp32", "tf32", True, None),
        ("bf16", "bf16", "bf16", True, torch.bfloat16),
        ("fp16", "fp16", "fp16", True, torch.float16),
    ],
)
def test_a_precision_says_what_it_is_on_its_device(
    name: str, on_cpu: str, on_card: str, tf32: bool, dtype: torch.dtype | None
) -> None:
    here, there = Precision(name, CPU), Precision(name, CARD)
    assert (str(here), here.tf32, str(there), there.tf32) == (on_cpu, False, on_card, tf32)
    with here.autocast():
        assert torch.is_autocast_enabled("cpu") == (dtype is not None)
        assert torch.mm(torch.ones(2, 2), torch.ones(2, 2)).dtype == PRECISIONS[name] == (dtype or torch.float32)


def test_every_precision_is_known_and_no_other() -> None:
    with pytest.raises(UsageError, match="precision is 'fp8'; it must be one of fp32, tf32, bf16, fp16"):
        Precision("fp8", CPU)


def switches() -> tuple[bool, bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark


@pytest.fixture
def any_switches() -> Iterator[None]:
    """Torch's switches as they were, afterwards."""
    before = switches()
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = before


@pytest.mark.usefixtures("any_switches")
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("name", list(PRECISIONS))
def test_matrices_and_convolutions_are_switched_alike_and_back(name: str, before: bool) -> None:
    """By default cuDNN's convolutions are in TF32, whatever matrices are."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    for matrices, convolutions in ((before, before), (before, not before)):
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = matrices, convolutions, before
        with pytest.raises(KeyError), Precision(name, CARD).applied(benchmark=not before):
            assert switches() == (name != "fp32", name != "fp32", not before)
            raise KeyError
        assert switches() == (matrices, convolutions, before)
        with Precision(name, CPU).applied(benchmark=not before):
            assert switches() == (matrices, convolutions, before)


def test_the_usual_precision_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is planned for a card that need not be there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [usual_precision(device, True) for device in ("auto", "cpu", "cuda", "cuda:1")] == [
        *("fp32", "fp32", "bf16", "bf16")
    ]
    assert usual_precision("cuda", False) == "tf32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("ELBO_DEVICE")
    for has in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has: has)
        assert usual_precision("auto", True) == ("bf16" if has else "tf32")
        assert usual_precision("auto", False) == "tf32" and usual_precision("cpu", True) == "fp32"
