"""Processes of a run under torchrun: ranks and collective operations."""

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

from elbocli.errors import ElboError, NotJoined, Parameter, PeerLost, ReaderGone, UsageError
from elbocli.runtime.device import choose_device, resolve_device

T = TypeVar("T")
PATIENCE = timedelta(minutes=30)  # timeout of collective operations; ranks wait while rank 0 reads and checks a checkpoint
VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # set by torchrun, besides WORLD_SIZE
JOIN = timedelta(minutes=10)  # timeout for the start of all processes; imports over a network file system are slow
LOST = (
    "another process of this run has ended or can't be reached; see that process's message for the reason; "
    "the same command resumes from the last checkpoint"
)
JOINING = (
    "could not connect to another process; see other processes' messages for the reason; "
    "if a host's name has a loopback address, set GLOO_SOCKET_IFNAME to the interface between the nodes"
)
ENDING_S = 60.0  # seconds after which a failed process is killed; other processes wait for the end of the failed process
_kept: list[object] = []  # freeing a process group waits for its thread, which may wait for Python's lock for ever (torch 2.13)


@dataclass(frozen=True)
class World:
    """This process among `size` processes, which must call the methods in the same order.

    Raises PeerLost: another process has ended.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the only rank that prints and writes."""
        return self.rank == 0

    def added(self, value: Tensor) -> Tensor:
        """Sum a tensor over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(value)
        return value

    def most(self, values: list[int]) -> list[int]:
        """Return the elementwise maximum over processes."""
        if self.size == 1:
            return values
        together = torch.tensor(values)  # on the CPU, so that the device is not synchronised
        dist.all_reduce(together, dist.ReduceOp.MAX)
        return together.tolist()

    def all(self, value: T) -> list[T]:
        """Return the values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values = [value] * self.size
        dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: T) -> T:
        return self.all(value)[0]

    @contextmanager
    def together(self) -> Iterator[None]:
        """If the block raises an ElboError or BrokenPipeError in one process, raise an ElboError in all processes."""
        if self.size == 1:
            yield
            return
        error: ElboError | None = None
        try:
            yield
        except ElboError as caught:
            error = caught
        except BrokenPipeError:
            error = ReaderGone()
        for rank, failed in enumerate(self.all((error.args, error.exit_code) if error else None)):
            if failed:
                everywhere = ElboError(f"rank {rank}: " if rank else "", *failed[0])
                everywhere.exit_code = failed[1]
                raise everywhere from error


ALONE = World()


def shard_size(size: int) -> int:
    """Return how many of `size` processes share a copy of the weights under FSDP.

    These are the processes of a node, or all processes if nodes have one process each or differ in number.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    return size if local == 1 or size % local else local


def to_local(tensor: Tensor) -> Tensor:
    """Return this process's shard of a DTensor; return other tensors unchanged."""
    if not hasattr(tensor, "to_local"):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def gathered(tensor: Tensor) -> Tensor:
    """Gather the shards of a DTensor from all processes; return other tensors unchanged."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def sharded_like(whole: Tensor, tensor: Any) -> Tensor:
    """Return `whole` sharded like `tensor`. whole: equal in all processes."""
    if not hasattr(tensor, "device_mesh"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)


@contextmanager
def joined(device: str) -> Iterator[World]:
    """Join torchrun's process group during the block; yield a World.

    device: auto, cpu, cuda, …; under torchrun, cuda is the GPU of the local rank.
    Raises UsageError: an environment variable is missing, `device` has an index under torchrun, or processes share a GPU.
    Raises NotJoined: the processes can't connect. Raises PeerLost: another process has ended.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield World(device=choose_device(device))
        return
    if missing := [name for name in VARIABLES if name not in os.environ]:
        raise UsageError(f"WORLD_SIZE is {size} without {', '.join(missing)}; start with torchrun, or unset WORLD_SIZE")
    meant = resolve_device(device)
    if meant.startswith("cuda:"):
        raise UsageError(
            Parameter("device"),
            f" {meant}: under torchrun each process uses the GPU of its local rank; leave ",
            Parameter("device"),
            " out",
        )
    cuda = meant == "cuda"
    rank = int(os.environ["RANK"])
    # With `srun --gpus-per-task=1` each process sees one GPU alone, as cuda:0.
    chosen = choose_device(f"cuda:{int(os.environ['LOCAL_RANK']) % max(1, torch.cuda.device_count())}" if cuda else meant)
    with convert_dist_errors(NotJoined, JOINING), stdout_to_stderr():  # gloo in torch 2.8 and 2.10 prints its connections
        store, *_ = next(rendezvous("env://", timeout=JOIN))
        # torchrun keeps its store over restarts, with the keys of earlier processes.
        store = PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", ""), store)
        # Without device_id, because a group bound to a device makes the subgroups of a mesh by split_group, which needs NCCL
        # for the CPU, too (torch 2.8 and 2.9).
        backend = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(backend=backend, store=store, rank=rank, world_size=size, timeout=PATIENCE)
    _kept.append(dist.group.WORLD)
    try:
        with convert_dist_errors():
            yield World(rank, size, chosen)
    except BaseException:
        faulthandler.dump_traceback_later(ENDING_S, exit=True)  # destroying the group may hang; works without the GIL
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Redirect file descriptor 1 to stderr, for output of C libraries."""
    stdout = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)


@contextmanager
def convert_dist_errors(kind: type[PeerLost] = PeerLost, reason: str = LOST) -> Iterator[None]:
    """Turn torch.distributed's errors about a lost process into `kind`. reason: for the message, with the remedy."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        if "Duplicate GPU" in str(error):  # NCCL's words
            raise UsageError("several processes use one GPU; start as many processes as there are GPUs") from error
        raise kind(f"{reason} ({' '.join(str(error).split())[:80]})") from error
