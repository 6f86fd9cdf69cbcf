"""Level codes are what other networks were trained on, at the levels of their own schedules."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elbocli.core.schedule import LEVEL_CODES, parse_level_code
from elbocli.core.schedule_curves import BETAS, logsnr_of_betas
from elbocli.errors import UsageError

BETA_ENDS = {"t-linear": ("linear", 1e-4, 0.02), "t-scaled-linear": ("scaled_linear", 0.00085, 0.012)}
BETA_ENDS["t-squaredcos"] = ("squaredcos_cap_v2", 0.0, 0.0)


@pytest.mark.parametrize("name", BETA_ENDS)
@pytest.mark.parametrize("count", [10, 1000, 4000])
def test_a_timestep_has_its_own_number(name: str, count: int) -> None:
    betas, start, end = BETA_ENDS[name]
    levels = logsnr_of_betas(BETAS.find(betas).make(start, end, count))
    kept = levels.abs() <= 50
    told = parse_level_code(f"{name}:count={count}")(levels[kept])
    assert torch.allclose(told, torch.arange(count, dtype=torch.float64)[kept], atol=1e-6, rtol=0)


@given(st.floats(-49, 49))
def test_a_code_undoes_what_its_formula_says(level: float) -> None:
    at = torch.tensor([level], dtype=torch.float64)
    sigma = parse_level_code("sigma")(at)
    assert torch.allclose(parse_level_code("logsnr:factor=-0.125")(at), sigma.log() / 4, atol=1e-12)
    t = parse_level_code("flow")(at)
    assert torch.allclose(t / (1 - t), sigma, rtol=1e-6) or level > 30 or level < -30
    assert torch.allclose(parse_level_code("flow-reversed")(at) + t, torch.ones(1, dtype=torch.float64))


@pytest.mark.parametrize("name", LEVEL_CODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_code_is_monotone_and_keeps_its_precision(name: str, dtype: torch.dtype) -> None:
    told = LEVEL_CODES[name](torch.linspace(-8, 8, 100, dtype=dtype))
    assert told.dtype == dtype and told.isfinite().all()
    assert (told.diff() >= 0).all() or (told.diff() <= 0).all()


def test_t_and_a_schedule_may_be_written_as_papers_do() -> None:
    assert parse_level_code("t:linear").spec == parse_level_code("t-linear").spec
    assert parse_level_code("t:squaredcos,count=4000").params == {"count": 4000}
    with pytest.raises(UsageError, match="t-linear"):
        parse_level_code("t:lineal")
