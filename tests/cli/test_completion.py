"""Completion: what is offered, that it is quick, and that bash, zsh and fish themselves complete with it."""

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from elbocli.core.prediction import PREDICTIONS
from elbocli.core.samplers import SAMPLERS
from elbocli.core.schedule_curves import SCHEDULES
from elbocli.core.weighting_curves import WEIGHTINGS
from elbocli.main import COMMANDS, SHELLS
from elbocli.nn.presets import NAMES

HEAVY = ("torch", "numpy", "h5py", "matplotlib", "PIL", "yaml", "jinja2")
ASK = f"""
import sys
from elbocli.main import main
try:
    main()
except SystemExit as end:
    sys.exit(end.code or any(name in sys.modules for name in {HEAVY!r}) * 77)
"""


def offered(line: str, cwd: Path) -> list[str]:
    """What may stand at the end of a line, as bash is told; fails when that imports anything heavy."""
    words = line.split(" ")
    question = {"_ELBO_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    result = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=cwd,
        env={**os.environ, **question},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")
    return [line.removeprefix("plain,") for line in result.stdout.split()]


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder with runs and other things, some with odd names."""
    for name in ("run-a", "run-b", "run $(touch hacked)", "deep/run-c", "run-a/checkpoints/step-00000010"):
        mark = "meta.json" if "checkpoints" in name else "config.yaml"
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / mark).touch()
    (tmp_path / "rubbish").mkdir()
    (tmp_path / "deep" / "rubbish").mkdir()
    (tmp_path / "run.h5").touch()
    return tmp_path


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("elbo ", sorted(COMMANDS)),
        ("elbo re", ["report"]),
        ("elbo completion ", list(SHELLS)),
        ("elbo weights ch", ["check"]),
        ("elbo weights check ", list(WEIGHTINGS)),
        ("elbo weights plot edm ed", ["edm", "edm-monotonic"]),
        ("elbo weights show sigmoid --schedule ", list(SCHEDULES)),
        ("elbo train --weighting ", [*WEIGHTINGS, "uncertainty"]),
        ("elbo train --schedule ", [*SCHEDULES, "adaptive"]),
        ("elbo train --prediction ", list(PREDICTIONS)),
        ("elbo train --preset digits", ["digits", "digits-dit", "digits-uvit"]),
        ("elbo train --preset ", list(NAMES)),
        ("elbo train --weighting x/", ["file,x/"]),
        ("elbo sample run-a --sampler ", list(SAMPLERS)),
        ("elbo bound run-a --weighting sig", ["sigmoid"]),
        ("elbo sample run-", ["file,run-"]),
        ("elbo report run-a --sc", ["--scores"]),
        ("elbo prep ", ["file,"]),
    ],
)
def test_names_and_runs_are_offered_and_nothing_heavy_is_imported(line: str, wanted: list[str], here: Path) -> None:
    assert offered(line, here) == wanted


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_for_that_shell_and_is_data(shell: str, elbo: Callable[..., Any]) -> None:
    result = elbo("completion", shell)
    assert (result.returncode, result.stderr) == (0, b"")
    assert f"_ELBO_COMPLETE={shell}_complete".encode() in result.stdout
    wrong = elbo("completion", "csh")
    assert wrong.returncode == 2 and b"'csh' is not one of" in wrong.stderr


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With a command `elbo` that is this one, and a home of its own."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "elbo").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m elbocli "$@"\n')
    (tools / "elbo").chmod(0o755)
    home = tmp_path / "home"
    home.mkdir()
    path = f"{tools}:{os.environ['PATH']}"
    kept = {key: value for key, value in os.environ.items() if key in ("PYTHONPATH", "LANG")}
    return {**kept, "PATH": path, "HOME": str(home), "TERM": "dumb", "PS1": "$ ", "INPUTRC": os.devnull}


@contextmanager
def typed(line: list[str], cwd: Path, environment: dict[str, str]) -> Iterator[Callable[[str, str], str]]:
    """A shell on a terminal of its own: a function that types, and waits until the screen shows a text."""
    parent, child = pty.openpty()
    process = subprocess.Popen(
        line, stdin=child, stdout=child, stderr=child, cwd=cwd, env=environment, start_new_session=True
    )
    os.close(child)

    def type_and_wait(keys: str, wanted: str) -> str:
        os.write(parent, keys.encode())
        seen, until = "", time.monotonic() + 60
        while wanted not in seen:
            ready, _, _ = select.select([parent], [], [], max(0.0, until - time.monotonic()))
            assert ready, seen
            seen += os.read(parent, 4096).decode(errors="replace")
        return seen

    try:
        yield type_and_wait
    finally:
        process.kill()
        process.wait()
        os.close(parent)


INTERACTIVE = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], ""),
    "zsh": (["zsh", "-f", "-i"], "autoload -U compinit; compinit -u -D; "),
}


@pytest.mark.parametrize("shell", INTERACTIVE)
def test_a_tab_completes_in_a_shell(shell: str, here: Path, environment: dict[str, str]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    line, first = INTERACTIVE[shell]
    with typed(line, here, environment) as keys:
        keys(f'{first}eval "$(elbo completion {shell})"; echo rea""dy\n', "ready")
        keys("elbo weigh\tche\tsigm\t\n", "sigmoid:bias=2: never rises")
        keys("elbo info run-a/con\t\n", "run-a/config.yaml: an empty file")  # found by the shell itself
    assert not (here / "hacked").exists()


def test_fish_completes(here: Path, environment: dict[str, str]) -> None:
    if shutil.which("fish") is None:
        pytest.skip("fish is not installed")
    lines = ["elbo weights check sigm", "elbo train --preset digits-", "elbo report run-a --sc"]
    script = "elbo completion fish | source; " + "; ".join(f"complete -C '{line}'" for line in lines)
    result = subprocess.run(
        ["fish", "--no-config", "-c", script],
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = [line.split("\t")[0] for line in result.stdout.splitlines()]
    assert found == ["sigmoid", "digits-dit", "digits-uvit", "--scores"]
    assert not (here / "hacked").exists()
