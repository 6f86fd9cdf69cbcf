"""How a run stands, as others see it: a process that is gone is noticed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from elbocli.files.atomic import write_json
from elbocli.files.dataset import Dataset
from elbocli.main import run as command
from elbocli.run import folder as module
from elbocli.run.folder import Status, claim, read_status
from elbocli.run.settings import resolve
from elbocli.train import loop


@pytest.fixture
def held(digits: Path, preset: Path, tmp_path: Path) -> Iterator[Path]:
    with ExitStack() as stack:
        claim(tmp_path / "run", resolve({"preset": str(preset)}, Dataset(digits)), stack, 0)
        yield tmp_path / "run"


def test_a_status_is_read_as_it_was_written(held: Path) -> None:
    status = Status(held, 100)
    status.step, status.images, status.saved = 7, 112, 5
    status.write("failed", "no more disk")
    found = read_status(held)
    assert (found.state, found.step, found.steps, found.images, found.saved) == ("failed", 7, 100, 112, 5)
    assert found.message == "no more disk"
    assert abs(found.time - time.time()) < 60
    later = Status(held, 100)
    assert (later.step, later.images, later.saved) == (7, 112, 5)


def test_a_run_is_alive_while_its_lock_is_held(held: Path) -> None:
    Status(held, 10).write("running")
    assert read_status(held).state == "running"
    copy = shutil.copytree(held, held.parent / "copy")
    assert read_status(copy).state == "dead"
    (copy / ".lock").unlink()
    assert read_status(copy).state == "dead"
    Status(copy, 10).write("done")
    assert read_status(copy).state == "done"


def test_the_step_is_written_while_it_trains_but_not_at_every_step(held: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    whole = write_json
    monkeypatch.setattr(module, "write_json", lambda *given: (written.append(given), whole(*given)))
    monkeypatch.setattr(module, "EVERY_S", 0.2)
    status = Status(held, 10**6)
    begun = time.monotonic()
    while time.monotonic() - begun < 1.1:
        status.reached(status.step + 1, 16 * status.step)
        time.sleep(0.002)
    status.write("done")
    assert 3 <= len(written) <= 7
    assert read_status(held).step == status.step > 50
    assert written[1][1]["step"] < written[2][1]["step"] < status.step


def test_a_run_whose_process_was_killed_is_dead_for_info_and_report(
    digits: Path, preset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    line = ["train", digits, "-o", run, "--preset", preset, "--steps", 10**6, "--preview-every", 0]
    process = subprocess.Popen([sys.executable, "-m", "elbocli", *map(str, line)], stderr=subprocess.DEVNULL)
    log = run / "metrics.jsonl"
    while not log.exists() or not log.stat().st_size or read_status(run).step < 2:
        time.sleep(0.05)
        assert process.poll() is None
    assert read_status(run).state == "running"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert command(["info", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["state"] == "dead" and "the same command goes on" in found["message"]
    assert found["step"] >= 2
    assert command(["report", str(run), "-o", str(tmp_path / "a.html")]) == 0
    page = (tmp_path / "a.html").read_text()
    assert '<span class="state bad">dead</span>' in page


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_mode_that_the_umask_leaves(
    umask: int, mode: int, digits: Path, preset: Path, tmp_path: Path
) -> None:
    before = os.umask(umask)
    try:
        assert command(["prep", str(digits), str(tmp_path / "a.h5"), "--quiet"]) == 0
        options = {"steps": 2, "preview_every": 1, "val_split": 10, "ema": ["power:std=0.1"], "snapshot_every": 1}
        resolved = resolve({"preset": str(preset), **options}, Dataset(digits))
        loop.run(Dataset(digits), tmp_path / "run", resolved)
        picture = ["sample", str(tmp_path / "run"), "-n", "2", "--steps", "1", "-o", str(tmp_path / "b.png")]
        assert command(picture) == 0
        average = ["ema", str(tmp_path / "run"), "--std", "0.1", "-o", str(tmp_path / "c.safetensors")]
        assert command(average) == 0
    finally:
        os.umask(before)
    files = {path: path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()}
    assert len(files) > 12 and {path.suffix for path in files} >= {".h5", ".png", ".safetensors", ".pt", ".json"}
    assert {str(path): oct(found) for path, found in files.items() if found != mode} == {}
