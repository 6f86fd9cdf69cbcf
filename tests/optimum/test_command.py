"""`elbo optimum` and the commands that read what it finds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from elbocli.files.schedule_file import read_table
from elbocli.main import run


class Result(NamedTuple):
    """What a command line left."""

    code: int
    out: str
    err: str


Call = Callable[..., Result]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """A command line in this process."""

    def called(*line: Any) -> Result:
        code = run([*map(str, line)])
        return Result(code, *capsys.readouterr())

    return called


@pytest.fixture(scope="module")
def validated(elbo: Any, digits: Path, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that held images out, with its optimum."""
    folder = tmp_path_factory.mktemp("validated") / "run"
    assert elbo("train", digits, "-o", folder, "--preset", preset, "--val-split", 100).returncode == 0
    done = elbo("optimum", "--like", folder, "-n", 100, "-o", folder / "optimum.json")
    assert done.returncode == 0, done.stderr
    return folder


def test_it_is_one_json_object(elbo: Any, digits: Path, tmp_path: Path) -> None:
    """In a process of its own, with its picture."""
    result = elbo("optimum", digits, "-n", 20, "--bins", 10, "--plot", tmp_path / "x.svg")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["format"] == "elbo-optimum" and len(found["eps_mse"]) == 10 and found["edges"][::10] == [-15, 15]
    assert found["images"] == 300 and found["classes"] == 0 and found["dimensions"] == 64 and "sample" not in found
    assert b"<svg" in (tmp_path / "x.svg").read_bytes()


def test_info_knows_it(call: Call, validated: Path) -> None:
    told = call("info", validated / "optimum.json", "--json")
    assert told.code == 0 and json.loads(told.out)["is"] == "optimum" and json.loads(told.out)["classes"] == 10


def test_a_sample_says_how_far_off_it_was(call: Call, digits: Path) -> None:
    told = call("optimum", digits, "-n", 20, "--bins", 5, "--sample", 50, "--classes")
    found = json.loads(told.out)
    assert found["sample"]["images"] == 50 and found["sample"]["sources"] == 10 and len(found["sample"]["bias"]) == 5
    assert found["classes"] == 10


def test_adapt_fits_the_excess(call: Call, validated: Path, tmp_path: Path) -> None:
    line = ("adapt", validated, "--criterion", "excess", "--optimum", validated / "optimum.json")
    told = call(*line, "-o", tmp_path / "s.yaml", "--report")
    assert told.code == 0 and "fitted:excess" in json.loads(told.out)["schedules"]
    assert read_table(tmp_path / "s.yaml")[1].about["criterion"] == "excess"
    plain = json.loads(call("adapt", validated, "--report").out)
    assert "fitted:excess" not in plain["schedules"]


def test_adapt_fits_data_alone(
    call: Call, elbo: Any, validated: Path, digits: Path, preset: Path, tmp_path: Path
) -> None:
    line = ("adapt", "--data-only", validated / "optimum.json", "--weighting", "sigmoid:bias=2")
    told = call(*line, "-o", tmp_path / "s.yaml", "--plot", tmp_path / "s.svg", "--report")
    found = json.loads(told.out)
    assert told.code == 0 and found["half"][0] < found["half"][1] and found["p_std"] > 0
    assert "P_mean" in told.err
    assert read_table(tmp_path / "s.yaml")[1].about["criterion"] == "data-only" and (tmp_path / "s.svg").exists()
    trained = (
        "train",
        digits,
        "-o",
        tmp_path / "r",
        "--preset",
        preset,
        "--schedule",
        tmp_path / "s.yaml",
        "--steps",
        1,
    )
    assert elbo(*trained).returncode == 0
    assert call("adapt", "--data-only", validated / "optimum.json", "-q").out.startswith("format: elbo-schedule")


def test_bound_says_the_excess_and_whether_it_copies(call: Call, validated: Path, digits: Path, tmp_path: Path) -> None:
    line = ("bound", validated, "-n", 40, "--optimum", validated / "optimum.json", "--curve", tmp_path / "c.tsv")
    told = call(*line)
    assert told.code == 0, told.err
    found = json.loads(told.out)["excess"]
    assert found["own"]["nats_per_dimension"] > 0 and found["n_own"] == 40
    assert (tmp_path / "c.tsv").read_text().splitlines()[0].endswith("\texcess\texcess_se")


def test_report_says_whether_it_copies(call: Call, validated: Path, tmp_path: Path) -> None:
    told = call("report", validated, "--json", "-o", tmp_path / "r.html")
    found = json.loads(told.out)["excess"]
    assert told.code == 0 and set(found["excess"]) == {"training", "held_out"} and found["copying"]["share"] < 0.5
    page = (tmp_path / "r.html").read_text()
    assert "What training can still gain" in page and "Error over the least one" in page


def test_report_says_why_it_can_not_compare(call: Call, trained: Path, validated: Path, tmp_path: Path) -> None:
    content = json.loads((validated / "optimum.json").read_text())
    (tmp_path / "o.json").write_text(json.dumps({**content, "payload_sha256": "0"}))
    told = json.loads(call("report", trained, "--json", "--scores", tmp_path / "o.json").out)
    assert told["excess"] is None and any("find it by 'elbo optimum --like RUN'" in each for each in told["missing"])


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ("optimum", 2, "name a dataset"),
        ("optimum {data} --logsnr-min 3 --logsnr-max 1", 2, "must rise"),
        ("optimum {data} --sample 9 -n 2", 2, "needs at least two images"),
        ("optimum {data} -n 1", 2, ">= 2"),
        ("optimum {run}", 1, "a run, not a dataset"),
        ("optimum {data} --like {data}", 1, "not a run"),
        ("optimum {other} --like {run}", 1, "holds other images than"),
        ("optimum {data} --plot -", 2, "standard output is for other results"),
        ("optimum {data} --plot x.gif", 2, "name a file that ends in .svg"),
        ("optimum {latents}", 1, "holds latents, pixels are needed"),
        ("adapt {run} --criterion excess", 2, "go together"),
        ("adapt {run} --optimum {found}", 2, "go together"),
        ("adapt {run} --criterion excess --optimum {run}", 1, "a run, not an optimum"),
        ("adapt {run} --data-only {found}", 2, "can't go with a log"),
        ("adapt --data-only {found} --bins 4", 2, "can't go with --bins"),
        ("adapt --data-only nowhere.json", 1, "no such optimum; 'elbo optimum DATA.h5 -o FILE' makes one"),
        ("adapt {run} --criterion excess --optimum {narrow}", 2, "covers logsnr -1 to 1"),
        ("adapt {run} --criterion excess --optimum {wide}", 2, "is of images of 7 numbers"),
        ("bound {run} -n 4 --optimum {other_found}", 2, "not of the images that"),
        ("bound {run} -n 4 --optimum {narrow}", 2, "covers logsnr -1 to 1"),
        ("bound {run} --check --optimum {found}", 2, "--optimum can't go with --check"),
    ],
)
def test_what_can_not_be_is_refused(
    line: str, code: int, words: str, call: Call, validated: Path, digits: Path, request: Any, tmp_path: Path
) -> None:
    content = json.loads((validated / "optimum.json").read_text())
    places = {"data": digits, "run": validated, "found": validated / "optimum.json"}
    changes: dict[str, dict[str, Any]] = {
        "narrow": {"edges": [-1, 1], "eps_mse": [0.1], "eps_mse_se": [0.1], "without_class": None},
        "wide": {"dimensions": 7},
        "other_found": {"payload_sha256": "0"},
    }
    for name, change in changes.items():
        places[name] = tmp_path / f"{name}.json"
        places[name].write_text(json.dumps({**content, **change}))
    if "{other}" in line:
        places["other"] = tmp_path / "other.h5"
        assert call("prep", digits, places["other"], "--limit", 30, "-q").code == 0
    if "{latents}" in line:
        places["latents"] = request.getfixturevalue("latents")
    told = call(*line.format(**places).split())
    assert told.code == code and words in told.err and told.out == "" and "Traceback" not in told.err, told.err


def test_a_moved_dataset_is_found_or_named(call: Call, elbo: Any, digits: Path, preset: Path, tmp_path: Path) -> None:
    shutil.copy(digits, tmp_path / "d.h5")
    done = elbo("train", "d.h5", "-o", "run", "--preset", preset, "--steps", 1, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line = ("optimum", "--like", tmp_path / "run", "-n", 4, "-q")
    assert call(*line).code == 0  # beside the run
    (tmp_path / "d.h5").rename(tmp_path / "e.h5")
    assert call(*line).code == 1 and call("optimum", tmp_path / "e.h5", *line[1:]).code == 0
