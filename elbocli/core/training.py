"""Choices of a training run, declared once each: averages of its weights, decays of its learning rate, and criteria of
adaptive schedules.

An average is v ← β v + (1 − β) θ after every update. Every β depends only on the counters, so an average that continues
from a checkpoint is bit-identical.

`solve` makes one average from snapshots of others, after training: Karras et al. 2023, arXiv:2312.02696 sec. 3.2.

A power average at step T is ∫ p(t) θ(t) dt with p(t) = (γ+1) t^γ / T^(γ+1) on [0, T] and θ(t) constant between
updates; this is exact, so a combination of stored averages is off from the wished one by
∫ (Σ x_i p_i − p)(t) θ(t) dt, whatever θ did. Least squares makes Σ x_i p_i − p small; Σ x_i = 1 makes its integral 0,
so that what doesn't change along training comes out exactly.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from elbocli.core.registry import Declaration, Registry, plain
from elbocli.errors import UsageError

if TYPE_CHECKING:
    import numpy as np


AUTO: Final = "auto"
PRECISIONS = ("fp32", "tf32", "bf16", "fp16")
AVERAGES = Registry("average")
"""(step from 1, images seen, images of this update) → β in [0, 1)."""
BARE, STORED = "decay", "power"
"""The one that is written by its number alone, and the one of whose snapshots others can be made after training."""
PREFIX = "ema-"
MAX_STD = 1 / math.sqrt(12)
"""Relative std of the plain mean, γ = 0: wider profiles would weigh old weights more than new ones."""


@AVERAGES.declare(
    BARE,
    formula="min(beta, (1 + n)/(10 + n)) at update n",
    source="common since TensorFlow's ExponentialMovingAverage",
    within={"beta": (0, math.nextafter(1, 0))},
)
def decay(step, images_seen, batch, beta=0.9999):
    """A constant β, smaller while the average is young. A bare number means this one."""
    return min(beta, (1 + step) / (10 + step))


@AVERAGES.declare(
    "halflife",
    formula="2^(-batch/h), h = min(images, ramp seen)",
    source="Karras et al. 2022 (EDM)",
    positive=["images"],
    within={"ramp": (0, math.inf)},
)
def halflife(step, images_seen, batch, images=50e6, ramp=0.05):
    """Half of the average is from the last `images` images, or from `ramp` times those seen before; ramp 0 is none."""
    half = min(images, ramp * (images_seen - batch)) if ramp else images
    return 0.5 ** (batch / half) if half > 0 else 0.0


@AVERAGES.declare(
    STORED,
    formula="(1 - 1/n)^(gamma + 1) at update n; weights t^gamma, standard deviation std n",
    source="Karras et al. 2023, arXiv:2312.02696 sec. 3.1",
    positive=["std"],
    within={"std": (0, MAX_STD * (1 + 1e-12))},
)
def power(step, images_seen, batch, std=0.05):
    """Weights in proportion to t^γ at every moment; snapshots of it serve 'elbo ema'."""
    return (1 - 1 / step) ** (gamma_of(std) + 1)


def std_of(gamma: float) -> float:
    """σ_rel of the profile (γ+1) t^γ on [0, 1], a Beta(γ+1, 1): √(γ+1) / ((γ+2) √(γ+3))."""
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


@cache
def gamma_of(std: float) -> float:
    """γ ≥ 0 of the profile with that relative standard deviation, up to MAX_STD, by bisection: σ_rel falls in γ, and is
    below 1/γ.
    """
    low, high = 0.0, 1 / std
    while low < (middle := 0.5 * (low + high)) < high:
        low, high = (middle, high) if std_of(middle) > std else (low, middle)
    return high if low else 0.0


class Average:
    """An average with its parameters bound. stored: whether its snapshots can be combined into others."""

    def __init__(self, declared: Declaration):
        self.declared, self.beta, self.params = declared, declared, declared.params
        self.stored = declared.name == STORED

    @property
    def spec(self) -> str:
        """Text that a user writes: `0.9999`, `power:std=0.05`."""
        return plain(self.params["beta"]) if self.declared.name == BARE else self.declared.spec

    @property
    def name(self) -> str:
        """Name of its file: `ema-0.9999`, `ema-halflife-50M-ramp-0.05`, `ema-power-0.05`. No two averages share one."""
        (_, first), *others = self.params.items()
        words = [] if self.declared.name == BARE else [self.declared.name]
        words += [_short(first), *(word for key, value in others for word in (key, _short(value)))]
        return PREFIX + "-".join(words)


def _short(value: float) -> str:
    """Decimal digits without an exponent or a sign, so that '-' can divide words; from a million on in millions."""
    from decimal import Decimal  # it takes a millisecond to import

    exact = Decimal(repr(value))
    return f"{exact.scaleb(-6).normalize():f}M" if value >= 1e6 else f"{exact.normalize():f}"


def parse_average(text: str | float) -> Average:
    """The average that a user wrote (`0.9999`, `halflife:images=50e6`), or whose file has that name. Raises UsageError."""
    words = str(text).strip()
    if words.startswith(PREFIX):
        return _of_name(words)
    with suppress(ValueError):
        words = f"{BARE}:{float(words)}"
    return Average(AVERAGES.parse(words))


def _of_name(name: str) -> Average:
    words = name.removeprefix(PREFIX).replace("M", "e6").split("-")
    if words[0] not in AVERAGES:
        words = [BARE, *words]
    declared = AVERAGES[words[0]]
    words[0] = next(iter(declared.params))
    average = Average(declared.bind(dict(zip(words[::2], words[1::2]))))
    if average.name != name:
        raise UsageError(f"{name!r} is not the name of an average; such names are ema-0.9999 and ema-power-0.05")
    return average


def canonical(value: Any) -> tuple[str, ...]:
    """Specs in full: of one number or text, or of several. Raises UsageError for none, an unknown or a double one."""
    items = list(value) if isinstance(value, Iterable) and not isinstance(value, str | dict) else [value]
    if not items or any(isinstance(item, bool) or not isinstance(item, str | int | float) for item in items):
        raise UsageError(f"ema: expected averages, such as 0.9999 or power:std=0.05, not {value!r}")
    averages = {(average := parse_average(item)).name: average.spec for item in items}
    if len(averages) < len(items):
        raise UsageError(f"ema: one of {', '.join(averages.values())} is given twice")
    return tuple(averages.values())


LR_DECAYS = Registry("learning-rate decay")
"""Functions of (updates done, updates in all) that return the factor of lr for the next update."""


@LR_DECAYS.declare("constant", formula="1")
def constant(done, steps):
    """No decay."""
    return 1.0


@LR_DECAYS.declare(
    "cosine",
    formula="final + (1 - final) (1 + cos(pi n/steps))/2 after n updates",
    source="Loshchilov & Hutter 2016, arXiv:1608.03983",
    within={"final": (0, 1)},
)
def cosine(done, steps, final=0.0):
    """Half a cosine, from 1 to `final` at the end of training."""
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(done / steps, 1)))


@LR_DECAYS.declare(
    "linear", formula="1 - (1 - final) n/steps after n updates", source="common use", within={"final": (0, 1)}
)
def linear(done, steps, final=0.0):
    """A straight line from 1 to `final` at the end of training."""
    return 1 - (1 - final) * min(done / steps, 1)


@LR_DECAYS.declare(
    "rsqrt",
    formula="1/sqrt(max(n/ref, 1)) after n updates",
    source="Karras et al. 2023 (EDM2), arXiv:2312.02696",
    positive=["ref"],
)
def rsqrt(done, steps, ref=70_000.0):
    """1 for `ref` updates, then the inverse square root. It doesn't depend on when training ends."""
    return 1 / math.sqrt(max(done / ref, 1))


def learning_rate(done: int, steps: int, lr: float, warmup: int, decay: Declaration) -> float:
    """Return the rate of the update after `done` others: lr, times a rise over `warmup` updates, times the decay.

    It depends on these numbers alone, so that a run goes on with the rates that it would have had.
    """
    return lr * min(1.0, (done + 1) / max(1, warmup)) * float(decay(done, steps))


CRITERIA = Registry("criterion")
"""(E e, E e², e* or None) → what the density is proportional to."""


@CRITERIA.declare("loss", formula="w E|e|^2", source="arXiv:2303.00848 sec. 4: every t contributes equally to the loss")
def loss(mean, second, least):
    return mean


@CRITERIA.declare("second-moment", formula="w sqrt(E|e|^4)", source="least variance of the loss with independent t")
def second_moment(mean, second, least):
    return second.sqrt()


@CRITERIA.declare("std", formula="w sd(|e|^2)", source="least variance of the loss with low-discrepancy t")
def std(mean, second, least):
    return (second - mean.square()).clamp(min=0).sqrt()


@CRITERIA.declare(
    "excess", formula="w (E|e|^2 - least)", source="arXiv:2506.13763: what training can still gain; needs --optimum"
)
def excess(mean, second, least):
    if least is None:
        raise UsageError("criterion excess needs the least error: 'elbo adapt' takes it by --optimum FILE")
    return (mean - least).clamp(min=0)


OF_ERRORS = tuple(name for name in CRITERIA if name != "excess")
"""Criteria that need no more than the log."""


RIDGE = 1e-10
"""Price of a coefficient of 1, in squared residual: averages are stored in float32, and coefficients in the thousands,
which many nearly equal profiles invite, would amplify its rounding."""


class Profile(NamedTuple):
    """γ and T, in steps, of an average of the weights up to T in proportion to t^γ."""

    gamma: float
    step: float


class Solution(NamedTuple):
    """coefficients: [n], adding up to 1. residual: ‖Σ x_i p_i − p‖ / ‖p‖ in L², 0 when the profile was met."""

    coefficients: np.ndarray
    residual: float


def products(one: Sequence[Profile], other: Sequence[Profile]) -> np.ndarray:
    """∫ p_i(t) q_j(t) dt in closed form, [len(one), len(other)] float64.

    With T_1 ≤ T_2 the product lives on [0, T_1]: (γ1+1)(γ2+1) / (T_1^(γ1+1) T_2^(γ2+1)) ∫₀^T_1 t^(γ1+γ2) dt
    = (γ1+1)(γ2+1) / (γ1+γ2+1) · (T_1/T_2)^γ2 / T_2.
    """
    import numpy as np

    g1, t1 = np.array(one, dtype=np.float64).T[:, :, None]
    g2, t2 = np.array(other, dtype=np.float64).T[:, None, :]
    late = np.where(t1 <= t2, g2, g1)
    low, high = np.minimum(t1, t2), np.maximum(t1, t2)
    return (g1 + 1) * (g2 + 1) / (g1 + g2 + 1) * (low / high) ** late / high


def solve(stored: Sequence[Profile], target: Profile) -> Solution:
    """The combination of stored profiles, of coefficients that add up to 1, nearest to the target in L².

    All in float64.
    """
    import numpy as np

    exact = [profile == target for profile in stored]
    if any(exact):
        return Solution(np.array(exact, dtype=np.float64) / sum(exact), 0.0)
    # Every profile divided by its norm: narrow and wide ones then count alike, and the matrix is as good as it can be.
    gram = products(stored, stored)
    norms = np.sqrt(np.diag(gram))
    gram /= np.outer(norms, norms)
    length = math.sqrt(products([target], [target]).item())
    wish = products(stored, [target])[:, 0] / (norms * length)
    sums = length / norms  # of the scaled coefficients y = x norms / length, Σ x = Σ y length / norms
    # The nearest without the condition, moved along G⁻¹ sums until it holds: where the Lagrangian is stationary.
    free, along = np.linalg.solve(gram + RIDGE * np.eye(len(stored)), np.stack([wish, sums], 1)).T
    y = free + along * (1 - sums @ free) / (sums @ along)
    square = y @ gram @ y - 2 * y @ wish + 1
    return Solution(y * length / norms, math.sqrt(max(0.0, square)))
