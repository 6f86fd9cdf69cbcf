"""What keeps a step that isn't finite out of the weights, decided on the device, without waiting for it.

The optimizer (fused) is told on the device whether to update and what to divide the gradients by; the host learns of
trouble when it next looks. Until then no later step changes the weights either, so that they are those before the
first bad one; or, if such steps shall be skipped, the others go on.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from elbocli.runtime.processes import World

GROWTH_INTERVAL = 2000
FIRST_SCALE = 2.0**16
LEAST_SCALE = 2.0**-16
"""A gradient that isn't finite at such a scale isn't so by reason of its scale."""
RECENT = 64
"""Steps whose losses are kept until it is known that none was bad."""


class Trouble(NamedTuple):
    """The first bad step of those looked at: its number from 1; of its worst image the rank of the process that had
    it, its place among that process's, λ and loss; the gradient's norm, and how many losses were not finite.
    """

    step: int
    rank: int
    place: int
    logsnr: float
    loss: float
    norm: float
    bad: int


class Guard:
    """state: float64 on the device: [loss scale, its steps since it last fell, bad (0 or 1), skipped, in a row, most
    in a row since the last look]. clip: largest gradient norm, 0 is none. skip: leave bad steps out instead of
    stopping. scaled: scale the loss, for fp16.

    Source of the scale's growth and fall: as torch.amp.GradScaler's defaults.
    """

    def __init__(self, world: World, clip: float, skip: bool, scaled: bool):
        self.world, self.clip, self.skip, self.scaled = world, clip, skip, scaled
        self.state = torch.zeros(6, dtype=torch.float64, device=world.device)
        self.state[0] = FIRST_SCALE if scaled else 1.0
        self._record = torch.zeros(6, dtype=torch.float64, device=world.device)
        self._recent: list[tuple[int, Tensor, Tensor, Tensor, Tensor]] = []

    @property
    def scale(self) -> Tensor:
        """What losses are multiplied by, float32."""
        return self.state[0].float()

    @torch.no_grad()
    def update(
        self,
        optimizer: torch.optim.Optimizer,
        gradients: list[Tensor],
        sharded: bool,
        loss: Tensor,
        logsnr: Tensor,
        step: int,
    ) -> Tensor:
        """The optimizer's step, if it may be. loss, logsnr: [n] of this process's images, on the device;
        gradients: of `scale` times the mean loss, parts of them if sharded. Returns [the whole batch's summed loss, the
        gradient's norm, 1], or zeros if it was left out; float64.
        """
        scale, grown, stuck, skipped, row, most = self.state.unbind()
        squares = torch.stack(torch._foreach_norm(gradients)).double().square().sum()
        if not sharded and not self.world.first:
            squares = torch.zeros_like(squares)
        squares, total = self.world.added(torch.stack([squares, loss.double().sum()])).unbind()
        norm = squares.sqrt() / scale
        overflow = ~norm.isfinite()
        bad = ~total.isfinite() | (overflow & (scale < LEAST_SCALE) if self.scaled else overflow)
        self._recent.append((step + 1, bad, norm, loss, logsnr))
        if len(self._recent) == RECENT:
            self._note()
        halt = bad if self.skip else bad | (stuck > 0)
        row = (row + 1) * bad
        optimizer.grad_scale = (scale * (norm / self.clip).clamp(min=1) if self.clip else scale).float()  # type: ignore[attr-defined]
        left_out = halt | overflow
        optimizer.found_inf = left_out.float()  # type: ignore[attr-defined]
        optimizer.step()
        if self.scaled:
            grown = torch.where(overflow, 0, grown + 1)
            scale = torch.where(overflow, scale / 2, torch.where(grown == GROWTH_INTERVAL, scale * 2, scale))
            grown = grown % GROWTH_INTERVAL
        stuck = torch.zeros_like(scale) if self.skip else halt.double()
        self.state = torch.stack([scale, grown, stuck, skipped + bad, row, torch.maximum(most, row)])
        return torch.stack([total, norm, torch.ones_like(norm)]).where(~left_out, 0)

    @torch.no_grad()
    def _note(self) -> None:
        """Of the recent steps, remember the first that was bad; once for many steps, as most are good."""
        if self._recent:
            steps, *columns = zip(*self._recent)
            bad, norms, losses, logsnrs = (torch.stack(column) for column in columns)
            self._recent.clear()
            # Indices that are tensors of one element: as numbers they would have to be waited for.
            first = bad.byte().argmax().view(1)
            loss, logsnr = (rows.index_select(0, first).flatten().double() for rows in (losses, logsnrs))
            finite = loss.isfinite()
            place = loss.where(finite, torch.inf).argmax().view(1)
            step = torch.tensor(steps, dtype=torch.float64).to(loss.device, non_blocking=True).index_select(0, first)
            record = torch.cat(
                [
                    step,
                    logsnr.index_select(0, place),
                    place.double(),
                    loss.index_select(0, place),
                    norms.index_select(0, first),
                    (~finite).sum().double().view(1),
                ]
            )
            self._record = torch.where(bad.any() & (self._record[0] == 0), record, self._record)

    def look(self) -> tuple[Trouble | None, int, int]:
        """(the first bad step since the last look, bad steps ever, most in a row since). Waits for the device."""
        self._note()
        found = self.world.all(self._record.tolist())
        self._record.zero_()
        _, _, _, skipped, _, most = self.state.tolist()
        self.state[5] = self.state[4]
        # The process with a loss that isn't finite, else the one with the largest.
        ranks = (rank for rank, row in enumerate(found) if row[0])
        worst = max(ranks, key=lambda rank: (found[rank][5], found[rank][3]), default=None)
        if worst is None:
            return None, int(skipped), int(most)
        step, logsnr, place, loss, norm, _ = found[worst]
        trouble = Trouble(int(step), worst, int(place), logsnr, loss, norm, int(sum(row[5] for row in found)))
        return trouble, int(skipped), int(most)
