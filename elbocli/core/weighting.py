"""Weightings w(λ) of the loss L_w = ½ ∫ w(λ) E‖ε − ε̂‖² dλ.

Source: Kingma & Gao 2023, arXiv:2303.00848, sec. 3.
"""
# Every objective of the form E_t[c F(λ) ‖target − out‖²] is a weighting of the ε loss: with
# ‖ε−ε̂‖² = eps_factor · ‖target−out‖² and the density p(λ) = −dt/dλ of the schedule that draws t, the objective is L_w for
# w = 2 c p F / eps_factor. A usual mistake is to leave out dt/dλ, which is part of p.
# Such an objective is written TARGET-mse[:FACTOR]@SCHEDULE, where SCHEDULE draws t.

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple

from elbocli.core.monotone import POINTS, Function, NonIncreasing, float64, in_words, rising, slope, weighting_faults
from elbocli.core.plots import draw_curve
from elbocli.core.prediction import LIMIT, Prediction
from elbocli.core.registry import Declaration, Positive, Registry, UnitInterval, number, parse_spec, plain
from elbocli.core.schedule import Schedule, parse_schedule
from elbocli.core.weighting_curves import LEARNED_WEIGHTINGS, WEIGHTINGS, ErrorProfile, LearnedWeighting, NamedWeighting
from elbocli.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor


@dataclass(frozen=True, repr=False)
class Factor(Declaration[["Tensor"], "Tensor"]):
    """Function λ → F(λ) in the loss F(λ) ‖target − out‖².

    target: SPEC of the target, such as x; "": the network's target.
    """

    target: str = field(default="", kw_only=True)


FACTORS = Registry("factor", Factor)


@FACTORS.declare("snr", formula="exp(logsnr)", source="Salimans & Ho 2022: x loss with SNR weights is the eps loss")
def snr(logsnr: Tensor) -> Tensor:
    return logsnr.exp()


@FACTORS.declare("snr+1", formula="exp(logsnr) + 1", source="Salimans & Ho 2022: x loss with SNR+1 weights is the v loss")
def snr_plus_one(logsnr: Tensor) -> Tensor:
    return logsnr.exp() + 1


@FACTORS.declare(
    "truncated-snr",
    formula="max(exp(logsnr), 1)",
    source="Salimans & Ho 2022: x loss, truncated SNR",
    known_as=["snr-trunc"],
)
def truncated_snr(logsnr: Tensor) -> Tensor:
    return logsnr.exp().clamp(min=1)


@FACTORS.declare(
    "min-snr",
    formula="min(exp(logsnr), gamma) on x, /SNR on eps, /(SNR+1) on v",
    source="Hang et al. 2023: the same loss for every target",
    target="x",
)
def min_snr(logsnr: Tensor, gamma: Positive = 5.0) -> Tensor:
    return logsnr.exp().clamp(max=gamma)


@FACTORS.declare("debiased", formula="exp(-logsnr/2)", source="Yu et al. 2024: debiased eps loss")
def debiased(logsnr: Tensor) -> Tensor:
    return (-logsnr / 2).exp()


@FACTORS.declare(
    "clamped",
    formula="min(1, (t/least)^2), logsnr = 2 log((1-t)/t), on u; /t^2 on x",
    source="Li & He 2025 (JiT): v loss of an x prediction, where x is divided by max(t, least)",
    target="u",
)
def clamped(logsnr: Tensor, least: UnitInterval = 0.05) -> Tensor:
    return ((-logsnr / 2).sigmoid() / least).clamp(max=1).square()


@FACTORS.declare("p2", formula="1 / (1 + exp(logsnr))^gamma", source="Choi et al. 2022: P2, k = 1")
def p2(logsnr: Tensor, gamma: float = 1.0) -> Tensor:
    return (-logsnr).sigmoid() ** gamma


class ForeignLoss(NamedTuple):
    """Weighting w for which L_w equals the loss E_t[F(λ_t) ‖target − out‖²].

    prediction: target of the network.
    factor: F, an entry of FACTORS or WEIGHTINGS; None: F = 1.
    schedule: gives λ_t for a uniform t; the schedule's limits on λ are ignored.
    """

    prediction: Prediction
    factor: Factor | NamedWeighting | None
    schedule: Schedule

    @property
    def spec(self) -> str:
        """Text of the loss, such as `x-mse:min-snr:gamma=5`."""
        own = self.prediction.spec.partition(":")[2]
        words = ",".join(filter(None, [own, self.factor.spec if self.factor else ""]))
        return f"{self.prediction.declared.name}-mse" + (f":{words}" if words else "")

    def __call__(self, logsnr: Tensor) -> Tensor:
        weighed = self.prediction
        value = 2 * self.schedule.untruncated_density(logsnr)
        if self.factor is not None:
            if isinstance(self.factor, Factor) and self.factor.target:
                weighed = Prediction(self.factor.target)
            value = value * self.factor(logsnr)
        return value / weighed.coefficients(logsnr).eps_factor


def is_foreign_loss(text: str) -> bool:
    """Tell whether a weighting's text names a loss, such as `v-mse@cosine`."""
    return re.match(r"[\w-]+-mse([:@]|\Z)", text.strip()) is not None


def through(at: Tensor, knots: Tensor, values: Tensor) -> Tensor:
    """Interpolate values at `at` by cubics with a continuous slope.

    at: λ of any shape; outside the knots, the outer cubics continue. knots: rising λ, [K]. values: values at the knots, [K].
    """
    import torch

    # The product of a linear interpolation with a smooth function could rise and fall between two knots.
    (slope,) = torch.gradient(values, spacing=(knots,))
    right = torch.searchsorted(knots, at.contiguous()).clamp(1, len(knots) - 1)
    left = right - 1
    width = knots[right] - knots[left]
    rise = values[right] - values[left]
    part = (at - knots[left]) / width
    first = width * slope[left]
    last = width * slope[right]
    return values[left] + part * (first + part * (3 * rise - 2 * first - last + part * (first + last - 2 * rise)))


class MeasuredErrors(NamedTuple):
    """Errors of a run's network, from which a learned weighting follows.

    schedule: schedule of the run.
    levels: λ at the centres of bins, [bins].
    log_error: logarithm of ‖ε − ε̂‖²/D in each bin, [bins].
    """

    schedule: Schedule
    levels: Tensor
    log_error: Tensor


class LearnedCurve(NamedTuple):
    """Weighting learned in training, from the network's error at each λ.

    declared: entry of LEARNED_WEIGHTINGS.
    errors: errors measured in training; None: before training, when w is unknown.
    """

    declared: LearnedWeighting
    errors: MeasuredErrors | None = None

    @property
    def schedule(self) -> Schedule | None:
        """Schedule of the run; None before training."""
        return self.errors.schedule if self.errors else None

    @property
    def spec(self) -> str:
        return self.declared.spec

    def __call__(self, logsnr: Tensor) -> Tensor:
        if self.errors is None:
            raise UsageError(f"weighting {self.spec!r} has no w(λ) before training; give a run that was trained with it")

        schedule, levels, errors = self.errors

        def log_error(at: Tensor) -> Tensor:
            return through(at.clamp(schedule.logsnr_min, schedule.logsnr_max), levels, errors)

        return self.declared(logsnr, ErrorProfile(levels, log_error, schedule.density))


WeightingCurve = NamedWeighting | ForeignLoss | LearnedCurve  # a curve w(λ), before it is shifted or made monotone


@dataclass(frozen=True, eq=False)
class Weighting:
    """Weighting w(λ): a curve, shifted and optionally made monotone.

    Called with λ, float64 of any shape, a weighting returns w of the same shape.
    shift: replaces w(λ) by w(λ − shift), for other resolutions.
    monotone: replaces w by the least non-increasing function that is nowhere below w.
    """

    curve: WeightingCurve
    shift: float = 0.0
    monotone: bool = False

    def __repr__(self) -> str:
        return f"Weighting({self.spec!r})"

    @property
    def learned(self) -> bool:
        """Whether training learns the weighting."""
        return isinstance(self.curve, LearnedCurve)

    @property
    def of_density(self) -> bool:
        """Whether training learns the weighting from the schedule's density, so that the schedule can't be adaptive."""
        return isinstance(self.curve, LearnedCurve) and self.curve.declared.of_density

    def with_errors(self, schedule: Schedule, middle: Tensor, error: Tensor) -> Weighting:
        """Return this learned weighting with w computed from a schedule and errors.

        middle: λ at the centres of bins, [bins].
        error: ‖ε − ε̂‖²/D in each bin, [bins].
        """
        assert isinstance(self.curve, LearnedCurve)
        return replace(self, curve=LearnedCurve(self.curve.declared, MeasuredErrors(schedule, middle, error.log())))

    @property
    def schedule(self) -> Schedule | None:
        """Schedule from which the weighting is computed; None for a declared weighting."""
        return None if isinstance(self.curve, NamedWeighting) else self.curve.schedule

    @property
    def spec(self) -> str:
        """Text from which `parse_weighting` makes the same weighting."""
        head = self.curve.spec
        for word in (f"shift={plain(self.shift)}" if self.shift else "", "monotone" if self.monotone else ""):
            head += word and f"{',' if ':' in head else ':'}{word}"
        return f"{head}@{self.curve.schedule.base}" if isinstance(self.curve, ForeignLoss) else head

    @property
    def support(self) -> tuple[float, float]:
        """Range (low, high) of λ outside which w is zero, clipped to ±LIMIT."""
        low, high = self.schedule.support if self.schedule else (-math.inf, math.inf)
        if self.learned and self.schedule:
            low = self.schedule.logsnr_min
            high = self.schedule.logsnr_max
        return -LIMIT if self.monotone else max(low + self.shift, -LIMIT), min(high + self.shift, LIMIT)

    @cached_property
    def _function(self) -> Function:
        return NonIncreasing(self.curve.__call__) if self.monotone else self.curve.__call__

    def __call__(self, logsnr: Tensor) -> Tensor:
        return self._function(logsnr - self.shift)

    def plot(self, low: float = -15, high: float = 15, axis: Axes | None = None) -> Axes:
        """Draw w from λ = low to high on a matplotlib axis, by default the current one; return the axis."""
        import torch

        at = torch.linspace(low, high, 601, dtype=torch.float64)
        return draw_curve(at, self(at), self.spec, "w(λ)", axis)

    def slope(self, logsnr: Tensor) -> Tensor:
        """Return dw/dλ at each λ."""
        return slope(self, logsnr)

    def within_support(self, low: float, high: float) -> tuple[float, float]:
        """Return [low, high] without the λ outside `support`; low ≥ high if nothing is left."""
        return max(low, self.support[0]), min(high, self.support[1])

    def rising(self, low: float, high: float) -> list[tuple[float, float]]:
        """Return the intervals of λ in [low, high] and `support` on which w increases; [] for an ELBO if w ≥ 0."""
        low, high = self.within_support(low, high)
        return rising(self, low, high) if low < high else []

    def faults(self, low: float, high: float) -> str:
        """Say where in [low, high] w is negative or not finite, such as `negative for logsnr 0 to 15`; '' for a valid w."""
        low, high = self.within_support(low, high)
        return weighting_faults(self, low, high) if low < high and (self.schedule or not self.learned) else ""

    def check(self, low: float, high: float) -> None:
        """Raise UsageError unless w is finite and 0 or more on [low, high]."""
        if faults := self.faults(low, high):
            declared = self.curve if isinstance(self.curve, NamedWeighting) and self.curve.of_plugin else None
            place = f" ({declared.place})" if declared else ""
            raise UsageError(f"{self.spec}{place}: w is {faults}; choose a weighting that is finite, and 0 or more")

    def rise(self, low: float, high: float) -> float:
        """Return the total increase of w on [low, high] divided by max w."""
        import torch

        at = torch.linspace(low, high, POINTS, dtype=torch.float64)
        return sum(float(self(float64([b])) - self(float64([a]))) for a, b in self.rising(low, high)) / float(self(at).max())

    def verdict(self, low: float, high: float) -> str:
        """Say whether the loss is an ELBO on [low, high]."""
        if self.learned and not self.schedule:
            return f"is learned while training and {'never rises' if self.monotone else 'rises in general'}"
        if faults := self.faults(low, high):
            return f"is {faults}: its loss is not an ELBO"
        if intervals := self.rising(low, high):
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
    """Parse a weighting.

    text: such as `sigmoid:bias=2`, `edm:shift=-1.4,monotone` or `v-mse@cosine`.
    shift: added to a shift in the text.
    given: parameters that override parameters in the text.
    schedule: function that parses the schedule in the text.
    Raises UsageError: for an unknown name or parameter.
    """
    text = text.strip()
    loss = is_foreign_loss(text)
    left = text
    inner = ""
    if loss:
        left, _, inner = text.partition("@")
        if not inner:
            raise UsageError(f"{text!r}: the schedule is missing; name one, for example {left}@cosine")
    name, _, words = left.partition(":")
    words, own_shift, held = _modifiers(words)
    shift = shift + own_shift
    monotone = monotone or held
    if loss:
        return Weighting(ForeignLoss(*_parse_loss(name, words, given), schedule(inner)), shift, monotone)
    declared = WEIGHTINGS.lookup(name) or LEARNED_WEIGHTINGS.lookup(name) or WEIGHTINGS.find(name)
    declared = declared.bind(parse_spec(f"{name}:{words}")[1]).bind(given or {})
    if isinstance(declared, NamedWeighting):
        return Weighting(declared, shift, monotone)
    if shift:
        raise UsageError(f"{name} is learned from the run's errors, so it can't be shifted; leave out the shift")
    return Weighting(LearnedCurve(declared), monotone=monotone)


def _modifiers(words: str) -> tuple[str, float, bool]:
    """Split `bias=2,shift=1,monotone` into ('bias=2', 1.0, True)."""
    others = []
    shift = None
    monotone = False
    for word in filter(None, (part.strip() for part in words.split(","))):
        key, _, value = word.partition("=")
        if word == "monotone":
            monotone = True
        elif key.strip() == "shift":
            if shift is not None:
                raise UsageError(f"{words!r}: shift is given twice; give it once")
            shift = number(value, "shift")
        else:
            others.append(word)
    return ",".join(others), shift or 0.0, monotone


def _parse_loss(name: str, words: str, given: dict[str, float] | None) -> tuple[Prediction, Factor | NamedWeighting | None]:
    """Parse `x-mse:min-snr:5` into target and factor. name: `x-mse`. words: `min-snr:5`. given: parameters that replace these."""
    parts = [part for part in words.split(",") if part]
    own = [*takewhile(re.compile("[^:=]*=").match, parts)]  # parameters of the target, before the factor's name
    chosen = ",".join(parts[len(own) :])
    if given and not chosen:
        raise UsageError(f"loss {name} has no factor, so no parameter {next(iter(given))!r}; leave this parameter out")
    known: Registry[Factor | NamedWeighting] = Registry("factor", Factor)
    known.update(FACTORS | WEIGHTINGS | FACTORS)  # of a factor and a weighting with one name, the factor
    factor = known.parse(chosen).bind(given or {}) if chosen else None
    return Prediction(f"{name.removesuffix('-mse')}:{','.join(own)}"), factor
