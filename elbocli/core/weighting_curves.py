"""Weightings by name: functions w(λ) in the loss L_w = ½ ∫ w(λ) E‖ε − ε̂‖² dλ."""

from __future__ import annotations

from collections import ChainMap
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from elbocli.core.monotone import Function, NonIncreasing, weighting_faults
from elbocli.core.registry import Declaration, Positive, Registry
from elbocli.core.schedule_curves import SCHEDULES, normal_density

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, repr=False)
class NamedWeighting(Declaration[["Tensor"], "Tensor"]):
    """Declared weighting, a function λ → w(λ), float64, any shape.

    monotone: whether w is declared non-increasing in λ.
    """

    monotone: bool = field(kw_only=True)


DECLARED_ON = (-15.0, 15.0)  # range of λ on which a plug-in's weighting is checked before the range of a run is known


def check_weighting(declared: NamedWeighting) -> None:
    """Raise PluginError unless a weighting returns float tensors of λ's shape, finite and 0 or more on DECLARED_ON."""
    import torch

    at = torch.linspace(*DECLARED_ON, 3, dtype=torch.float64)
    declared.expect_like(declared(at), at, "a call with logsnr")
    if faults := weighting_faults(declared, *DECLARED_ON):
        raise declared.fault(f"is {faults}; a weighting must be finite, and 0 or more")


# The functions use only tensor methods and the standard library, so that listing the names does not import torch.
WEIGHTINGS = Registry("weighting", NamedWeighting, check_weighting)
weighting = WEIGHTINGS.declare
PAPER = "arXiv:2303.00848"


def _sech(x: Tensor) -> Tensor:
    return 1 / x.cosh()


@weighting("elbo", formula="1", monotone=True, source=f"{PAPER} sec. 3; Kingma et al. 2021", known_as=["vdm", "vlb"])
def elbo(logsnr: Tensor) -> Tensor:
    return logsnr * 0 + 1


@weighting(
    "iddpm",
    formula="sech(logsnr/2)",
    monotone=False,
    source="Nichol & Dhariwal 2021: eps loss, cosine schedule",
    known_as=["eps-cosine"],
)
def iddpm(logsnr: Tensor) -> Tensor:
    return _sech(logsnr / 2)


@weighting(
    "v-cosine",
    formula="exp(-logsnr/2)",
    monotone=True,
    source="Salimans & Ho 2022: v loss, cosine schedule",
)
@weighting(
    "fm-ot",
    formula="exp(-logsnr/2)",
    monotone=True,
    source="Lipman et al. 2022: flow matching, optimal-transport path",
    known_as=["rf", "rectified-flow", "flow-matching", "sigma-sqrt"],
)
def v_cosine(logsnr: Tensor) -> Tensor:
    return (-logsnr / 2).exp()


@weighting(
    "indi",
    formula="exp(-logsnr) sech(logsnr/4)^2",
    monotone=True,
    source="Delbracio & Milanfar 2023: x loss, optimal-transport path",
)
def indi(logsnr: Tensor) -> Tensor:
    return (-logsnr).exp() * _sech(logsnr / 4).square()


@weighting("x-cosine", formula="exp(-logsnr) sech(logsnr/2)", monotone=True, source="x loss, cosine schedule")
def x_cosine(logsnr: Tensor) -> Tensor:
    return (-logsnr).exp() * _sech(logsnr / 2)


@weighting(
    "snr-trunc",
    formula="sech(logsnr/2) max(1, exp(-logsnr))",
    monotone=True,
    source="Salimans & Ho 2022: truncated SNR, cosine schedule",
)
def snr_trunc(logsnr: Tensor) -> Tensor:
    return _sech(logsnr / 2) * (-logsnr).exp().clamp(min=1)


@weighting(
    "p2",
    formula="sech(logsnr/2) / (1 + exp(logsnr))^gamma",
    monotone=False,
    source="Choi et al. 2022: P2, k = 1, cosine schedule",
)
def p2(logsnr: Tensor, gamma: float = 1.0) -> Tensor:
    return _sech(logsnr / 2) * (-logsnr).sigmoid() ** gamma


@weighting(
    "min-snr",
    formula="sech(logsnr/2) min(1, gamma exp(-logsnr))",
    monotone=False,
    source="Hang et al. 2023: Min-SNR, cosine schedule",
)
def min_snr(logsnr: Tensor, gamma: Positive = 5.0) -> Tensor:
    return _sech(logsnr / 2) * (gamma * (-logsnr).exp()).clamp(max=1)


@weighting(
    "soft-min-snr",
    formula="sech(logsnr/2) exp(-logsnr) / (exp(-logsnr) + sigma_data^2)",
    monotone=False,
    source="soft Min-SNR of Crowson et al. 2024 on the unshifted cosine; k-diffusion shifts it: "
    "eps-mse:sigmoid:bias=1.386294@cosine:shift=1.386294",
)
def soft_min_snr(logsnr: Tensor, sigma_data: Positive = 0.5) -> Tensor:
    # k-diffusion's objective differs: eps-mse:sigmoid:bias=s@cosine:shift=s with s = −2 ln sigma_data.
    noise = (-logsnr).exp()
    return _sech(logsnr / 2) * noise / (noise + sigma_data**2)


@weighting(
    "ddpm",
    formula="sigma^2 / beta(t(logsnr))",
    monotone=False,
    source="Ho et al. 2020: eps loss, linear beta schedule",
)
def ddpm(logsnr: Tensor, beta_min: float = 0.1, beta_max: Positive = 20.0) -> Tensor:
    return SCHEDULES["linear-beta"].make(beta_min=beta_min, beta_max=beta_max).density(logsnr)


@weighting(
    "edm",
    formula="N(logsnr; -2 mean, (2 std)^2) (exp(-logsnr) + sigma_data^2)",
    monotone=False,
    source="Karras et al. 2022: ln sigma ~ N(mean, std^2)",
    known_as=["lognormal", "log-normal"],
)
def edm(logsnr: Tensor, mean: float = -1.2, std: Positive = 1.2, sigma_data: Positive = 0.5) -> Tensor:
    return normal_density(logsnr, -2 * mean, 2 * std) * ((-logsnr).exp() + sigma_data**2)


@weighting(
    "edm-monotonic",
    formula="edm held constant left of its peak",
    monotone=True,
    source=f"{PAPER} sec. 4",
    known_as=["edm-monotone"],
)
def edm_monotonic(logsnr: Tensor, mean: float = -1.2, std: Positive = 1.2, sigma_data: Positive = 0.5) -> Tensor:
    return _edm_held(mean, std, sigma_data)(logsnr)


@lru_cache(maxsize=64)  # finding the peak is slow
def _edm_held(mean: float, std: float, sigma_data: float) -> NonIncreasing:
    return NonIncreasing(lambda logsnr: edm(logsnr, mean, std, sigma_data))


@weighting(
    "sigmoid",
    formula="sigmoid(bias - logsnr)",
    monotone=True,
    source=f"{PAPER} sec. 5; Hoogeboom et al. 2024 (SiD2), on x: e^bias sigmoid(logsnr - bias)",
    known_as=["sid2-128:bias=0", "sid2-256:bias=-1", "sid2:bias=-3", "sid2-512:bias=-3", "sid2-1024:bias=-4"],
)
def sigmoid(logsnr: Tensor, bias: float = 2.0) -> Tensor:
    return (bias - logsnr).sigmoid()


@weighting(
    "sd3",
    formula="N(logsnr; -2m, 4s^2) (1 + exp(-logsnr/2))^2",
    monotone=False,
    source="Esser et al. 2024: logit-normal t, optimal-transport path",
    known_as=["logit-normal"],
)
def sd3(logsnr: Tensor, m: float = 0.0, s: Positive = 1.0) -> Tensor:
    return normal_density(logsnr, -2 * m, 2 * s) * (1 + (-logsnr / 2).exp()).square()


class ErrorProfile(NamedTuple):
    """Errors of a network by noise level, from which a learned weighting is computed.

    levels: λ at the centres of bins, rising, [bins].
    log_error: function λ → logarithm of E‖ε − ε̂‖²/D, smoothed over λ. density: function λ → p(λ) of the schedule.
    """

    levels: Tensor
    log_error: Function
    density: Function


@dataclass(frozen=True, repr=False)
class LearnedWeighting(Declaration[["Tensor", ErrorProfile], "Tensor"]):
    """Declared weighting that follows a network's errors in training: a function (λ, ErrorProfile) → w(λ).

    of_density: whether w depends on the density of the schedule; then the schedule can't be adaptive.
    """

    of_density: bool = field(default=False, kw_only=True)


def check_learned(declared: LearnedWeighting) -> None:
    """Raise PluginError unless a learned weighting returns float tensors of λ's shape, finite and 0 or more, for an example."""
    import torch

    at = torch.linspace(*DECLARED_ON, 61, dtype=torch.float64)
    low, high = DECLARED_ON
    profile = ErrorProfile(at, lambda logsnr: (logsnr / 2).sigmoid().log(), lambda logsnr: torch.ones_like(logsnr) / (high - low))
    declared.expect_like(declared(at, profile), at, "a call with logsnr and errors")
    if faults := weighting_faults(lambda logsnr: declared(logsnr, profile), low, high):
        raise declared.fault(f"is {faults}; a weighting must be finite, and 0 or more")


LEARNED_WEIGHTINGS = Registry("learned weighting", LearnedWeighting, check_learned)
learned_weighting = LEARNED_WEIGHTINGS.declare
ALL_WEIGHTINGS: ChainMap[str, Any] = ChainMap(LEARNED_WEIGHTINGS, WEIGHTINGS)  # all names, those of WEIGHTINGS first


@learned_weighting(
    "uncertainty", formula="p(logsnr) / E|e|^2", source="Karras et al. 2024 (EDM2), arXiv:2312.02696, in effect", of_density=True
)
def uncertainty(logsnr: Tensor, profile: ErrorProfile) -> Tensor:
    """Divide the schedule's density by the error, so that every t contributes equally to the loss."""
    # EDM2's loss ω/e^u ‖x̂ − x‖²/D + u is least in u where e^u = ω E‖x̂ − x‖²/D, and with this u, EDM2's loss weights ‖ε − ε̂‖²
    # by p/e for any ω (p: density, e: error). The best density, ∝ w e, is then p itself.
    return profile.density(logsnr) * (-profile.log_error(logsnr)).exp()
