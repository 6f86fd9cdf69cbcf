"""Learning rate of each update: warm-up, then a decay."""

import math
from dataclasses import dataclass
from typing import Annotated

from elbocli.core.registry import Bounds, Declaration, Positive, Registry, UnitInterval


@dataclass(frozen=True, repr=False)
class LearningRateDecay(Declaration[[int, int], float]):
    """Function (updates done, updates in total) → factor of the learning rate."""


LR_DECAYS = Registry("learning-rate decay", LearningRateDecay)


@LR_DECAYS.declare("constant", formula="1")
def constant(done: int, steps: int) -> float:
    return 1.0


@LR_DECAYS.declare(
    "cosine",
    formula="final + (1 - final) (1 + cos(pi n/steps))/2 after n updates",
    source="Loshchilov & Hutter 2016, arXiv:1608.03983",
)
def cosine(done: int, steps: int, final: UnitInterval = 0.0) -> float:
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(done / steps, 1)))


@LR_DECAYS.declare(
    "linear",
    formula="final + (1 - final) min((1 - n/steps)/share, 1) after n updates: decays in the last share of them",
    source="Hu et al. 2024 (WSD), arXiv:2404.06395",
)
def linear(done: int, steps: int, final: UnitInterval = 0.0, share: Annotated[float, Bounds(0, 1, above=0)] = 1.0) -> float:
    return final + (1 - final) * min(max(1 - done / steps, 0) / share, 1)


@LR_DECAYS.declare(
    "rsqrt",
    formula="1/sqrt(max(n/ref, 1)) after n updates",
    source="Karras et al. 2023 (EDM2), arXiv:2312.02696",
)
def rsqrt(done: int, steps: int, ref: Positive = 70_000.0) -> float:
    return 1 / math.sqrt(max(done / ref, 1))


def learning_rate(done: int, steps: int, lr: float, warmup: int, decay: LearningRateDecay) -> float:
    """Return the learning rate after `done` of `steps` updates. lr: peak. warmup: number of updates. decay: from LR_DECAYS."""
    return lr * min(1.0, (done + 1) / max(1, warmup)) * decay(done, steps)
