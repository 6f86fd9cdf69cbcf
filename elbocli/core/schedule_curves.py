"""Noise schedules as curves: λ(t) from t = 0 (data) to t = 1 (noise), t(λ), and the density p(λ) = −dt/dλ."""

# Use float64: in float32, tan(π/2) is negative and Φ⁻¹ never leaves ±5.3.
# At import, the module needs only the standard library, so that listing the names does not import torch.

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Protocol

from elbocli.core.prediction import LIMIT, logsnr_of
from elbocli.core.registry import Bounds, Declaration, Positive, Registry, UnitInterval
from elbocli.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class ScheduleCurve(Protocol):
    """Curve of a schedule before shift and truncation.

    Tensors: float64; the output has the input's shape.
    logsnr: λ(t). t: t(λ), also outside [0, 1]. density: p(λ) = −dt/dλ.
    support: (lowest λ, highest λ), an attribute of curves that cover only some λ.
    on_path: True, an attribute of curves by which the flow path (1−τ)x + τε draws its time τ.
    """

    def logsnr(self, t: Tensor) -> Tensor: ...
    def t(self, logsnr: Tensor) -> Tensor: ...
    def density(self, logsnr: Tensor) -> Tensor: ...


@dataclass(frozen=True, repr=False)
class NamedSchedule(Declaration[[], ScheduleCurve]):
    """Declared schedule: a function or class that turns a SPEC's parameters into a ScheduleCurve."""


def support_of(curve: ScheduleCurve) -> tuple[float, float]:
    """Return the (lowest, highest) λ that a curve covers, within ±LIMIT unless the curve says otherwise."""
    low, high = getattr(curve, "support", (-LIMIT, LIMIT))
    return low, high


MOST_TIMESTEPS = 100_000


@dataclass(frozen=True, repr=False)
class BetaSchedule(Declaration[[float, float, int], "Tensor"]):
    """Function (first β, last β, number of timesteps T) → β [T], float64."""


BETAS = Registry("beta schedule", BetaSchedule)


@BETAS.declare("linear")  # Ho et al. 2020
def linear(start: float, end: float, count: int) -> Tensor:
    import torch

    return torch.linspace(start, end, count, dtype=torch.float64)


@BETAS.declare("scaled_linear")  # Rombach et al. 2022
def scaled_linear(start: float, end: float, count: int) -> Tensor:
    return linear(math.sqrt(start), math.sqrt(end), count).square()


@BETAS.declare("sigmoid")  # Xu et al. 2022: GeoDiff
def sigmoid(start: float, end: float, count: int) -> Tensor:
    return start + (end - start) * linear(-6, 6, count).sigmoid()


@BETAS.declare("squaredcos_cap_v2")  # Nichol & Dhariwal 2021
def squaredcos(start: float, end: float, count: int) -> Tensor:
    abar = (((linear(0, 1, count + 1) + 0.008) / 1.008) * (math.pi / 2)).cos().square()
    return (1 - abar[1:] / abar[:-1]).clamp(max=0.999)


def logsnr_of_betas(beta: Tensor, *, snr_scale: float = 1.0, zero_terminal: bool = False) -> Tensor:
    """Return λ after each timestep, [T], float64.

    beta: [T], float64. snr_scale: divisor of the signal-to-noise ratio.
    zero_terminal: rescale √ᾱ linearly, so that its first value stays and its last is 0 (λ = −∞).
    Raises UsageError unless all β lie within (0, 1).
    Source: Lin et al. 2023, algorithm 1, for zero_terminal.
    """
    if not ((beta > 0) & (beta < 1)).all():
        raise UsageError(f"every beta must be above 0 and below 1, found {beta.min():g} to {beta.max():g}; choose other betas")
    total = (-beta).log1p().cumsum(0)
    logsnr = total - (-total.expm1()).log() - math.log(snr_scale)
    if not zero_terminal:
        return logsnr
    root = logsnr.sigmoid().sqrt()
    abar = ((root - root[-1]) * (root[0] / (root[0] - root[-1]))).square()
    return abar.log() - (-abar).log1p()


def rises(values: Tensor) -> bool:
    """Tell whether the values are strictly increasing."""
    return bool((values.diff() > 0).all())


class Steps:
    """Smooth schedule curve through discrete timesteps.

    logsnr: λ of each timestep, falling, [T], float64; timesteps with |λ| > LIMIT are left out.
    Raises UsageError if λ doesn't fall, or if fewer than two timesteps are left.
    """

    # t(λ) is the cubic spline through (λ_i, (i + ½)/T), so that the integral of p between two timesteps is exactly the fraction
    # of timesteps between them. Slopes are limited to 3 × the slopes of the adjacent chords, so that t never rises (Hyman 1983);
    # for the usual schedules, this changes slopes only at the first and last timestep, and p is continuous.
    def __init__(self, logsnr: Tensor) -> None:
        import torch
        from scipy.interpolate import CubicSpline

        time = (torch.arange(len(logsnr), dtype=torch.float64) + 0.5) / len(logsnr)
        kept = logsnr.abs() <= LIMIT
        # λ rising, t falling
        self.level = logsnr[kept].flip(0)
        self.time = time[kept].flip(0)
        if len(self.level) < 2 or not rises(self.level):
            raise UsageError(
                f"logsnr must fall, with 2 or more values within ±{LIMIT:g} (here {len(self.level)}); choose other betas"
            )
        self.support = (float(self.level[0]), float(self.level[-1]))
        self.chord = self.time.diff() / self.level.diff()
        slopes = torch.from_numpy(CubicSpline(self.level.numpy(), self.time.numpy())(self.level.numpy(), 1))
        steepest = 3 * torch.cat([self.chord[:1], self.chord[:-1].maximum(self.chord[1:]), self.chord[-1:]])
        self.slope = slopes.clamp(max=0).maximum(steepest)

    @lru_cache  # noqa: B019 - a process has few curves
    def on(self, device: torch.device) -> Steps:
        """Return this curve with its tensors on a device."""
        moved = copy(self)
        for name in ("level", "time", "chord", "slope"):
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    def _at(self, cell: Tensor, s: Tensor) -> Tensor:
        rest = 1 - s
        bend = rest * self.slope[cell] - s * self.slope[cell + 1]
        width = self.level[cell + 1] - self.level[cell]
        return self.time[cell] + width * s * (s * (3 - 2 * s) * self.chord[cell] + rest * bend)

    def _cell(self, knots: Tensor, at: Tensor) -> Tensor:
        import torch

        return (torch.searchsorted(knots, at.detach().contiguous()) - 1).clamp(0, len(self.chord) - 1)

    def _place(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        cell = self._cell(self.level, logsnr)
        return cell, (logsnr - self.level[cell]) / (self.level[cell + 1] - self.level[cell])

    def t(self, logsnr: Tensor) -> Tensor:
        return self._at(*self._place(logsnr))

    def density(self, logsnr: Tensor) -> Tensor:
        cell, s = self._place(logsnr)
        ends = (1 - s) * (1 - 3 * s) * self.slope[cell] + s * (3 * s - 2) * self.slope[cell + 1]
        return -(6 * s * (1 - s) * self.chord[cell] + ends)

    def logsnr(self, t: Tensor) -> Tensor:
        import torch

        cell = self._cell(-self.time, -t)
        low = torch.zeros_like(t)
        high = torch.ones_like(t)
        for _ in range(53):
            middle = 0.5 * (low + high)
            late = self._at(cell, middle) > t  # λ is too low: search right
            low = low.where(~late, middle)
            high = high.where(late, middle)
        return self.level[cell] + 0.5 * (low + high) * (self.level[cell + 1] - self.level[cell])


@lru_cache
def steps_of(beta_schedule: str, start: float, end: float, count: float) -> Steps:
    """Return the curve of a discrete schedule.

    beta_schedule: name in BETAS. start, end: first and last β. count: number of timesteps.
    Raises UsageError if `count` is not a whole number, a β lies outside (0, 1), or λ doesn't fall.
    """
    import torch

    if count != int(count):
        raise UsageError(f"count is {count:g}, expected a whole number of timesteps")
    with torch.device("cpu"):  # callers may build a network on the meta device
        return Steps(logsnr_of_betas(BETAS[beta_schedule](start, end, int(count))))


class Shifted:
    """Schedule curve λ(t) of `curve`, plus the number `shift`."""

    def __init__(self, curve: ScheduleCurve, shift: float) -> None:
        self.curve = curve
        self.shift = shift
        self.on_path = getattr(curve, "on_path", False)

    def logsnr(self, t: Tensor) -> Tensor:
        return self.curve.logsnr(t) + self.shift

    def t(self, logsnr: Tensor) -> Tensor:
        return self.curve.t(logsnr - self.shift)

    def density(self, logsnr: Tensor) -> Tensor:
        return self.curve.density(logsnr - self.shift)


CHECKED = 199  # number of λ at which a plug-in's schedule is checked, by times and by λ each
AGREE = 0.01  # largest relative difference of the density from −dt/dλ
INVERSE = 1e-4  # largest difference of t(λ(t)) from t, relative to the range of t
WIDTHS = (1e-7, 1e-5, 1e-3)  # of finite differences: small for narrow densities, large for a t(λ) of few digits


def check_schedule(declared: NamedSchedule) -> None:
    """Raise PluginError unless t(λ) is the inverse of a falling λ(t), and the density is −dt/dλ.

    The density is compared with finite differences at CHECKED equally spaced t, and at CHECKED equally spaced λ within ±15.
    """
    import torch

    # a fraction that puts no point on a kink at a round t or λ
    curve = declared()
    off_grid = 0.381966
    low, high = support_of(curve)
    even = (torch.arange(CHECKED, dtype=torch.float64) + off_grid) / CHECKED
    ends = torch.tensor([high, low], dtype=torch.float64)
    first, last = declared.expect_like(curve.t(ends), ends, "t(logsnr)")
    t = first + (last - first) * even
    level = declared.expect_like(curve.logsnr(t), t, "logsnr(t)")
    if not level.dtype == t.dtype == torch.float64:
        raise declared.fault(f"computes logsnr(t) in {level.dtype} and t(logsnr) in {t.dtype}; compute both in float64")
    if not (level.isfinite().all() and rises(-level)):
        raise declared.fault("has a logsnr(t) that is not finite or doesn't fall with t; t = 0 is data and t = 1 noise")
    low = max(low, -15.0)
    high = min(high, 15.0)
    at = torch.cat([level, low + (high - low) * even])
    density = declared.expect_like(curve.density(at), at, "density(logsnr)")
    # One call for all λ: a t(λ) by bisection takes as long for one as for a thousand.
    back, before, after = curve.t(torch.cat([level, *(at - width for width in WIDTHS), *(at + width for width in WIDTHS)])).split(
        [CHECKED, len(WIDTHS) * len(at), len(WIDTHS) * len(at)]
    )
    apart = ((back - t) / (last - first)).abs().nan_to_num(math.inf)
    i = int(apart.argmax())
    if apart[i] > INVERSE:
        raise declared.fault(f"has t(logsnr(t)) = {back[i]:.4g} at t = {t[i]:.4g}; make t(logsnr) the inverse of logsnr(t)")
    slope = (before - after).view(len(WIDTHS), -1) / (2 * torch.tensor(WIDTHS, dtype=torch.float64)[:, None])
    apart = (density - slope).abs() / (AGREE * density.maximum(slope) + 1e-6 * slope.max())
    apart, width = apart.nan_to_num(math.inf).min(0)
    i = int(apart.argmax())
    if apart[i] > 1:
        raise declared.fault(
            f"has density({at[i]:.4g}) = {density[i]:.4g}, where -dt/dlogsnr is {slope[width[i], i]:.4g}; "
            "correct density(logsnr) or t(logsnr)"
        )


SCHEDULES = Registry("schedule", NamedSchedule, check_schedule)
schedule = SCHEDULES.declare
"""Decorator that declares a schedule: a function or class that turns floats, a SPEC's parameters, into a ScheduleCurve."""


def _inverse(
    function: Callable[[Tensor], Tensor],
    slope: Callable[[Tensor], Tensor],
    goal: Tensor,
    least: float | Tensor,
    greatest: float | Tensor,
) -> Tensor:
    # x in [least, greatest] with function(x) = goal, for a rising function with derivative `slope`, by bisection and Newton steps.
    # Autograd differentiates the last Newton step alone.
    wanted = goal.detach()
    low = wanted * 0 + least
    high = wanted * 0 + greatest
    for _ in range(40):
        middle = (low + high) / 2
        above = function(middle) > wanted
        low = low.where(above, middle)
        high = middle.where(above, high)
    x = (low + high) / 2
    x = x - (function(x) - wanted) / slope(x)
    return x - (function(x) - goal) / slope(x)


@schedule(
    "cosine",
    formula="-2 log tan(pi t/2)",
    source="Nichol & Dhariwal 2021, without offset; SD3's CosMap",
    known_as=["cosmap", "cos-map"],
)
class Cosine:
    def logsnr(self, t: Tensor) -> Tensor:
        return -2 * (t * (math.pi / 2)).tan().log()

    def t(self, logsnr: Tensor) -> Tensor:
        return (2 / math.pi) * (-logsnr / 2).exp().atan()

    def density(self, logsnr: Tensor) -> Tensor:
        return 1 / (2 * math.pi * (logsnr / 2).cosh())


@schedule(
    "iddpm",
    formula="logit abar, abar = [cos((t+s)/(1+s) pi/2) / cos(s/(1+s) pi/2)]^2",
    source="Nichol & Dhariwal 2021",
)
class Iddpm:
    # θ is linear in t from θ₀; ᾱ = cos²θ/cos²θ₀, 1 − ᾱ = sin(θ−θ₀) sin(θ+θ₀)/cos²θ₀.
    def __init__(self, s: Positive = 0.008) -> None:
        self.rate = math.pi / 2 / (1 + s)
        self.start = s * self.rate

    def logsnr(self, t: Tensor) -> Tensor:
        turn = t * self.rate
        return 2 * (turn + self.start).cos().log() - turn.sin().log() - (turn + 2 * self.start).sin().log()

    def _cos_sin(self, logsnr: Tensor) -> tuple[Tensor, Tensor]:
        signal = logsnr.sigmoid()
        noise = (-logsnr).sigmoid()
        return math.cos(self.start) * signal.sqrt(), (noise + signal * math.sin(self.start) ** 2).sqrt()

    def t(self, logsnr: Tensor) -> Tensor:
        cos, sin = self._cos_sin(logsnr)
        return (sin.atan2(cos) - self.start) / self.rate

    def density(self, logsnr: Tensor) -> Tensor:
        cos, sin = self._cos_sin(logsnr)
        return cos * (-logsnr).sigmoid() / (2 * self.rate * sin)


def normal_density(logsnr: Tensor, mean: float, std: float) -> Tensor:
    """Return the density of N(mean, std²) at each λ."""
    return (-0.5 * ((logsnr - mean) / std).square()).exp() / (std * math.sqrt(2 * math.pi))


@schedule(
    "edm",
    formula="-2 mean - 2 std Phi^-1(t)",
    source="Karras et al. 2022: ln sigma ~ N(mean, std^2)",
    known_as=[
        "lognormal",
        "log-normal",
        "edm2-img64:mean=-0.8,std=1.6",
        "edm2-img512:mean=-0.4,std=1",
    ],
)
class Edm:
    def __init__(self, mean: float = -1.2, std: Positive = 1.2) -> None:
        self.center = -2 * mean
        self.width = 2 * std

    def logsnr(self, t: Tensor) -> Tensor:
        import torch

        return self.center - self.width * torch.special.ndtri(t)

    def t(self, logsnr: Tensor) -> Tensor:
        return 0.5 * ((logsnr - self.center) / (self.width * math.sqrt(2))).erfc()

    def density(self, logsnr: Tensor) -> Tensor:
        return normal_density(logsnr, self.center, self.width)


@schedule(
    "laplace",
    formula="mean - scale sgn(1/2 - t) log(1 - 2|t - 1/2|)",
    source="Hang et al. 2024, arXiv:2407.03297: logsnr ~ Laplace(mean, scale)",
)
class Laplace:
    def __init__(self, mean: float = 0.0, scale: Positive = 0.5) -> None:
        self.mean = mean
        self.scale = scale

    def logsnr(self, t: Tensor) -> Tensor:
        clean = t < 0.5  # t below and above ½ are computed separately, to keep precision in both tails
        tail = (2 * t.where(clean, 1 - t)).log() * self.scale
        return self.mean - tail.where(clean, -tail)

    def t(self, logsnr: Tensor) -> Tensor:
        away = (logsnr - self.mean) / self.scale
        tail = 0.5 * (-away.abs()).exp()
        return tail.where(away > 0, 1 - tail)

    def density(self, logsnr: Tensor) -> Tensor:
        return (-((logsnr - self.mean) / self.scale).abs()).exp() / (2 * self.scale)


@schedule(
    "edm-sample",
    formula="-2 rho log(a + t(b-a)), a = sigma_min^(1/rho), b = sigma_max^(1/rho)",
    source="Karras et al. 2022, eq. 5",
    known_as=["karras"],
)
class EdmSample:
    def __init__(self, rho: Positive = 7.0, sigma_min: Positive = 0.002, sigma_max: Positive = 80.0) -> None:
        self.rho = rho
        self.a = sigma_min ** (1 / rho)
        self.b = sigma_max ** (1 / rho)
        self.support = (logsnr_of(sigma_max), logsnr_of(sigma_min))

    def logsnr(self, t: Tensor) -> Tensor:
        return -2 * self.rho * (self.a + t * (self.b - self.a)).log()

    def t(self, logsnr: Tensor) -> Tensor:
        return ((-logsnr / (2 * self.rho)).exp() - self.a) / (self.b - self.a)

    def density(self, logsnr: Tensor) -> Tensor:
        return (-logsnr / (2 * self.rho)).exp() / (2 * self.rho * (self.b - self.a))


@schedule(
    "fm-ot",
    formula="2 log((1-t)/t)",
    source="Lipman et al. 2022: optimal-transport path, uniform t",
    known_as=["rf", "rectified-flow", "flow-matching"],
)
class FmOt:
    on_path = True

    def logsnr(self, t: Tensor) -> Tensor:
        return 2 * ((1 - t) / t).log()

    def t(self, logsnr: Tensor) -> Tensor:
        return (-logsnr / 2).sigmoid()

    def density(self, logsnr: Tensor) -> Tensor:
        return 1 / (8 * (logsnr / 4).cosh().square())


@schedule(
    "mode",
    formula="2 log((1-u)/u), u = t - scale (sin(pi t/2)^2 - t)",
    source="Esser et al. 2024 (SD3), eq. 20: optimal-transport path, times by mode sampling with heavy tails",
    known_as=["heavy-tail"],
)
class Mode:
    on_path = True

    def __init__(self, scale: Annotated[float, Bounds(-1, 2 / (math.pi - 2) * (1 - 1e-9))] = 1.29) -> None:
        self.scale = scale
        self.path = FmOt()

    def _u(self, t: Tensor) -> Tensor:
        return t - self.scale * ((t * (math.pi / 2)).sin().square() - t)

    def _slope(self, t: Tensor) -> Tensor:
        return 1 + self.scale - self.scale * (math.pi / 2) * (math.pi * t).sin()

    def logsnr(self, t: Tensor) -> Tensor:
        return self.path.logsnr(self._u(t))

    def t(self, logsnr: Tensor) -> Tensor:
        return _inverse(self._u, self._slope, self.path.t(logsnr), 0.0, 1.0)

    def density(self, logsnr: Tensor) -> Tensor:
        return self.path.density(logsnr) / self._slope(self.t(logsnr))


@schedule(
    "logit-normal",
    formula="2 log((1-u)/u), logit u ~ N(mean, std^2)",
    source="Esser et al. 2024 (SD3): optimal-transport path, logit-normal times",
)
class LogitNormal(Edm):
    on_path = True

    def __init__(self, mean: float = 0.0, std: Positive = 1.0) -> None:
        super().__init__(mean, std)


@schedule(
    "linear-beta",
    formula="-log expm1(beta_min t + (beta_max-beta_min) t^2/2)",
    source="Ho et al. 2020; Song et al. 2021",
    known_as=["vp", "vp-sde"],
)
class LinearBeta:
    def __init__(self, beta_min: float = 0.1, beta_max: Positive = 20.0) -> None:
        if not 0 <= beta_min < beta_max:
            raise UsageError(f"linear-beta: expected 0 <= beta_min < beta_max, found {beta_min:g} and {beta_max:g}")
        self.low = beta_min
        self.rise = beta_max - beta_min

    def logsnr(self, t: Tensor) -> Tensor:
        return -(self.low * t + 0.5 * self.rise * t.square()).expm1().log()

    def t(self, logsnr: Tensor) -> Tensor:
        total = (-logsnr).exp().log1p()
        return 2 * total / (self.low + (self.low**2 + 2 * self.rise * total).sqrt())

    def density(self, logsnr: Tensor) -> Tensor:
        return (-logsnr).sigmoid() / (self.low + self.rise * self.t(logsnr))


@schedule(
    "interpolated",
    formula="-2 log tan(pi t/2) + t 2 log(low/size) + (1-t) 2 log(high/size)",
    source="Hoogeboom et al. 2023, as k-diffusion reads it: from the cosine shifted as for high pixels, at clean data, to "
    "that as for low, images having size",
    known_as=["cosine-interpolated"],
)
class Interpolated:
    # λ = u + start + rise·t with u = −2 log tan(πt/2); λ falls if rise < 2π.
    def __init__(self, low: Positive = 32.0, high: Positive = 256.0, size: Positive = 64.0) -> None:
        self.cosine = Cosine()
        self.start = 2 * math.log(high / size)
        self.rise = 2 * math.log(low / high)
        if not self.rise < 2 * math.pi:
            raise UsageError(f"interpolated: low {low:g} must be below {math.exp(math.pi):.4g} times high {high:g}; lower 'low'")

    def _cosine(self, logsnr: Tensor) -> Tensor:
        goal = logsnr - self.start
        ends = (goal.detach() - max(self.rise, 0.0), goal.detach() - min(self.rise, 0.0))
        return _inverse(lambda u: u + self.rise * self.cosine.t(u), lambda u: 1 - self.rise * self.cosine.density(u), goal, *ends)

    def logsnr(self, t: Tensor) -> Tensor:
        return self.cosine.logsnr(t) + self.start + self.rise * t

    def t(self, logsnr: Tensor) -> Tensor:
        return self.cosine.t(self._cosine(logsnr))

    def density(self, logsnr: Tensor) -> Tensor:
        p = self.cosine.density(self._cosine(logsnr))
        return p / (1 - self.rise * p)


@schedule(
    "uniform",
    formula="linear in logsnr",
    source="equal time at every logsnr",
    known_as=["loguniform", "log-uniform", "exponential"],
)
class Uniform:
    def logsnr(self, t: Tensor) -> Tensor:
        return -t

    def t(self, logsnr: Tensor) -> Tensor:
        return -logsnr

    def density(self, logsnr: Tensor) -> Tensor:
        return logsnr * 0 + 1


Timesteps = Annotated[float, Bounds(2, MOST_TIMESTEPS)]


@schedule("t-linear", formula="timesteps whose betas are even from start to end", source="Ho et al. 2020")
def t_linear(count: Timesteps = 1000.0, start: float = 1e-4, end: float = 0.02) -> Steps:
    return steps_of("linear", start, end, count)


@schedule(
    "t-scaled-linear",
    formula="timesteps whose betas' roots are even from those of start to end",
    source="Rombach et al. 2022",
)
def t_scaled_linear(count: Timesteps = 1000.0, start: UnitInterval = 0.00085, end: UnitInterval = 0.012) -> Steps:
    return steps_of("scaled_linear", start, end, count)


@schedule("t-squaredcos", formula="timesteps of the cosine's betas", source="Nichol & Dhariwal 2021")
def t_squaredcos(count: Timesteps = 1000.0) -> Steps:
    return steps_of("squaredcos_cap_v2", 0.0, 0.0, count)
