"""Signals that end a command before it has begun: silence and the shell's exit code, wherever the start is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from elbocli import main
from elbocli.cli.commands import Command

ENDING = "import os, time\nos.kill(os.getpid(), {})\ntime.sleep(60)\n"


@pytest.mark.parametrize(
    ("module", "line", "signum"),
    [
        ("click", ["--help"], signal.SIGINT),
        ("torch", ["train", "a.h5"], signal.SIGTERM),
        ("numpy", ["sample", "run", "-o", "a.npy"], signal.SIGINT),
        ("yaml", ["report", "run"], signal.SIGHUP),
    ],
)
def test_while_modules_are_imported(module: str, line: list[str], signum: int, tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(ENDING.format(signum))
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = [sys.executable, "-m", "elbocli", *line]
    environment = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (128 + signum, b"") and b"Traceback" not in result.stderr


@pytest.mark.parametrize("ignored", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_ignored_signal_stays_ignored(ignored: str) -> None:
    code = (
        f"import signal; signal.signal(signal.{ignored}, signal.SIG_IGN)\n"
        "import sys; from elbocli import __main__ as start; sys.argv = ['elbo', '--version']\n"
        "try: start.main()\n"
        f"except SystemExit: print(signal.getsignal(signal.{ignored}) is signal.SIG_IGN)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.endswith("True\n")


@pytest.mark.parametrize(("path", "said"), [("elbo train", "elbo train: interrupted\n")])
def test_help_is_left_in_silence_and_a_command_without_the_word_error(
    path: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Command, "path", path)
    monkeypatch.setattr(main.elbo, "make_context", interrupted)
    assert main.run(["--help"]) == 130
    assert capsys.readouterr().err == said
