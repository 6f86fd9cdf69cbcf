"""A weighting w(λ): one that is declared, or the one that a loss or a schedule amounts to; shifted, held monotone, named.

L_w = ½ ∫ w(λ) E‖ε − ε̂‖² dλ (Kingma & Gao 2023, arXiv:2303.00848, sec. 3). The declared ones are in core/weighting_curves.py.

Anyone's objective, E_t[c F(λ) ‖target − out‖²], as one weighting w(λ) of the ε loss.

With ‖ε−ε̂‖² = eps_factor · ‖target−out‖² and p(λ) = −dt/dλ of the schedule that draws t, the objective is L_w for
w = 2 c p F / eps_factor. Leaving out −dλ/dt is the usual mistake: it is in p.
It is written TARGET-mse[:FACTOR]@SCHEDULE: before '@' the squared error and its factor, after '@' the schedule that
draws t.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from elbocli.core.monotone import POINTS, Function, NonIncreasing, float64, in_words, rising, slope
from elbocli.core.prediction import LIMIT, Prediction
from elbocli.core.registry import LEARNED, Declaration, Registry, alike, number, plain
from elbocli.core.schedule import Schedule, parse_schedule
from elbocli.core.weighting_curves import WEIGHTINGS
from elbocli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


FACTORS = Registry("factor")
"""F(λ), which multiplies the squared error of the target. traits: the target whose error F multiplies whatever the network's
is, where the authors give F for each target so that the loss is the same.
"""


@FACTORS.declare("snr", formula="exp(logsnr)", source="Salimans & Ho 2022: x loss with SNR weights is the eps loss")
def snr(logsnr):
    return logsnr.exp()


@FACTORS.declare(
    "snr+1", formula="exp(logsnr) + 1", source="Salimans & Ho 2022: x loss with SNR+1 weights is the v loss"
)
def snr_plus_one(logsnr):
    return logsnr.exp() + 1


@FACTORS.declare(
    "truncated-snr",
    formula="max(exp(logsnr), 1)",
    source="Salimans & Ho 2022: x loss, truncated SNR",
    known_as=["snr-trunc"],
)
def truncated_snr(logsnr):
    return logsnr.exp().clamp(min=1)


@FACTORS.declare(
    "min-snr",
    formula="min(exp(logsnr), gamma) on x, /SNR on eps, /(SNR+1) on v",
    source="Hang et al. 2023: the same loss for every target",
    traits="x",
    positive=["gamma"],
    parameters_known_as={"snr_gamma": "gamma"},
)
def min_snr(logsnr, gamma=5.0):
    return logsnr.exp().clamp(max=gamma)


@FACTORS.declare("p2", formula="1 / (1 + exp(logsnr))^gamma", source="Choi et al. 2022: P2, k = 1")
def p2(logsnr, gamma=1.0):
    return (-logsnr).sigmoid() ** gamma


class ForeignLoss(NamedTuple):
    """E_t[F(λ_t) ‖target − out‖²], t drawn by the schedule's own, untruncated density. Calling it gives w(λ).

    factor: F, a declared factor or any declared weighting.
    """

    prediction: Prediction
    factor: Declaration | None
    schedule: Schedule

    @property
    def spec(self) -> str:
        """Text left of '@', with every parameter."""
        own = self.prediction.spec.partition(":")[2]
        words = ",".join(filter(None, [own, self.factor.spec if self.factor else ""]))
        return f"{self.prediction.declared.name}-mse" + (f":{words}" if words else "")

    def __call__(self, logsnr: Tensor) -> Tensor:
        """2 p F / eps_factor at each λ, float64."""
        weighed = self.prediction
        value = 2 * self.schedule.untruncated_density(logsnr)
        if self.factor is not None:
            weighed = Prediction(self.factor.traits) if isinstance(self.factor.traits, str) else weighed
            value = value * self.factor(logsnr)
        return value / weighed.coefficients(logsnr).eps_factor


def is_foreign_loss(text: str) -> bool:
    """Tell whether a weighting's spec is TARGET-mse…, not a name."""
    return re.fullmatch(r"[\w-]+-mse", text.strip().partition("@")[0].partition(":")[0]) is not None


def parse_factor(text: str, given: dict[str, float] | None = None) -> Declaration:
    """A factor: `snr`, `min-snr:5`, `min-snr:gamma=5`, or a weighting by its name.

    given: parameters from options, over those in the text. Raises UsageError.
    """
    known = Registry("factor")
    known.update({**FACTORS, **WEIGHTINGS, **FACTORS})
    return known.parse(text).bind(given or {})


@dataclass(frozen=True)
class ScheduleDensity:
    """The weighting of a plain ε loss under a schedule: its untruncated density, scaled to a peak of 1."""

    schedule: Schedule

    @property
    def spec(self) -> str:
        """Text of the schedule, as a weighting."""
        return f"schedule:{self.schedule.base}"

    def __call__(self, logsnr: Tensor) -> Tensor:
        """w at each λ, float64."""
        return self.schedule.untruncated_density(logsnr) / self._largest

    @cached_property
    def _largest(self) -> float:
        density, (low, high) = self.schedule.untruncated_density, self.schedule.support
        peaks = [end for _, end in rising(density, low, high)]
        return float(density(float64([low, high, *peaks])).max())


class LearnedCurve(NamedTuple):
    """w = p/e: the density of the schedule that a run trains under, over its error at each λ, as it knows it now.

    EDM2 in effect (Karras et al. 2024, arXiv:2312.02696): its loss ω/e^u ‖D − x‖² + u is least in u where
    e^u = ω E‖D − x‖²/D, and what is left weighs ‖ε − ε̂‖² by p/e, whatever ω is. So every t counts alike.

    schedule: None while nothing is known. middle, log_error: [bins] λ, and the logarithm of ‖ε − ε̂‖²/D there.
    """

    schedule: Schedule | None = None
    middle: Any = None
    log_error: Any = None

    @property
    def spec(self) -> str:
        """Its name."""
        return LEARNED

    def __call__(self, logsnr: Tensor) -> Tensor:
        """w at each λ, float64. Raises UsageError while nothing is known."""
        from elbocli.core.adaptive import through

        if self.schedule is None:
            raise UsageError(f"{LEARNED} is learned from a run's errors and schedule; name a run that trained with it")
        within = logsnr.clamp(self.schedule.logsnr_min, self.schedule.logsnr_max)  # beyond, the density is zero
        return self.schedule.density(logsnr) * (-through(within, self.middle, self.log_error)).exp()


WeightingCurve = Declaration | ScheduleDensity | ForeignLoss | LearnedCurve
"""w(λ) before shift and monotone. `schedule` is what it is made of."""


@dataclass(frozen=True, eq=False)
class Weighting:
    """A curve with its modifiers. Calling it gives w at each λ: any shape, float64, as w spans hundreds of orders.

    shift: w(λ) → w(λ − shift), for other resolutions. monotone: the least non-increasing w that is nowhere smaller,
    which for one peak is w held constant left of it.
    """

    curve: WeightingCurve
    shift: float = 0.0
    monotone: bool = False

    def __repr__(self) -> str:
        return f"Weighting({self.spec!r})"

    @property
    def learned(self) -> bool:
        """Tell whether it is learned while a run trains. `knowing` says what from; without that it can't be called."""
        return isinstance(self.curve, LearnedCurve)

    def knowing(self, schedule: Schedule, middle: Tensor, error: Tensor) -> Weighting:
        """The learned weighting under a schedule, its error ‖ε − ε̂‖²/D at each λ of `middle` being known: [bins] each."""
        return replace(self, curve=LearnedCurve(schedule, middle, error.log()))

    @property
    def schedule(self) -> Schedule | None:
        """The schedule of that loss, or the one whose density it is; None for a declared weighting."""
        return None if isinstance(self.curve, Declaration) else self.curve.schedule

    @property
    def spec(self) -> str:
        """Text that means the same weighting again."""
        head = self.curve.spec
        for word in (f"shift={plain(self.shift)}" if self.shift else "", "monotone" if self.monotone else ""):
            head += word and f"{',' if ':' in head else ':'}{word}"
        return f"{head}@{self.curve.schedule.base}" if isinstance(self.curve, ForeignLoss) else head

    @property
    def support(self) -> tuple[float, float]:
        """The λ beyond which w is zero, within ±LIMIT."""
        low, high = self.schedule.support if self.schedule else (-math.inf, math.inf)
        if self.learned and self.schedule:
            low, high = self.schedule.logsnr_min, self.schedule.logsnr_max
        return -LIMIT if self.monotone else max(low + self.shift, -LIMIT), min(high + self.shift, LIMIT)

    @cached_property
    def _function(self) -> Function:
        return NonIncreasing(self.curve.__call__) if self.monotone else self.curve.__call__

    def __call__(self, logsnr: Tensor) -> Tensor:
        return self._function(logsnr - self.shift)

    def slope(self, logsnr: Tensor) -> Tensor:
        """dw/dλ by automatic differentiation; −slope is the density p_w of a monotone weighting."""
        return slope(self, logsnr)

    def rising(self, low: float, high: float) -> list[tuple[float, float]]:
        """The intervals of [low, high] on which w increases: empty means that L_w is an ELBO of noisy data."""
        return rising(self, low, high)

    def rise(self, low: float, high: float) -> float:
        """The sum of all that w rises by on [low, high], over its largest value there: 0 for an ELBO.

        It is the mass that −dw/dλ, as a distribution of added noise, would have to take away somewhere.
        """
        import torch

        at = torch.linspace(low, high, POINTS, dtype=torch.float64)
        return sum(float(self(float64([b])) - self(float64([a]))) for a, b in self.rising(low, high)) / float(
            self(at).max()
        )

    def verdict(self, low: float, high: float) -> str:
        """Say in words whether L_w is an ELBO on [low, high]."""
        if self.learned and not self.schedule:
            return f"is learned while training and {'never rises' if self.monotone else 'rises in general'}"
        intervals = self.rising(low, high)
        if intervals:
            return f"rises for logsnr {in_words(intervals)}: its loss is not an ELBO"
        return f"never rises for logsnr {low:.7g} to {high:.7g}: its loss is the ELBO of noise-augmented data"


def parse_weighting(
    text: str,
    *,
    shift: float = 0.0,
    monotone: bool = False,
    given: dict[str, float] | None = None,
    schedule: Callable[[str], Schedule] = parse_schedule,
) -> Weighting:
    """The weighting that a user wrote: `sigmoid:bias=2`, `edm:shift=-1.4,monotone`, `v-mse@cosine`, `schedule:cosine`.

    given: parameters from elsewhere (options), over those in the text. schedule: finds a schedule by its
    spec, for those that name one; without it only declared ones are known. Raises UsageError.
    """
    text = text.strip()
    left, loss, found = text, is_foreign_loss(text), None
    if loss or text.partition(":")[0] == "schedule":
        mark = "@" if loss else ":"
        left, _, inner = text.partition(mark)
        if inner.endswith((",monotone", ":monotone")):  # no schedule has a parameter called so
            inner, monotone = inner[: -len(",monotone")], True
        if not inner:
            raise UsageError(f"{text!r}: name a schedule, for example {left}{mark}cosine")
        found = schedule(inner)
    name, _, words = left.partition(":")
    words, own_shift, held = _modifiers(words)
    shift, monotone = shift + own_shift, monotone or held
    if loss and found:
        return Weighting(ForeignLoss(*_parse_loss(name, words, given), found), shift, monotone)
    if not found and alike(name) != LEARNED:
        return Weighting(WEIGHTINGS.parse(f"{name}:{words}").bind(given or {}), shift, monotone)
    if given or (not found and (words or shift)):
        raise UsageError(f"{text!r} takes monotone alone; write what its schedule takes after the schedule's name")
    return Weighting(ScheduleDensity(found.shifted(shift)) if found else LearnedCurve(), monotone=monotone)


def _modifiers(words: str) -> tuple[str, float, bool]:
    """The words without shift and monotone, which may stand anywhere, and these two. Raises UsageError."""
    others, shift, monotone = [], None, False
    for word in filter(None, (part.strip() for part in words.split(","))):
        key, _, value = word.partition("=")
        if word == "monotone":
            monotone = True
        elif key.strip() == "shift":
            if shift is not None:
                raise UsageError(f"{words!r}: shift is given twice")
            shift = number(value, "shift")
        else:
            others.append(word)
    return ",".join(others), shift or 0.0, monotone


def _parse_loss(name: str, words: str, given: dict[str, float] | None) -> tuple[Prediction, Declaration | None]:
    """The prediction and the factor of a loss: of `x-mse`, `min-snr:5`. Raises UsageError.

    Words before the factor's name are the prediction's parameters, words after it the factor's.
    """
    own: list[str] = []
    chosen: list[str] = []
    for word in filter(None, words.split(",")):
        key, equals, _ = word.partition("=")
        (own if equals and ":" not in key and not chosen else chosen).append(word)
    if given and not chosen:
        raise UsageError(f"a loss without a factor has no parameter {next(iter(given))!r}")
    factor = parse_factor(",".join(chosen), given) if chosen else None
    return Prediction(f"{name.removesuffix('-mse')}:{','.join(own)}"), factor
