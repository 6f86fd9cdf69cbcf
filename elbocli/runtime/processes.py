"""The processes of a run: which one this is, and what all of them agree on. torchrun starts them; one needs nothing.

Another launcher does as well, if it sets WORLD_SIZE and VARIABLES for each process.
"""

import faulthandler
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from elbocli.errors import ElboError, PeerLost, UsageError
from elbocli.runtime.device import choose_device, meant_by

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)
"""Time that a process waits for the others on the host: rank 0 reads and checks a checkpoint meanwhile."""
VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""Variables that a launcher must set for each process, beside WORLD_SIZE."""
JOIN = timedelta(minutes=10)
"""Time that it waits for them to be there at all: imports over a network take long."""
ENDING_S = 60.0
"""Time that a process which has failed takes to end at most. The others wait for it until then."""
_kept: list[Any] = []
"""Groups that were joined. To free one is to wait for its thread, which may wait for Python's lock: for ever (torch 2.13)."""


@dataclass(frozen=True)
class World:
    """Process `rank` of `size`, with a device of its own. All methods must be called by every process alike.

    Raises PeerLost, from any of them, when another process is gone.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Rank 0, which alone speaks and writes."""
        return self.rank == 0

    def added(self, value: Tensor) -> Tensor:
        """Return the sum over processes, in place, on the device the value is on."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def most(self, values: list[int]) -> list[int]:
        """Return the largest of each over processes. Travels over the host, so that no device is waited for."""
        if self.size == 1:
            return values
        together = torch.tensor(values)
        dist.all_reduce(together, dist.ReduceOp.MAX)
        return together.tolist()

    def all(self, value: T) -> list[T]:
        """Return what every process has, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def of_first(self, value: T) -> T:
        """Return what rank 0 has."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, 0, device=torch.device("cpu"))
        return box[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """An ElboError in the block, in any process, ends all of them with the message of the first that failed."""
        if self.size == 1:
            yield
            return
        error: ElboError | None = None
        try:
            yield
        except ElboError as caught:
            error = caught
        for rank, failed in enumerate(self.all((str(error), error.exit_code) if error else None)):
            if failed:
                everywhere = ElboError(f"rank {rank}: {failed[0]}" if rank else failed[0])
                everywhere.exit_code = failed[1]
                raise everywhere from error


ALONE = World()


def to_local(tensor: Any) -> Tensor:
    """Return this process's shard of a DTensor, without copying it; another tensor as it is."""
    if not hasattr(tensor, "to_local"):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def sharded_like(whole: Tensor, tensor: Any) -> Tensor:
    """Return a whole tensor, which every process has, sharded as `tensor` is."""
    if not hasattr(tensor, "device_mesh"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)


@contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """This process's World, from the environment that torchrun sets; alone without WORLD_SIZE.

    Each process takes the CUDA device of its local rank unless another device was asked for. One whose block fails ends within
    ENDING_S: torch may wait for ever to take a group apart. Raises UsageError when a variable is missing, PeerLost.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=choose_device(device))
        return
    if missing := [name for name in VARIABLES if name not in os.environ]:
        raise UsageError(
            f"WORLD_SIZE is {size}, without {', '.join(missing)}; start with torchrun, or unset WORLD_SIZE"
        )
    meant = meant_by(device)
    if meant.startswith("cuda:"):
        raise UsageError(f"--device {meant}: under torchrun each process takes its own; leave --device out")
    cuda, rank = meant == "cuda", int(os.environ["RANK"])
    chosen = choose_device(f"cuda:{os.environ['LOCAL_RANK']}" if cuda else meant)
    with telling_lost(), _stdout_to_stderr():  # the gloo of torch 2.8 and 2.10 prints its connections
        store, *_ = next(rendezvous("env://", timeout=JOIN))
        # torchrun keeps one store over restarts, in which the processes before have left their keys.
        store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", ""), store)
        dist.init_process_group(
            backend="cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=store,
            rank=rank,
            world_size=size,
            timeout=PATIENCE,
            device_id=chosen if cuda else None,
        )
    _kept.append(dist.group.WORLD)
    try:
        with telling_lost():
            yield World(rank, size, chosen)
    except BaseException:
        faulthandler.dump_traceback_later(ENDING_S, exit=True)  # needs no lock of Python's
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Send what libraries write to descriptor 1 to stderr in the block."""
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


@contextmanager
def telling_lost() -> Iterator[None]:
    """Turn what torch.distributed raises when a peer is gone into PeerLost."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise PeerLost(
            "another process of this run has ended, or can't be reached; its own message, if any, says why; "
            f"the same command goes on from what is saved ({' '.join(str(error).split())[:80]})"
        ) from error
