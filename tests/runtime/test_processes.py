"""Processes that torchrun starts anew find each other, and not what they were before; and all of them end."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore  # type: ignore[attr-defined]

from elbocli.errors import UsageError
from elbocli.runtime import processes
from elbocli.runtime.processes import PATIENCE, World, joined

CODE = """
import faulthandler, os, signal, sys, time, traceback
import torch.distributed as dist
from elbocli.runtime.processes import joined

late, (port, said) = int(sys.argv[1]), os.pipe()
if (host := os.fork()) == 0:  # a process of its own: who forks must have no thread of the store's
    store = dist.TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
    os.write(said, str(store.port).encode())
    signal.pause()
os.environ |= {
    "TORCHELASTIC_USE_AGENT_STORE": "True", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "3", "WORLD_SIZE": "3",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": os.read(port, 9).decode(),
}

def met(rank, generation):
    faulthandler.dump_traceback_later(60, exit=True)
    os.environ |= {"RANK": str(rank), "TORCHELASTIC_RESTART_COUNT": str(generation)}
    time.sleep(generation and rank == late)
    try:
        with joined("cpu") as world:
            return world.all((rank, generation)) == [(0, generation), (1, generation), (2, generation)]
    except BaseException:
        traceback.print_exc()
        return False

for generation in range(3):
    children = []
    for rank in range(3):
        if (child := os.fork()) == 0:
            os._exit(not met(rank, generation))
        children.append(child)
    print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), flush=True)
os.kill(host, signal.SIGKILL)
"""


@pytest.mark.parametrize("late", range(3))
def test_who_is_started_anew_does_not_wait_for_the_dead(late: int) -> None:
    """All meet through one store, as torchrun's; whoever comes first finds there what the dead have left."""
    result = subprocess.run(
        [sys.executable, "-c", CODE, str(late)], capture_output=True, text=True, timeout=300, check=False
    )
    assert result.stdout == "0 0 0\n" * 3, result.stderr


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The third process on the second of two machines with CUDA."""
    worker = {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4", "RANK": "6", "LOCAL_RANK": "2"}
    worker |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for key, value in worker.items():
        monkeypatch.setenv(key, value)
    monkeypatch.delenv("ELBO_DEVICE")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)


@pytest.mark.usefixtures("launched")
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_takes_its_own_device_and_is_connected_by_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = dict[str, Any]()
    monkeypatch.setattr(processes, "choose_device", torch.device)
    monkeypatch.setattr(processes, "rendezvous", lambda *place, **how: iter([(HashStore(), 6, 8)]))
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda **how: given.update(how))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: None)
    own = torch.device("cuda", 2)
    with joined(name) as world:
        assert world == World(6, 8, own)
    wanted = {"backend": "cpu:gloo,cuda:nccl", "device_id": own, "timeout": PATIENCE, "rank": 6, "world_size": 8}
    assert {key: given[key] for key in wanted} == wanted


@pytest.mark.usefixtures("launched")
def test_one_device_for_all_processes_is_refused_whoever_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(UsageError, match="--device cuda:1: under torchrun each process takes its own"),
        joined("cuda:1"),
    ):
        pass
    monkeypatch.setenv("ELBO_DEVICE", "cuda:0")
    with pytest.raises(UsageError, match="--device cuda:0: under torchrun each process takes its own"), joined():
        pass


@pytest.mark.parametrize("lacking", ["RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"])
@pytest.mark.usefixtures("launched")
def test_a_process_of_several_that_lacks_a_variable_is_refused(lacking: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(lacking)
    with pytest.raises(UsageError, match=f"WORLD_SIZE is 8, without {lacking};"), joined("cpu"):
        pass


HANGING = """
import ctypes, sys
sys.path.insert(0, sys.argv[1])
import torch.distributed as dist
from elbocli.runtime import processes
from group import ended, started

processes.ENDING_S = 0.5

def work(world):
    if world.rank == 1:
        dist.destroy_process_group = lambda: ctypes.PyDLL(None).sleep(1000)  # and never lets go of Python's lock
        raise ValueError("this process alone fails")
    world.most([0])

print(ended(started(2, work), patience=60))
"""


def test_a_process_that_fails_ends_and_the_others_with_it_though_torch_hangs() -> None:
    line = [sys.executable, "-c", HANGING, str(Path(__file__).parents[1])]
    result = subprocess.run(line, capture_output=True, text=True, timeout=100, check=False)
    assert result.stdout == "[1, 1]\n", result.stderr
    assert "another process of this run has ended" in result.stderr


WAITING = """
import sys, time
sys.path.insert(0, sys.argv[1])
from group import started
print(*started(2, lambda world: time.sleep(1000)), flush=True)
time.sleep(1000)
"""


def left(process: str) -> bool:
    """Whether there is such a process, and it hasn't ended."""
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2]
    except FileNotFoundError:
        return False


def test_processes_of_a_test_end_with_it() -> None:
    line = [sys.executable, "-c", WAITING, str(Path(__file__).parents[1])]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        children = process.stdout.readline().split()
        process.kill()
    until = time.monotonic() + 60
    while any(map(left, children)):
        assert time.monotonic() < until, "processes are left behind"
        time.sleep(0.01)
    assert len(children) == 2
