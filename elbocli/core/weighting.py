"""w(λ), the weight of each noise level relative to the ε loss: declared once each, by name.

L_w = ½ ∫ w(λ) E‖ε − ε̂‖² dλ. Only the shape of w matters to an optimum, so constants are left out;
A trait `const` is (the objective as its authors write it) / L_w.
Tensor methods and plain maths only: listing the names must not import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

from elbocli.core.foreign_loss import ForeignLoss, is_foreign_loss, parse_foreign_loss, parse_head
from elbocli.core.logsnr import LIMIT
from elbocli.core.monotone import Function, float64, rising, slope
from elbocli.core.registry import Registry, number, numbers, parse_spec, plain
from elbocli.core.schedule import SCHEDULES, Schedule, parse_schedule
from elbocli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class WeightingTraits:
    """monotone: whether w is claimed never to increase in λ. const: (the objective as its authors write it) / L_w, as text."""

    monotone: bool
    const: str = ""


WEIGHTINGS: Registry[WeightingTraits] = Registry("weighting")
PAPER = "arXiv:2303.00848"


def weighting(
    name: str, *, formula: str, monotone: bool, source: str, const: str = "", positive: Any = (), **params: float
) -> Callable[..., Any]:
    """Declare w(λ): a function of a float64 tensor and the parameters named here with their defaults."""
    traits = WeightingTraits(monotone, const)
    return WEIGHTINGS.declare(name, params, formula=formula, source=source, positive=positive, traits=traits)


def _sech(x: Tensor) -> Tensor:
    return 1 / x.cosh()


@weighting("elbo", formula="1", monotone=True, source=f"{PAPER} sec. 3; Kingma et al. 2021", const="1")
def elbo(logsnr: Tensor) -> Tensor:
    return logsnr * 0 + 1


@weighting(
    "iddpm",
    formula="sech(logsnr/2)",
    monotone=False,
    source="Nichol & Dhariwal 2021: eps loss, cosine schedule",
    const="1/pi",
)
def iddpm(logsnr: Tensor) -> Tensor:
    return _sech(logsnr / 2)


@weighting(
    "v-cosine",
    formula="exp(-logsnr/2)",
    monotone=True,
    source="Salimans & Ho 2022: v loss, cosine schedule",
    const="2/pi",
)
@weighting(
    "fm-ot",
    formula="exp(-logsnr/2)",
    monotone=True,
    source="Lipman et al. 2022: flow matching, optimal-transport path",
    const="1",
)
def v_cosine(logsnr: Tensor) -> Tensor:
    return (-logsnr / 2).exp()


@weighting(
    "indi",
    formula="exp(-logsnr) sech(logsnr/4)^2",
    monotone=True,
    source="Delbracio & Milanfar 2023: x loss, optimal-transport path",
    const="1/4",
)
def indi(logsnr: Tensor) -> Tensor:
    return (-logsnr).exp() * _sech(logsnr / 4).square()


@weighting(
    "x-cosine", formula="exp(-logsnr) sech(logsnr/2)", monotone=True, source="x loss, cosine schedule", const="1/pi"
)
def x_cosine(logsnr: Tensor) -> Tensor:
    return (-logsnr).exp() * _sech(logsnr / 2)


@weighting(
    "snr-trunc",
    formula="sech(logsnr/2) max(1, exp(-logsnr))",
    monotone=True,
    source="Salimans & Ho 2022: truncated SNR, cosine schedule",
    const="1/pi",
)
def snr_trunc(logsnr: Tensor) -> Tensor:
    return _sech(logsnr / 2) * (-logsnr).exp().clamp(min=1)


@weighting(
    "p2",
    formula="sech(logsnr/2) / (1 + exp(logsnr))^gamma",
    monotone=False,
    source="Choi et al. 2022: P2, k = 1, cosine schedule",
    const="1/pi",
    gamma=1.0,
)
def p2(logsnr: Tensor, gamma: float) -> Tensor:
    return _sech(logsnr / 2) * (-logsnr).sigmoid() ** gamma


@weighting(
    "min-snr",
    formula="sech(logsnr/2) min(1, gamma exp(-logsnr))",
    monotone=False,
    source="Hang et al. 2023: Min-SNR, cosine schedule",
    const="1/pi",
    positive=["gamma"],
    gamma=5.0,
)
def min_snr(logsnr: Tensor, gamma: float) -> Tensor:
    return _sech(logsnr / 2) * (gamma * (-logsnr).exp()).clamp(max=1)


@weighting(
    "soft-min-snr",
    formula="sech(logsnr/2) exp(-logsnr) / (exp(-logsnr) + sigma_data^2)",
    monotone=False,
    source="Crowson et al. 2024: soft Min-SNR, cosine schedule",
    positive=["sigma_data"],
    sigma_data=0.5,
)
def soft_min_snr(logsnr: Tensor, sigma_data: float) -> Tensor:
    noise = (-logsnr).exp()
    return _sech(logsnr / 2) * noise / (noise + sigma_data**2)


@weighting(
    "ddpm",
    formula="sigma^2 / beta(t(logsnr))",
    monotone=False,
    source="Ho et al. 2020: eps loss, linear beta schedule",
    const="2",
    positive=["beta_max"],
    beta_min=0.1,
    beta_max=20.0,
)
def ddpm(logsnr: Tensor, beta_min: float, beta_max: float) -> Tensor:
    return SCHEDULES["linear-beta"].make(beta_min=beta_min, beta_max=beta_max).density(logsnr)


def _normal(logsnr: Tensor, mean: float, std: float) -> Tensor:
    return (-0.5 * ((logsnr - mean) / std).square()).exp() / (std * math.sqrt(2 * math.pi))


@weighting(
    "edm",
    formula="N(logsnr; -2 mean, (2 std)^2) (exp(-logsnr) + sigma_data^2)",
    monotone=False,
    source="Karras et al. 2022: ln sigma ~ N(mean, std^2)",
    const="2/sigma_data^2",
    positive=["std", "sigma_data"],
    mean=-1.2,
    std=1.2,
    sigma_data=0.5,
)
def edm(logsnr: Tensor, mean: float, std: float, sigma_data: float) -> Tensor:
    return _normal(logsnr, -2 * mean, 2 * std) * ((-logsnr).exp() + sigma_data**2)


@weighting(
    "edm-monotonic",
    formula="edm held constant left of its peak",
    monotone=True,
    source=f"{PAPER} sec. 4",
    positive=["std", "sigma_data"],
    mean=-1.2,
    std=1.2,
    sigma_data=0.5,
)
def edm_monotonic(logsnr: Tensor, mean: float, std: float, sigma_data: float) -> Tensor:
    params = (("mean", mean), ("std", std), ("sigma_data", sigma_data))
    return _cached("edm", params, 0.0, True)(logsnr)  # it takes a thousand times as long to find the peak as to use it


@weighting("sigmoid", formula="sigmoid(bias - logsnr)", monotone=True, source=f"{PAPER} sec. 5", bias=2.0)
def sigmoid(logsnr: Tensor, bias: float) -> Tensor:
    return (bias - logsnr).sigmoid()


@weighting(
    "sd3",
    formula="N(logsnr; -2m, 4s^2) (1 + exp(-logsnr/2))^2",
    monotone=False,
    source="Esser et al. 2024: logit-normal t, optimal-transport path",
    const="2",
    positive=["s"],
    m=0.0,
    s=1.0,
)
def sd3(logsnr: Tensor, m: float, s: float) -> Tensor:
    return _normal(logsnr, -2 * m, 2 * s) * (1 + (-logsnr / 2).exp()).square()


class Weighting:
    """A weighting with its parameters bound and its modifiers applied.

    shift: w(λ) → w(λ − shift), for other resolutions. monotone: the least non-increasing w that is
    nowhere smaller, which for one peak is w held constant left of it. support: the λ beyond which w is zero.
    Raises UsageError for an unknown name or parameter.
    """

    def __init__(
        self, name: str, params: dict[str, float] | None = None, *, shift: float = 0.0, monotone: bool = False
    ):
        declared = WEIGHTINGS.find(name)
        bound = declared.bind(params or {})
        self._set(lambda logsnr: declared.make(logsnr, **bound), declared.spec(bound), shift, monotone)

    def _set(
        self,
        function: Function,
        base: str,
        shift: float,
        monotone: bool,
        schedule: Schedule | None = None,
        tail: str = "",
    ) -> None:
        self._function, self.base, self.shift, self.monotone, self._tail = function, base, shift, monotone, tail
        low, high = schedule.support if schedule else (-math.inf, math.inf)
        self.support = (-LIMIT if monotone else max(low + shift, -LIMIT), min(high + shift, LIMIT))

    @classmethod
    def of_objective(cls, objective: ForeignLoss, *, shift: float = 0.0, monotone: bool = False) -> Weighting:
        """The weighting that an objective amounts to, at the scale of the objective."""
        self = cls.__new__(cls)
        self._set(objective, objective.head, shift, monotone, objective.schedule, f"@{objective.schedule.base}")
        return self

    @classmethod
    def of_schedule(cls, schedule: Schedule, *, monotone: bool = False) -> Weighting:
        """The weighting of a plain ε loss under that schedule: its density, scaled to a peak of 1."""
        self = cls.__new__(cls)
        density = schedule.untruncated_density
        low, high = schedule.support
        peaks = [end for _, end in rising(density, low, high)]
        scale = float(density(float64([low, high, *peaks])).max())
        self._set(lambda logsnr: density(logsnr) / scale, f"schedule:{schedule.base}", 0.0, monotone, schedule)
        return self

    @property
    def spec(self) -> str:
        """How to write this weighting so that it means the same again."""
        words = [f"shift={plain(self.shift)}"] if self.shift else []
        words += ["monotone"] if self.monotone else []
        joint = "," if ":" in self.base else ":"
        return self.base + (joint + ",".join(words) if words else "") + self._tail

    def __call__(self, logsnr: Tensor) -> Tensor:
        """w at each λ. Pass float64: densities and weights span hundreds of orders of magnitude."""
        logsnr = logsnr - self.shift
        value = self._function(logsnr)
        if self.monotone:
            for peak, height in self._peaks:
                value = value.maximum((logsnr <= peak).to(value.dtype) * height)
        return value

    def log(self, logsnr: Tensor) -> Tensor:
        """log w at each λ."""
        return self(logsnr).log()

    def slope(self, logsnr: Tensor) -> Tensor:
        """dw/dλ by automatic differentiation; −slope is the density p_w of a monotone weighting."""
        return slope(self, logsnr)

    def rising(self, low: float, high: float) -> list[tuple[float, float]]:
        """The intervals of [low, high] on which w increases: empty means that L_w is an ELBO of noisy data."""
        return rising(self, low, high)

    def verdict(self, low: float, high: float) -> str:
        """Whether L_w is an ELBO on [low, high], in words."""
        intervals = ", ".join(f"{start:.7g} to {end:.7g}" for start, end in self.rising(low, high))
        if intervals:
            return f"rises for logsnr {intervals}: its loss is not an ELBO"
        return f"never rises for logsnr {low:.7g} to {high:.7g}: its loss is the ELBO of noise-augmented data"

    @cached_property
    def _peaks(self) -> list[tuple[float, float]]:
        ends = [end for _, end in rising(self._function, -LIMIT, LIMIT)]
        return [(end, float(self._function(float64([end])))) for end in ends]


@lru_cache(maxsize=64)
def _cached(name: str, params: tuple[tuple[str, float], ...], shift: float, monotone: bool) -> Weighting:
    return Weighting(name, dict(params), shift=shift, monotone=monotone)


def parse_weighting(
    text: str,
    *,
    shift: float = 0.0,
    monotone: bool = False,
    given: dict[str, float] | None = None,
    schedule: Callable[[str], Schedule] | None = None,
) -> Weighting:
    """The weighting that a user wrote: `sigmoid:bias=2`, `edm:shift=-1.4,monotone`, `v-mse@cosine`, `schedule:cosine`.

    given: parameters from elsewhere (options), over those in the text. schedule: finds a schedule by its
    spec, for those that name one; without it only declared ones are known. Raises UsageError.
    """
    text = text.strip()
    if is_foreign_loss(text) or text.partition(":")[0] == "schedule":
        return _parse_scheduled(text, shift, monotone, given, schedule or parse_schedule)
    spec = parse_spec(text, flags=["monotone"])
    params = dict(spec.params)
    own_shift = number(params.pop("shift", 0.0), "shift")
    bound = {**numbers(params), **(given or {})}
    return _cached(spec.name, tuple(bound.items()), shift + own_shift, monotone or "monotone" in spec.flags)


def _parse_scheduled(
    text: str, shift: float, monotone: bool, given: dict[str, float] | None, find: Callable[[str], Schedule]
) -> Weighting:
    """`schedule:S` or `TARGET-mse[:FACTOR]@S`. No schedule has a parameter called monotone, so it may also come last."""
    kind = "@" if is_foreign_loss(text) else ":"
    head, _, inner = text.partition(kind)
    if inner.endswith((",monotone", ":monotone")):
        inner, monotone = inner[: -len(",monotone")], True
    if not inner:
        raise UsageError(f"{text!r}: name a schedule after {head + kind!r}, for example {head}{kind}cosine")
    if kind == "@":
        parts = parse_head(head)
        objective = parse_foreign_loss(parts, find(inner), WEIGHTINGS, given)
        return Weighting.of_objective(objective, shift=shift + parts.shift, monotone=monotone or parts.monotone)
    if given:
        raise UsageError(f"{text!r} has no parameter {next(iter(given))!r}; write the schedule's own after its name")
    return Weighting.of_schedule(find(inner).shifted(shift), monotone=monotone)
