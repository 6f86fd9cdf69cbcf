"""The steps of `make gpu` on a pretend card: what they do only where there is CUDA is done, and nothing waits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from pretend import Pretence, pretending

TESTS = Path(__file__).parents[1]


@pytest.fixture
def rows_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """rows_of(step, device): its rows, by name, small and on that card."""
    for folder in (TESTS, TESTS / "bench", TESTS / "gpu"):
        monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(torch._dynamo.config, "disable", True)  # the compiler knows no pretence

    def rows(step: str, device: Pretence, small: bool = True) -> dict[str, Any]:
        module, _, function = step.partition(".")
        watched = import_module("device_runs")

        @contextmanager
        def no_waits(name: str) -> Iterator[None]:
            device.waits.clear()
            yield
            if found := device.waits.outside():
                raise RuntimeError(str(found))

        monkeypatch.setattr(watched, "no_waits", no_waits)
        session = import_module("worker").Session("cuda", small, math.inf, tmp_path)
        return {row.name: row for row in getattr(import_module(module), function)(session)}

    return rows


def test_no_step_of_any_family_waits(rows_of: Any) -> None:
    with pretending() as device:
        rows = rows_of("host_waits.rows", device)
    assert {row.value for row in rows.values()} == {"no wait"}, [row for row in rows.values() if not row.ok]
    assert {"U-Net, fp16, training", "U-ViT, two wavelet levels, bf16, ddpm"} <= rows.keys()
