"""Processes of torchrun find each other, threads work ahead, and signals are noted: each reason to end is known."""

import os
import re
import signal
import time

import pytest
import torch
from harness import run_code
from torch.distributed import HashStore  # type: ignore[attr-defined]

from elbocli.commands.shared import commands
from elbocli.errors import UsageError
from elbocli.runtime import processes
from elbocli.runtime.background import CAUGHT, ORPHAN, TIME, Ending, Prefetcher, Signals, catching_signals
from elbocli.runtime.processes import PATIENCE, World, joined

# --- processes ---

RESTARTED = """
import faulthandler, os, signal, sys, time, traceback
import torch.distributed as dist
from elbocli.runtime.processes import joined

(port, said) = os.pipe()
if (host := os.fork()) == 0:  # a process of its own: who forks must have no thread of the store's
    store = dist.TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
    os.write(said, str(store.port).encode())
    signal.pause()
os.environ |= {
    "TORCHELASTIC_USE_AGENT_STORE": "True", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3", "WORLD_SIZE": "3",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": os.read(port, 9).decode(),
}

def met(rank, generation):
    faulthandler.dump_traceback_later(300, exit=True)
    os.environ |= {"RANK": str(rank), "TORCHELASTIC_RESTART_COUNT": str(generation)}
    time.sleep(generation and rank == generation - 1)
    try:
        with joined("cpu") as world:
            return world.all((rank, generation)) == [(0, generation), (1, generation), (2, generation)]
    except BaseException:
        traceback.print_exc()
        return False

for generation in range(4):
    children = []
    for rank in range(3):
        if (child := os.fork()) == 0:
            os._exit(not met(rank, generation))
        children.append(child)
    print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), flush=True)
os.kill(host, signal.SIGKILL)
"""


@pytest.mark.long
def test_processes_that_are_started_anew_do_not_wait_for_the_dead():
    """All meet through one store, as torchrun's, where the first to come finds what the dead have left; each is once late."""
    result = run_code(RESTARTED, text=True)
    assert result.stdout == "0 0 0\n" * 4, result.stderr


@pytest.fixture
def launched(monkeypatch):
    """The third process on the second of two machines with CUDA."""
    worker = {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "6", "LOCAL_RANK": "2"}
    for key, value in {**worker, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("ELBO_DEVICE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("name", ["auto", "cuda"])
@pytest.mark.parametrize(("visible", "index"), [(4, 2), (1, 0)])
def test_each_process_takes_its_own_device(name, visible, index, monkeypatch):
    """With `srun --gpus-per-task=1`, one device is visible. A group that is bound to a device can't make a mesh in torch 2.8 and 2.9."""
    given = {}
    monkeypatch.setattr(processes, "choose_device", torch.device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    monkeypatch.setattr(processes, "rendezvous", lambda *place, **how: iter([(HashStore(), 6, 8)]))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **how: given.update(how))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    with joined(name) as world:
        assert world == World(6, 8, torch.device("cuda", index))
    assert given.pop("store")
    assert given == {"backend": "cpu:gloo,cuda:nccl", "timeout": PATIENCE, "rank": 6, "world_size": 8}


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        ("[third_party/gloo/transport/tcp/pair.cc] Connection refused, remote=[127.0.1.1]", 1, b"rank 6: .*GLOO_SOCKET_IFNAME"),
        ("gloo, NCCL: Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 1000", 2, b""),
    ],
)
def test_a_process_that_can_not_join_says_why(said, code, words, monkeypatch, elbo, digits, tmp_path):
    """On any rank, because rank 0 may wait."""

    def refused(**how):
        raise RuntimeError(said)

    monkeypatch.setattr(processes, "rendezvous", lambda *place, **how: iter([(HashStore(), 6, 8)]))
    monkeypatch.setattr(torch.distributed, "init_process_group", refused)
    done = elbo("train", digits, "-o", tmp_path / "run", "--device", "cpu", env=dict(os.environ))
    assert done.returncode == code and re.search(words, done.stderr)


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize(
    ("device", "change", "word"),
    [
        *(("cuda:1", {}, "device cuda:1"), ("auto", {"ELBO_DEVICE": "cuda:0"}, "device cuda:0")),
        *(("cpu", {name: None}, name) for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")),
    ],
)
def test_one_device_for_all_and_a_missing_variable_are_refused(device, change, word, monkeypatch):
    for name, value in change.items():
        monkeypatch.delenv(name) if value is None else monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=word), joined(device):
        pass


# --- work ahead ---


def until(true):
    while not true():
        time.sleep(0.001)


def test_any_order_of_steps_gives_each_its_own_and_the_following_are_done_beforehand():
    done = []

    def work(step):
        done.append(step)
        return step * step

    ahead = Prefetcher(work, depth=3)
    assert ahead.get(5) == 25
    until(lambda: len(done) == 4)
    assert done == [5, 6, 7, 8] and ahead.get(6) == 36
    until(lambda: len(done) == 5)
    assert done == [5, 6, 7, 8, 9]
    for step in [0, 1, 2, 3, 9, 10, 4, 4, 5, 7, 6, 0, *range(50)]:
        assert ahead.get(step) == step * step


def test_an_exception_comes_with_its_own_step_and_work_goes_on():
    ahead = Prefetcher(lambda step: 1 // (step - 2))
    assert [ahead.get(0), ahead.get(1)] == [-1, -1]
    with pytest.raises(ZeroDivisionError):
        ahead.get(2)
    assert ahead.get(3) == 1


# --- reasons to end ---


@pytest.mark.parametrize("number", CAUGHT)
def test_each_signal_is_noted_and_the_handlers_come_back(number):
    for handler in (signal.SIG_DFL, signal.SIG_IGN, lambda signum, frame: None):
        before = signal.signal(number, handler)
        try:
            with catching_signals() as signals:
                signal.raise_signal(number)
                ignored = number == signal.SIGHUP and handler is signal.SIG_IGN  # as under nohup
                assert signals.received == (0 if ignored else number)
            assert signal.getsignal(number) is handler
        finally:
            signal.signal(number, before)


def test_a_second_ctrl_c_ends_the_process_at_once_but_not_an_echo_of_the_first():
    code = """
import signal
from elbocli.runtime import background
now = 100.0
background.time.monotonic = lambda: now
with background.catching_signals() as caught:
    for number, after in ((2, 0), (2, .9), (15, 0), (15, 9), (2, 0)):
        now += after
        print(number, caught.received, flush=True)
        signal.raise_signal(number)
print("still here")
"""
    result = run_code(code, text=True)
    assert (result.returncode, result.stdout) == (130, "2 0\n2 2\n15 2\n15 2\n2 2\n"), result.stderr


def test_the_clock_a_signal_and_a_launcher_that_is_gone_are_reasons(monkeypatch):
    launched, alone, limited = (Ending(Signals(), limit, there) for limit, there in ((0, True), (0, False), (60, False)))
    assert launched.reason() == alone.reason() == limited.reason() == 0
    begun = limited.begun
    other = os.getppid() + 1
    monkeypatch.setattr(os, "getppid", lambda: other)
    monkeypatch.setattr(time, "monotonic", lambda: begun + 61)
    assert (launched.reason(), alone.reason(), limited.reason()) == (ORPHAN, 0, TIME)
    limited.signals.remember(signal.SIGTERM, None)
    assert limited.reason() == signal.SIGTERM


@pytest.mark.parametrize(("local", "size", "shards"), [("4", 8, 4), ("8", 8, 8), ("3", 8, 8), (None, 2, 2), ("1", 2, 2)])
def test_the_processes_of_a_node_share_one_copy_of_the_weights(local, size, shards, monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    if local:
        monkeypatch.setenv("LOCAL_WORLD_SIZE", local)
    assert processes.shard_size(size) == shards


@pytest.mark.parametrize("name", ["SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_several_processes_without_torchrun_are_refused(name, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv(name, "1")
    assert commands.launched() == 1
    monkeypatch.setenv(name, "4")
    with pytest.raises(UsageError, match=name):
        commands.launched()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert commands.launched() == 4
