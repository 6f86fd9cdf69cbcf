"""Starts: the scale of the noise that a walk begins with, declared once each."""

from __future__ import annotations

from elbocli.core.logsnr import alpha_sigma
from elbocli.core.registry import Declaration, Registry

STARTS: Registry[None] = Registry("start")
"""λ of the noisiest level → s, where z = s ε there."""
start = STARTS.declare


@start("unit", formula="z = eps", source="the prior of the bound, and of ADM, DiT and SiT")
def unit(logsnr: float) -> float:
    return 1.0


@start("edm", formula="z = sigma eps, so z/alpha = sigma_edm eps", source="Karras et al. 2022, algorithm 2")
def edm(logsnr: float) -> float:
    return alpha_sigma(logsnr)[1]


UNIT: Declaration[None] = STARTS["unit"]
