"""A process that may take too little memory for torch says so."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("limit", ["-v 400000", "-d 60000"], ids=["address space", "data"])
def test_that_torch_does_not_fit_is_said(limit: str) -> None:
    """Else its library aborts, or the import ends in a traceback."""
    command = [
        "bash",
        "-c",
        f'ulimit {limit}; exec "$@"',
        "bash",
        sys.executable,
        "-m",
        "elbocli",
        "weights",
        "check",
        "sigmoid",
    ]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1, result.stderr
    assert result.stderr.startswith("elbo weights check: error: out of memory: limited to ")
    assert result.stderr.endswith(f"allow more: ulimit {limit[:2]} unlimited\n") and result.stderr.count("\n") == 1
