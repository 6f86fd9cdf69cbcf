"""Everybody's objective by quadrature over its own t, with formulas of its own, against ½∫ w g dλ.

Nothing on the left side is the package's: λ(t), the factor and the error of the target are written out here.
"""

import itertools

import numpy as np
import pytest
import torch
from scipy import optimize, special

from elbocli.core.monotone import likeness
from elbocli.core.prediction import PREDICTIONS
from elbocli.core.weighting import FACTORS, is_foreign_loss, parse_weighting
from elbocli.core.weighting_curves import WEIGHTINGS
from elbocli.errors import UsageError

LAMBDA = torch.linspace(-15, 15, 601, dtype=torch.float64)

# λ(t), by hand


def cosine(t):
    return -2 * np.log(np.tan(np.pi * t / 2))


def iddpm(t):
    abar = (np.cos((t + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)) ** 2
    return np.log(abar) - np.log1p(-abar)


def path(t):
    return 2 * np.log((1 - t) / t)


def linear_beta(t):
    return -np.log(np.expm1(0.1 * t + 0.5 * 19.9 * t**2))


def lognormal(mean, std):
    return lambda t: -2 * (mean + std * special.ndtri(t))


TIMES = {
    "cosine": cosine,
    "cosine:shift=-1.4": lambda t: cosine(t) - 1.4,
    "iddpm": iddpm,
    "fm-ot": path,
    "fm-ot:shift=-2": lambda t: path(t) - 2,
    "linear-beta": linear_beta,
    "edm": lognormal(-1.2, 1.2),
    "edm:mean=-0.4,std=1": lognormal(-0.4, 1.0),
}

# ‖target − out‖² / ‖ε−ε̂‖², by hand: out is a fixed linear map of the data or the noise, at fixed z = αx + σε

ERROR = {
    "eps": lambda lam: np.ones_like(lam),
    "x": lambda lam: np.exp(-lam),
    "v": lambda lam: 1 + np.exp(-lam),
    "u": lambda lam: (1 + np.exp(-lam / 2)) ** 2,
    "u-path": lambda lam: (1 + np.exp(-lam / 2)) ** 2,
    "edm": lambda lam: (np.exp(-lam) + 0.25) / 0.25,
}

# The factor that multiplies the error of that target


def plain(lam, target):
    return np.ones_like(lam)


def min_snr(gamma):
    """As published, one formula per target; for the others the one that gives the same loss as on x."""

    def factor(lam, target):
        snr = np.exp(lam)
        clipped = np.minimum(snr, gamma)
        if target == "x":
            return clipped
        if target == "eps":
            return clipped / snr
        if target == "v":
            return clipped / (snr + 1)
        return clipped * ERROR["x"](lam) / ERROR[target](lam)

    return factor


FACTOR = {
    "": plain,
    "snr": lambda lam, target: np.exp(lam),
    "snr+1": lambda lam, target: np.exp(lam) + 1,
    "truncated-snr": lambda lam, target: np.maximum(np.exp(lam), 1),
    "min-snr:5": min_snr(5),
    "min-snr:gamma=2": min_snr(2),
    "p2:1": lambda lam, target: 1 / (1 + np.exp(lam)),
    "p2:gamma=0.5": lambda lam, target: 1 / (1 + np.exp(lam)) ** 0.5,
    "sigmoid:bias=2": lambda lam, target: 1 / (1 + np.exp(lam - 2)),
}
KINKS = {"truncated-snr": 0.0, "min-snr:5": np.log(5), "min-snr:gamma=2": np.log(2)}


def bump(seed):
    """A smooth positive ε error over λ: nothing symmetric, nothing that a mistake could hide behind."""
    rng = np.random.default_rng(seed)
    height, middle, width, wave = rng.uniform(0.2, 1, 4), rng.uniform(-8, 8, 4), rng.uniform(1, 4, 4), rng.uniform(0, 6)

    def error(lam):
        hills = height * np.exp(-(((lam[..., None] - middle) / width) ** 2))
        return 0.1 + hills.sum(-1) + 0.05 * np.sin(lam + wave)

    return error


def both_sides(spec, times, per_example, panels, kink=None, seed=0, ends=(-9.9, 11.0)):
    """(E_t[c g(λ_t)] on a range of t, ½∫ w g dλ on the same range of λ): per_example is c(λ) by hand."""
    low, high = (optimize.brentq(lambda t, lam=lam: times(t) - lam, 1e-13, 1 - 1e-13) for lam in ends[::-1])
    levels = np.linspace(times(high), times(low), 353)
    if kink is not None:
        levels = np.unique([*levels, kink])
    inner = [optimize.brentq(lambda t, lam=lam: times(t) - lam, low, high, xtol=1e-17) for lam in levels[1:-1]]
    edges = np.array([low, *inner[::-1], high])
    t, share = panels(edges)
    g = bump(seed)
    left = float((per_example(times(t)) * g(times(t)) * share).sum())
    lam, width = panels(times(edges)[::-1])
    w = parse_weighting(spec)(torch.from_numpy(lam)).numpy()
    return left, 0.5 * float((w * g(lam) * width).sum())


@pytest.mark.parametrize("schedule", TIMES)
@pytest.mark.parametrize("target", ERROR)
def test_every_objective_is_the_weighted_loss_of_its_weighting(target, schedule, panels):
    for seed, (name, factor) in enumerate(FACTOR.items()):
        spec = f"{target}-mse{':' if name else ''}{name}@{schedule}"
        left, right = both_sides(
            spec,
            TIMES[schedule],
            lambda lam, factor=factor: factor(lam, target) * ERROR[target](lam),
            panels,
            KINKS.get(name),
            seed,
        )
        assert right == pytest.approx(left, rel=1e-10), spec


def test_every_declared_target_and_factor_is_tried():
    assert set(ERROR) == set(PREDICTIONS)
    assert {name.partition(":")[0] for name in FACTOR} - {"", "sigmoid"} == set(FACTORS)


# As peers write theirs: name, λ(t), c(λ) on ‖ε−ε̂‖², and const of the weighting's scale


def edm_loss(lam):
    """Karras et al. 2022: (σ² + σ_d²)/(σ σ_d)² ‖D − y‖², D an x̂."""
    sigma = np.exp(-lam / 2)
    return (sigma**2 + 0.25) / (sigma * 0.5) ** 2 * ERROR["x"](lam)


PUBLIC = [  # spec, λ(t), c(λ), const, kink
    ("eps-mse@cosine", cosine, ERROR["eps"], 1, None),  # improved DDPM
    ("v-mse@cosine", cosine, ERROR["v"], 1, None),  # Salimans & Ho
    ("x-mse:snr+1@cosine", cosine, lambda lam: (np.exp(lam) + 1) * np.exp(-lam), 1, None),
    ("x-mse:truncated-snr@cosine", cosine, lambda lam: np.maximum(np.exp(lam), 1) * np.exp(-lam), 1, 0.0),
    ("eps-mse:min-snr:5@linear-beta", linear_beta, lambda lam: np.minimum(np.exp(lam), 5) / np.exp(lam), 1, np.log(5)),
    ("eps-mse:p2:1@linear-beta", linear_beta, lambda lam: 1 / (1 + np.exp(lam)), 1, None),
    ("edm:mean=-1.2,std=1.2", lognormal(-1.2, 1.2), edm_loss, 8, None),
    ("edm:mean=-0.4,std=1.0", lognormal(-0.4, 1.0), edm_loss, 8, None),  # EDM2, latents
    ("edm:mean=-0.8,std=1.6", lognormal(-0.8, 1.6), edm_loss, 8, None),  # EDM2, 64 pixels
    ("edm-mse@edm:mean=-0.4,std=1.0", lognormal(-0.4, 1.0), edm_loss, 1, None),
    ("sd3:m=0,s=1", lambda q: path(special.expit(special.ndtri(q))), ERROR["u"], 2, None),  # t = sigmoid(normal)
    ("u-mse@fm-ot", path, ERROR["u"], 1, None),  # flow matching
    ("x-mse@fm-ot", path, ERROR["x"], 1, None),  # InDI
    ("eps-mse@linear-beta", linear_beta, ERROR["eps"], 1, None),  # DDPM
    ("eps-mse:sigmoid:bias=2@cosine", cosine, lambda lam: 1 / (1 + np.exp(lam - 2)), 1, None),  # the public trap
]


@pytest.mark.parametrize(("spec", "times", "per_example", "const", "kink"), PUBLIC, ids=[row[0] for row in PUBLIC])
def test_a_peers_objective_is_the_weighted_loss_of_its_spec(spec, times, per_example, const, kink, panels):
    for seed in range(3):
        left, right = both_sides(spec, times, per_example, panels, kink, seed, ends=(-8.0, 8.0))
        assert const * right == pytest.approx(left, rel=1e-10)


# The same objective, written otherwise

SAME = [
    ("x-mse:snr@{}", "eps-mse@{}"),
    ("x-mse:snr+1@{}", "v-mse@{}"),
    ("edm-mse:sigma_data=1@{}", "v-mse@{}"),  # F at σ_d = 1 is −v
    ("eps-mse:min-snr:3@{}", "x-mse:min-snr:3@{}"),
    ("v-mse:min-snr:3@{}", "x-mse:min-snr:gamma=3@{}"),
    ("u-mse:min-snr:3@{}", "edm-mse:min-snr:3@{}"),
]


@pytest.mark.parametrize("schedule", ["cosine", "cosine:shift=2", "fm-ot", "linear-beta", "edm", "iddpm", "uniform"])
@pytest.mark.parametrize(("one", "other"), SAME)
def test_one_objective_in_two_words(one, other, schedule):
    first, second = (parse_weighting(text.format(schedule))(LAMBDA) for text in (one, other))
    np.testing.assert_allclose(first, second, rtol=1e-12)


NAMED = {
    "iddpm": "eps-mse@cosine",
    "v-cosine": "v-mse@cosine",
    "x-cosine": "x-mse@cosine",
    "snr-trunc": "x-mse:truncated-snr@cosine",
    "fm-ot": "u-mse@fm-ot",
    "indi": "x-mse@fm-ot",
    "p2": "eps-mse:p2@cosine",
    "min-snr": "v-mse:min-snr@cosine",
    "ddpm": "eps-mse@linear-beta",
    "edm": "edm-mse@edm",
    "sd3": "u-mse@edm:mean=0,std=1",
}


@pytest.mark.parametrize("name", NAMED)
def test_a_named_weighting_is_its_objective_at_the_declared_scale(name):
    declared = WEIGHTINGS[name].traits.const.replace("^", "**")
    const = eval(declared, {"pi": np.pi, **WEIGHTINGS[name].params})
    found = parse_weighting(NAMED[name])(LAMBDA)
    np.testing.assert_allclose(found, const * parse_weighting(name)(LAMBDA), rtol=1e-12)


def test_a_schedules_weighting_is_the_eps_loss_scaled_to_a_peak_of_one():
    for schedule in ("cosine", "edm:mean=-0.4", "fm-ot:shift=1", "linear-beta"):
        found = likeness(parse_weighting(f"schedule:{schedule}"), parse_weighting(f"eps-mse@{schedule}"), -12, 12)
        assert found.deviation < 1e-13


def test_the_sigmoid_loss_without_its_density_is_another_objective():
    trap, meant = parse_weighting("eps-mse:sigmoid:bias=2@cosine"), parse_weighting("sigmoid:bias=2")
    assert likeness(trap, meant, -10, 10).deviation > 5
    density = 1 / (2 * np.pi * np.cosh(LAMBDA.numpy() / 2))
    np.testing.assert_allclose(trap(LAMBDA), 2 * density * meant(LAMBDA).numpy(), rtol=1e-12)


# Modifiers


@pytest.mark.parametrize(
    "base", ["v-mse", "x-mse:min-snr:3", "edm-mse:sigma_data=1", "eps-mse:sigmoid:bias=1", "x-mse:snr+1"]
)
@pytest.mark.parametrize("words", ["shift=1.5", "monotone", "shift=-2,monotone"])
def test_modifiers_stand_left_of_the_schedule_and_read_back(base, words):
    joint = "," if ":" in base else ":"
    w = parse_weighting(f"{base}{joint}{words}@cosine:shift=0.5")
    again = parse_weighting(w.spec)
    assert again.spec == w.spec
    assert torch.equal(again(LAMBDA), w(LAMBDA))


def test_shift_left_moves_all_and_shift_right_the_density_alone():
    whole = parse_weighting("v-mse:shift=2@cosine")
    assert torch.equal(whole(LAMBDA), parse_weighting("v-mse@cosine")(LAMBDA - 2))
    density = parse_weighting("v-mse@cosine:shift=2")(LAMBDA)
    wanted = 2 * (1 + np.exp(-LAMBDA.numpy())) / (2 * np.pi * np.cosh((LAMBDA.numpy() - 2) / 2))
    np.testing.assert_allclose(density, wanted, rtol=1e-12)
    assert torch.equal(
        parse_weighting("v-mse:shift=2@cosine", shift=1.0)(LAMBDA), parse_weighting("v-mse:shift=3@cosine")(LAMBDA)
    )


def test_monotone_may_stand_on_either_side():
    texts = ("eps-mse:monotone@cosine", "eps-mse@cosine,monotone", "eps-mse@cosine:monotone")
    assert len({parse_weighting(text).spec for text in texts}) == 1
    found = parse_weighting(texts[0])
    assert found.rising(-15, 15) == []
    np.testing.assert_allclose(found(LAMBDA[:300]), 1 / np.pi, rtol=1e-14)


def test_a_v_loss_under_a_schedule_moved_far_is_monotone_no_more():
    """The v loss under a cosine schedule moved by s is monotone up to s = log 9 only (MATH.md)."""
    assert parse_weighting("v-mse@cosine:shift=2.19").rising(-15, 15) == []
    assert parse_weighting("v-mse@cosine:shift=2.21").rising(-15, 15) != []


def test_options_give_a_factors_parameters():
    w = parse_weighting("x-mse:min-snr@cosine", given={"gamma": 3.0})
    assert w.spec == "x-mse:min-snr:gamma=3@cosine"


def test_an_objective_is_told_from_a_name_and_from_a_path():
    for text in ("eps-mse", "v-mse@cosine", "edm-mse:snr@cosine", "no-mse@x"):
        assert is_foreign_loss(text)
    for text in ("edm", "schedule:x-mse@y", "runs/x-mse@y/s.json", "x-mse.json", "min-snr:gamma=5"):
        assert not is_foreign_loss(text)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("q-mse@cosine", "no prediction is called 'q'"),
        ("eps-mse:nope@cosine", "no factor is called 'nope'"),
        ("eps-mse:sn@cosine", "did you mean snr"),
        ("v-mse", "name a schedule"),
        ("v-mse@", "name a schedule"),
        ("v-mse@,monotone", "name a schedule"),
        ("v-mse@nope", "no schedule"),
        ("v-mse@cosin", "did you mean cosine"),
        ("x-mse:min-snr:x@cosine", "not a number"),
        ("x-mse:min-snr:-1@cosine", "above 0"),
        ("x-mse:min-snr:nan@cosine", "not a number"),
        ("x-mse:snr:2@cosine", "has no parameter"),
        ("x-mse:snr,p2@cosine", "no factor is called 'snr,p2'"),
        ("v-mse:shift=1,shift=2@cosine", "shift is given twice"),
        ("v-mse:shift=x@cosine", "not a number"),
        ("v-mse:gamma=2@cosine", "v has no parameter 'gamma'"),
        ("edm-mse:sigma_data=0@edm", "above 0"),
        ("eps-mse:sigmoid:gamma=2@cosine", "sigmoid has no parameter"),
        ("eps-mse@cosine:bias=2", "no parameter 'bias'"),
    ],
)
def test_a_bad_objective_is_refused(text, word):
    with pytest.raises(UsageError, match=word):
        parse_weighting(text)


def test_an_option_that_fits_no_factor_is_refused():
    with pytest.raises(UsageError, match="no parameter 'bias'"):
        parse_weighting("eps-mse@cosine", given={"bias": 1.0})
    with pytest.raises(UsageError, match="min-snr has no parameter 'bias'"):
        parse_weighting("x-mse:min-snr@cosine", given={"bias": 1.0})


@pytest.mark.parametrize(("target", "name"), list(itertools.product(ERROR, ["", "truncated-snr", "min-snr:5"])))
def test_a_weighting_of_an_objective_has_the_slope_of_its_values(target, name):
    w = parse_weighting(f"{target}-mse{':' if name else ''}{name}@cosine")
    at = torch.linspace(-9.03, 9.03, 50, dtype=torch.float64)
    step = 1e-5
    np.testing.assert_allclose(w.slope(at), (w(at + step) - w(at - step)) / (2 * step), rtol=1e-6, atol=1e-9)
