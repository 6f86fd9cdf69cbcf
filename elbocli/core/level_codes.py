"""Level codes: the number that a network is told instead of λ, declared once each.

Networks of others were trained on timesteps, on t, on σ or on its logarithm; each is a function of λ. Whatever a network
then makes of the number, cosines and sines or a layer, is its own.
"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from elbocli.core.registry import Declaration, Registry
from elbocli.core.schedule_curves import SCHEDULES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from elbocli.core.discrete_schedule import Steps

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


def _timestep(schedule: str, level: Tensor, **params: float) -> Tensor:
    """The timestep from 0 to count − 1 at λ, a fraction between two; beyond the first and the last it is theirs."""
    import torch

    curve, count = _curve(schedule, tuple(params.values()), level.device), params["count"]
    time = curve.t(level.double().clamp(*curve.support))
    return (count * time - 0.5).clamp(0, count - 1).to(torch.promote_types(level.dtype, torch.float32))


@lru_cache
def _curve(schedule: str, params: tuple[float, ...], device: torch.device) -> Steps:
    import torch

    with torch.device("cpu"):  # a network may be asked for without memory
        curve: Steps = SCHEDULES[schedule].make(*params)
    return curve.on(device)


def _declare_timesteps(name: str) -> None:
    """Enter the code of a schedule of timesteps under its name, with its parameters."""
    declared = SCHEDULES[name]
    params: Any = declared.params
    formula = f"number of one of the {declared.formula}"
    enter = level_code(name, formula=formula, source=declared.source, within=declared.within, **params)
    enter(partial(_timestep, name))


for _name in ("t-linear", "t-scaled-linear", "t-squaredcos"):
    _declare_timesteps(_name)


def parse_level_code(text: str) -> Declaration[None]:
    """The level code that a user wrote: `logsnr:factor=-0.125`, `sigma`, `t:linear` or `t-linear:count=4000`. Raises UsageError."""
    words = text.strip()
    return LEVEL_CODES.parse("t-" + words[2:].replace(",", ":", 1) if words.startswith("t:") else words)
