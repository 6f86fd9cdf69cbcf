"""Anyone's objective, E_t[c F(λ) ‖target − out‖²], as one weighting w(λ) of the ε loss.

With ‖ε−ε̂‖² = eps_factor · ‖target−out‖² and p(λ) = −dt/dλ of the schedule that draws t, the objective is L_w for
w = 2 c p F / eps_factor. Leaving out −dλ/dt is the usual mistake: it is in p.
It is written TARGET-mse[:FACTOR]@SCHEDULE: before '@' the squared error and its factor, after '@' the schedule that
draws t.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from elbocli.core.prediction import Prediction
from elbocli.core.registry import Declaration, Registry, number, parse_spec
from elbocli.core.weighting_curves import WEIGHTINGS
from elbocli.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

    from elbocli.core.schedule import Schedule


class FactorTraits(NamedTuple):
    """on: the target whose error F multiplies whatever the network's is, where the authors give F for each target so that
    the loss is the same.
    """

    on: str


FACTORS: Registry[FactorTraits | None] = Registry("factor")
"""F(λ), which multiplies the squared error of the target."""


@FACTORS.declare("snr", formula="exp(logsnr)", source="Salimans & Ho 2022: x loss with SNR weights is the eps loss")
def snr(logsnr: Tensor) -> Tensor:
    return logsnr.exp()


@FACTORS.declare(
    "snr+1", formula="exp(logsnr) + 1", source="Salimans & Ho 2022: x loss with SNR+1 weights is the v loss"
)
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
    traits=FactorTraits("x"),
    positive=["gamma"],
    parameters_known_as={"snr_gamma": "gamma"},
)
def min_snr(logsnr: Tensor, gamma: float = 5.0) -> Tensor:
    return logsnr.exp().clamp(max=gamma)


@FACTORS.declare("p2", formula="1 / (1 + exp(logsnr))^gamma", source="Choi et al. 2022: P2, k = 1")
def p2(logsnr: Tensor, gamma: float = 1.0) -> Tensor:
    return (-logsnr).sigmoid() ** gamma


Factor = Declaration[Any]
"""F(λ) with all its parameters: a declared factor, or any declared weighting."""


class ForeignLoss(NamedTuple):
    """E_t[F(λ_t) ‖target − out‖²], t drawn by the schedule's own, untruncated density. Calling it gives w(λ)."""

    prediction: Prediction
    factor: Factor | None
    schedule: Schedule

    @property
    def head(self) -> str:
        """Text left of '@', with every parameter."""
        own = self.prediction.spec.partition(":")[2]
        words = ",".join(filter(None, [own, self.factor.spec if self.factor else ""]))
        return f"{self.prediction.declared.name}-mse" + (f":{words}" if words else "")

    @property
    def tail(self) -> str:
        """Text from '@' on."""
        return f"@{self.schedule.base}"

    def __call__(self, logsnr: Tensor) -> Tensor:
        """2 p F / eps_factor at each λ, float64."""
        weighed = self.prediction
        value = 2 * self.schedule.untruncated_density(logsnr)
        if self.factor is not None:
            traits = self.factor.traits
            weighed = Prediction(traits.on) if isinstance(traits, FactorTraits) else weighed
            value = value * self.factor(logsnr)
        return value / weighed.coefficients(logsnr).eps_factor


def is_foreign_loss(text: str) -> bool:
    """Tell whether a weighting's spec is TARGET-mse…, not a name."""
    return re.fullmatch(r"[\w-]+-mse", text.strip().partition("@")[0].partition(":")[0]) is not None


def parse_head(text: str, given: dict[str, float] | None = None) -> tuple[Prediction, Factor | None, float, bool]:
    """The left side of a loss, `v-mse` or `x-mse:min-snr:5,monotone`: (prediction, factor, shift, monotone).

    Raises UsageError.

    Words before the factor's name are the prediction's parameters, words after it the factor's; shift and
    monotone may stand anywhere, as they can't be mistaken. given: parameters of the factor from options, over the text's.
    """
    name, _, words = text.strip().partition(":")
    own: list[str] = []
    chosen: list[str] = []
    shift, monotone = None, False
    for word in filter(None, (part.strip() for part in words.split(","))):
        key, equals, value = word.partition("=")
        if word == "monotone":
            monotone = True
        elif key == "shift":
            if shift is not None:
                raise UsageError(f"{text!r}: shift is given twice")
            shift = number(value, "shift")
        elif chosen or not equals or ":" in key:
            chosen.append(word)
        else:
            own.append(word)
    if given and not chosen:
        raise UsageError(
            f"a loss without a factor has no parameter {next(iter(given))!r}; name a factor: {', '.join(FACTORS)}"
        )
    prediction = Prediction.parse(":".join(filter(None, [name.removesuffix("-mse"), ",".join(own)])))
    return prediction, parse_factor(",".join(chosen), given) if chosen else None, shift or 0.0, monotone


def parse_factor(text: str, given: dict[str, float] | None = None) -> Factor:
    """A factor: `snr`, `min-snr:5`, `min-snr:gamma=5`, or a weighting by its name.

    given: parameters from options, over those in the text. Raises UsageError.
    """
    known: Registry[Any] = Registry("factor")
    known.update({**FACTORS, **WEIGHTINGS, **FACTORS})
    spec = parse_spec(text)
    return known.find(spec.name).read(spec.params).bind(given or {})
