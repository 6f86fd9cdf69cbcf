"""A diffusers scheduler_config.json as a schedule and as a weighting."""

import json
import math

import numpy as np
import pytest
import torch

from elbocli.core.monotone import likeness
from elbocli.core.schedule_curves import Steps
from elbocli.core.weighting import FACTORS, parse_weighting
from elbocli.errors import ElboError, FormatError
from elbocli.files.schedule_file import resolve_schedule, resolve_weighting

BASE = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}
LATENT = {**BASE, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
CONFIGS = {
    "linear": BASE,
    "latent": {**LATENT, "prediction_type": "v_prediction"},
    "zero-snr": {**LATENT, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "cosine": {**BASE, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
    "sigmoid": {**BASE, "beta_schedule": "sigmoid", "prediction_type": "epsilon"},
    "trained": {**BASE, "trained_betas": [0.001 * (i + 1) for i in range(100)]},
}
LAMBDA = torch.linspace(-9, 8, 101, dtype=torch.float64)


@pytest.fixture
def write(tmp_path):
    def write(config, name="scheduler_config.json"):
        path = tmp_path / name
        path.write_text(config if isinstance(config, str) else json.dumps(config))
        return path

    return write


def levels(config):
    """λ_i by hand, from the definition of each beta schedule."""
    count, first, last = config["num_train_timesteps"], config["beta_start"], config["beta_end"]
    i = np.arange(count)
    beta = {
        "linear": first + (last - first) * i / (count - 1),
        "scaled_linear": (first**0.5 + (last**0.5 - first**0.5) * i / (count - 1)) ** 2,
        "sigmoid": first + (last - first) / (1 + np.exp(6 - 12 * i / (count - 1))),
        "squaredcos_cap_v2": np.minimum(
            0.999,
            1
            - (np.cos(((i + 1) / count + 0.008) / 1.008 * np.pi / 2) / np.cos((i / count + 0.008) / 1.008 * np.pi / 2))
            ** 2,
        ),
    }[config["beta_schedule"]]
    beta = np.array(config.get("trained_betas", beta))
    abar = np.cumprod(1 - beta)
    if config.get("rescale_betas_zero_snr"):
        root = np.sqrt(abar)
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1]))[:-1] ** 2  # the last has no signal
    return np.log(abar / (1 - abar)), len(beta)


ERROR = {
    "epsilon": lambda lam: lam * 0 + 1,
    "sample": lambda lam: np.exp(-lam),
    "v_prediction": lambda lam: 1 + np.exp(-lam),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configs_weighting_gives_each_timestep_its_share(name, write):
    """∫ w/(2·error factor) dλ between timesteps is 1/T: what the objective's uniform draw of a timestep says."""
    config = CONFIGS[name]
    w = resolve_weighting(str(write(config)))
    level, count = levels(config)
    node, weight = np.polynomial.legendre.leggauss(10)
    half = -np.diff(level)[::-1, None] / 2
    at, width = (level[:0:-1, None] + half * (1 + node)).ravel(), (half * weight).ravel()
    inverse = w(torch.from_numpy(at)).numpy() / ERROR[config.get("prediction_type", "epsilon")](at)
    share = 0.5 * (inverse * width).reshape(-1, 10).sum(1)
    np.testing.assert_allclose(share, 1 / count, rtol=1e-8)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configs_schedule_puts_timestep_i_at_the_middle_of_its_share(name, write):
    config = CONFIGS[name]
    level, count = levels(config)
    curve = resolve_schedule(str(write(config))).curve
    np.testing.assert_allclose(
        curve.t(torch.from_numpy(level.copy())), (np.arange(len(level)) + 0.5) / count, atol=1e-9
    )


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_flow_matching_is_the_velocity_loss_on_the_shifted_path(shift, write):
    w = resolve_weighting(str(write({**FLOW, "shift": shift})))
    wanted = parse_weighting(f"u-mse@fm-ot:shift={-2 * math.log(shift)}")
    np.testing.assert_allclose(w(LAMBDA), wanted(LAMBDA), rtol=1e-12)
    assert likeness(w, parse_weighting("fm-ot"), -8, 8).deviation < 1e-12 or shift != 1


def test_flow_sigmas_of_other_schedulers_are_flow_matching_too(write):
    path = write({**BASE, "use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"})
    assert torch.equal(resolve_weighting(str(path))(LAMBDA), resolve_weighting(str(write(FLOW, "b.json")))(LAMBDA))


def test_timesteps_agree_with_diffusers(write):
    diffusers = pytest.importorskip("diffusers")
    for name in ("linear", "latent", "cosine", "sigmoid", "zero-snr"):
        abar = diffusers.DDPMScheduler.from_config(CONFIGS[name]).alphas_cumprod.double()
        theirs = (abar / (1 - abar)).log()  # float32: 6e-8 of 1 − ᾱ ≈ 1e-4
        curve = resolve_schedule(str(write(CONFIGS[name]))).curve
        assert isinstance(curve, Steps)
        ours = curve.level.flip(0)
        np.testing.assert_allclose(ours, theirs[: len(ours)], atol=1e-3)


def test_the_spec_says_what_the_file_means_and_reads_back(write):
    path = write(CONFIGS["latent"])
    w = resolve_weighting(f"{path}:shift=-1,monotone")
    assert w.spec == f"v-mse:shift=-1,monotone@{path}"
    assert torch.equal(resolve_weighting(w.spec)(LAMBDA), w(LAMBDA))
    assert resolve_weighting(f"{path},monotone").spec == f"v-mse:monotone@{path}"
    assert resolve_weighting(str(path), shift=2.0).spec == f"v-mse:shift=2@{path}"


@pytest.mark.parametrize(
    "text", ["eps-mse@{}", "x-mse:min-snr:5@{}", "schedule:{}", "x-mse:snr@{}:shift=1", "schedule:{},monotone"]
)
def test_a_config_may_stand_wherever_a_schedule_does(text, write):
    path = write(BASE)
    spec = text.format(path)
    w = resolve_weighting(spec)
    assert torch.equal(resolve_weighting(w.spec)(LAMBDA), w(LAMBDA))
    assert w.schedule.file == path and resolve_weighting(w.spec).schedule.file == path


def test_the_file_behind_a_weighting_is_found(write):
    path = write(BASE)
    for text in (
        f"{path}",
        f"{path}:monotone",
        f"{path}:shift=1,monotone",
        f"v-mse@{path}",
        f"v-mse:monotone@{path}:shift=2",
    ):
        assert resolve_weighting(text).schedule.file == path
    for text in ("v-mse@cosine", "x-mse:min-snr:5@edm:mean=1"):
        assert resolve_weighting(text).schedule.file is None


def test_a_path_with_an_at_sign_is_a_path(write, tmp_path):
    (tmp_path / "v-mse@2").mkdir()
    path = write(BASE, "v-mse@2/a@b.json")
    assert torch.equal(resolve_weighting(str(path))(LAMBDA), resolve_weighting(f"eps-mse@{path}")(LAMBDA))
    assert resolve_weighting(str(path)).schedule.file == path


def test_every_factor_works_on_a_config(write):
    path = write(BASE)
    for name in FACTORS:
        w = resolve_weighting(f"x-mse:{name}@{path}")
        assert bool((w(LAMBDA) > 0).all())
        assert resolve_weighting(w.spec).spec == w.spec


def test_the_verdict_on_configs_in_use(write):
    """v prediction on the latent schedule never rises within its own timesteps; eps prediction rises once."""
    for zero in (False, True):
        w = resolve_weighting(str(write({**CONFIGS["latent"], "rescale_betas_zero_snr": zero})))
        assert w.rising(*w.support) == []
    w = resolve_weighting(str(write(BASE)))
    ((start, end),) = w.rising(*w.support)
    assert start == w.support[0]
    assert end == pytest.approx(-0.92, abs=0.02)  # the continuous DDPM schedule turns at −.9219


BAD = {
    "not JSON": ("{", "not usable JSON"),
    "a list": ("[1]", ""),
    "NaN": (json.dumps({**BASE, "beta_end": math.nan}), ""),
    "infinity": (json.dumps({**BASE, "trained_betas": [0.1, math.inf]}), ""),
    "an overflow": (json.dumps(BASE).replace("0.02", "1e999"), ""),
    "a huge integer": (json.dumps(BASE).replace("0.02", "1" + "0" * 400), ""),
    "an endless integer": (json.dumps(BASE).replace("0.02", "1" * 5000), "not usable JSON"),
    "deep nesting": ("[" * 100_000, "not usable JSON"),
    "another file": ({"hidden_size": 3}, "not a scheduler_config.json"),
    "betas of one": ({**BASE, "beta_end": 1.0}, "not between 0 and 1"),
    "betas above one": ({**BASE, "trained_betas": [0.1, 1.5]}, "trained_betas"),
    "betas of zero": ({**BASE, "trained_betas": [0.1, 0]}, "trained_betas"),
    "text for a beta": ({**BASE, "trained_betas": [0.1, "x"]}, "trained_betas"),
    "one beta": ({**BASE, "trained_betas": [0.1]}, "trained_betas"),
    "a null beta": ({**BASE, "beta_start": None}, "beta_start"),
    "a negative beta": ({**BASE, "beta_start": -1e-4}, "beta_start"),
    "a truth for a beta": ({**BASE, "beta_start": True}, "beta_start"),
    "no timesteps": ({**BASE, "num_train_timesteps": 0}, "num_train_timesteps"),
    "half timesteps": ({**BASE, "num_train_timesteps": 10.5}, "num_train_timesteps"),
    "too many timesteps": ({**BASE, "num_train_timesteps": 10**9}, "num_train_timesteps"),
    "an unknown beta schedule": (
        {**BASE, "beta_schedule": "scaledlinear"},
        "did you mean scaled_linear",
    ),
    "no beta schedule": ({"num_train_timesteps": 10}, ""),
    "an unknown prediction": (
        {**BASE, "prediction_type": "velocity"},
        "velocity",
    ),
    "an unhashable prediction": ({**BASE, "prediction_type": ["v"]}, "prediction_type"),
    "dynamic shifting": ({**FLOW, "use_dynamic_shifting": True}, "u-mse@fm-ot:shift=S"),
    "a flow shift of zero": ({**FLOW, "shift": 0}, "shift"),
    "an snr scale of zero": ({**BASE, "snr_shift_scale": 0}, "snr_shift_scale"),
    "everything beyond the limit": ({**BASE, "trained_betas": [1e-30, 1e-30]}, "at least two of them within"),
}


@pytest.mark.parametrize("what", BAD)
def test_a_bad_config_is_refused_by_name_and_finding(what, write):
    content, finding = BAD[what]
    with pytest.raises(FormatError, match=f"scheduler_config.json: .*{finding}"):
        resolve_weighting(str(write(content)))


def test_a_file_that_is_missing_or_binary_is_refused(tmp_path):
    with pytest.raises(FormatError, match=r"gone\.json: could not read"):
        resolve_weighting(str(tmp_path / "gone.json"))
    for spec in ("v-mse@gone.json", "schedule:gone.json"):
        with pytest.raises(FormatError, match=r"gone\.json: no such schedule"):
            resolve_weighting(spec)
    path = tmp_path / "x.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(FormatError, match="not usable JSON"):
        resolve_weighting(str(path))


def test_modifiers_that_are_none_are_refused(write):
    with pytest.raises(ElboError):
        resolve_weighting(f"{write(BASE)}:bias=2")
    with pytest.raises(ElboError):
        resolve_weighting(f"{write(BASE)}:snr:2")
