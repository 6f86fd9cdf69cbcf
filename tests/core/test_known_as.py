"""Names of other communities mean exactly what they mean there, however they are spelt."""

import math

import pytest
import torch

from elbocli.core.metrics import METRICS
from elbocli.core.monotone import likeness
from elbocli.core.prediction import PREDICTIONS, Prediction
from elbocli.core.registry import Registry, alike, nearest, plain
from elbocli.core.samplers import SAMPLERS, Move, parse_sampler
from elbocli.core.sampling import CLIPS, NOISES, ROUNDINGS, SPACINGS, STARTS
from elbocli.core.schedule import parse_schedule
from elbocli.core.schedule_curves import SCHEDULES
from elbocli.core.training import AVERAGES, CRITERIA, parse_average
from elbocli.core.weighting import FACTORS, parse_factor, parse_weighting
from elbocli.core.weighting_curves import WEIGHTINGS
from elbocli.errors import UsageError
from elbocli.files.schedule_file import resolve_schedule
from elbocli.nn.extractors import EXTRACTORS

REGISTRIES: list[Registry] = [
    WEIGHTINGS,
    SCHEDULES,
    PREDICTIONS,
    FACTORS,
    SAMPLERS,
    SPACINGS,
    NOISES,
    STARTS,
    CLIPS,
    ROUNDINGS,
    CRITERIA,
    AVERAGES,
    METRICS,
    EXTRACTORS,
]
DECLARED = [(registry, declared) for registry in REGISTRIES for declared in registry.values()]
IDS = [f"{registry.kind}-{declared.name}" for registry, declared in DECLARED]
T = torch.linspace(0.01, 0.99, 197, dtype=torch.float64)


@pytest.mark.parametrize("registry", REGISTRIES, ids=lambda registry: registry.kind)
def test_no_name_means_two_things(registry: Registry) -> None:
    words = [word for each in registry.values() for word in (alike(each.name), *each.known_as)]
    assert len(words) == len(set(words))


@pytest.mark.parametrize(("registry", "declared"), DECLARED, ids=IDS)
def test_a_name_is_found_in_any_case_and_with_either_dash(registry: Registry, declared) -> None:
    for word in (declared.name.upper(), declared.name.replace("-", "_"), f" {declared.name.title()} "):
        assert registry.find(word) is declared


@pytest.mark.parametrize(("registry", "declared"), DECLARED, ids=IDS)
def test_another_name_is_written_down_as_the_own_name(registry: Registry, declared) -> None:
    for word, params in declared.known_as.items():
        found = registry.find(word.upper().replace("-", "_"))
        assert found.spec == declared.bind(params).spec
        assert found.spec.partition(":")[0] == declared.name


@pytest.mark.parametrize(("registry", "declared"), DECLARED, ids=IDS)
def test_the_only_parameter_needs_no_name_and_of_several_the_message_names_all(registry: Registry, declared) -> None:
    params = list(declared.params.items())
    if len(params) == 1:
        (key, value), *_ = params
        assert registry.parse(f"{declared.name}:{plain(value)}").spec == declared.bind({key: value}).spec
        return
    with pytest.raises(UsageError, match="has no parameter"):
        registry.parse(f"{declared.name}:1")


@pytest.mark.parametrize(
    ("parse", "short", "full"),
    [
        (parse_weighting, "min-snr:5", "min-snr:gamma=5"),
        (parse_weighting, "sigmoid:-1,shift=2,monotone", "sigmoid:bias=-1,shift=2,monotone"),
        (parse_weighting, "x-mse:min-snr:7@cosine", "x-mse:min-snr:gamma=7@cosine"),
        (parse_weighting, "schedule:iddpm:0.01", "schedule:iddpm:s=0.01"),
        (lambda text: parse_schedule(text, -9, 9), "iddpm:.01", "iddpm:s=0.01"),
        (parse_sampler, "ddpm:0.5", "ddpm:gamma=0.5"),
        (parse_sampler, "dpmpp_2m_sde:0.5", "dpmpp-2m-sde:eta=0.5"),
        (parse_average, "power:0.1", "power:std=0.1"),
        (parse_factor, "p2:2", "p2:gamma=2"),
        (Prediction, "edm:1", "edm:sigma_data=1"),
    ],
    ids=lambda each: each if isinstance(each, str) else "of",
)
def test_every_kind_of_spec_takes_its_only_parameter_bare(parse, short, full) -> None:
    one, other = parse(short), parse(full)
    assert getattr(one, "spec", None) == getattr(other, "spec", None)
    assert getattr(one, "base", None) == getattr(other, "base", None)


@pytest.mark.parametrize("text", ["edm:P_mean=-0.4,P_std=1", "EDM:p-mean=-0.4,p-std=1"])
def test_parameters_have_other_names_too(text) -> None:
    assert parse_weighting(text).spec == "edm:mean=-0.4,std=1,sigma_data=0.5"
    assert resolve_schedule(text).base == "edm:mean=-0.4,std=1"


def test_a_parameter_given_under_two_names_is_refused() -> None:
    with pytest.raises(UsageError, match="edm: mean is given twice"):
        parse_weighting("edm:mean=1,P_mean=1")


@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("vdm", "eps-mse@uniform"),
        ("rf", "u-mse@fm-ot"),
        ("eps-cosine", "eps-mse@cosine"),
        ("lognormal:p_mean=-0.4,p_std=1", "edm-mse@edm:mean=-0.4,std=1"),
        ("logit-normal:logit_mean=0.3,logit_std=0.7", "u-mse@logit-normal:m=0.3,s=0.7"),
        ("v-prediction-mse@vp", "v-mse@linear-beta"),
    ],
)
def test_a_weighting_by_another_name_is_that_objective(name, same) -> None:
    assert likeness(parse_weighting(name), parse_weighting(same), -12, 12).deviation < 1e-9


def test_logit_normal_times_are_those_of_stable_diffusion_3() -> None:
    mean, std = 0.3, 0.7
    time = (mean + std * torch.special.ndtri(T)).sigmoid()
    found = parse_schedule(f"logit-normal:m={mean},s={std}").curve.logsnr(T)
    assert torch.allclose(found, 2 * ((1 - time) / time).log(), rtol=1e-12)
    middle = torch.special.ndtri(T).sigmoid()
    assert torch.allclose(parse_schedule("logit-normal").curve.logsnr(T), 2 * ((1 - middle) / middle).log(), rtol=1e-12)


@pytest.mark.parametrize(("name", "mean", "std"), [("edm2-img64", 1.6, 3.2), ("edm2-img512", 0.8, 2.0)])
def test_schedules_of_edm2_are_normal_in_logsnr(name, mean, std) -> None:
    """ln σ ~ N(P_mean, P_std²) of the published runs, so λ = −2 ln σ ~ N(−2 P_mean, 4 P_std²)."""
    at = torch.linspace(-12, 12, 97, dtype=torch.float64)
    expected = torch.distributions.Normal(mean, std).log_prob(at).exp()
    assert torch.allclose(parse_schedule(name).curve.density(at), expected, rtol=1e-12)


def test_the_laplace_schedule_is_its_papers_formula() -> None:
    mean, scale = 0.4, 0.7
    level = mean - scale * torch.sgn(0.5 - T) * torch.log(1 - 2 * (T - 0.5).abs())
    assert torch.allclose(parse_schedule(f"laplace:mu={mean},b={scale}").curve.logsnr(T), level, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "bias"), [("sid2-128", 0), ("sid2-256", -1), ("sid2-512", -3), ("sid2", -3), ("sid2:bias=-2.5", -2.5)]
)
def test_sid2_weighs_x_by_the_mirrored_sigmoid_and_so_is_the_sigmoid(name, bias) -> None:
    """SiD2 writes −dλ/dt e^b sigmoid(λ − b) ‖x − x̂‖², and ‖x − x̂‖² is e^{−λ} ‖ε − ε̂‖²."""
    at = torch.linspace(-20, 20, 401, dtype=torch.float64)
    on_eps = math.exp(bias) * (at - bias).sigmoid() * (-at).exp()
    found = parse_weighting(name)
    assert torch.allclose(found(at), on_eps, rtol=1e-12)
    assert found.spec == f"sigmoid:bias={bias}"
    # Public code has applied the factor of x to the error of v, which is (1 + e^λ) times as large: another weighting.
    on_v = on_eps * at.exp() / (1 / (1 + (-at).exp()))
    mistaken = likeness(found, lambda lam: on_v, -20, 20, points=401)
    assert mistaken.deviation > 1e3


def test_log_uniform_noise_levels_are_even_in_log_sigma() -> None:
    low, high = 0.002, 80.0
    ends = -2 * math.log(high), -2 * math.log(low)
    sigma = (-parse_schedule("loguniform", *ends).logsnr(T) / 2).exp()
    assert torch.allclose(sigma.log(), math.log(low) + T * (math.log(high) - math.log(low)))


def test_the_schedule_of_karras_is_that_of_their_paper() -> None:
    low, high, rho = 0.01, 50.0, 5.0
    sigma = (-parse_schedule(f"karras:rho={rho},sigma_min={low},sigma_max={high}").curve.logsnr(T) / 2).exp()
    ramp = high ** (1 / rho) + (1 - T) * (low ** (1 / rho) - high ** (1 / rho))
    assert torch.allclose(sigma, ramp**rho)


def test_the_schedule_vp_is_that_of_songs_equation() -> None:
    low, high = 0.1, 20.0
    alpha = (-(T**2) * (high - low) / 4 - T * low / 2).exp()
    assert torch.allclose(parse_schedule("vp").curve.logsnr(T), (alpha**2 / (1 - alpha**2)).log())


@pytest.mark.parametrize(("name", "a", "b"), [("epsilon", 0, 1), ("x_start", 1, 0), ("flow", -1, 1)])
def test_a_prediction_by_another_name_is_that_target(name, a, b) -> None:
    found = Prediction(name).coefficients(torch.tensor([0.3], dtype=torch.float64))
    assert (float(found.a), float(found.b)) == (a, b)


def of_sigma(name: str, y: torch.Tensor, x_hat: torch.Tensor, sigma: float, then: float, noise: torch.Tensor):
    """One step of a sampler as k-diffusion has it: y of standard deviation sigma around the data, at both ends."""
    move = Move(-2 * math.log(sigma), -2 * math.log(then), steps=10)
    alpha, alpha_then = (1 / math.sqrt(1 + each**2) for each in (sigma, then))
    return parse_sampler(name)(alpha * y, None, move, lambda z, _: x_hat, lambda: noise)[0] / alpha_then


def test_samplers_by_k_diffusions_names_do_its_steps() -> None:
    y, x_hat, noise = torch.randn(3, 50, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma, then = 3.0, 1.2
    d = (y - x_hat) / sigma
    assert torch.allclose(of_sigma("euler", y, x_hat, sigma, then, noise), y + d * (then - sigma))
    up = then * math.sqrt(sigma**2 - then**2) / sigma
    down = math.sqrt(then**2 - up**2)
    expected = y + d * (down - sigma) + noise * up
    assert torch.allclose(of_sigma("euler_a", y, x_hat, sigma, then, noise), expected)


def test_an_unknown_word_is_answered_with_the_nearest_or_with_the_first_of_many() -> None:
    assert nearest("CATS", ["cat", "dog"]) == "did you mean cat?"
    assert nearest("zebra", ["cat", "dog"]) == "known: cat, dog"
    many = [f"n{k:03}" for k in range(100)]
    assert nearest("zebra", many) == f"known: {', '.join(many[:20])}"
