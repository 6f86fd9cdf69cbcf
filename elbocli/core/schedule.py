"""Noise schedules and level codes. The declared curves are in core/schedule_curves.py.

Schedule: a float64 curve λ(t). The weighted loss doesn't depend on the schedule (arXiv:2303.00848 sec. 3).
Level code: a function of λ, such as σ or a timestep, that a published network takes as input.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, wraps
from pathlib import Path
from typing import TYPE_CHECKING

from elbocli.core.plots import draw_curve
from elbocli.core.prediction import LIMIT
from elbocli.core.registry import Declaration, Positive, Registry, number, parse_spec, plain
from elbocli.core.schedule_curves import (
    SCHEDULES,
    NamedSchedule,
    ScheduleCurve,
    Steps,
    rises,
    t_linear,
    t_scaled_linear,
    t_squaredcos,
)
from elbocli.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor


LEAST_SHARE = 1e-9
NARROWEST = 1e-3  # least width of a range of λ; the bins of an adaptive schedule must be wide enough to be smoothed


def cell_of(at: Tensor, edges: Tensor) -> Tensor:
    """Return the bin k of each value: edges[k] ≤ value < edges[k+1]; beyond all bins, the nearest."""
    import torch

    return (torch.searchsorted(edges, at.contiguous(), right=True) - 1).clamp(0, len(edges) - 2)


class Table:
    """Curve with λ(t) linear between knots.

    knots: pairs (t, λ); t rises strictly from 0 to 1, and λ falls strictly. Raises UsageError for other knots.
    """

    def __init__(self, knots: Sequence[tuple[float, float]]) -> None:
        import torch

        time, level = torch.tensor(knots, dtype=torch.float64).T.contiguous()
        if time[0] != 0 or time[-1] != 1 or not rises(time) or not rises(-level):
            raise UsageError("knots: t must strictly rise from 0 to 1, and logsnr must strictly fall; correct the knots")
        self.time = time
        self.level = level
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
    """Noise schedule: a curve λ(t), shifted by `shift` in λ, then truncated to [logsnr_min, logsnr_max].

    name: name and parameters of the curve, `name:key=value,…`, without the shift.
    declared: entry of SCHEDULES with the curve's parameters, if any. file: file that the curve was read from, if any.
    Raises UsageError for a range that the curve doesn't cover.
    """

    curve: ScheduleCurve
    name: str
    logsnr_min: float
    logsnr_max: float
    shift: float = 0.0
    declared: NamedSchedule | None = None
    file: Path | None = None

    def __post_init__(self) -> None:
        check_range(self.logsnr_min, self.logsnr_max)
        low, high = self.support
        if self.logsnr_min < low - 1e-9 or self.logsnr_max > high + 1e-9:
            raise UsageError(
                f"{self.base} covers logsnr {low:g} to {high:g}, not {self.logsnr_min:g} to {self.logsnr_max:g}; narrow the range"
            )
        first, last = self._ends
        if not float(last - first) > LEAST_SHARE:
            raise UsageError(f"{self.base} has no density in logsnr {self.logsnr_min:g} to {self.logsnr_max:g}; widen the range")

    def __repr__(self) -> str:
        return f"Schedule({self.base!r}, {self.logsnr_min:g}, {self.logsnr_max:g})"

    @property
    def base(self) -> str:
        """Name, parameters and shift of the curve, such as `cosine:shift=-1`."""
        if not self.shift:
            return self.name
        return f"{self.name}{',' if ':' in self.name else ':'}shift={plain(self.shift)}"

    @property
    def path(self) -> bool:
        """Whether the schedule draws the time of a flow path, as its curve says."""
        return getattr(self.curve, "on_path", False)

    @property
    def support(self) -> tuple[float, float]:
        """Range of λ that the shifted curve covers before truncation."""
        return _support(self.curve, self.shift)

    def plot(self, axis: Axes | None = None) -> Axes:
        """Draw the density p(λ) on a matplotlib axis, by default the current one; return the axis."""
        import torch

        at = torch.linspace(self.logsnr_min, self.logsnr_max, 601, dtype=torch.float64)
        return draw_curve(at, self.density(at), self.base, "density p(λ)", axis)

    @cached_property
    def _ends(self) -> tuple[Tensor, Tensor]:
        import torch

        ends = torch.tensor([self.logsnr_max, self.logsnr_min], dtype=torch.float64) - self.shift
        first, last = self.curve.t(ends)
        return first, last

    def logsnr(self, t: Tensor) -> Tensor:
        """Return λ at each t ∈ [0, 1], float64; logsnr_max at t = 0, logsnr_min at t = 1."""
        first, last = self._ends
        level = self.curve.logsnr(first + (last - first) * t) + self.shift
        # The limits are set, because no float64 t near 1 reaches the far tail of a normal distribution.
        level = level.where(t < 1, self.logsnr_min).where(t > 0, self.logsnr_max)
        return level.clamp(self.logsnr_min, self.logsnr_max)

    def t(self, logsnr: Tensor) -> Tensor:
        """Return t at each λ, clamped to [0, 1]."""
        first, last = self._ends
        return ((self.curve.t(logsnr - self.shift) - first) / (last - first)).clamp(0, 1)

    def density(self, logsnr: Tensor) -> Tensor:
        """Return the density p(λ) = −dt/dλ, which is zero outside the range and integrates to one."""
        first, last = self._ends
        inside = (logsnr >= self.logsnr_min) & (logsnr <= self.logsnr_max)
        return self.curve.density(logsnr - self.shift) / (last - first) * inside

    def untruncated_density(self, logsnr: Tensor) -> Tensor:
        """Return the density of the shifted curve before truncation, zero outside `support`."""
        low, high = self.support
        return self.curve.density(logsnr - self.shift) * ((logsnr >= low) & (logsnr <= high))


def check_range(low: float, high: float) -> None:
    """Raise UsageError unless the range [low, high] of λ is within ±LIMIT and at least NARROWEST wide."""
    if not (low >= -LIMIT and high <= LIMIT and high - low >= NARROWEST):
        raise UsageError(f"the logsnr range {low:g} to {high:g} must be {NARROWEST:g} wide or more, within ±{LIMIT:g}")


def _support(curve: ScheduleCurve, shift: float) -> tuple[float, float]:
    low, high = getattr(curve, "support", (-LIMIT - shift, LIMIT - shift))
    return max(low + shift, -LIMIT), min(high + shift, LIMIT)


def make_schedule(
    curve: ScheduleCurve,
    name: str,
    low: float | None = None,
    high: float | None = None,
    *,
    shift: float = 0.0,
    clip: bool = False,
    declared: NamedSchedule | None = None,
    file: Path | None = None,
) -> Schedule:
    """Return the schedule of a curve, shifted by `shift`, then truncated to [low, high].

    low, high: range of λ; None: as far as the shifted curve reaches. name, declared, file: as in `Schedule`.
    clip: whether to reduce [low, high] to the range that the shifted curve covers.
    Raises UsageError for a range that the curve doesn't cover.
    """
    ends = _support(curve, shift)
    low = ends[0] if low is None else low
    high = ends[1] if high is None else high
    if clip:
        low = max(low, ends[0])
        high = min(high, ends[1])
    return Schedule(curve, name, low, high, shift, declared, file)


def parse_schedule(
    text: str, low: float | None = None, high: float | None = None, *, clip: bool = False, size: int | None = None
) -> Schedule:
    """Return the schedule of a text such as `cosine:shift=-1.4` or `edm:mean=-0.4,std=1`.

    low, high, clip: as in `make_schedule`. size: image size in pixels, the default of the curve's parameter `size`.
    Raises UsageError for an unknown name or parameter, or a range that the curve doesn't cover.
    """
    name, params = parse_spec(text)
    declared = SCHEDULES.find(name)
    shift = number(params.pop("shift", 0.0), "shift")
    if size is not None and "size" in declared.params:
        declared = declared.bind({"size": float(size)})
    declared = declared.bind(params)
    try:
        curve = declared()
    except (OverflowError, ZeroDivisionError):
        raise UsageError(f"{text!r}: the parameters lead to numbers outside float64 range; choose less extreme values") from None
    SCHEDULES.verify(declared)
    return make_schedule(curve, declared.spec, low, high, shift=shift, clip=clip, declared=declared)


def schedule_of_shares(edges: Tensor, shares: Tensor, name: str) -> Schedule:
    """Return a piecewise linear schedule with a given probability of each bin of λ.

    edges: bin boundaries, rising λ, [B + 1]. shares: relative probabilities, [B].
    """
    import torch

    time = torch.cat([torch.zeros(1, dtype=torch.float64), shares.flip(0).cumsum(0)])
    knots = zip((time / time[-1]).tolist(), edges.flip(0).tolist(), strict=True)
    return make_schedule(Table(list(knots)), name)


@dataclass(frozen=True, repr=False)
class LevelCode(Declaration[["Tensor"], "Tensor"]):
    """Function λ [B] → input of a network [B], in float32, or in float64 if λ is float64."""


LEVEL_CODES = Registry("level code", LevelCode)
level_code = LEVEL_CODES.declare


@level_code("logsnr")  # factor -1/8 is EDM's ln(sigma)/4
def logsnr(level: Tensor, factor: float = 1.0) -> Tensor:
    return factor * level


@level_code("sigma")  # Karras et al. 2022: sigma of the data plus noise
def sigma(level: Tensor) -> Tensor:
    return (-0.5 * level).exp()


@level_code("flow")  # Lipman et al. 2022: factor t, with logsnr = 2 log((1-t)/t), where t = 1 is noise
def flow(level: Tensor, factor: float = 1.0) -> Tensor:
    return factor * (-0.5 * level).sigmoid()


# Ma et al. 2024 (SiT): factor (1-t), where 1 is data; noise_scale: standard deviation of the noise at t = 1 (Li & He 2025: JiT)
@level_code("flow-reversed")
def flow_reversed(level: Tensor, factor: float = 1.0, noise_scale: Positive = 1.0) -> Tensor:
    return factor * (0.5 * level + math.log(noise_scale)).sigmoid()


def timestep_code(curve: Callable[..., Steps]) -> Callable[..., Tensor]:
    """Return the level code that gives the number of one of a schedule's timesteps. curve: the schedule, with parameter `count`."""

    @wraps(curve)  # the code has the schedule's parameters
    def code(level: Tensor, *, count: float, **others: float) -> Tensor:
        import torch

        steps = curve(count=count, **others).on(level.device)
        time = steps.t(level.double().clamp(*steps.support))
        return (count * time - 0.5).clamp(0, count - 1).to(torch.promote_types(level.dtype, torch.float32))

    return code


for _name, _curve in (("t-linear", t_linear), ("t-scaled-linear", t_scaled_linear), ("t-squaredcos", t_squaredcos)):
    level_code(_name)(timestep_code(_curve))


def parse_level_code(text: str) -> LevelCode:
    """Return the level code of a text such as `logsnr:factor=-0.125` or `t:linear`. Raises UsageError."""
    words = text.strip()
    return LEVEL_CODES.parse("t-" + words[2:].replace(",", ":", 1) if words.startswith("t:") else words)
