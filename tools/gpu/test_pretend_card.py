"""The steps of `make gpu` on a pretend card: what they do only where there is CUDA is done, and nothing waits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from pretend import Pretence, lacking, plain_attention, pretending

TOOLS = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(lacking()), reason=lacking())]


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """module(name): one of those of `make gpu`."""
    for folder in (TOOLS / "bench", TOOLS / "gpu"):
        monkeypatch.syspath_prepend(str(folder))
    with torch.compiler.set_stance("force_eager"):  # the compiler knows no pretence
        yield import_module


@pytest.fixture
def session(module: Callable[[str], ModuleType], tmp_path: Path) -> Any:
    return module("worker").Session("cuda", True, math.inf, tmp_path)


def test_no_step_waits(module, session, monkeypatch):
    checks = module("checks")
    device_runs = module("device_runs")
    families = ("U-Net", "U-ViT, two wavelet levels")
    monkeypatch.setattr(checks, "FAMILIES", {name: checks.FAMILIES[name] for name in families})
    monkeypatch.setattr(checks, "PRECISIONS", ("fp32", "bf16"))

    def watching(device: Pretence) -> Any:
        @contextmanager
        def no_waits(name: str) -> Iterator[None]:
            device.waits.clear()
            yield
            if found := device.waits.outside():
                raise RuntimeError(str(found))

        return no_waits

    with pretending() as device:
        monkeypatch.setattr(device_runs, "no_waits", watching(device))
        rows = {row.name: row for row in checks.host_waits(session)}
    assert {row.value for row in rows.values()} == {"no wait"}, [row for row in rows.values() if not row.ok]
    assert {"U-Net, bf16, training_step", "U-Net, fp32, heun:s_churn=40", f"{families[1]}, bf16, ddpm"} <= rows.keys()


def test_rates_and_memory_are_taken(module, session):
    speed = module("speed")
    with pretending():
        for way in ("bf16", "bf16, bare loop", "bf16 compiled"):
            found, memory = speed.training(session, "cifar", way)
            assert found.ok and found.value > 0 and memory.unit == "GB", found


def test_losses_images_and_bits_are_compared(module, session, monkeypatch):
    """The number of losses is that on a card: Muon's error grows from step to step."""
    device_runs = module("device_runs")
    real = device_runs.losses
    monkeypatch.setattr(device_runs, "losses", lambda data, device, steps, **options: real(data, device, 20, **options))
    with pretending(), plain_attention():
        rows = list(module("checks").agreement(session))
    assert all(row.ok for row in rows) and len(rows) == 6, rows
