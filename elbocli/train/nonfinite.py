"""The guard that keeps a step that isn't finite out of the weights, and decides on the device, without waiting for it.

The optimizer (fused) is told on the device whether to update; the host learns of trouble when it next looks. Until then
no later step changes the weights either, so that they are those before the first bad one; or, if such steps shall be
skipped, the others go on.
"""

from __future__ import annotations

from typing import Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from elbocli.runtime.device import sent
from elbocli.runtime.processes import World

GROWTH_INTERVAL = 2000
FIRST_SCALE = 2.0**16
LEAST_SCALE = 2.0**-16
"""A gradient that isn't finite at such a scale isn't so by reason of its scale."""
RECENT = 64
"""Steps whose losses are kept until it is known that none was bad."""
Number = TypeVar("Number", float, Tensor)


class GuardState(NamedTuple):
    """Float64 scalars on the device.

    scale: what losses are multiplied by. unbroken: steps since that last changed. stuck: 1 after a bad step that ends
    the run, else 0. skipped: bad steps so far. in_row: those since the last good one. most_in_row: since the last look.
    """

    scale: Tensor
    unbroken: Tensor
    stuck: Tensor
    skipped: Tensor
    in_row: Tensor
    most_in_row: Tensor


class BadStep(NamedTuple, Generic[Number]):
    """A bad step, numbered from 1, as one process sees it; step 0 stands for none.

    place: its worst image's, among the process's own; logsnr and loss: that image's. norm: the gradient's. bad: how many
    of the process's losses were not finite.
    """

    step: Number
    place: Number
    logsnr: Number
    loss: Number
    norm: Number
    bad: Number


class Findings(NamedTuple):
    """The find of a look since the one before.

    worst: the first bad step, as the process saw it that had its worst image; None when there was none. rank: that
    process's. bad: losses that were not finite in that step, in all processes. skipped: bad steps so far. most_in_row:
    the longest row of bad steps.
    """

    worst: BadStep[float] | None
    rank: int
    bad: int
    skipped: int
    most_in_row: int


class Guard:
    """Decides about every update, and remembers the first bad one.

    skip: leave bad steps out instead of stopping. scaled: scale the loss, for fp16. Source of the scale's growth and
    fall: as torch.amp.GradScaler's defaults.
    """

    def __init__(self, world: World, skip: bool, scaled: bool):
        self.world, self.skip, self.scaled = world, skip, scaled
        zeros = torch.zeros(6, dtype=torch.float64, device=world.device)
        self.state = GuardState(*zeros)._replace(scale=zeros[0] + (FIRST_SCALE if scaled else 1.0))
        self._first = BadStep(*zeros)
        self._recent: list[tuple[int, Tensor, Tensor, Tensor, Tensor]] = []

    def leaves_out(self, step: int, loss: Tensor, logsnr: Tensor, total: Tensor, norm: Tensor) -> Tensor:
        """Return whether to leave out update `step` (from 0), a bool on the device.

        loss, logsnr: [n] of this process's images. total: the loss of all processes' images; norm: the gradient's,
        without the scale; both float64 scalars.
        """
        scale, unbroken, stuck, skipped, in_row, most_in_row = self.state
        overflow = ~norm.isfinite()
        bad = ~total.isfinite() | (overflow & (scale < LEAST_SCALE) if self.scaled else overflow)
        self._recent.append((step + 1, bad, norm, loss, logsnr))
        if len(self._recent) == RECENT:
            self._note()
        halt = bad if self.skip else bad | (stuck > 0)
        if self.scaled:
            unbroken = torch.where(overflow, 0, unbroken + 1)
            scale = torch.where(overflow, scale / 2, torch.where(unbroken == GROWTH_INTERVAL, scale * 2, scale))
            unbroken = unbroken % GROWTH_INTERVAL
        stuck = torch.zeros_like(scale) if self.skip else halt.double()
        in_row = (in_row + 1) * bad
        self.state = GuardState(scale, unbroken, stuck, skipped + bad, in_row, torch.maximum(most_in_row, in_row))
        return halt | overflow

    def _note(self) -> None:
        """Remember the first of the recent steps that was bad; once for many steps, as most are good."""
        if not self._recent:
            return
        steps, *columns = zip(*self._recent)
        bads, norms, losses, logsnrs = (torch.stack(column) for column in columns)
        self._recent.clear()
        # Indices that are tensors of one element: as numbers they would have to be waited for.
        first = bads.byte().argmax().view(1)
        loss, logsnr = (rows.index_select(0, first).flatten().double() for rows in (losses, logsnrs))
        finite = loss.isfinite()
        place = loss.where(finite, torch.inf).argmax().view(1)
        step = sent(torch.tensor(steps, dtype=torch.float64), loss.device).index_select(0, first)
        at, lost = (rows.index_select(0, place)[0] for rows in (logsnr, loss))
        norm, bad = norms.index_select(0, first)[0], (~finite).sum().double()
        found = BadStep(step[0], place[0].double(), at, lost, norm, bad)
        new = bads.any() & (self._first.step == 0)
        self._first = BadStep(*(torch.where(new, now, before) for now, before in zip(found, self._first)))

    def look(self) -> Findings:
        """Return the find since the last look, the same in every process. Waits for the device."""
        self._note()
        found = [BadStep(*numbers) for numbers in self.world.all(torch.stack(self._first).tolist())]
        self._first = self._first._replace(step=torch.zeros_like(self._first.step))
        skipped, most_in_row = torch.stack([self.state.skipped, self.state.most_in_row]).tolist()
        self.state = self.state._replace(most_in_row=self.state.in_row)
        # The process with a loss that isn't finite, else the one with the largest.
        rank = max(range(len(found)), key=lambda rank: (found[rank].step > 0, found[rank].bad, found[rank].loss))
        bad = sum(seen.bad for seen in found if seen.step)
        worst = found[rank] if found[rank].step else None
        return Findings(worst, rank, int(bad), int(skipped), int(most_in_row))
