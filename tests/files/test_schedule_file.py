"""Schedule files and diffusers' scheduler_config.json are schedules and weightings wherever a name is one."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from elbocli.core.monotone import likeness
from elbocli.core.schedule import NARROWEST, Table, make_schedule, parse_schedule
from elbocli.core.weighting import FACTORS, parse_weighting
from elbocli.errors import ElboError, FormatError, UsageError
from elbocli.files.schedule_file import read_table, resolve_schedule, resolve_weighting, to_text
from elbocli.files.yaml_text import parse_yaml, read_yaml, yaml_text

T = torch.linspace(0, 1, 101, dtype=torch.float64)
LAMBDA = torch.linspace(-12, 12, 97, dtype=torch.float64)
ROWS = [(0.0, 9.5), (0.3, 2.0), (0.8, -1.25), (1.0, -7.0)]


def table(rows=ROWS):
    return make_schedule(Table(list(rows)), "fitted", None, None)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "schedule.yaml"
    path.write_text(to_text(table(), weighting="sigmoid:bias=2", criterion="loss"))
    return path


def rows_of(seed):
    """Knots at numbers that no short decimal is."""
    random = np.random.default_rng(seed)
    count = random.integers(2, 30)
    time = np.linspace(0, 1, count)
    level = np.sort(random.uniform(-49, 49, count))[::-1]
    return [*zip((time**1.1).tolist(), (level + np.linspace(1, -1, count) * NARROWEST).tolist(), strict=True)]


@pytest.mark.parametrize("seed", range(5))
def test_a_file_holds_the_schedule_to_the_last_bit(seed, path):
    path.write_text(to_text(table(rows_of(seed))))
    found, _ = read_table(path)
    assert [*zip(found.time.tolist(), found.level.tolist())] == rows_of(seed)


def test_a_file_says_how_it_was_made(path):
    _, content = read_table(path)
    assert (content.logsnr_min, content.logsnr_max) == (-7.0, 9.5)
    assert (content.about["weighting"], content.about["criterion"]) == ("sigmoid:bias=2", "loss")
    assert resolve_weighting("sigmoid").schedule is None and resolve_weighting("v-mse@cosine").schedule.file is None


def test_a_file_is_truncated_shifted_and_clipped_like_a_name_which_it_does_not_hide(path, monkeypatch):
    part = resolve_schedule(str(path), -5, 5)
    assert part.logsnr(T)[[0, -1]].tolist() == pytest.approx([5, -5])
    moved = resolve_schedule(f"{path}:shift=-1.5")
    np.testing.assert_allclose(moved.logsnr(T), table().logsnr(T) - 1.5, atol=1e-12)
    assert torch.equal(resolve_schedule(moved.base).logsnr(T), moved.logsnr(T)) and moved.file == path
    clipped = resolve_schedule(str(path), -15, 15, clip=True)
    assert (clipped.logsnr_min, clipped.logsnr_max) == (-7.0, 9.5)
    with pytest.raises(UsageError, match="covers"):
        resolve_schedule(str(path), -15, 15)
    monkeypatch.chdir(path.parent)
    path.rename("cosine")
    assert torch.equal(resolve_schedule("./cosine").logsnr(T), table().logsnr(T))
    assert torch.equal(resolve_schedule("cosine", -9, 9).logsnr(T), parse_schedule("cosine", -9, 9).logsnr(T))


@pytest.mark.parametrize("modifier", [{"shift": 1.5}, {"monotone": True}, {"shift": -0.5, "monotone": True}])
def test_a_file_is_a_weighting_whose_spec_reads_back(path, modifier):
    plain, w = (resolve_weighting(f"eps-mse@{path}", **more)(LAMBDA) for more in ({}, modifier))
    spec = resolve_weighting(f"eps-mse@{path}", **modifier).spec
    assert torch.equal(resolve_weighting(spec)(LAMBDA), w)
    np.testing.assert_allclose(plain, 2 * table().density(LAMBDA), rtol=1e-12)
    if "monotone" in modifier:
        assert bool((w.diff() <= 0).all()) and ("shift" in modifier or bool((w >= plain).all()))


BAD_SCHEDULES = """
format: elbo-run
format: null
version: 0
knots: []
knots: [1, 2]
knots: [{t: 0}, {t: 1}]
knots: [{t: 0, logsnr: .nan}, {t: 1, logsnr: 0}]
knots: [{t: 0, logsnr: 0}, {t: 1, logsnr: 1}]
knots: [{t: 0, logsnr: 60}, {t: 1, logsnr: 1}]
knots: [{t: 0, logsnr: 2}, {t: 2, logsnr: 1}]
"""


@pytest.mark.parametrize("line", BAD_SCHEDULES.strip().splitlines())
def test_a_file_that_is_no_schedule_is_refused_by_name(path, line):
    path.write_text(yaml_text({**read_yaml(path), **parse_yaml(line, "")}))
    with pytest.raises(FormatError, match=r"schedule\.yaml"):
        read_table(path)


@pytest.mark.parametrize("text", ["a: &x [*x]\n", "a: 1\na: 2\n", "1: 2\n", "- 1\n", "a: ["])
def test_yaml_is_a_mapping_of_text_keys_each_given_once(text, path):
    path.write_text("b: 1e-4\nd: 2026-01-02\nn: null\n")
    assert read_yaml(path) == {"b": 1e-4, "d": "2026-01-02", "n": None}
    path.write_text(text)
    with pytest.raises(FormatError, match=r"schedule\.yaml"):
        read_yaml(path)


# scheduler_config.json

BASE = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
}
LATENT = {**BASE, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}
CONFIGS = {
    "linear": BASE,
    "latent": {**LATENT, "prediction_type": "v_prediction"},
    "zero-snr": {**LATENT, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True},
    "cosine": {**BASE, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "sample"},
    "sigmoid": {**BASE, "beta_schedule": "sigmoid", "prediction_type": "epsilon"},
    "trained": {**BASE, "trained_betas": [0.001 * (i + 1) for i in range(100)]},
}
ERROR = {"epsilon": lambda lam: lam * 0 + 1, "sample": lambda lam: np.exp(-lam), "v_prediction": lambda lam: 1 + np.exp(-lam)}


@pytest.fixture
def write(tmp_path):
    def write(config, name="scheduler_config.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(config if isinstance(config, str) else json.dumps(config))
        return str(tmp_path / name)

    return write


def levels(config):
    """λ_i by hand, from the definition of each beta schedule; and their number."""
    count = config["num_train_timesteps"]
    first = config["beta_start"]
    last = config["beta_end"]
    part = np.linspace(0, 1, count)

    def cosine(time):
        return np.cos((time + 0.008) / 1.008 * np.pi / 2) ** 2

    beta = {
        "linear": first + (last - first) * part,
        "scaled_linear": (first**0.5 + (last**0.5 - first**0.5) * part) ** 2,
        "sigmoid": first + (last - first) / (1 + np.exp(6 - 12 * part)),
        "squaredcos_cap_v2": np.minimum(0.999, 1 - cosine(np.arange(1, count + 1) / count) / cosine(np.arange(count) / count)),
    }[config["beta_schedule"]]
    abar = np.cumprod(1 - np.array(config.get("trained_betas", beta)))
    count = len(abar)
    if config.get("rescale_betas_zero_snr"):
        root = np.sqrt(abar)
        abar = ((root - root[-1]) * root[0] / (root[0] - root[-1]))[:-1] ** 2  # the last has no signal
    return np.log(abar / (1 - abar)), count


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_gives_each_timestep_its_share_and_its_middle(name, write):
    """∫ w/(2·error factor) dλ between timesteps is 1/T: what the objective's uniform draw of a timestep says."""
    config = CONFIGS[name]
    level, count = levels(config)
    curve = resolve_schedule(write(config)).curve
    np.testing.assert_allclose(curve.t(torch.tensor(level)), (np.arange(len(level)) + 0.5) / count, atol=1e-9)
    node, weight = np.polynomial.legendre.leggauss(10)
    half = -np.diff(level)[::-1, None] / 2
    at = (level[:0:-1, None] + half * (1 + node)).ravel()
    width = (half * weight).ravel()
    w = resolve_weighting(write(config))(torch.from_numpy(at)).numpy()
    share = 0.5 * (w / ERROR[config.get("prediction_type", "epsilon")](at) * width).reshape(-1, 10).sum(1)
    np.testing.assert_allclose(share, 1 / count, rtol=1e-8)


@pytest.mark.parametrize("said", [{}, {"shift": 3.0}, {"shift": 0.5}])
def test_flow_matching_is_the_velocity_loss_on_the_shifted_path(said, write):
    w = resolve_weighting(write({**FLOW, **said}))
    shift = said.get("shift", 1.0)
    wanted = parse_weighting(f"u-mse@fm-ot:shift={-2 * math.log(shift)}")
    np.testing.assert_allclose(w(LAMBDA), wanted(LAMBDA), rtol=1e-12)
    assert likeness(w, parse_weighting("fm-ot"), -8, 8).deviation < 1e-12 or shift != 1
    other = {**BASE, "use_flow_sigmas": True, "flow_shift": shift, "prediction_type": "flow_prediction"}
    assert torch.equal(resolve_weighting(write(other))(LAMBDA), w(LAMBDA))


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("{}", "v-mse@{}"),
        ("{},monotone", "v-mse:monotone@{}"),
        ("{}:shift=-1,monotone", "v-mse:shift=-1,monotone@{}"),
        *((text, text) for text in ("eps-mse@{}", "eps-mse:monotone@{}")),
        *((f"x-mse:{name}@{{}}", None) for name in FACTORS),
    ],
)
def test_a_config_stands_wherever_a_schedule_does_and_its_spec_reads_back(text, spec, write):
    path = write(CONFIGS["latent"], "v-mse@2/a@b.json")
    w = resolve_weighting(text.format(path))
    assert spec is None or w.spec == spec.format(path)
    again = resolve_weighting(w.spec)
    assert torch.equal(again(LAMBDA), w(LAMBDA)) and bool((w(LAMBDA) >= 0).all())
    assert w.schedule.file == again.schedule.file == Path(path)


def test_the_verdict_on_configs_in_use(write):
    """v prediction on the latent schedule never rises within its own timesteps; eps prediction rises once."""
    for name in ("latent", "zero-snr"):
        w = resolve_weighting(write(CONFIGS[name]))
        assert w.rising(*w.support) == []
    w = resolve_weighting(write(BASE))
    ((start, end),) = w.rising(*w.support)
    assert start == w.support[0]
    assert end == pytest.approx(-0.92, abs=0.02)  # the continuous DDPM schedule turns at −.9219


BAD_CONFIGS = """
num_train_timesteps {"num_train_timesteps": null}
num_train_timesteps {"num_train_timesteps": 1}
num_train_timesteps {"num_train_timesteps": 1000000000}
beta_start {"beta_start": null}
beta_start {"beta_start": -1e-4}
every {"beta_end": 1.0}
trained_betas {"trained_betas": [0.1, 1.0]}
trained_betas {"trained_betas": [0.1, 0]}
trained_betas {"trained_betas": [0.1]}
logsnr {"trained_betas": [1e-30, 1e-30]}
scaled_linear {"beta_schedule": "scaledlinear"}
velocity {"prediction_type": "velocity"}
snr_shift_scale {"snr_shift_scale": 0}
shift {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0}
use_dynamic_shifting {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": true}
"""


@pytest.mark.parametrize("line", BAD_CONFIGS.strip().splitlines())
def test_a_bad_config_is_refused_by_name_and_finding(line, write):
    found, _, change = line.partition(" ")
    with pytest.raises(FormatError, match=f"scheduler_config.json: .*{found}"):
        resolve_weighting(write({**BASE, **json.loads(change)}))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("gone.yaml", "expected a schedule"),
        ("no/such", "expected a schedule"),
        ("gone.yaml:shift=2", "expected a schedule"),
        ("gone.json", "gone.json"),
        ("cosin", "did you mean cosine"),
        ("{}:shift=x", "shift"),
        ("{}:bias=2", "bias"),
    ],
)
def test_a_file_that_is_not_there_or_words_that_are_none_are_refused(text, found, write):
    text = text.format(write(BASE))
    with pytest.raises(ElboError, match=found):
        resolve_schedule(text)
    with pytest.raises(ElboError):
        resolve_weighting(text)
