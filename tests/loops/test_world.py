"""Processes that torchrun starts anew find each other, and not what they were before."""

import subprocess
import sys

import pytest

CODE = """
import os, sys, time
import torch.distributed as dist
from elbocli.loops.world import joined

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
