"""Ctrl-C before a command has begun: silence and exit code 130, wherever the start is."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from elbocli import main
from elbocli.cli.grouped_help import Command

INTERRUPTING = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(60)\n"


@pytest.mark.parametrize(
    ("module", "line"),
    [("click", ["--help"]), ("torch", ["train", "a.h5"]), ("numpy", ["sample", "run", "-o", "a.npy"])],
)
def test_while_modules_are_imported(module: str, line: list[str], tmp_path: Path) -> None:
    (tmp_path / f"{module}.py").write_text(INTERRUPTING)
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = [sys.executable, "-m", "elbocli", *line]
    environment = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run(command, env=environment, capture_output=True, timeout=60, check=False, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (130, b"", b"")


def test_an_ignored_ctrl_c_stays_ignored() -> None:
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "import sys; from elbocli import __main__ as start; sys.argv = ['elbo', '--version']\n"
        "try: start.main()\n"
        "except SystemExit: print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.endswith("True\n")


@pytest.mark.parametrize(("path", "said"), [("elbo", ""), ("elbo train", "elbo train: interrupted\n")])
def test_help_is_left_in_silence_and_a_command_without_the_word_error(
    path: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Command, "path", path)
    monkeypatch.setattr(main.elbo, "make_context", interrupted)
    assert main.run(["--help"]) == 130
    assert capsys.readouterr().err == said
