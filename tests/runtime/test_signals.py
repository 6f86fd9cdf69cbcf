"""Signals that are noted: which, and which stay ignored."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from types import FrameType

import pytest
from forks import quick

from elbocli.runtime.signals import CAUGHT, catching_signals


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
        assert signals.received == (None if hangup is signal.SIG_IGN else signal.SIGHUP)
    assert signal.getsignal(signal.SIGHUP) is hangup


@pytest.mark.parametrize("number", CAUGHT)
def test_each_signal_is_noted(number: signal.Signals) -> None:
    with catching_signals() as signals:
        os.kill(os.getpid(), number)
        assert signals.received == number


def test_a_second_ctrl_c_ends_a_long_call_that_runs_no_python() -> None:
    code = """
import hashlib, os, signal, threading, time
from elbocli.runtime import signals
signals.GRACE_S = 0.2
with signals.catching_signals():
    def press():
        for _ in range(2):
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGINT)
    threading.Thread(target=press, daemon=True).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""
    begun = time.monotonic()
    result = subprocess.run([quick(), "-c", code], capture_output=True, text=True, timeout=100, check=False)
    assert result.returncode == 130, result.stderr
    assert time.monotonic() - begun < 60


def test_a_wakeup_descriptor_of_others_is_theirs_again() -> None:
    out, into = os.pipe()
    os.set_blocking(into, False)
    before = signal.set_wakeup_fd(into)
    with catching_signals():
        pass
    assert signal.set_wakeup_fd(before) == into
    os.close(out)
    os.close(into)


def test_a_block_that_the_garbage_collector_ends_does_not_wait_for_itself() -> None:
    """A generator in a circle, such as a run that an exception's traceback holds."""
    code = """
import gc, threading
from elbocli.runtime.signals import catching_signals
def run():
    with catching_signals():
        yield
def drop():
    circle = [run()]
    circle.append(circle)
    next(circle[0])
before = threading.active_count()
drop()
gc.collect()
for thread in threading.enumerate()[before:]:
    thread.join(10)
assert threading.active_count() == before
"""
    result = subprocess.run([quick(), "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 0, result.stderr
