"""Parts of `make gpu`: the order of its steps, the table of reports, and what it does without memory or a compiler."""

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from elbocli.core.adaptive import bin_edges
from elbocli.training.state import Parallel, TrainState

GPU = Path(__file__).parent


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(GPU))
    return import_module("run")


def test_a_step_begins_while_half_its_time_is_left(run):
    plain = run.Step("plain", "", 10)
    compiled = run.Step("compiled", "", 10, compiles=True)
    assert [plain.limit(left) for left in (540, 20, 5, 4)] == [50, 20, 5, 0]
    assert [compiled.limit(left) for left in (540, 100, 50, 49)] == [230, 100, 50, 0]


def test_speed_comes_first_and_all_checks_of_correctness_end_within_the_budget(run):
    """However long kernels take to compile."""
    names = [step.name for step in run.STEPS]
    assert len(set(names)) == len(names)
    assert names[:3] == ["environment", "imagenet64: bf16 compiled", "sampling: auto, graphs"]
    checks = {"agreement: CPU and device", "cuda-tests", "out-of-memory", "fsdp", "host-waits"}
    for times in run.simulated(run.STEPS, 540).split("compiling takes ")[1:]:
        late = times.partition("not within 540 s: ")[2].strip().split(", ")
        assert not checks & {*late} and "imagenet64: tf32 compiled" in late


def test_reports_of_a_card_are_one_column(run):

    def report(card: str, **steps: tuple[str, list[Any]]) -> dict[str, Any]:
        found = {"environment": ("done", [("card", card, "")]), **steps}
        made = {name: [dict(zip(("name", "value", "unit"), row)) for row in rows] for name, (_, rows) in found.items()}
        return {"small": False, "steps": [{"name": name, "status": found[name][0], "rows": made[name]} for name in found]}

    speed = ("speed", 512.3, "images/s")
    memory = ("memory", 40.0, "GB")
    first = report("H100", a=("done", [speed, memory]), b=("skipped", []))
    later = report("H100", a=("skipped", []), b=("failed", [speed]))
    reports = [first, later, report("L4")]
    assert run.page_table(reports).splitlines() == [
        "| step | H100 | L4 |",
        "| --- | --- | --- |",
        "| a | 512.3 images/s, 40 GB |  |",
        "| b | 512.3 images/s, failed |  |",
    ]
    empty = run.filled(run.PAGE.read_text(), run.page_table([]))
    assert "\n\nNo card has run elbo yet.\n\n" in empty and run.filled(run.filled(empty, "| a |"), run.page_table([])) == empty


def test_a_card_is_described(monkeypatch, tmp_path):
    for folder in (GPU, tmp_path):
        monkeypatch.syspath_prepend(str(folder))
    environment = import_module("environment")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho '580.1, 1980 MHz, 1980 MHz, 2619 MHz, 2619 MHz, 700.00 W, 81559 MiB'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    properties = SimpleNamespace(major=9, minor=0, multi_processor_count=132, total_memory=85 * 10**9)
    told = {"get_device_properties": properties, "get_device_name": "H100", "is_bf16_supported": True}
    told |= {"device_count": 1, "get_device_capability": (9, 0)}
    for name, value in told.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    session = environment.Session("cuda", False, 0.0, tmp_path)
    with pytest.raises(RuntimeError, match="no CUDA device"):
        list(environment.rows(session))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    found = {row.name: row.value for row in environment.rows(session)}
    assert (found["card"], found["compute capability"], found["memory"], found["bf16"]) == ("H100", "9.0", 85.0, "yes")
    assert (found["driver version"], found["clocks sm"], found["memory total"]) == ("580.1", "1980 MHz", "81559 MiB")
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nexit 1\n")
    assert {row.name: row.value for row in environment.rows(session)}["driver version"] == "not told by nvidia-smi"


def test_a_wait_is_told_with_its_place(monkeypatch, tmp_path):
    for folder in (GPU, GPU.parent):
        monkeypatch.syspath_prepend(str(folder))
    checks = import_module("checks")
    calls: list[str] = []

    @contextmanager
    def no_waits(device: str) -> Iterator[None]:
        calls.append("from here on")
        yield

    monkeypatch.setattr(checks.on, "no_waits", no_waits)
    assert checks.watched("fine", "cuda", lambda: calls.append("work"), 2, 1).text == "no wait"
    assert calls == ["work", "work", "from here on", "work"]
    row = checks.watched("waits", "cuda", lambda: bin_edges(0, 1, -2), 0, 1)
    assert not row.ok and row.note.startswith("core/adaptive.py:"), "torch's RuntimeError for a negative count"


def test_a_way_without_memory_or_compiler_is_measured_nevertheless(monkeypatch, tmp_path):
    for folder in (GPU.parent / "bench", GPU.parent, GPU):
        monkeypatch.syspath_prepend(str(folder))
    speed = import_module("speed")
    tried: list[int] = []
    real = speed.step_of

    def step_of(state: TrainState) -> Callable[[], None]:
        tried.append(len(state.batches.parts[0]))
        if tried[-1] > 2:
            raise torch.OutOfMemoryError
        return real(state)

    def no_compiler(spread: Parallel, parts: int) -> None:
        raise RuntimeError("no Triton")

    monkeypatch.setattr(speed, "step_of", step_of)
    monkeypatch.setattr(Parallel, "compile", no_compiler)
    session = speed.Session("cpu", True, math.inf, tmp_path)
    eager, compiled = (next(speed.training(session, "cifar", way)) for way in ("fp32", "fp32 compiled"))
    assert tried == [8, 4, 2] * 2
    assert eager.ok and eager.value > 0 and eager.note.startswith("2 images at a time")
    assert not compiled.ok and compiled.value > 0 and "no Triton" in compiled.note
    with pytest.raises(RuntimeError, match="no Triton"):
        speed.gradients(session, speed.Way.named("bf16 compiled"))
