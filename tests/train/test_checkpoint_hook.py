"""--on-checkpoint: real commands, that fail, take long, ignore signals; and what holds a checkpoint."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from harness import heard

from elbocli.runtime.processes import joined
from elbocli.train import loop
from elbocli.train.loop import CheckpointHook


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str], CheckpointHook]]:
    """make(command): a hook of a run at tmp_path/run, ended at last."""
    made: list[CheckpointHook] = []

    def hook(command: str) -> CheckpointHook:
        made.append(CheckpointHook(command, tmp_path / "run"))
        return made[-1]

    yield hook
    for each in made:
        each.stop()


def step(run: Path, number: int) -> Path:
    path = run / "run" / "checkpoints" / f"step-{number:08d}"
    path.mkdir(parents=True, exist_ok=True)
    return path


def until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether a process runs; a dead one that nobody has collected doesn't."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def finish(hook: CheckpointHook) -> None:
    until(lambda: not hook.held())


def test_the_command_is_told_which_checkpoint_and_its_output_goes_to_stderr(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    hook = CheckpointHook('echo "$ELBO_STEP $ELBO_RUN"; cd /; ls -d "$ELBO_CHECKPOINT"; cat', Path("run"))
    step(tmp_path, 1200)
    hook.start(Path("run/checkpoints/step-00001200"))
    finish(hook)
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == [f"1200 {tmp_path}/run", f"{tmp_path}/run/checkpoints/step-00001200"]


def test_training_goes_on_meanwhile_and_the_checkpoint_is_held(
    make: Callable[[str], CheckpointHook], tmp_path: Path
) -> None:
    hook, one, two = (
        make("while [ ! -e go ]; do sleep .01; done; rm go".replace("go", f"{tmp_path}/go")),
        step(tmp_path, 1),
        step(tmp_path, 2),
    )
    hook.start(one)
    hook.start(two)
    assert hook.held() == [one, two]
    (tmp_path / "go").touch()
    until(lambda: hook.held() == [two])
    (tmp_path / "go").touch()
    finish(hook)


def test_one_at_a_time_and_the_newest_that_waits_replaces_the_waiting(
    make: Callable[[str], CheckpointHook], tmp_path: Path
) -> None:
    hook = make(f"""cd {tmp_path}; mkdir busy || echo two at once >> log; echo $ELBO_STEP >> log
        while [ ! -e go ]; do sleep .01; done; rmdir busy""")
    hook.start(step(tmp_path, 1))
    until(lambda: (tmp_path / "log").exists())
    for number in (2, 3, 4):
        hook.start(step(tmp_path, number))
        assert hook.held() == [step(tmp_path, 1), step(tmp_path, number)]
    (tmp_path / "go").touch()
    finish(hook)
    assert (tmp_path / "log").read_text().split() == ["1", "4"]


@pytest.mark.parametrize(("command", "code"), [("exit 3", "3"), ("nowhere-to-be-found", "127"), ("kill -9 $$", "-9")])
def test_failure_is_a_warning_and_the_next_checkpoint_has_its_turn(
    command: str, code: str, make: Callable[[str], CheckpointHook], tmp_path: Path
) -> None:
    hook = make(f"echo x >> {tmp_path}/log; {command}")
    with heard() as lines:
        for number in (1, 2):
            hook.start(step(tmp_path, number))
            finish(hook)
    assert len(lines) == 2 and (tmp_path / "log").read_text() == "x\nx\n"
    assert all(word in lines[1] for word in ("step-00000002", code, command))


def test_a_command_that_ignores_sigterm_is_killed(
    make: Callable[[str], CheckpointHook], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "GRACE_S", 0.2)
    hook = make(f"trap '' TERM; echo $$ > {tmp_path}/pid; while :; do sleep .01; done")
    hook.start(step(tmp_path, 1))
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    hook.stop()
    until(lambda: not alive(int((tmp_path / "pid").read_text())))


TORCHRUN = {
    "RANK": "0",
    "LOCAL_RANK": "0",
    "GROUP_RANK": "0",
    "ROLE_RANK": "0",
    "ROLE_NAME": "default",
    "WORLD_SIZE": "2",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_WORLD_SIZE": "1",
    "ROLE_WORLD_SIZE": "2",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "29511",
    "TORCHELASTIC_RUN_ID": "none",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}


def test_under_torchrun_the_command_is_no_worker(
    make: Callable[[str], CheckpointHook], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    hook = make(f"env > {tmp_path}/env")
    hook.start(step(tmp_path, 1))
    finish(hook)
    found = dict(line.split("=", 1) for line in (tmp_path / "env").read_text().splitlines() if "=" in line)
    assert not set(TORCHRUN) & set(found)
    assert found["CUDA_VISIBLE_DEVICES"] == "0,1" and found["PATH"] == os.environ["PATH"]
    for name in TORCHRUN:
        monkeypatch.delenv(name)
    for name, value in found.items():
        monkeypatch.setenv(name, value)
    with joined("cpu") as world:  # what elbo train itself would see in there
        assert world.size == 1


PARENT = """
import signal, sys, time
from pathlib import Path
from elbocli.train.loop import CheckpointHook
signal.signal(signal.SIGINT, signal.SIG_IGN)
hook = CheckpointHook(sys.argv[2], Path(sys.argv[1]) / "run")
hook.start(Path(sys.argv[1]) / "run/checkpoints/step-00000001")
while not (Path(sys.argv[1]) / "enough").exists():
    time.sleep(0.01)
hook.stop()
"""


def test_neither_ctrl_c_nor_input_at_the_terminal_reaches_it(tmp_path: Path) -> None:
    """SIGINT to the whole process group, as a terminal sends it; the command would record it."""
    command = f"cat; trap 'touch {tmp_path}/hit' INT; touch {tmp_path}/on; while :; do sleep .01; done"
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, tmp_path, command], stdin=subprocess.PIPE, start_new_session=True
    )
    until((tmp_path / "on").exists, 30)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(0.3)
    assert not (tmp_path / "hit").exists()
    (tmp_path / "enough").touch()
    assert process.wait(timeout=20) == 0
    process.stdin.close()
