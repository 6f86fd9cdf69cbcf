import math
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elbocli.core.registry import Registry, number, numbers, parse_spec, plain
from elbocli.errors import UsageError

FLOATS = st.floats(-1e6, 1e6, allow_nan=False)


@pytest.fixture
def shapes():
    registry = Registry("shape")
    registry.declare("circle", {"r": 1.0, "x": 0.0}, formula="r^2", source="Euclid", positive=["r"])(dict)
    registry.declare("dot")(dict)
    return registry


@given(FLOATS)
def test_plain_text_reads_back_as_the_same_float(value):
    assert math.copysign(1, float(plain(value))) == math.copysign(1, value)
    assert float(plain(value)) == value


@given(FLOATS)
def test_number_reads_what_plain_writes(value):
    assert number(plain(value)) == value


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e7", "-1e300", "two", "", "1,5", "0x10"])
def test_number_refuses_what_is_not_a_sane_number(text):
    with pytest.raises(UsageError, match="bias"):
        number(text, "bias")


@given(FLOATS, FLOATS)
def test_a_declarations_spec_parses_to_the_same_parameters(r, x):
    registry = Registry("shape")
    registry.declare("circle", {"r": 1.0, "x": 0.0})(dict)
    declared = registry["circle"]
    spec = parse_spec(declared.spec({"r": r, "x": x}))
    assert spec.name == "circle"
    assert declared.bind(numbers(spec.params)) == {"r": r, "x": x}


def test_bind_puts_given_values_over_defaults(shapes):
    assert shapes["circle"].bind({"x": 3.0}) == {"r": 1.0, "x": 3.0}


def test_bind_names_the_parameters_that_exist(shapes):
    with pytest.raises(UsageError, match=r"no parameter 'y'.*r, x"):
        shapes["circle"].bind({"y": 1.0})
    with pytest.raises(UsageError, match="none"):
        shapes["dot"].bind({"y": 1.0})


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_bind_holds_positive_parameters_above_zero(shapes, value):
    with pytest.raises(UsageError, match="above 0"):
        shapes["circle"].bind({"r": value})


def test_a_misspelt_name_is_answered_with_the_nearest(shapes):
    with pytest.raises(UsageError, match=r"no shape is called 'cirle'.*did you mean circle"):
        shapes.find("cirle")
    with pytest.raises(UsageError, match="known: circle, dot"):
        shapes.find("zzz")


def test_flags_are_told_from_parameters():
    spec = parse_spec("edm:mean=-1,monotone, std = 2", flags=["monotone"])
    assert (spec.name, spec.params, spec.flags) == ("edm", {"mean": "-1", "std": "2"}, {"monotone"})


def test_parameters_may_be_written_in_kebab_case():
    assert parse_spec("edm:sigma-data=1").params == {"sigma_data": "1"}


@pytest.mark.parametrize("text", ["a:b", "a:b=", "a:b=1,b=2", "a:monotone"])
def test_a_malformed_spec_is_refused(text):
    with pytest.raises(UsageError):
        parse_spec(text)


def test_listing_every_name_imports_neither_torch_nor_numpy():
    code = (
        "import sys\n"
        "from elbocli.core import averages; from elbocli.core import criteria; from elbocli.core import guidance; from elbocli.core import logsnr; from elbocli.core import prediction; from elbocli.core import registry; from elbocli.core.samplers import walk as sampler; from elbocli.core import schedule; from elbocli.core import weighting\n"
        "from elbocli.nn import extractors, presets\n"
        "assert list(weighting.WEIGHTINGS) and list(schedule.SCHEDULES) and list(sampler.SAMPLERS) and list(averages.AVERAGES) and presets.NAMES\n"
        "print({'torch', 'numpy', 'h5py', 'PIL'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
