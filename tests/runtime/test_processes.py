"""Processes that torchrun starts anew find each other, and not what they were before."""

import subprocess
import sys

import pytest
import torch

from elbocli.errors import UsageError
from elbocli.runtime.processes import joined

CODE = """
import os, sys, time
import torch.distributed as dist
from elbocli.runtime.processes import joined

late = int(sys.argv[1])
store = dist.TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)
os.environ |= {
    "TORCHELASTIC_RUN_ID": "test", "TORCHELASTIC_USE_AGENT_STORE": "True", "LOCAL_RANK": "0", "WORLD_SIZE": "3",
    "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port),
}
for generation in range(3):
    children = []
    for rank in range(3):
        if (child := os.fork()) == 0:
            os.environ["RANK"] = str(rank)
            time.sleep(generation and rank == late)
            with joined("cpu") as world:
                if world.all((rank, generation)) == [(0, generation), (1, generation), (2, generation)]:
                    os._exit(0)
            os._exit(1)
        children.append(child)
    print(*(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children), flush=True)
"""


@pytest.mark.parametrize("late", range(3))
def test_who_is_started_anew_does_not_wait_for_the_dead(late: int) -> None:
    """All meet through one store, as torchrun's; whoever comes first finds there what the dead have left."""
    result = subprocess.run(
        [sys.executable, "-c", CODE, str(late)], capture_output=True, text=True, timeout=100, check=False
    )
    assert result.stdout == "0 0 0\n" * 3, result.stderr


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {
        "TORCHELASTIC_RUN_ID": "test",
        "WORLD_SIZE": "4",
        "LOCAL_WORLD_SIZE": "4",
        "LOCAL_RANK": "0",
    }.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr("elbocli.runtime.processes.choose_device", lambda _: torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UsageError, match="4 processes on a machine with 2 CUDA devices"), joined():
        pass
