"""Learning rates along training: warm-up, and a decay of a declared name."""

from __future__ import annotations

import math

from elbocli.core.registry import Declaration, Registry

LR_DECAYS: Registry[None] = Registry("learning-rate decay")
"""Functions of (updates done, updates in all) that say by what share of lr the next update is made."""


@LR_DECAYS.declare("constant", formula="1")
def constant(done: int, steps: int) -> float:
    """No decay."""
    return 1.0


@LR_DECAYS.declare(
    "cosine",
    formula="final + (1 - final) (1 + cos(pi n/steps))/2 after n updates",
    source="Loshchilov & Hutter 2016, arXiv:1608.03983",
    within={"final": (0, 1)},
)
def cosine(done: int, steps: int, final: float = 0.0) -> float:
    """Half a cosine, from 1 to `final` at the end of training."""
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(done / steps, 1)))


@LR_DECAYS.declare(
    "linear", formula="1 - (1 - final) n/steps after n updates", source="common use", within={"final": (0, 1)}
)
def linear(done: int, steps: int, final: float = 0.0) -> float:
    """A straight line from 1 to `final` at the end of training."""
    return 1 - (1 - final) * min(done / steps, 1)


@LR_DECAYS.declare(
    "rsqrt",
    formula="1/sqrt(max(n/ref, 1)) after n updates",
    source="Karras et al. 2023 (EDM2), arXiv:2312.02696",
    positive=["ref"],
)
def rsqrt(done: int, steps: int, ref: float = 70_000.0) -> float:
    """1 for `ref` updates, then the inverse square root. It doesn't depend on when training ends."""
    return 1 / math.sqrt(max(done / ref, 1))


def learning_rate(done: int, steps: int, lr: float, warmup: int, decay: Declaration[None]) -> float:
    """Return the rate of the update after `done` others: lr, times a rise over `warmup` updates, times the decay.

    It depends on these numbers alone, so that a run goes on with the rates that it would have had.
    """
    return lr * min(1.0, (done + 1) / max(1, warmup)) * float(decay(done, steps))
