"""The noise of a walk, drawn by another thread while the network is busy."""

from __future__ import annotations

import torch
from torch import Tensor

from elbocli.core.streams import Stream
from elbocli.runtime.device import sent
from elbocli.runtime.prefetch import Ahead


class Noise(Ahead[Tensor]):
    """Called for the k-th time: ε [len(indices), C, H, W] float32 on the device, of (seed, k, each index) alone.

    shape: (height, width, channels). steps: of the walk. Samplers that ask a second time ask at every step but the last,
    for which they start with one: so from then on the next is drawn ahead, `steps` in all.
    """

    def __init__(self, seed: int, indices: range, shape: tuple[int, int, int], steps: int, device: torch.device):
        # As what the walk makes of it: a compiled network would be compiled once more for another kind of tensor.
        work = torch.inference_mode()(lambda k: Stream(seed, f"sample-{k}").normal(indices, shape))
        super().__init__(work, depth=0)
        self._device, self._steps, self.draws = device, steps, 0

    def __call__(self) -> Tensor:
        self.draws += 1
        self._depth = int(1 < self.draws < self._steps)
        return sent(self.get(self.draws), self._device).permute(0, 3, 1, 2)
