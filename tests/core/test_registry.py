"""A SPEC is read back as it was written; a name from another program keeps its meaning."""

import math
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import special

from elbocli.core.averages import AVERAGES, parse_average
from elbocli.core.noise import STARTS
from elbocli.core.pixels import ROUNDINGS
from elbocli.core.prediction import PREDICTIONS, Prediction
from elbocli.core.registry import Bounds, Declaration, Positive, Registry, alike, nearest, number, parse_spec, plain
from elbocli.core.schedule import parse_schedule
from elbocli.core.schedule_curves import SCHEDULES, schedule
from elbocli.core.weighting import FACTORS, parse_weighting
from elbocli.core.weighting_curves import LEARNED_WEIGHTINGS, WEIGHTINGS, weighting
from elbocli.errors import UsageError
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting
from elbocli.sampling.guidance import THRESHOLDS
from elbocli.sampling.samplers import SAMPLERS, parse_sampler
from elbocli.sampling.spacing import SPACINGS
from elbocli.scoring.extractors import EXTRACTORS
from elbocli.scoring.metrics import METRICS

FLOATS = st.floats(-1e6, 1e6, allow_nan=False)


class Shape(Declaration[[], object]):
    """A declaration without properties."""


def circle(r: Positive = 1.0, x: Annotated[float, Bounds(-2, 2)] = 0.0) -> tuple[float, float]:
    return r, x


@pytest.fixture
def shapes():
    registry = Registry("shape", Shape)
    registry.declare("circle", formula="r^2", source="Euclid")(circle)
    registry.declare("dot")(lambda: None)
    registry.declare("ring")(lambda r=1.0: r)
    return registry


@given(FLOATS)
def test_plain_text_reads_back_as_the_same_float(value):
    assert math.copysign(1, float(plain(value))) == math.copysign(1, value)
    assert number(plain(value)) == value


@pytest.mark.parametrize("text", ["nan", "inf", "-1.1e15", "two", "", "1,5", "0x10"])
def test_number_refuses_what_is_not_a_sane_number(text):
    with pytest.raises(UsageError):
        number(text, "bias")
    assert number("-1e15") == -1e15


@given(FLOATS, FLOATS)
def test_a_declarations_spec_parses_to_the_same_parameters(r, x):
    registry = Registry("shape", Shape)
    registry.declare("circle")(lambda r=1.0, x=0.0: (r, x))
    declared = registry["circle"]
    name, params = parse_spec(declared.bind({"r": r, "x": x}).spec)
    assert name == "circle"
    assert declared.bind(params).params == {"r": r, "x": x}
    assert declared.bind(params)() == (r, x)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        *(("circle:y=1", "r, x"), ("dot:y=1", "dot"), ("circle:r=0", "above 0"), ("circle:r=-1", "above 0")),
        *(("circle:x=2.1", "from -2 to 2"), ("circle:x=-2.1", "from -2 to 2"), ("circle:r,x", "key=value")),
        *(("circle:r=", "key=value"), ("circle:=1", "key=value"), ("circle:r=1,r=2", "each key once")),
        *(("circle:1", "no parameter"), ("ring:2,r=3", "given twice"), ("ring:r", "not a number")),
        *(("cirle", "did you mean circle"), ("zzz", "known: circle, dot, ring")),
    ],
)
def test_a_bad_spec_is_refused_with_a_word_on_why(shapes, text, word):
    with pytest.raises(UsageError, match=word):
        shapes.parse(text)


def test_bounds_belong_to_the_range_and_kebab_case_to_the_words(shapes):
    assert shapes.parse("circle:x=2").params == {"r": 1.0, "x": 2.0}
    assert shapes.parse("ring:.5").spec == "ring:r=0.5"
    assert parse_spec("edm:sigma-data=1")[1] == {"sigma_data": "1"}


def test_an_unknown_word_is_answered_with_the_first_of_many():
    many = [f"n{k:03}" for k in range(100)]
    assert nearest("zebra", many) == f"known: {', '.join(many[:30])}"
    assert nearest("CATS", ["cat", "dog"]) == "did you mean cat?"


def test_later_declarations_are_found_wherever_names_are():
    try:

        @weighting("later", formula="a", monotone=True, source="this test")
        def later(logsnr, a: Positive = 1.0):
            return logsnr * 0 + a

        @schedule("late", formula="-k (2 t - 1)", source="this test")
        class Late:
            def __init__(self, k=5.0):
                self.k = k
                self.support = (-k, k)

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
        with pytest.raises(UsageError):
            weighting("later", formula="", monotone=True, source="")
    finally:
        WEIGHTINGS.pop("later", None)
        SCHEDULES.pop("late", None)


# Names of others


REGISTRIES: list[Registry[Any]] = [WEIGHTINGS, LEARNED_WEIGHTINGS, SCHEDULES, PREDICTIONS, FACTORS, SAMPLERS, SPACINGS]
REGISTRIES += [STARTS, THRESHOLDS, ROUNDINGS, AVERAGES, METRICS, EXTRACTORS]
DECLARED = [(registry, declared) for registry in REGISTRIES for declared in registry.values()]
IDS = [f"{registry.kind}-{declared.name}" for registry, declared in DECLARED]


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_no_name_means_two_things(registry):
    words = [word for each in registry.values() for word in (alike(each.name), *each.known_as)]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(("registry", "declared"), DECLARED, ids=IDS)
def test_a_name_is_found_in_any_case_and_with_either_dash(registry, declared):
    for word in (declared.name.upper(), declared.name.replace("-", "_"), f" {declared.name.title()} "):
        assert registry.find(word) is declared


@pytest.mark.parametrize(("registry", "declared"), DECLARED, ids=IDS)
def test_another_name_is_written_down_as_the_own_name(registry, declared):
    for word, params in declared.known_as.items():
        found = registry.find(word.upper().replace("-", "_"))
        assert found.spec == declared.bind(params).spec
        assert found.spec.partition(":")[0] == declared.name


@pytest.mark.parametrize(
    ("parse", "text", "spec"),
    [
        (parse_weighting, "sigmoid:-1,shift=2,monotone", "sigmoid:bias=-1,shift=2,monotone"),
        (parse_weighting, "x-mse:min-snr:7@cosine", "x-mse:min-snr:gamma=7@cosine"),
        (parse_weighting, "EDM:mean=-0.4,std=1", "edm:mean=-0.4,std=1,sigma_data=0.5"),
        (parse_weighting, "sid2-128", "sigmoid:bias=0"),
        (parse_weighting, "sid2-512", "sigmoid:bias=-3"),
        (parse_weighting, "eps-mse@edm2-img64", "eps-mse@edm:mean=-0.8,std=1.6"),
        (parse_weighting, "eps-mse@edm2-img512", "eps-mse@edm:mean=-0.4,std=1"),
        (parse_weighting, "eps-mse@vp", "eps-mse@linear-beta:beta_min=0.1,beta_max=20"),
        (parse_weighting, "eps-mse@karras", "eps-mse@edm-sample:rho=7,sigma_min=0.002,sigma_max=80"),
        *(
            (parse_sampler, "euler", "ddim"),
            (parse_sampler, "Euler_a", "ddpm:gamma=0"),
            (parse_sampler, "edm:s_churn=3", "heun:s_churn=3,s_min=0,s_max=100000,s_noise=1,space=edm,least=0,noise_scale=1"),
        ),
        *((parse_sampler, "dpm++_2m_sde:0.5", "dpmpp-2m-sde:eta=0.5"), (parse_average, "power:0.1", "power:std=0.1")),
        (Prediction, "epsilon", "eps"),
    ],
)
def test_a_spec_in_the_words_of_others_is_this_spec(parse, text, spec):
    assert parse(text).spec == spec


@pytest.mark.parametrize(("name", "bias"), [("sid2-128", 0), ("sid2", -3)])
def test_sid2_weighs_x_by_the_mirrored_sigmoid_and_so_is_the_sigmoid(name, bias):
    """SiD2 writes −dλ/dt e^b sigmoid(λ − b) ‖x − x̂‖², and ‖x − x̂‖² is e^{−λ} ‖ε − ε̂‖²."""
    at = torch.linspace(-20, 20, 401, dtype=torch.float64)
    on_eps = math.exp(bias) * (at - bias).sigmoid() * (-at).exp()
    assert torch.allclose(parse_weighting(name)(at), on_eps, rtol=1e-12)


# Trainers of flow matching, in their time from 0 at data to 1 at noise


def normal(u):
    return special.ndtri(u)


def later(time, shift):
    return time * shift / (1 + (shift - 1) * time)


def heavy(u, scale):
    return 1 - u - scale * (np.cos(np.pi / 2 * u) ** 2 - 1 + u)


TRAINERS = {  # SPEC → times that a program draws, of a uniform number that rises with time
    "fm-ot": lambda u: u,  # sd-scripts: uniform; OneTrainer: UNIFORM; SimpleTuner: flow_use_uniform_schedule
    f"fm-ot:shift={-2 * math.log(3)}": lambda u: later(u, 3),  # sd-scripts: sigma, discrete_flow_shift 3
    "logit-normal:std=1.3": lambda u: special.expit(1.3 * normal(u)),  # sd-scripts: sigmoid
    "logit-normal:std=0.8": lambda u: special.expit(0.8 * normal(u)),  # SimpleTuner
    f"logit-normal:std=1.3,shift={-2 * math.log(3)}": lambda u: later(special.expit(1.3 * normal(u)), 3),  # shift
    # sd-scripts: flux_shift, and SimpleTuner: flow_schedule_auto_shift, of 1024 patches
    f"logit-normal:shift={-2 * 0.63}": lambda u: math.exp(0.63) / (math.exp(0.63) + (1 / special.expit(normal(u)) - 1)),
    # sd-scripts and diffusers: logit_normal is the place in a list of times that falls from noise
    "logit-normal:mean=-0.4,std=1.2": lambda u: 1 - special.expit(0.4 + 1.2 * normal(1 - u)),
    "logit_normal:mean=0.4,std=1.2": lambda u: special.expit(0.4 + 1.2 * normal(u)),  # OneTrainer: noising_weight .2
    "mode:scale=0.9": lambda u: 1 - heavy(u, 0.9),  # sd-scripts and diffusers, the place in the same list
    "heavy_tail:scale=0.9": lambda u: heavy(1 - u, 0.9),  # OneTrainer
    "cos_map": lambda u: np.tan(np.pi / 2 * u) / (1 + np.tan(np.pi / 2 * u)),  # density 2/(π(1 − 2t + 2t²)), below
}


@pytest.mark.parametrize("spec", TRAINERS)
def test_a_trainers_times_are_drawn_by_this_schedule(spec):
    u = np.linspace(0.01, 0.99, 99)
    time = TRAINERS[spec](u)
    schedule = parse_schedule(spec)
    level = torch.from_numpy(2 * np.log((1 - time) / time))
    np.testing.assert_allclose(schedule.curve.t(level - schedule.shift), u, rtol=1e-10)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_cos_maps_density_of_time_is_the_cosines(shift):
    """OneTrainer draws a time with these weights; its shift multiplies them by the slope of the time before the shift."""
    time = np.linspace(0.01, 0.99, 99)
    before = time / (shift - shift * time + time)
    slope = shift / (shift + time - shift * time) ** 2
    weights = 2 / (math.pi - 2 * math.pi * before + 2 * math.pi * before**2) * slope
    schedule = parse_schedule(f"cos-map:shift={-2 * math.log(shift)}")
    level = torch.from_numpy(2 * np.log((1 - time) / time))
    np.testing.assert_allclose(schedule.untruncated_density(level).numpy() * 2 / (time * (1 - time)), weights, rtol=1e-10)


@pytest.mark.parametrize(
    ("spec", "factor"),
    [("sigma_sqrt", lambda time: time**-2), ("x-mse@cosmap", lambda time: 2 / (math.pi * (1 - 2 * time + 2 * time**2)))],
)
def test_sd_scripts_weighting_schemes_are_factors_on_x_at_uniform_times(spec, factor):
    """w dλ/2 = F ‖x − x̂‖² dt with ‖x − x̂‖² = (t/(1 − t))² ‖ε − ε̂‖² and dλ = −2 dt/(t(1 − t))."""
    time = np.linspace(0.01, 0.99, 99)
    wanted = factor(time) * (time / (1 - time)) ** 2 * time * (1 - time)
    np.testing.assert_allclose(parse_weighting(spec)(torch.from_numpy(2 * np.log((1 - time) / time))), wanted, rtol=1e-10)
