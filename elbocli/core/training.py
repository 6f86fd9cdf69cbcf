"""Averages of the weights (EMA), learning-rate decays, and criteria of adaptive schedules."""

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
# Former name of a training setting in config.yaml, presets and --config → its present name; "": it is gone, and empty in most runs.
FORMER = {
    "batch": "batch_size",
    "clip": "grad_clip",
    "features": "",
    "keep": "keep_last",
    "milestone_every": "keep_every",
    "warmup": "warmup_steps",
}
# Functions (number of the update, from 1; images seen; images of the update) → β. After each update,
# average ← β average + (1 − β) weights. β depends only on counters, so a resumed average is bit-identical.
AVERAGES = Registry("average")
BARE, STORED = "decay", "power"  # the average that a bare number means; the average whose snapshots `elbo ema` combines
PREFIX = "ema-"
MAX_STD = 1 / math.sqrt(12)  # relative standard deviation of t^γ at γ = 0; wider profiles would favour old weights


@AVERAGES.declare(
    BARE,
    formula="min(beta, (1 + n)/(10 + n)) at update n",
    source="common since TensorFlow's ExponentialMovingAverage",
    within={"beta": (0, math.nextafter(1, 0))},
)
def decay(step, images_seen, batch, beta=0.9999):
    return min(beta, (1 + step) / (10 + step))


@AVERAGES.declare(
    "halflife",
    formula="2^(-batch/h), h = min(images, ramp seen)",
    source="Karras et al. 2022 (EDM)",
    positive=["images"],
    within={"ramp": (0, math.inf)},
)
def halflife(step, images_seen, batch, images=50e6, ramp=0.05):
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
    return (1 - 1 / step) ** (gamma_of(std) + 1)


def std_of(gamma: float) -> float:
    """Return the standard deviation of the density (γ+1) t^γ on [0, 1]."""
    return math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3))


@cache
def gamma_of(std: float) -> float:
    """Return the γ ≥ 0 with std_of(γ) = std, for std ≤ MAX_STD."""
    low, high = 0.0, 1 / std
    while low < (middle := 0.5 * (low + high)) < high:
        low, high = (middle, high) if std_of(middle) > std else (low, middle)
    return high if low else 0.0


class Average:
    """Rule for averaging the weights, with its parameters."""

    def __init__(self, declared: Declaration):
        self.declared, self.beta, self.params = declared, declared, declared.params
        self.stored = declared.name == STORED  # whether `elbo ema` can combine snapshots

    @property
    def spec(self) -> str:
        """SPEC, such as `0.9999` or `power:std=0.05`."""
        return plain(self.params["beta"]) if self.declared.name == BARE else self.declared.spec

    @property
    def name(self) -> str:
        """Unique name in files, such as `ema-0.9999` or `ema-halflife-50M-ramp-0.05`."""
        (_, first), *others = self.params.items()
        words = [] if self.declared.name == BARE else [self.declared.name]
        words += [_short(first), *(word for key, value in others for word in (key, _short(value)))]
        return PREFIX + "-".join(words)


def _short(value: float) -> str:
    # No exponent and no sign, because '-' separates the words of a name: 5e7 → '50M'.
    from decimal import Decimal  # imported here because the import takes a millisecond

    exact = Decimal(repr(value))
    return f"{exact.scaleb(-6).normalize():f}M" if value >= 1e6 else f"{exact.normalize():f}"


def parse_average(text: str | float) -> Average:
    """Parse the SPEC of an average, such as `0.9999` or `power:std=0.05`. Raises UsageError."""
    words = str(text)
    with suppress(ValueError):
        words = f"{BARE}:{float(words)}"
    return Average(AVERAGES.parse(words))


def canonical(value: Any) -> tuple[str, ...]:
    """Return the full SPECs of averages. value: one SPEC or several. Raises UsageError, also for repeated averages."""
    items = list(value) if isinstance(value, Iterable) and not isinstance(value, str | dict) else [value]
    if not items or any(isinstance(item, bool) or not isinstance(item, str | int | float) for item in items):
        raise UsageError(f"ema: expected averages, such as 0.9999 or power:std=0.05, not {value!r}")
    averages = {(average := parse_average(item)).name: average.spec for item in items}
    if len(averages) < len(items):
        raise UsageError(f"ema: {value!r} gives an average twice; give each average once")
    return tuple(averages.values())


# Functions (updates done, updates in total) → factor of the learning rate.
LR_DECAYS = Registry("learning-rate decay")


@LR_DECAYS.declare("constant", formula="1")
def constant(done, steps):
    return 1.0


@LR_DECAYS.declare(
    "cosine",
    formula="final + (1 - final) (1 + cos(pi n/steps))/2 after n updates",
    source="Loshchilov & Hutter 2016, arXiv:1608.03983",
    within={"final": (0, 1)},
)
def cosine(done, steps, final=0.0):
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(done / steps, 1)))


@LR_DECAYS.declare("linear", formula="1 - (1 - final) n/steps after n updates", source="common use", within={"final": (0, 1)})
def linear(done, steps, final=0.0):
    return 1 - (1 - final) * min(done / steps, 1)


@LR_DECAYS.declare(
    "rsqrt",
    formula="1/sqrt(max(n/ref, 1)) after n updates",
    source="Karras et al. 2023 (EDM2), arXiv:2312.02696",
    positive=["ref"],
)
def rsqrt(done, steps, ref=70_000.0):
    return 1 / math.sqrt(max(done / ref, 1))


def learning_rate(done: int, steps: int, lr: float, warmup: int, decay: Declaration) -> float:
    """Return the learning rate after `done` of `steps` updates. lr: peak. warmup: number of updates. decay: from LR_DECAYS."""
    return lr * min(1.0, (done + 1) / max(1, warmup)) * float(decay(done, steps))


# Functions (mean ε error, mean squared ε error, least possible error or None), [bins] each → score, [bins].
# The density p(λ) of an adaptive schedule is proportional to w(λ) × score.
CRITERIA = Registry("criterion")


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
        raise UsageError(
            "criterion 'excess' needs the least possible error; write the error to FILE by 'elbo optimum', and add --optimum FILE"
        )
    return (mean - least).clamp(min=0)


OF_ERRORS = tuple(name for name in CRITERIA if name != "excess")  # criteria that need only the loss log


RIDGE = 1e-10  # penalty on squared coefficients: coefficients in the thousands would amplify the averages' float32 rounding


class Profile(NamedTuple):
    """Coefficient of update t in a power average: ∝ t^gamma, for t from 0 to `step`."""

    gamma: float
    step: float


class Solution(NamedTuple):
    """Combination of stored averages.

    coefficients: factors of the averages, [n], with sum 1.
    residual: L² distance from the target profile, relative to the target's norm.
    """

    coefficients: np.ndarray
    residual: float


def products(one: Sequence[Profile], other: Sequence[Profile]) -> np.ndarray:
    """Return the inner products ∫ p_i(t) q_j(t) dt of profiles, float64 [len(one), len(other)]."""
    import numpy as np

    # With T_1 ≤ T_2 the integral is (γ1+1)(γ2+1) / (T_1^(γ1+1) T_2^(γ2+1)) ∫₀^T_1 t^(γ1+γ2) dt
    # = (γ1+1)(γ2+1) / (γ1+γ2+1) · (T_1/T_2)^γ2 / T_2.
    g1, t1 = np.array(one, dtype=np.float64).T[:, :, None]
    g2, t2 = np.array(other, dtype=np.float64).T[:, None, :]
    late = np.where(t1 <= t2, g2, g1)
    low, high = np.minimum(t1, t2), np.maximum(t1, t2)
    return (g1 + 1) * (g2 + 1) / (g1 + g2 + 1) * (low / high) ** late / high


def solve(stored: Sequence[Profile], target: Profile) -> Solution:
    """Return the combination of stored profiles nearest to the target profile in L².

    Source: Karras et al. 2023, arXiv:2312.02696 sec. 3.2.
    """
    import numpy as np

    # A power average at step T is ∫ p(t) θ(t) dt with p(t) = (γ+1) t^γ / T^(γ+1) on [0, T] and weights θ(t) constant between
    # updates. So a combination differs from the target by ∫ (Σ x_i p_i − p)(t) θ(t) dt. Least squares makes Σ x_i p_i − p
    # small; Σ x_i = 1 makes its integral 0, so that weights that are constant during training are reproduced exactly.
    exact = [profile == target for profile in stored]
    if any(exact):
        return Solution(np.array(exact, dtype=np.float64) / sum(exact), 0.0)
    # Normalise every profile, so that narrow and wide profiles count alike and the Gram matrix is well conditioned.
    gram = products(stored, stored)
    norms = np.sqrt(np.diag(gram))
    gram /= np.outer(norms, norms)
    length = math.sqrt(products([target], [target]).item())
    wish = products(stored, [target])[:, 0] / (norms * length)
    sums = length / norms  # for the scaled coefficients y = x norms / length, Σ x = Σ y length / norms
    # Stationary point of the Lagrangian: the unconstrained solution, moved along G⁻¹ sums until Σ x = 1.
    free, along = np.linalg.solve(gram + RIDGE * np.eye(len(stored)), np.stack([wish, sums], 1)).T
    y = free + along * (1 - sums @ free) / (sums @ along)
    square = y @ gram @ y - 2 * y @ wish + 1
    return Solution(y * length / norms, math.sqrt(max(0.0, square)))
