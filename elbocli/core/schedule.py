"""λ(t) from t = 0 (data) to t = 1 (noise), its density p(λ) = −dt/dλ and its inverse t(λ).

A schedule is only an importance sampler: the weighted loss doesn't depend on it (arXiv:2303.00848 sec. 3).
Use float64: in float32 tan(π/2) is negative and Φ⁻¹ never leaves ±5.3.
Tensor methods and plain maths only at import: listing the names must not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from elbocli.core.logsnr import LIMIT, logsnr_of
from elbocli.core.registry import Registry, number, numbers, parse_spec, plain
from elbocli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

SCHEDULES: Registry[None] = Registry("schedule")
LEAST_SHARE = 1e-9
NARROWEST = (
    1e-3  # of a range of logsnr: in less, the bins of an adaptive schedule are too near each other to be smoothed
)


class ScheduleCurve(Protocol):
    """A schedule before shift and truncation. `t` and `density` may continue beyond t ∈ [0, 1]."""

    def logsnr(self, t: Tensor) -> Tensor: ...
    def t(self, logsnr: Tensor) -> Tensor: ...
    def density(self, logsnr: Tensor) -> Tensor: ...


def schedule(name: str, *, formula: str, source: str, positive: Any = (), **params: float) -> Callable[..., Any]:
    """Declare a curve: a class made from the parameters named here with their defaults."""
    return SCHEDULES.declare(name, params, formula=formula, source=source, positive=positive)


def _cosine_t(logsnr: Tensor) -> Tensor:
    return (2 / math.pi) * (-logsnr / 2).exp().atan()


def _cosine_density(logsnr: Tensor) -> Tensor:
    return 1 / (2 * math.pi * (logsnr / 2).cosh())


@schedule("cosine", formula="-2 log tan(pi t/2)", source="Nichol & Dhariwal 2021, without offset")
class Cosine:
    def logsnr(self, t: Tensor) -> Tensor:
        return -2 * (t * (math.pi / 2)).tan().log()

    def t(self, logsnr: Tensor) -> Tensor:
        return _cosine_t(logsnr)

    def density(self, logsnr: Tensor) -> Tensor:
        return _cosine_density(logsnr)


@schedule(
    "iddpm",
    formula="logit abar, abar = [cos((t+s)/(1+s) pi/2) / cos(s/(1+s) pi/2)]^2",
    source="Nichol & Dhariwal 2021",
    positive=["s"],
    s=0.008,
)
class Iddpm:
    """With θ the angle and θ₀ its value at t = 0: ᾱ = cos²θ/cos²θ₀ and 1 − ᾱ = sin(θ−θ₀) sin(θ+θ₀)/cos²θ₀."""

    def __init__(self, s: float):
        self.rate = math.pi / 2 / (1 + s)
        self.start = s * self.rate

    def logsnr(self, t: Tensor) -> Tensor:
        turn = t * self.rate
        return 2 * (turn + self.start).cos().log() - turn.sin().log() - (turn + 2 * self.start).sin().log()

    def _cos_sin(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        signal, noise = logsnr.sigmoid(), (-logsnr).sigmoid()
        return math.cos(self.start) * signal.sqrt(), (noise + signal * math.sin(self.start) ** 2).sqrt()

    def t(self, logsnr: Tensor) -> Tensor:
        cos, sin = self._cos_sin(logsnr)
        return (sin.atan2(cos) - self.start) / self.rate

    def density(self, logsnr: Tensor) -> Tensor:
        cos, sin = self._cos_sin(logsnr)
        return cos * (-logsnr).sigmoid() / (2 * self.rate * sin)


@schedule(
    "edm",
    formula="-2 mean - 2 std Phi^-1(t)",
    source="Karras et al. 2022: ln sigma ~ N(mean, std^2)",
    positive=["std"],
    mean=-1.2,
    std=1.2,
)
class Edm:
    def __init__(self, mean: float, std: float):
        self.center, self.width = -2 * mean, 2 * std

    def logsnr(self, t: Tensor) -> Tensor:
        import torch

        return self.center - self.width * torch.special.ndtri(t)

    def t(self, logsnr: Tensor) -> Tensor:
        return 0.5 * ((logsnr - self.center) / (self.width * math.sqrt(2))).erfc()

    def density(self, logsnr: Tensor) -> Tensor:
        return (-0.5 * ((logsnr - self.center) / self.width).square()).exp() / (self.width * math.sqrt(2 * math.pi))


@schedule(
    "edm-sample",
    formula="-2 rho log(a + t(b-a)), a = sigma_min^(1/rho), b = sigma_max^(1/rho)",
    source="Karras et al. 2022, eq. 5",
    positive=["rho", "sigma_min", "sigma_max"],
    rho=7.0,
    sigma_min=0.002,
    sigma_max=80.0,
)
class EdmSample:
    def __init__(self, rho: float, sigma_min: float, sigma_max: float):
        if not sigma_min < sigma_max:
            raise UsageError(f"edm-sample: sigma_min {sigma_min:g} must be below sigma_max {sigma_max:g}")
        self.rho = rho
        self.a, self.b = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
        self.support = (logsnr_of(sigma_max), logsnr_of(sigma_min))

    def logsnr(self, t: Tensor) -> Tensor:
        return -2 * self.rho * (self.a + t * (self.b - self.a)).log()

    def t(self, logsnr: Tensor) -> Tensor:
        return ((-logsnr / (2 * self.rho)).exp() - self.a) / (self.b - self.a)

    def density(self, logsnr: Tensor) -> Tensor:
        return (-logsnr / (2 * self.rho)).exp() / (2 * self.rho * (self.b - self.a))


@schedule("fm-ot", formula="2 log((1-t)/t)", source="Lipman et al. 2022: optimal-transport path, uniform t")
class FmOt:
    def logsnr(self, t: Tensor) -> Tensor:
        return 2 * ((1 - t) / t).log()

    def t(self, logsnr: Tensor) -> Tensor:
        return (-logsnr / 2).sigmoid()

    def density(self, logsnr: Tensor) -> Tensor:
        return 1 / (8 * (logsnr / 4).cosh().square())


@schedule(
    "linear-beta",
    formula="-log expm1(beta_min t + (beta_max-beta_min) t^2/2)",
    source="Ho et al. 2020; Song et al. 2021",
    positive=["beta_max"],
    beta_min=0.1,
    beta_max=20.0,
)
class LinearBeta:
    def __init__(self, beta_min: float, beta_max: float):
        if not 0 <= beta_min < beta_max:
            raise UsageError(f"linear-beta: expected 0 <= beta_min < beta_max, found {beta_min:g} and {beta_max:g}")
        self.low, self.rise = beta_min, beta_max - beta_min

    def logsnr(self, t: Tensor) -> Tensor:
        return -(self.low * t + 0.5 * self.rise * t.square()).expm1().log()

    def t(self, logsnr: Tensor) -> Tensor:
        total = (-logsnr).exp().log1p()
        return 2 * total / (self.low + (self.low**2 + 2 * self.rise * total).sqrt())

    def density(self, logsnr: Tensor) -> Tensor:
        return (-logsnr).sigmoid() / (self.low + self.rise * self.t(logsnr))


@schedule(
    "interpolated",
    formula="-2 log tan(pi t/2) + (1-t) 2 log(low/size) + t 2 log(high/size)",
    source="Hoogeboom et al. 2023: from the cosine shifted as for low pixels to that as for high, images having size",
    positive=["low", "high", "size"],
    low=32.0,
    high=256.0,
    size=64.0,
)
class Interpolated:
    """With u = −2 log tan(πt/2) and k = 2 log(high/low): λ = u + start + k t. It falls as long as k < 2π."""

    def __init__(self, low: float, high: float, size: float):
        self.start, self.rise = 2 * math.log(low / size), 2 * math.log(high / low)
        if not self.rise < 2 * math.pi:
            raise UsageError(
                f"interpolated: high {high:g} is {high / low:.4g} times low {low:g}, which makes logsnr rise somewhere; "
                f"it must be below {math.exp(math.pi):.4g} times"
            )

    def _cosine(self, logsnr: Tensor) -> Tensor:
        """u at each λ: halved into place, then by two Newton steps, the last of which autograd sees."""
        goal = (logsnr - self.start).detach()
        low, high = goal - max(self.rise, 0.0), goal - min(self.rise, 0.0)
        for _ in range(40):
            middle = (low + high) / 2
            above = middle + self.rise * _cosine_t(middle) > goal
            low, high = low.where(above, middle), middle.where(above, high)
        return self._newton(self._newton((low + high) / 2, goal), logsnr - self.start)

    def _newton(self, u: Tensor, goal: Tensor) -> Tensor:
        return u - (u + self.rise * _cosine_t(u) - goal) / (1 - self.rise * _cosine_density(u))

    def logsnr(self, t: Tensor) -> Tensor:
        return -2 * (t * (math.pi / 2)).tan().log() + self.start + self.rise * t

    def t(self, logsnr: Tensor) -> Tensor:
        return _cosine_t(self._cosine(logsnr))

    def density(self, logsnr: Tensor) -> Tensor:
        p = _cosine_density(self._cosine(logsnr))
        return p / (1 - self.rise * p)


@schedule("uniform", formula="linear in logsnr", source="equal time at every logsnr")
class Uniform:
    """t = −λ until truncation gives it ends."""

    def logsnr(self, t: Tensor) -> Tensor:
        return -t

    def t(self, logsnr: Tensor) -> Tensor:
        return -logsnr

    def density(self, logsnr: Tensor) -> Tensor:
        return logsnr * 0 + 1


def cell_of(at: Tensor, edges: Tensor) -> Tensor:
    """Index of the cell [edges[k], edges[k+1]) that each value lies in; what lies beyond belongs to the outer cells."""
    import torch

    return (torch.searchsorted(edges, at.contiguous(), right=True) - 1).clamp(0, len(edges) - 2)


class Table:
    """A fitted schedule: λ(t) linear between knots, hence p(λ) constant between them.

    knots: (t, λ) with t rising from 0 to 1 and λ falling, both strictly. Raises UsageError otherwise.
    """

    def __init__(self, knots: list[tuple[float, float]]):
        import torch

        at = torch.tensor(knots, dtype=torch.float64)
        if at.dim() != 2 or at.shape[0] < 2 or at.shape[1] != 2 or not bool(at.isfinite().all()):
            raise UsageError("a schedule needs at least two finite knots (t, logsnr)")
        time, level = at.T.contiguous()
        if time[0] != 0 or time[-1] != 1 or not bool((time.diff() > 0).all()) or not bool((level.diff() < 0).all()):
            raise UsageError("knots of a schedule: t must rise from 0 to 1 and logsnr fall, strictly")
        self.time, self.level = time, level
        self.support = (float(level[-1]), float(level[0]))
        self.height = time.diff() / -level.diff()

    def logsnr(self, t: Tensor) -> Tensor:
        cell = cell_of(t, self.time)
        return self.level[cell] - (t - self.time[cell]) / self.height[cell]

    def t(self, logsnr: Tensor) -> Tensor:
        cell = cell_of(-logsnr, -self.level)
        return self.time[cell] + (self.level[cell] - logsnr) * self.height[cell]

    def density(self, logsnr: Tensor) -> Tensor:
        return self.height[cell_of(-logsnr, -self.level)] + logsnr * 0


@dataclass(frozen=True)
class Schedule:
    """A curve shifted by `shift` in λ, then truncated so that t ∈ [0, 1] covers [logsnr_min, logsnr_max].

    base: how to write the curve and its shift down.
    """

    curve: ScheduleCurve
    base: str
    logsnr_min: float
    logsnr_max: float
    shift: float = 0.0

    def __post_init__(self) -> None:
        check_range(self.logsnr_min, self.logsnr_max)
        low, high = self.support
        if self.logsnr_min < low - 1e-9 or self.logsnr_max > high + 1e-9:
            raise UsageError(
                f"{self.base} covers logsnr {low:g} to {high:g}, not {self.logsnr_min:g} to {self.logsnr_max:g}; "
                "ask for a range inside, or use a schedule that covers it"
            )
        first, last = self._ends
        if not float(last - first) > LEAST_SHARE:
            raise UsageError(
                f"{self.base} has next to nothing of its density in logsnr {self.logsnr_min:g} to {self.logsnr_max:g}; "
                "shift it, or ask for another range"
            )

    @property
    def support(self) -> tuple[float, float]:
        """The λ that the curve itself covers."""
        return _support(self.curve, self.shift)

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        import torch

        ends = torch.tensor([self.logsnr_max, self.logsnr_min], dtype=torch.float64) - self.shift
        first, last = self.curve.t(ends)
        return first, last

    def logsnr(self, t: Tensor) -> Tensor:
        """λ at each t ∈ [0, 1], float64. The ends are exact, where float64 t can't reach a normal's far tail near 1."""
        first, last = self._ends
        level = self.curve.logsnr(first + (last - first) * t) + self.shift
        level = level.where(t < 1, self.logsnr_min).where(t > 0, self.logsnr_max)
        return level.clamp(self.logsnr_min, self.logsnr_max)

    def t(self, logsnr: Tensor) -> Tensor:
        """t at each λ, clamped to [0, 1]."""
        first, last = self._ends
        return ((self.curve.t(logsnr - self.shift) - first) / (last - first)).clamp(0, 1)

    def density(self, logsnr: Tensor) -> Tensor:
        """p(λ) = −dt/dλ; zero outside the range; its integral is one."""
        first, last = self._ends
        inside = (logsnr >= self.logsnr_min) & (logsnr <= self.logsnr_max)
        return self.curve.density(logsnr - self.shift) / (last - first) * inside

    def log_density(self, logsnr: Tensor) -> Tensor:
        """log p(λ)."""
        return self.density(logsnr).log()

    def untruncated_density(self, logsnr: Tensor) -> Tensor:
        """The curve's own density, shifted, on its own support and zero beyond."""
        low, high = self.support
        return self.curve.density(logsnr - self.shift) * ((logsnr >= low) & (logsnr <= high))

    def shifted(self, by: float) -> Schedule:
        """The same schedule moved by `by` in λ, truncated where it was."""
        if not by:
            return self
        shift = self.shift + by
        base = self.base.removesuffix(f"shift={plain(self.shift)}").rstrip(":,")
        low, high = _support(self.curve, shift)
        return Schedule(
            self.curve, _with_shift(base, shift), max(self.logsnr_min, low), min(self.logsnr_max, high), shift
        )


def check_range(low: float, high: float) -> None:
    """Raise UsageError unless low < high, by NARROWEST at least, and both lie within ±LIMIT."""
    if not (-LIMIT <= low < high <= LIMIT):
        raise UsageError(f"the logsnr range {low:g} to {high:g} must rise and lie within -{LIMIT:g} and {LIMIT:g}")
    if high - low < NARROWEST:
        raise UsageError(f"the logsnr range {low:g} to {high:g} is too narrow; it must be {NARROWEST:g} wide at least")


def _support(curve: ScheduleCurve, shift: float) -> tuple[float, float]:
    low, high = getattr(curve, "support", (-LIMIT - shift, LIMIT - shift))
    return max(low + shift, -LIMIT), min(high + shift, LIMIT)


def _with_shift(base: str, shift: float) -> str:
    return f"{base}{',' if ':' in base else ':'}shift={plain(shift)}" if shift else base


def make_schedule(
    curve: ScheduleCurve, base: str, low: float | None, high: float | None, *, shift: float = 0.0, clip: bool = False
) -> Schedule:
    """A curve shifted and truncated; None takes that end from the curve.

    clip: cut a range that the curve doesn't cover down to what it does. Raises UsageError when it doesn't fit.
    """
    ends = _support(curve, shift)
    low, high = (ends[0] if low is None else low), (ends[1] if high is None else high)
    if clip:
        low, high = max(low, ends[0]), min(high, ends[1])
    return Schedule(curve, _with_shift(base, shift), low, high, shift)


def parse_schedule(
    text: str, low: float | None = None, high: float | None = None, *, clip: bool = False, size: int | None = None
) -> Schedule:
    """The declared schedule that a user wrote: `cosine`, `cosine:shift=-1.4`, `edm:mean=-0.4,std=1`.

    Every schedule takes `shift`. low, high, clip: as in make_schedule. size: of the images in pixels, for a schedule
    whose parameter `size` the text leaves out. Raises UsageError.
    """
    spec = parse_spec(text)
    declared = SCHEDULES.find(spec.name)
    params = numbers(spec.params)
    shift = number(params.pop("shift", 0.0), "shift")
    if size is not None and "size" in declared.params:
        params = {"size": float(size), **params}
    bound = declared.bind(params)
    try:
        curve = declared.make(**bound)
    except (OverflowError, ZeroDivisionError):
        raise UsageError(f"{text!r}: these parameters go beyond what numbers can hold") from None
    return make_schedule(curve, declared.spec(bound), low, high, shift=shift, clip=clip)


def schedule_of_shares(edges: Tensor, shares: Tensor, base: str) -> Schedule:
    """The tabulated schedule that spends `shares` of its time in each cell of λ. edges: [B + 1] rising; shares: [B]."""
    import torch

    time = torch.cat([torch.zeros(1, dtype=torch.float64), shares.flip(0).cumsum(0)])
    knots = zip((time / time[-1]).tolist(), edges.flip(0).tolist(), strict=True)
    return make_schedule(Table(list(knots)), base, None, None)
