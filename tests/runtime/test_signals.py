"""Signals that are noted: which, and which stay ignored."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from types import FrameType

import pytest

from elbocli.runtime.background import CAUGHT, catching_signals


@pytest.fixture(params=[signal.SIG_DFL, signal.SIG_IGN, lambda signum, frame: None], ids=["kills", "ignored", "own"])
def hangup(request: pytest.FixtureRequest) -> object:
    """What SIGHUP does outside."""
    handler: Callable[[int, FrameType | None], object] | int = request.param
    before = signal.signal(signal.SIGHUP, handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGHUP, before))
    return handler


def test_a_hangup_is_noted_unless_it_is_ignored(hangup: object) -> None:
    with catching_signals() as signals:
        os.kill(os.getpid(), signal.SIGHUP)
        assert signals.received == (0 if hangup is signal.SIG_IGN else signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is hangup


@pytest.mark.parametrize("number", CAUGHT)
def test_each_signal_is_noted(number: signal.Signals) -> None:
    with catching_signals() as signals:
        os.kill(os.getpid(), number)
        assert signals.received == number


def test_a_second_ctrl_c_ends_the_process_at_once() -> None:
    code = """
import os, signal, time
from elbocli.runtime import background
background.GRACE_S = 0
with background.catching_signals():
    for _ in range(2):
        time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
    time.sleep(100)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 130, result.stderr
