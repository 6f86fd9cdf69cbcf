"""Images drawn by all processes at once, a batch each, and put in their order by the first; what ends it early."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from functools import partial

import torch
from torch import Tensor

from elbocli.errors import ElboError, ReaderGone
from elbocli.files.sample_writers import Sink
from elbocli.runtime.background import Background, Ending, awaited, interrupted
from elbocli.runtime.processes import World


class Leave(Exception):
    """There is a reason to end, and no reason to finish what is being done."""

    def __init__(self, reason: int):
        self.reason = reason


def fetched(images: Tensor) -> Callable[[], Tensor]:
    """Images on their way from the device; the call waits until they are there."""
    if images.device.type != "cuda":
        return images.cpu
    host = torch.empty(images.shape, dtype=images.dtype, pin_memory=True)
    host.copy_(images, non_blocking=True)
    there = torch.cuda.Event()
    there.record(torch.cuda.current_stream(images.device))

    def arrived() -> Tensor:
        there.synchronize()
        return host

    return arrived


class Rounds:
    """Images up to `n` in rounds: the process of rank r draws the r-th batch of a round, the first puts them all.

    shape: (H, W, C). sink: the first process's. depth: rounds begun before one is waited for; 1 keeps a device busy.
    """

    def __init__(
        self,
        world: World,
        ending: Ending,
        sink: Sink | None,
        shape: tuple[int, int, int],
        n: int,
        batch: int,
        depth: int,
    ):
        self.world, self.ending, self.sink, self.shape = world, ending, sink, shape
        self.n, self.batch, self.depth = n, batch, depth
        self._begun: deque[Callable[[], Tensor]] = deque()
        self._ready: Tensor | None = None
        self._background = Background("put", abandon=True)
        self._writing: Future[None] | None = None

    def run(self, start: int, draw: Callable[[range], Tensor]) -> Iterator[int]:
        """Yields how many images are drawn, after each round. draw: uint8 [len(indices), H, W, C], on any device.

        Raises Interrupted, PeerLost, BrokenPipeError, and an ElboError of any process in all of them.
        """
        together = self.batch * self.world.size
        behind = self.depth * together
        try:
            for first in range(start, self.n + behind, together):
                self._agreed(partial(self._work, first, draw))
                if first - behind >= start:
                    self._collect(first - behind)
                    yield min(first - behind + together, self.n)
            for _ in range(2):  # write the last round, then wait for it
                self._agreed(self._put)
        finally:
            if self.sink is not None and self.sink.partial is not None:
                self._settle()

    def look(self) -> None:
        """Raise Leave when there is a reason to end."""
        if reason := self.ending.reason():
            raise Leave(reason)

    def _work(self, first: int, draw: Callable[[range], Tensor]) -> None:
        """This process's part of the round whose images begin at `first`."""
        self._put()
        start = first + self.batch * self.world.rank
        mine = range(min(start, self.n), min(start + self.batch, self.n))
        self._begun.append(fetched(draw(mine) if mine else torch.empty((0, *self.shape), dtype=torch.uint8)))

    def _collect(self, first: int) -> None:
        """The whole round whose images begin at `first`, at the first process."""
        images = self._begun.popleft()()
        if self.world.size > 1:
            padded = torch.zeros((self.batch, *self.shape), dtype=torch.uint8)
            padded[: len(images)] = images
            images = torch.cat(self.world.gathered(padded) or [padded])
        self._ready = images[: self.n - first]

    def _put(self) -> None:
        """Write the round that is ready, once the one before is written."""
        if self._writing is not None:
            awaited(self._writing, self.look)
            self._writing = None
        if self.sink is not None and self._ready is not None:
            self._writing = self._background.start(partial(self.sink.put, self._ready.numpy()))
        self._ready = None

    def _settle(self) -> None:
        """Wait for what is being written, whatever comes of it."""
        if self._writing is not None:
            wait([self._writing])

    def _agreed(self, work: Callable[[], None]) -> None:
        """Do it in all processes, and end all of them if one can't or shall not go on."""
        reason, error = 0, None
        gone: BrokenPipeError | None = None
        try:
            work()
        except Leave as leave:
            reason = leave.reason
        except ElboError as caught:
            error = caught
        except BrokenPipeError as caught_gone:
            gone, error = caught_gone, ReaderGone()
        reason, failed = self.world.most([reason, int(error is not None)])
        if failed:
            try:
                self.world.raise_first(error)
            except ElboError as everywhere:
                raise gone or everywhere from None
        if reason:
            raise self._ended(reason)

    def _ended(self, reason: int) -> ElboError:
        """Return the error that says why it ends, and what is safe."""
        if self.sink is None:
            said = "ended"
        elif self.sink.partial is None:
            said = (
                f"{self.sink.done} of {self.n} images were written; into a file (-o FILE) the same command would go on"
            )
        else:
            self._settle()
            said = f"{self.sink.done} of {self.n} images are safe in {self.sink.partial.name}; the same command goes on from there"
        return interrupted(reason, said)
