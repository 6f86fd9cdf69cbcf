"""The number that a network is told instead of λ, as one operation for compilers.

A timestep is read off a curve that is made once, on the CPU, with SciPy: no compiler should look into that.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from elbocli.core.schedule import parse_level_code


@torch.library.custom_op("elbo::level_number", mutates_args=())
def level_number(logsnr: Tensor, code: str) -> Tensor:
    """λ [B] → the number [B] that a level code, written as its spec, makes of it, in the precision of λ."""
    return _code(code)(logsnr).clone()


@level_number.register_fake
def _(logsnr: Tensor, code: str) -> Tensor:
    return torch.empty_like(logsnr)


@lru_cache
def _code(spec: str) -> Any:
    return parse_level_code(spec)
