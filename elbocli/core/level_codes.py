"""Level codes: the number that a network is told instead of λ, declared once each.

Networks of others were trained on timesteps, on t, on σ or on its logarithm; each is a function of λ. Whatever a network
then makes of the number, cosines and sines or a layer, is its own.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from elbocli.core.discrete_schedule import BETAS, Steps, logsnr_of_betas
from elbocli.core.registry import Declaration, Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor

LEVEL_CODES: Registry[None] = Registry("level code")
"""λ [B] → the number [B], at least float32; float64 stays so."""
level_code = LEVEL_CODES.declare


@level_code("logsnr", formula="factor logsnr", source="factor -1/8 is EDM's ln(sigma)/4")
def logsnr(level: Tensor, factor: float = 1.0) -> Tensor:
    return factor * level


@level_code("sigma", formula="exp(-logsnr/2)", source="Karras et al. 2022: sigma of the data plus noise")
def sigma(level: Tensor) -> Tensor:
    return (-0.5 * level).exp()


@level_code("flow", formula="factor t, logsnr = 2 log((1-t)/t)", source="Lipman et al. 2022, t = 1 being noise")
def flow(level: Tensor, factor: float = 1.0) -> Tensor:
    return factor * (-0.5 * level).sigmoid()


@level_code("flow-reversed", formula="factor (1-t), t as of flow", source="Ma et al. 2024 (SiT), where 1 is data")
def flow_reversed(level: Tensor, factor: float = 1.0) -> Tensor:
    return factor * (0.5 * level).sigmoid()


@level_code("t-linear", formula="timestep of betas even from start to end", source="Ho et al. 2020", positive=["count"])
def t_linear(level: Tensor, count: float = 1000.0, start: float = 1e-4, end: float = 0.02) -> Tensor:
    return _timestep(level, "linear", count, start, end)


@level_code(
    "t-scaled-linear",
    formula="timestep of betas whose roots are even from those of start to end",
    source="Rombach et al. 2022",
    positive=["count"],
)
def t_scaled_linear(level: Tensor, count: float = 1000.0, start: float = 0.00085, end: float = 0.012) -> Tensor:
    return _timestep(level, "scaled_linear", count, start, end)


@level_code(
    "t-squaredcos", formula="timestep of the cosine's betas", source="Nichol & Dhariwal 2021", positive=["count"]
)
def t_squaredcos(level: Tensor, count: float = 1000.0) -> Tensor:
    return _timestep(level, "squaredcos_cap_v2", count, 0.0, 0.0)


def _timestep(level: Tensor, betas: str, count: float, start: float, end: float) -> Tensor:
    """The timestep from 0 to count − 1 at λ, a fraction between two; beyond the first and the last it is theirs."""
    import torch

    curve = _curve(betas, count, start, end, level.device)
    time = curve.t(level.double().clamp(*curve.support))
    return (count * time - 0.5).clamp(0, count - 1).to(torch.promote_types(level.dtype, torch.float32))


@lru_cache
def _curve(betas: str, count: float, start: float, end: float, device: torch.device) -> Steps:
    import torch

    with torch.device("cpu"):  # a network may be asked for without memory
        curve = Steps(logsnr_of_betas(BETAS.find(betas).make(start, end, int(count))))
    return curve.on(device)


def parse_level_code(text: str) -> Declaration[None]:
    """The level code that a user wrote: `logsnr:factor=-0.125`, `sigma`, `t:linear` or `t-linear:count=4000`. Raises UsageError."""
    words = text.strip()
    return LEVEL_CODES.parse("t-" + words[2:].replace(",", ":", 1) if words.startswith("t:") else words)
