"""`make gpu`, small and on the CPU, so that it works on the day a card is there; and what it does with steps that go wrong."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from elbocli.core.adaptive import bin_edges
from elbocli.train.state import TrainState

GPU = Path(__file__).parent
ABSENT = [
    "scipy",
    "torch_fidelity",
    "diffusers",
    "tensorboard",
    "sklearn",
    "skimage",
    "hypothesis",
    "pytest",
]
FAKE = """
import os, time
from worker import Row, Skipped
def good(session): yield Row("found", 1.5, "images/s", note=f"{session.left:.1f}")
def bad(session): yield from good(session); raise ValueError("of its own")
def wrong(session): yield Row("a limit", 2, ok=False); yield Row("another", 3)
def absent(session): raise Skipped("nothing to do it with"); yield
def dies(session): yield from good(session); os._exit(7)
def hangs(session):
    yield from good(session)
    os.system("exec >/dev/null 2>&1; sleep 600 & echo $! > child; wait")
def again(session): yield Row("process", os.getpid()); yield Row("folder", str(session.folder.is_dir()))
"""


@pytest.fixture
def started(tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any], str]]:
    """started(line, **environment): (exit code, JSON, table) of a program that is told --out, in an empty folder.

    It imports torch itself, which reads then that nothing is to be compiled; what it starts does with another PYTHONPATH.
    """

    def start(*line: str, **environment: str) -> tuple[int, dict[str, Any], str]:
        out = tmp_path / "gpu.json"
        kept = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST") and key != "PYTHONPATH"}
        words = [sys.executable, *line, "--out", str(out), "--device", "cpu"]
        variables = {**kept, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **environment}
        # a pipe would stay open
        with open(tmp_path / "stdout", "w") as stdout, open(tmp_path / "stderr", "w") as stderr:
            done = subprocess.run(words, cwd=tmp_path, env=variables, stdout=stdout, stderr=stderr, check=False)
        assert out.exists(), (tmp_path / "stderr").read_text()
        return done.returncode, json.loads(out.read_text()), (tmp_path / "stdout").read_text()

    return start


def steps_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {step["name"]: step for step in report["steps"]}


@pytest.mark.slow
def test_all_of_it_runs_small_on_a_cpu(started):
    code, report, table = started(str(GPU / "run.py"), "--budget", "480")
    found = steps_of(report)
    assert len(found) == 14
    assert {name: (step["status"], step["message"]) for name, step in found.items()} == dict.fromkeys(found, ("done", ""))
    assert code == 0 and (report["format"], report["device"], report["small"]) == ("elbo-gpu", "cpu", True)
    rows = {name: {row["name"]: row["value"] for row in step["rows"]} for name, step in found.items()}
    assert {"torch", "python", "elbo", "numpy", "C compiler", "torch-fidelity"} <= rows["environment"].keys()
    for preset in ("imagenet64", "imagenet256", "latents256", "cifar"):
        for way in ("fp32", "tf32", "bf16", "bf16 compiled", "bf16, bare loop", "bf16 compiled, bare loop"):
            assert rows[preset][f"{preset}: {way}"] > 0
        assert rows[preset][f"{preset}: bf16, overhead over the bare loop"] > 0
    assert rows["imagenet64"]["imagenet64: tf32 compiled"] > 0
    assert len(rows["profile"]) > 10 and rows["end to end"]["eval"] == "exit 0"
    assert all(any(line.startswith(f"{name}: done") for line in table.splitlines()) for name in found)


@pytest.mark.slow
def test_what_is_absent_is_skipped_by_name(started, tmp_path):
    """A machine that has nothing but what elbo trains with; torch itself asks for some of these and goes on without."""
    for name in ABSENT:
        (tmp_path / "absent" / name).mkdir(parents=True)
        (tmp_path / "absent" / name / "__init__.py").write_text(f"raise ModuleNotFoundError('no {name}', name='{name}')\n")
    line = [str(GPU / "run.py"), "environment", "cuda tests", "cpu and device agree", "inception", "end to end"]
    code, report, _ = started(*line, PYTHONPATH=str(tmp_path / "absent"))
    found = steps_of(report)
    assert code == 0, found
    assert {name: step["status"] for name, step in found.items()} == {
        "environment": "done",
        "cuda tests": "skipped",
        "cpu and device agree": "done",
        "inception": "skipped",
        "end to end": "done",
    }
    assert found["cuda tests"]["message"] == "pytest is not installed"
    assert found["inception"]["message"] == "torch-fidelity is not installed"
    rows = {row["name"]: row for name in ("environment", "end to end") for row in found[name]["rows"]}
    assert rows["scipy"]["value"] == rows["pytest"]["value"] == "absent"
    assert rows["eval"]["value"] == "skipped" and "torch-fidelity" in rows["eval"]["note"]


@pytest.mark.slow
def test_a_step_that_goes_wrong_is_recorded_and_the_next_goes_on(started, tmp_path):
    (tmp_path / "fake.py").write_text(FAKE)
    names = ("good", "again", "bad", "wrong", "absent", "dies", "hangs", "again")
    steps = ", ".join(f"Step('{name} {n}', 'fake.{name}', {16 if name == 'again' and n else 1})" for n, name in enumerate(names))
    code = f"import sys; sys.path[:0] = [{str(GPU)!r}, {str(tmp_path)!r}]; import run; from worker import Step; run.STEPS = ({steps},); run.main()"
    code, report, table = started("-c", code, "--budget", "18")
    found = steps_of(report)
    said = {name: (step["status"], len(step["rows"]), step["message"]) for name, step in found.items()}
    late = said.pop("hangs 6")
    assert said == {
        "good 0": ("done", 1, ""),
        "again 1": ("done", 2, ""),
        "bad 2": ("failed", 1, "ValueError: of its own"),
        "wrong 3": ("failed", 2, "not as it must be: a limit"),
        "absent 4": ("skipped", 0, "nothing to do it with"),
        "dies 5": ("failed", 1, "its process ended with 7"),
        "again 7": ("done", 2, ""),
    }
    assert late[:2] == ("timed out", 1) and late[2].startswith("did not end within")
    assert code == 1 and "NOT AS IT MUST BE" in table and "hangs 6: timed out" in table
    assert found["again 1"]["rows"][0]["value"] != found["again 7"]["rows"][0]["value"]
    child = Path("/proc") / (tmp_path / "child").read_text().strip() / "stat"
    with suppress(OSError):  # what a step has started ends with it, though nobody may have asked how
        assert child.read_text().rpartition(")")[2].split()[0] == "Z"


def test_steps_share_what_time_there_is(monkeypatch):
    monkeypatch.syspath_prepend(str(GPU))
    run = import_module("run")
    short, long = run.Step("short", "", 10), run.Step("long", "", 30)
    assert run.planned(short, [long], 40) == (10, 28)  # the later one keeps two fifths of its time
    assert run.planned(short, [long], 20) == (5, 8)
    assert run.planned(long, [], 60) == (60, 60)
    assert run.planned(short, [long], 400) == (100, 230)
    assert run.planned(long, [], 5)[0] < run.LEAST * long.seconds, "too little to begin it"
    assert sum(step.seconds for step in run.STEPS) <= 540 + 30


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


def test_as_many_images_at_a_time_as_fit(monkeypatch, tmp_path):
    for folder in (GPU.parent / "bench", GPU.parent, GPU):
        monkeypatch.syspath_prepend(str(folder))
    speed = import_module("speed")
    tried: list[tuple[int, int]] = []
    real = speed.step_of

    def step_of(state: TrainState) -> Callable[[], None]:
        parts = state.batches.parts
        tried.append((len(parts), len(parts[0])))
        if len(parts[0]) > 2:
            raise torch.OutOfMemoryError
        return real(state)

    monkeypatch.setattr(speed, "step_of", step_of)
    session = speed.Session("cpu", True, math.inf, tmp_path)
    case, way = speed.Case("cifar", 32, 10, 512, 256, small=speed.TINY), speed.Way("fp32")
    assert speed.fitting(case, session, speed.data_of(case, session), way) == 2
    assert tried == [(2, 4), (4, 2), (4, 2)]
