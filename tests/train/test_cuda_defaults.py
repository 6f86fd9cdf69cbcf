"""Defaults of training on CUDA: what is on, what is said, and what each option turns off."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

from elbocli.files.dataset import Dataset
from elbocli.run.settings import resolve
from elbocli.run.train_settings import TrainSettings
from elbocli.runtime.processes import World
from elbocli.train import loop
from elbocli.train.cuda_defaults import CudaDefaults

CARD = torch.device("cuda", 0)
SETTINGS = TrainSettings(precision="bf16", log_every=10)


def defaults(device: torch.device = CARD, size: int = 1, **options: Any) -> CudaDefaults:
    return CudaDefaults(replace(SETTINGS, **options), World(0, size, device))


@pytest.fixture
def collected(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Steps after which the garbage was collected by `after`, which the test counts in its only element first."""
    steps = [0]
    monkeypatch.setattr(gc, "collect", lambda: steps.append(steps[0]))
    yield steps
    gc.enable()
    gc.unfreeze()


def test_all_is_named_with_what_turns_it_off_and_nothing_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    everything = (
        "--precision bf16, --cudnn-benchmark, --manual-gc, PYTORCH_ALLOC_CONF=expandable_segments:True, "
        "--nccl-timeout 300s; weights in fp32"
    )
    assert str(defaults(size=2)) == everything
    assert str(defaults()) == everything.replace(", --nccl-timeout 300s", "")
    assert str(defaults(torch.device("cpu"), size=2)) == ""
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    off = {"precision": "fp32", "cudnn_benchmark": False, "manual_gc": False, "nccl_timeout": 0.0}
    assert str(defaults(size=2, **off)) == "--precision fp32; weights in fp32"


@pytest.mark.parametrize("on", [True, False])
def test_cudnn_tries_its_kernels_while_training(on: bool) -> None:
    before = torch.backends.cudnn.benchmark
    with defaults(cudnn_benchmark=on, manual_gc=False).applied():
        assert torch.backends.cudnn.benchmark == on and torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.benchmark == before
    with defaults(precision="fp32").applied():
        assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("log_every", "wanted"), [(10, [4, 10, 20, 30]), (7, [4, 7, 14, 21, 28]), (5000, [4, 1000, 2000, 3000])]
)
def test_garbage_is_collected_at_set_steps_alone(log_every: int, wanted: list[int], collected: list[int]) -> None:
    own = defaults(log_every=log_every)
    with own.applied():
        assert not gc.isenabled()
        for step in range(4, 3400 if log_every > 1000 else 34):
            collected[0] = step
            own.after(step, 4)
    assert collected[1:] == wanted and gc.isenabled() and not gc.get_freeze_count()


@pytest.mark.parametrize("own", [defaults(manual_gc=False), defaults(torch.device("cpu"))], ids=["off", "cpu"])
def test_elsewhere_python_collects_when_it_likes(own: CudaDefaults, collected: list[int]) -> None:
    with own.applied():
        assert gc.isenabled()
        own.after(10, 10)
    assert len(collected) == 1 and not gc.get_freeze_count()


def test_what_is_there_after_the_first_step_is_not_looked_at_again(collected: list[int]) -> None:
    own = defaults()
    with own.applied():
        own.after(5, 4)
        assert not gc.get_freeze_count()
        own.after(4, 4)
        assert gc.get_freeze_count() > 1000


def test_an_error_gives_the_collector_back(collected: list[int]) -> None:
    with pytest.raises(KeyError), defaults().applied():
        raise KeyError
    assert gc.isenabled()
    gc.disable()
    with defaults().applied():
        pass
    assert not gc.isenabled()  # as it was


@pytest.mark.parametrize(("seconds", "wanted"), [(300.0, [(3, timedelta(minutes=5))]), (0.0, [])])
def test_devices_wait_less_for_each_other_from_the_first_step_on(
    seconds: float, wanted: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    limits, now, own = list[Any](), list[int](), defaults(size=2, nccl_timeout=seconds, manual_gc=False)
    monkeypatch.setattr(World, "limit_waits", lambda _, limit: limits.append((now[-1], limit)))
    for step in range(3, 8):
        now.append(step)
        own.after(step, 3)
    assert limits == wanted


def test_training_applies_them_and_says_so(
    digits: Path, preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed run counts its own first step. What they do was tested above: here they are only called."""
    seen, held = list[Any](), list[bool]()
    applied = CudaDefaults.applied
    monkeypatch.setattr(CudaDefaults, "__str__", lambda self: "fast")
    monkeypatch.setattr(CudaDefaults, "after", lambda self, step, first: seen.append((step, first)))
    monkeypatch.setattr(CudaDefaults, "applied", lambda self: held.append(True) or applied(self))
    said = list[str]()
    for steps in (2, 4):
        resolved = resolve({"preset": str(preset), "steps": steps}, Dataset(digits))
        said += [report.message or "" for report in loop.run(Dataset(digits), tmp_path / "run", resolved)]
    assert seen == [(1, 1), (2, 1), (3, 3), (4, 3)] and held == [True, True]
    assert sum(line.startswith("on cpu (") and line.endswith(": fast") for line in said) == 2
