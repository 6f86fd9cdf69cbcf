"""Every objective, integrated over its own t by formulas written out here, equals ½∫ w g dλ of its weighting."""

from functools import cache

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
    "edm:mean=-0.4,std=1": lognormal(-0.4, 1.0),
    "logit-normal:mean=0.3,std=1.2": lambda t: path(special.expit(0.3 + 1.2 * special.ndtri(t))),
}

# ‖target − out‖² / ‖ε−ε̂‖², by hand: out is a fixed linear map of the data or the noise, at fixed z = αx + σε


ERROR = {
    "eps": lambda lam: np.ones_like(lam),
    "eps-path": lambda lam: np.ones_like(lam),
    "x": lambda lam: np.exp(-lam),
    "x-path": lambda lam: np.exp(-lam),
    "v": lambda lam: 1 + np.exp(-lam),
    "u": lambda lam: (1 + np.exp(-lam / 2)) ** 2,
    "u-path": lambda lam: (1 + np.exp(-lam / 2)) ** 2,
    "edm": lambda lam: (np.exp(-lam) + 0.25) / 0.25,
}


# The factor that multiplies the error of that target


def min_snr(gamma):
    """Loss weights as published, one formula per target; a target without one has the formula that gives the same loss as on x."""

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


def clamped(least):
    """JiT divides the error of x by the time of the path, at least `least`; the error of u is that of x over the time."""

    def factor(lam, target):
        time = 1 / (1 + np.exp(lam / 2))
        return ERROR["x"](lam) / np.maximum(time, least) ** 2 / ERROR[target](lam)

    return factor


FACTOR = {
    "": lambda lam, target: np.ones_like(lam),
    "snr": lambda lam, target: np.exp(lam),
    "snr+1": lambda lam, target: np.exp(lam) + 1,
    "truncated-snr": lambda lam, target: np.maximum(np.exp(lam), 1),
    "min-snr": min_snr(5),
    "min-snr:gamma=2": min_snr(2),
    "p2": lambda lam, target: 1 / (1 + np.exp(lam)),
    "p2:gamma=0.5": lambda lam, target: 1 / (1 + np.exp(lam)) ** 0.5,
    "debiased": lambda lam, target: np.exp(-lam / 2),
    "clamped": clamped(0.05),
    "clamped:least=0.3": clamped(0.3),
    "sigmoid:bias=2": lambda lam, target: 1 / (1 + np.exp(lam - 2)),
}
KINKS = {
    "truncated-snr": 0.0,
    "min-snr": np.log(5),
    "min-snr:gamma=2": np.log(2),
    "clamped": 2 * np.log(19),
    "clamped:least=0.3": 2 * np.log(7 / 3),
}


def bump(seed):
    """A smooth positive ε error over λ: nothing symmetric, nothing that a mistake could hide behind."""
    rng = np.random.default_rng(seed)
    height = rng.uniform(0.2, 1, 4)
    middle = rng.uniform(-8, 8, 4)
    width = rng.uniform(1, 4, 4)
    wave = rng.uniform(0, 6)

    def error(lam):
        hills = height * np.exp(-(((lam[..., None] - middle) / width) ** 2))
        return 0.1 + hills.sum(-1) + 0.05 * np.sin(lam + wave)

    return error


@cache
def edges_of(times, kink, ends=(-9.9, 11.0)):
    """Edges of panels in t, between the times of two λ and at a kink of the weighting."""
    low, high = (optimize.brentq(lambda t, lam=lam: times(t) - lam, 1e-13, 1 - 1e-13) for lam in ends[::-1])
    levels = np.linspace(times(high), times(low), 353)
    if kink is not None:
        levels = np.unique([*levels, kink])
    inner = [optimize.brentq(lambda t, lam=lam: times(t) - lam, low, high, xtol=1e-17) for lam in levels[1:-1]]
    return np.array([low, *inner[::-1], high])


def both_sides(spec, times, factor, target, panels, kink, seed):
    """(E_t[c g(λ_t)] on a range of t, ½∫ w g dλ on the same range of λ): factor times the error of target is c(λ)."""
    g = bump(seed)
    edges = edges_of(times, kink)
    t, share = panels(edges)
    at = times(t)
    left = float((factor(at, target) * ERROR[target](at) * g(at) * share).sum())
    lam, width = panels(times(edges)[::-1])
    w = parse_weighting(spec)(torch.from_numpy(lam)).numpy()
    return left, 0.5 * float((w * g(lam) * width).sum())


@pytest.mark.parametrize("schedule", TIMES)
@pytest.mark.parametrize("target", ERROR)
def test_every_objective_is_the_weighted_loss_of_its_weighting(target, schedule, panels):
    for seed, (name, factor) in enumerate(FACTOR.items()):
        spec = f"{target}-mse{':' if name else ''}{name}@{schedule}"
        left, right = both_sides(spec, TIMES[schedule], factor, target, panels, KINKS.get(name), seed)
        assert right == pytest.approx(left, rel=1e-10), spec


def test_every_declared_target_and_factor_is_tried():
    assert set(ERROR) == set(PREDICTIONS)
    assert {name.partition(":")[0] for name in FACTOR} - {"", "sigmoid"} == set(FACTORS)
    named = {line.split()[0].partition(":")[0] for line in NAMED.strip().splitlines()}
    assert set(WEIGHTINGS) == named | {"elbo", "soft-min-snr", "edm-monotonic", "sigmoid"}, "the others are in test_weighting.py"


NAMED = """
iddpm                              0.3183098861837907 eps-mse@cosine
v-cosine                           0.6366197723675814 v-mse@cosine
x-cosine                           0.3183098861837907 x-mse@cosine
snr-trunc                          0.3183098861837907 x-mse:truncated-snr@cosine
fm-ot                              1                  u-mse@fm-ot
indi                               0.25               x-mse@fm-ot
p2                                 0.3183098861837907 eps-mse:p2@cosine
p2:gamma=0.5                       0.3183098861837907 eps-mse:p2:gamma=0.5@cosine
min-snr                            0.3183098861837907 v-mse:min-snr@cosine
min-snr:gamma=2                    0.3183098861837907 v-mse:min-snr:gamma=2@cosine
ddpm                               2                  eps-mse@linear-beta
ddpm:beta_min=0.3,beta_max=12      2                  eps-mse@linear-beta:beta_min=0.3,beta_max=12
edm                                8                  edm-mse@edm
edm:mean=-0.4,std=1,sigma_data=2   0.5                edm-mse:sigma_data=2@edm:mean=-0.4,std=1
sd3                                2                  u-mse@edm:mean=0,std=1
sd3:m=0.3,s=1.2                    2                  u-mse@edm:mean=0.3,std=1.2
"""
"""Name, objective, and the constant between them, such as 1/π from the density of the cosine schedule."""


@pytest.mark.parametrize("line", NAMED.strip().splitlines())
def test_a_named_weighting_is_its_objective_up_to_a_known_constant(line):
    name, scale, objective = line.split()
    found = likeness(parse_weighting(objective), parse_weighting(name), -15, 15)
    assert found.deviation < 1e-12 and found.scale == pytest.approx(float(scale), rel=1e-12)


# Modifiers


@pytest.mark.parametrize("base", ["v-mse", "x-mse:min-snr:3", "edm-mse:sigma_data=1", "eps-mse:sigmoid:bias=1", "x-mse:snr+1"])
@pytest.mark.parametrize("words", ["shift=1.5", "monotone", "shift=-2,monotone"])
def test_modifiers_stand_left_of_the_schedule_and_read_back(base, words):
    joint = "," if ":" in base else ":"
    w = parse_weighting(f"{base}{joint}{words}@cosine:shift=0.5")
    again = parse_weighting(w.spec)
    assert again.spec == w.spec
    assert torch.equal(again(LAMBDA), w(LAMBDA))


def test_shift_left_moves_all_and_shift_right_the_density_alone():
    still, moved = (parse_weighting(text) for text in ("v-mse@cosine", "v-mse:shift=2@cosine"))
    assert torch.equal(moved(LAMBDA), still(LAMBDA - 2))
    assert torch.equal(parse_weighting("v-mse:shift=1@cosine", shift=1.0)(LAMBDA), moved(LAMBDA))
    wanted = 2 * (1 + np.exp(-LAMBDA.numpy())) / (2 * np.pi * np.cosh((LAMBDA.numpy() - 2) / 2))
    np.testing.assert_allclose(parse_weighting("v-mse@cosine:shift=2")(LAMBDA), wanted, rtol=1e-12)


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
    for text in ("edm", "runs/x-mse@y/s.json", "x-mse.json", "min-snr:gamma=5"):
        assert not is_foreign_loss(text)


BAD = """
q-mse@cosine eps-mse:nope@cosine v-mse v-mse@ v-mse@nope x-mse:min-snr:-1@cosine
x-mse:min-snr:nan@cosine x-mse:snr:2@cosine x-mse:snr,p2@cosine v-mse:shift=1,shift=2@cosine v-mse:shift=x@cosine
v-mse:gamma=2@cosine edm-mse:sigma_data=0@edm eps-mse:sigmoid:gamma=2@cosine eps-mse@cosine:bias=2
"""


@pytest.mark.parametrize("text", [*BAD.split()])
def test_a_bad_objective_is_refused(text):
    with pytest.raises(UsageError):
        parse_weighting(text)
