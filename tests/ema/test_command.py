"""`elbo ema`, and the averages of train, sample, bound and info, as a user types them."""

import ast
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file

from elbocli.files.dataset import Dataset
from elbocli.main import run as command


@pytest.fixture
def elbo_here(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """elbo_here(*args): exit code, stdout and stderr of a command in this process; no traceback."""

    def run(*args: Any) -> tuple[int, str, str]:
        capfd.readouterr()
        code = command(list(map(str, args)))
        out, err = capfd.readouterr()
        assert "Traceback" not in err
        return code, out, err

    return run


@pytest.fixture(scope="module")
def kept(digits: Path, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 30 steps with 10 snapshots, its averages given on the command line."""
    run = tmp_path_factory.mktemp("kept") / "run"
    line = ["train", digits, "-o", run, "--preset", preset, "--steps", 30, "--snapshot-every", 3, "-q"]
    assert command(list(map(str, [*line, "--ema", "halflife:images=100", "--ema", "0.8"]))) == 0
    return run


def test_it_writes_the_average_and_prints_json(
    kept: Path, tmp_path: Path, elbo_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["elbo", "ema", "run", "--std", ".08"])
    out = tmp_path / "a.safetensors"
    code, stdout, stderr = elbo_here("ema", kept, "--std", ".08", "-o", out)
    assert (code, stderr) == (0, "")
    result = json.loads(stdout)
    assert {key: result[key] for key in ("average", "spec", "step", "images", "snapshots", "profiles")} == {
        "average": str(out),
        "spec": "power:std=0.08",
        "step": 30,
        "images": 480,
        "snapshots": 10,
        "profiles": ["power:std=0.05", "power:std=0.1"],
    }
    assert 0 < result["residual"] < 0.02
    assert set(load_file(out)) == set(load_file(kept / "checkpoints/step-00000030/ema-0.8.safetensors"))
    code, stdout, _ = elbo_here("info", out, "--json")
    facts = json.loads(stdout)
    assert (facts["is"], facts["spec"], facts["step"]) == ("average of weights", "power:std=0.08", 30)
    assert (facts["command"], facts["residual"]) == ("elbo ema run --std .08", result["residual"])


def test_a_wide_gap_is_a_warning(kept: Path, tmp_path: Path, elbo_here: Callable[..., Any]) -> None:
    code, stdout, stderr = elbo_here("ema", kept, "--std", ".02", "-o", tmp_path / "a.safetensors", "-q")
    assert code == 0 and json.loads(stdout)["residual"] > 0.1
    assert "power:std=0.02" in stderr


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 2, "Missing option '--std'"),
        (["--std", ".1"], 2, "Missing option '-o'"),
        (["--std", "0", "-o", "a"], 2, "expected float > 0"),
        (["--std", ".3", "-o", "a"], 2, "expected float <= 0.288675"),
        (["--std", "nan", "-o", "a"], 2, "expected float > 0"),
        (["--std", ".1", "-o", "-"], 2, "standard output is for other results"),
        (["--std", ".1", "-o", "mine"], 2, "mine: already exists; choose another name or add --overwrite"),
        (["--std", ".1", "-o", "nowhere/a"], 1, "nowhere/a: there is no folder nowhere; make it first"),
        (["--std", ".1", "-o", "a", "--at", "7"], 2, "--at 7: no snapshot there; the one before is of step 6"),
        (["--std", ".1", "-o", "a", "--at", "0"], 2, "expected int >= 1"),
        (["--std", ".0005", "-o", "a"], 1, "power:std=0.0005"),
    ],
)
def test_bad_input_is_told(
    options: list[str],
    code: int,
    words: str,
    kept: Path,
    tmp_path: Path,
    elbo_here: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine").write_text("mine")
    found, stdout, stderr = elbo_here("ema", kept, *options)
    assert (found, stdout) == (code, "") and words in stderr and stderr.startswith("elbo ema: error: ")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"] and Path("mine").read_text() == "mine"


def test_what_is_no_run_or_has_no_snapshots_is_told(
    trained: Path, tmp_path: Path, elbo_here: Callable[..., Any]
) -> None:
    options = ("--std", ".1", "-o", tmp_path / "a")
    code, _, stderr = elbo_here("ema", tmp_path, *options)
    assert code == 1 and "not a run" in stderr
    code, _, stderr = elbo_here("ema", trained, *options)
    assert code == 1 and "no snapshots of power averages; train with --snapshot-every STEPS" in stderr
    assert not list(tmp_path.iterdir())


def test_sample_and_bound_say_which_weights(
    kept: Path, digits: Path, tmp_path: Path, elbo_here: Callable[..., Any]
) -> None:
    average = tmp_path / "a.safetensors"
    assert elbo_here("ema", kept, "--std", ".07", "--at", 18, "-o", average)[0] == 0
    checkpoint = kept / "checkpoints/step-00000020"
    cases: dict[str, tuple[list[Any], str, int]] = {
        "first": ([kept], "ema-halflife-100-ramp-0.05", 30),
        "same": ([kept, "--weights", "halflife:images=100"], "ema-halflife-100-ramp-0.05", 30),
        "number": ([kept, "--weights", "0.80"], "ema-0.8", 30),
        "file": ([kept, "--weights", average], "ema-power-0.07", 18),
        "model": ([checkpoint, "--weights", "model"], "model", 20),
        "checkpoint": ([checkpoint, "--weights", "power:std=.1"], "ema-power-0.1", 20),
    }
    images, bounds = {}, {}
    for name, (line, weights, step) in cases.items():
        out = tmp_path / f"{name}.h5"
        code, _, stderr = elbo_here("sample", *line, "-n", 2, "--steps", 3, "-o", out)
        assert code == 0 and f"step {step}, weights {weights};" in stderr
        data = Dataset(out)
        about = ast.literal_eval(data.attributes.samples)
        assert (about["weights"], about["step"], about["images_trained"]) == (weights, step, 16 * step)
        assert about.get("weights_file") == (str(average) if name == "file" else None)
        images[name] = data.batch(np.arange(2)).tobytes()
        code, stdout, _ = elbo_here("bound", line[0], digits, *line[1:], "-n", 2, "--draws", 2)
        result = json.loads(stdout)
        assert (result["weights"], result["step"]) == (weights, step)
        bounds[name] = result["bpd"]
    assert images["first"] == images["same"] and bounds["first"] == bounds["same"]
    assert len(set(images.values())) == len(set(bounds.values())) == 5


@pytest.mark.parametrize("verb", ["sample", "bound"])
def test_averages_that_are_not_there_are_told(
    verb: str, kept: Path, tmp_path: Path, elbo_here: Callable[..., Any]
) -> None:
    code, stdout, stderr = elbo_here(verb, kept, "--weights", "power:std=.2")
    assert (code, stdout) == (2, "")
    assert "ema-0.8, ema-halflife-100-ramp-0.05, ema-power-0.05, ema-power-0.1" in stderr
    code, _, stderr = elbo_here(verb, kept, "--weights", kept / "checkpoints/step-00000030/model.safetensors")
    assert code == 1 and "make them with 'elbo ema'" in stderr


def test_info_knows_snapshots_and_verifies_them(kept: Path, tmp_path: Path, elbo_here: Callable[..., Any]) -> None:
    snapshot = kept / "snapshots/step-00000012"
    facts = json.loads(elbo_here("info", snapshot, "--json", "--verify")[1])
    assert (facts["is"], facts["step"], facts["images"]) == ("snapshot of averages", 12, 192)
    assert facts["averages"] == "ema-power-0.05, ema-power-0.1"
    assert facts["verified"] == ["sha256 of 2 files"]
    facts = json.loads(elbo_here("info", kept, "--json", "--verify")[1])
    assert facts["snapshots"] == 10
    assert facts["verified"] == ["sha256 of 32 files"]
    average = tmp_path / "a.safetensors"
    elbo_here("ema", kept, "--std", ".1", "-o", average)
    assert json.loads(elbo_here("info", average, "--json", "--verify")[1])["verified"] == ["payload_sha256"]
    for path in (average, snapshot / "ema-power-0.1.safetensors"):
        before = path.read_bytes()
        path.write_bytes(before[:-5] + bytes([before[-5] ^ 1]) + before[-4:])
        for target in {average: [average]}.get(path, [snapshot, kept]):
            code, stdout, stderr = elbo_here("info", target, "--verify")
            assert (code, stdout) == (1, "") and f"{path}: damaged" in stderr
        path.write_bytes(before)


def test_several_averages_from_every_source(
    digits: Path,
    preset: Path,
    kept: Path,
    tmp_path: Path,
    elbo_here: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A run's config is the same whether its averages come from options, the environment, a config or a preset."""

    def averages(*line: Any) -> list[str]:
        run = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        code, _, stderr = elbo_here("train", digits, "-o", run, "--steps", 1, "-q", *line)
        assert code == 0, stderr
        return list(yaml.safe_load((run / "config.yaml").read_text())["settings"]["ema"])

    two, base = ["0.7", "halflife:images=500000,ramp=0"], ("--preset", preset)
    spec = "halflife:images=5e5,ramp=0"
    assert averages(*base) == ["0.9"]
    assert averages(*base, "--ema", ".7", "--ema", spec) == two
    (tmp_path / "c.yaml").write_text(f"ema: [0.7, '{spec}']\n")
    assert averages(*base, "--config", tmp_path / "c.yaml") == two
    (tmp_path / "c.yaml").write_text("ema: 0.7\n")
    assert averages(*base, "--config", tmp_path / "c.yaml") == ["0.7"]
    assert averages(*base, "--config", tmp_path / "c.yaml", "--ema", spec) == two[1:]
    (tmp_path / "c.yaml").write_text(f"ema: {spec}\n")
    assert averages(*base, "--config", tmp_path / "c.yaml") == two[1:]
    (tmp_path / "p.yaml").write_text(preset.read_text().replace("ema: 0.9", f"ema: [.7, '{spec}']"))
    assert averages("--preset", tmp_path / "p.yaml") == two
    assert averages("--config", kept / "config.yaml")[:2] == ["halflife:images=100,ramp=0.05", "0.8"]
    monkeypatch.setenv("ELBO_TRAIN_EMA", f".7 {spec}")
    assert averages(*base) == two
