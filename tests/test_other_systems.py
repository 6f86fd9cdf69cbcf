"""Systems that elbo can't run on: a sentence, and no traceback."""

import subprocess
import sys


def test_a_system_that_is_not_posix_is_refused_at_once() -> None:
    code = "import os\nfrom elbocli.__main__ import main\nos.name = 'nt'\nmain()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 1 and result.stdout == ""
    assert result.stderr.startswith("elbo: error: ") and result.stderr.count("\n") == 1
