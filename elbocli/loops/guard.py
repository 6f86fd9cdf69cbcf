"""What keeps a step that isn't finite out of the weights, decided on the device, without waiting for it.

The optimizer (fused) is told on the device whether to update and what to divide the gradients by; the host learns of
trouble when it next looks. Until then no later step changes the weights either, so that they are those before the
first bad one; or, if such steps shall be skipped, the others go on.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from elbocli.loops.world import World

GROWTH_INTERVAL = 2000
FIRST_SCALE = 2.0**16


class Trouble(NamedTuple):
    """The first bad step of those looked at: its number from 1, λ and place in the batch of its worst image, that
    image's loss, the gradient's norm, and how many losses were not finite.
    """

    step: int
    logsnr: float
    place: int
    loss: float
    norm: float
    bad: int


class Guard:
    """state: float64 on the device: [loss scale, its steps since it last fell, bad (0 or 1), skipped, in a row, most
    in a row]. clip: largest gradient norm, 0 is none. skip: leave bad steps out instead of stopping. scaled: scale
    the loss, for fp16.

    Source of the scale's growth and fall: as torch.amp.GradScaler's defaults.
    """

    def __init__(self, world: World, clip: float, skip: bool, scaled: bool):
        self.world, self.clip, self.skip, self.scaled = world, clip, skip, scaled
        self.state = torch.zeros(6, dtype=torch.float64, device=world.device)
        self.state[0] = FIRST_SCALE if scaled else 1.0
        self._record = torch.zeros(6, dtype=torch.float64, device=world.device)

    @property
    def scale(self) -> Tensor:
        """What losses are multiplied by, float32."""
        return self.state[0].float()

    @torch.no_grad()
    def update(
        self, optimizer: torch.optim.Optimizer, gradients: list[Tensor], sharded: bool, loss: Tensor, logsnr: Tensor,
        places: Tensor, step: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The optimizer's step, if it may be. loss, logsnr, places: [n] of this process's images, on the device;
        gradients: of `scale` times the mean loss, parts of them if sharded. Returns (whether it was made, 0 or 1; the
        gradient's norm, 0 if not), float64.
        """
        scale, grown, stuck, skipped, row, most = self.state.unbind()
        squares = torch.stack(torch._foreach_norm(gradients)).double().square().sum()
        if not sharded and not self.world.first:
            squares = torch.zeros_like(squares)
        finite = loss.isfinite()
        seen = self.world.added(torch.stack([squares, (~finite).sum().double()]))
        norm = seen[0].sqrt() / scale
        overflow = ~norm.isfinite()
        bad = (seen[1] > 0) | (overflow & (not self.scaled))
        rows = torch.stack([logsnr.double(), places.double(), loss.double()])
        # An index that is a tensor of one element: as a number it would have to be waited for.
        worst = rows.index_select(1, loss.where(finite, torch.inf).argmax().view(1)).flatten()
        record = torch.cat([torch.full_like(norm, step + 1).view(1), worst, norm.view(1), (~finite).sum().double().view(1)])
        self._record = torch.where(bad & (self._record[0] == 0), record, self._record)
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
        self.state = torch.stack([scale, grown, halt.double(), skipped + bad, row, torch.maximum(most, row)])
        return (~left_out).double(), norm.where(~left_out, 0)

    def look(self) -> tuple[Trouble | None, int, int]:
        """(the first bad step since the last look, bad steps ever, most of them in a row). Waits for the device."""
        found = self.world.all(self._record.tolist())
        self._record.zero_()
        _, _, _, skipped, _, most = self.state.tolist()
        # The process with a loss that isn't finite, else the one with the largest.
        worst = max((row for row in found if row[0]), key=lambda row: (row[5], row[3]), default=None)
        if worst is None:
            return None, int(skipped), int(most)
        trouble = Trouble(int(worst[0]), worst[1], int(worst[2]), worst[3], worst[4], int(sum(row[5] for row in found)))
        return trouble, int(skipped), int(most)
