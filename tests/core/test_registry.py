import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elbocli.core.registry import Registry, number, parse_spec, plain
from elbocli.core.schedule_curves import SCHEDULES, schedule
from elbocli.core.weighting_curves import WEIGHTINGS, weighting
from elbocli.errors import UsageError
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting

FLOATS = st.floats(-1e6, 1e6, allow_nan=False)


def made(**params):
    return params


@pytest.fixture
def shapes():
    registry = Registry("shape")
    registry.declare("circle", formula="r^2", source="Euclid", positive=["r"], r=1.0, x=0.0)(made)
    registry.declare("dot")(made)
    return registry


@given(FLOATS)
def test_plain_text_reads_back_as_the_same_float(value):
    assert math.copysign(1, float(plain(value))) == math.copysign(1, value)
    assert float(plain(value)) == value


@given(FLOATS)
def test_number_reads_what_plain_writes(value):
    assert number(plain(value)) == value


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e16", "-1e300", "two", "", "1,5", "0x10"])
def test_number_refuses_what_is_not_a_sane_number(text):
    with pytest.raises(UsageError, match="bias"):
        number(text, "bias")


@given(FLOATS, FLOATS)
def test_a_declarations_spec_parses_to_the_same_parameters(r, x):
    registry = Registry("shape")
    registry.declare("circle", r=1.0, x=0.0)(made)
    declared = registry["circle"]
    name, params = parse_spec(declared.bind({"r": r, "x": x}).spec)
    assert name == "circle"
    assert declared.bind(params).params == {"r": r, "x": x}


def test_bind_puts_given_values_over_defaults(shapes):
    assert shapes["circle"].bind({"x": 3.0}).params == {"r": 1.0, "x": 3.0}


def test_bind_names_the_parameters_that_exist(shapes):
    with pytest.raises(UsageError, match="r=1,x=0"):
        shapes["circle"].bind({"y": 1.0})
    with pytest.raises(UsageError, match="dot"):
        shapes["dot"].bind({"y": 1.0})


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_bind_holds_positive_parameters_above_zero(shapes, value):
    with pytest.raises(UsageError, match="above 0"):
        shapes["circle"].bind({"r": value})


def test_a_misspelt_name_is_answered_with_the_nearest(shapes):
    with pytest.raises(UsageError, match=r"no shape is called 'cirle'.*did you mean circle"):
        shapes.find("cirle")
    with pytest.raises(UsageError, match="known: circle, dot"):
        shapes.find("zzz")


def test_parameters_may_be_written_in_kebab_case():
    assert parse_spec("edm:sigma-data=1")[1] == {"sigma_data": "1"}


@pytest.mark.parametrize("text", ["a:b,c", "a:b=", "a:=1", "a:b=1,b=2"])
def test_a_malformed_spec_is_refused(text):
    with pytest.raises(UsageError):
        parse_spec(text)


REGISTRIES = [
    ("elbocli.core.weighting_curves", "WEIGHTINGS", 15),
    ("elbocli.core.schedule_curves", "SCHEDULES", 12),
    ("elbocli.core.prediction", "PREDICTIONS", 6),
    ("elbocli.core.weighting", "FACTORS", 5),
    ("elbocli.core.samplers", "SAMPLERS", 6),
    ("elbocli.core.sampling", "SPACINGS", 3),
    ("elbocli.core.sampling", "NOISES", 3),
    ("elbocli.core.sampling", "STARTS", 2),
    ("elbocli.core.sampling", "CLIPS", 3),
    ("elbocli.core.sampling", "ROUNDINGS", 3),
    ("elbocli.core.training", "CRITERIA", 4),
    ("elbocli.core.training", "AVERAGES", 3),
    ("elbocli.core.training", "LR_DECAYS", 4),
    ("elbocli.files.latents", "CONVENTIONS", 2),
    ("elbocli.nn.extractors", "EXTRACTORS", 5),
    ("elbocli.nn.presets", "NAMES", 16),
]


@pytest.mark.parametrize(("module", "name", "count"), REGISTRIES)
def test_a_registry_is_full_whoever_imports_it_and_imports_no_numbers(module, name, count):
    code = (
        f"import sys; from {module} import {name}\n"
        f"print(len({name}), sorted({{'torch', 'numpy', 'h5py', 'PIL', 'click'}} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"{count} []\n"


def test_what_anyone_declares_later_is_found_wherever_names_are():
    try:

        @weighting("later", formula="a", monotone=True, source="this test", positive=["a"], a=1.0)
        def later(logsnr, a):
            return logsnr * 0 + a

        @schedule("late", formula="-k (2 t - 1)", source="this test", k=5.0)
        class Late:
            def __init__(self, k):
                self.k, self.support = k, (-k, k)

            def logsnr(self, t):
                return self.k * (1 - 2 * t)

            def t(self, logsnr):
                return (1 - logsnr / self.k) / 2

            def density(self, logsnr):
                return logsnr * 0 + 0.5 / self.k

        at = torch.zeros(1, dtype=torch.float64)
        assert float(resolve_weighting("later:a=3,monotone")(at)) == 3
        assert float(resolve_weighting("eps-mse:later:a=3@late:k=2")(at)) == 2 * 3 / 4
        assert resolve_schedule("late", -5, 5).base == "late:k=5"
        with pytest.raises(UsageError, match="a is 0"):
            resolve_weighting("later:a=0")
        with pytest.raises(UsageError, match="a weighting is called 'later' already"):
            weighting("later", formula="", monotone=True, source="")
    finally:
        WEIGHTINGS.pop("later", None)
        SCHEDULES.pop("late", None)


def test_a_value_without_a_key_is_kept_for_who_knows_the_key(shapes):
    assert parse_spec("ring:2")[1] == {"": "2"}
    shapes.declare("ring", r=1.0)(made)
    assert shapes.parse("ring:2").params == {"r": 2.0}
    with pytest.raises(UsageError, match="r is given twice"):
        shapes.parse("ring:2,r=3")
    with pytest.raises(UsageError, match="r: 'r' is not a number"):
        shapes.parse("ring:r")
