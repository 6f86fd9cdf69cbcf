"""`make gpu`, small and on the CPU, so that it works on the day a card is there; and what it does with steps that go wrong."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
GPU = ROOT / "tools/gpu"
ABSENT = ["scipy", "torch_fidelity", "diffusers", "tensorboard", "sklearn", "skimage", "hypothesis", "pytest"]
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


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(GPU))
    return import_module("run")


def steps_of(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {step["name"]: step for step in report["steps"]}


@pytest.mark.slow
def test_all_of_it_runs_small_on_a_cpu(started, run, tmp_path):
    code, report, table = started(str(GPU / "run.py"), "--budget", "480")
    found = steps_of(report)
    assert list(found) == [step.name for step in run.STEPS]
    assert {name: (step["status"], step["message"]) for name, step in found.items()} == dict.fromkeys(found, ("done", ""))
    assert code == 0 and (report["format"], report["device"], report["small"]) == ("elbo-gpu", "cpu", True)
    rows = {name: {row["name"]: row["value"] for row in step["rows"]} for name, step in found.items()}
    assert {"torch", "python", "elbo", "numpy", "C compiler", "torch-fidelity"} <= rows["environment"].keys()
    assert all(rows[step.name]["speed"] > 0 for step in run.STEPS if step.function in ("speed.training", "speed.sampling"))
    assert len(rows["profile: bf16"]) > 10 and (tmp_path / rows["profile: bf16"]["trace"]).stat().st_size > 1000
    assert rows["end-to-end"]["eval"] == "exit 0"
    assert all(any(line.startswith(f"{name}: done") for line in table.splitlines()) for name in found)
    shown = run.filled(run.PAGE.read_text(), run.page_table([report]))
    assert "\n| step | CPU, small: no measurement |\n" in shown and "\n| imagenet64: bf16 compiled |" in shown
    assert "| host-waits | done |" in shown and shown.count("images/s |") == 1 + sum("speed" in row for row in rows.values())


@pytest.mark.slow
def test_what_is_absent_is_skipped_by_name(started, tmp_path):
    """A machine that has nothing but what elbo trains with; torch itself asks for some of these and goes on without."""
    for name in ABSENT:
        (tmp_path / "absent" / name).mkdir(parents=True)
        (tmp_path / "absent" / name / "__init__.py").write_text(f"raise ModuleNotFoundError('no {name}', name='{name}')\n")
    line = [str(GPU / "run.py"), "environment", "cuda-tests", "agreement", "inception", "end-to-end"]
    code, report, _ = started(*line, PYTHONPATH=str(tmp_path / "absent"))
    found = steps_of(report)
    assert code == 0, found
    assert {name: step["status"] for name, step in found.items()} == {
        "environment": "done",
        "cuda-tests": "skipped",
        "agreement: compiled and eager": "done",
        "agreement: CPU and device": "done",
        "inception": "skipped",
        "end-to-end": "done",
    }
    assert found["cuda-tests"]["message"] == "pytest is not installed"
    assert found["inception"]["message"] == "torch-fidelity is not installed"
    rows = {row["name"]: row for name in ("environment", "end-to-end") for row in found[name]["rows"]}
    assert rows["scipy"]["value"] == rows["pytest"]["value"] == "absent"
    assert rows["eval"]["value"] == "skipped" and "torch-fidelity" in rows["eval"]["note"]


@pytest.mark.slow
def test_a_step_that_goes_wrong_is_recorded_and_the_next_goes_on(started, tmp_path):
    (tmp_path / "fake.py").write_text(FAKE)
    names = ("good", "again", "bad", "wrong", "absent", "dies", "hangs", "again")
    steps = ", ".join(f"Step('{name} {n}', 'fake.{name}', 1)" for n, name in enumerate(names))
    code = f"import sys; sys.path[:0] = [{str(GPU)!r}, {str(tmp_path)!r}]; import run; from worker import Step; "
    code += f"Step.limit = lambda step, left: 8.0; run.STEPS = ({steps},); run.main()"
    code, report, table = started("-c", code)
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


@pytest.mark.parametrize(("budget", "status", "code"), [(3.0, "cut", 0), (600.0, "timed out", 1)])
def test_a_step_that_the_budget_cuts_is_no_failure(budget, status, code, started, tmp_path):
    (tmp_path / "fake.py").write_text(FAKE)
    line = f"import sys; sys.path[:0] = [{str(GPU)!r}, {str(tmp_path)!r}]; import run; from worker import Step; "
    line += "Step.limit = lambda step, left: min(6.0, left); run.STEPS = (Step('hangs', 'fake.hangs', 1),); run.main()"
    found, report, _ = started("-c", line, "--budget", str(budget))
    assert (found, report["steps"][0]["status"]) == (code, status)


@pytest.mark.parametrize("runner", [pytest.param("script", marks=pytest.mark.slow), "kernel"])
def test_the_notebook_runs_and_writes_an_issue(runner, tmp_path, monkeypatch):
    """Within a clone, on the CPU; as a script where there is no Jupyter."""
    notebook = ROOT / "examples/gpu.ipynb"
    cells = [cell for cell in json.loads(notebook.read_text())["cells"] if cell["cell_type"] == "code"]
    root = tmp_path / "clone"
    run = tmp_path / "clone/runs"
    for name in ("Makefile", "setup.cfg", "tools", "elbocli"):
        root.mkdir(exist_ok=True)
        (root / name).symlink_to(ROOT / name)
    run.mkdir()
    monkeypatch.setenv("DEVICE", "cpu")
    monkeypatch.setenv("ONLY", "environment fsdp")
    if runner == "script":
        code = "\n".join("".join(cell["source"]) for cell in cells)
        done = subprocess.run([sys.executable, "-c", code], cwd=run, capture_output=True, text=True, check=False)
        text = done.stdout + done.stderr
    else:
        nbclient = pytest.importorskip("nbclient")
        _ = pytest.importorskip("ipykernel")
        made = import_module("nbformat").read(notebook, 4)
        nbclient.NotebookClient(made, timeout=600, resources={"metadata": {"path": str(run)}}).execute()
        text = "".join(out.get("text", "") for cell in made.cells for out in cell.get("outputs", []))
    assert "\n## make gpu, " in text and "exit 0\n" in text and "\nNo step failed." in text, text
    assert text.count("| fsdp | done |") == 2 and f"torch: {torch.__version__}" in text
    assert json.loads((run / "gpu.json").read_text())["device"] == "cpu"


def test_make_passes_its_variables_on():
    line = ["make", "-n", "gpu", "OUT=card.json", "BUDGET=600", "ONLY=imagenet64 sampling"]
    said = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True, env={**os.environ, "OUT": "/out"})
    assert "tools/gpu/run.py --device cuda --out card.json --budget 600 imagenet64 sampling" in said.stdout


@pytest.mark.parametrize("lacking", ["", "msgspec", "torch", "Python"])
def test_make_takes_a_python_that_has_all_requirements_and_otherwise_makes_its_own(lacking, tmp_path):
    """The Python of a card's machine; `make` stands for what installs."""
    for name in ("Makefile", "setup.cfg", "tools/gpu/requirements.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "tools/gpu/run.py").write_text("print('measured')")
    change = {"": ("", ""), "Python": (">=3.11", ">=3.99"), "torch": ("torch >= 2.8\n", "torch >= 99\n")}
    setup = (ROOT / "setup.cfg").read_text().replace(*change.get(lacking, (f"{lacking} >=", f"no-{lacking} >=")))
    (tmp_path / "setup.cfg").write_text(setup)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/make").write_text("#!/bin/sh\necho installs\nexit 1\n")
    (tmp_path / "bin/make").chmod(0o755)
    make = shutil.which("make")
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    line = [str(make), "--no-print-directory", "gpu", f"PYTHON={sys.executable}"]
    done = subprocess.run(line, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[:1] == ["installs" if lacking else "measured"]
    assert lacking in done.stderr and (done.returncode == 0) == (not lacking)
