"""Systems that elbo can't run on: a sentence, and no traceback."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "without",
    [
        "sys.modules['fcntl'] = sys.modules['resource'] = None; del os.fork, signal.SIGHUP, os.pwrite",
        "sys.modules['fcntl'] = None",
        "del os.fork",
    ],
    ids=["Windows", "fcntl", "fork"],
)
def test_without_fcntl_or_fork_it_says_so_at_once(without: str) -> None:
    code = f"import os, signal, sys\n{without}\nfrom elbocli.__main__ import main\nsys.argv[1:] = ['--help']\nmain()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("elbo: error: this system lacks fcntl or fork") and result.stderr.count("\n") == 1
