"""The whole pipeline on real images, through a shell: what a broken build could not reach."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_the_demo_learns_digits(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHON": sys.executable,
        "STEPS": "400",
    }
    line = ["sh", str(ROOT / "examples" / "digits" / "demo.sh"), str(tmp_path / "demo")]
    result = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    assert result.returncode == 0, result.stderr
    scores = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "demo" / "results").glob("*.json")}
    accuracy = {name: score["accuracy"] for name, score in scores.items()}
    distance = {name: score["frechet_distance[classifier.pt2]"] for name, score in scores.items()}
    # Chance is 10 %; 400 steps of a sound build give 80 % and more.
    for name in ("2-sigmoid-cosine", "3-sigmoid-fitted"):
        assert accuracy[name] > 0.6, accuracy
        assert distance[name] < distance["0-untrained"] / 5, distance
    assert accuracy["0-untrained"] < 0.3
    assert accuracy["4-test-images"] > 0.97
    for name in ("weights.png", "fitted.png", "2-sigmoid-cosine.png"):
        assert (tmp_path / "demo" / name).read_bytes().startswith(b"\x89PNG")
    assert "\nsigmoid-cosine " in result.stdout
    report = (tmp_path / "demo" / "report.html").read_text()
    for shown in (
        "Bound on held-out images",
        "frechet distance",
        "its loss is the ELBO",
        "agree",
        "elbo train train.h5",
    ):
        assert shown in report
    # The paper's trade-off: the ELBO's own weighting has the better bound, the sigmoid the better images.
    bits = {
        name: json.loads((tmp_path / "demo" / "results" / f"{name}.bound").read_text())["bpd"]
        for name in accuracy
        if name < "4"
    }
    assert bits["1-elbo-cosine"] < bits["2-sigmoid-cosine"] < bits["0-untrained"] - 1
    assert json.loads((tmp_path / "demo" / "results" / "theorem").read_text())["agree"]


def test_the_four_lines_of_the_readme(tmp_path: Path, digits_folder: Path) -> None:
    """As typed, in an empty folder that holds only imagenet/; small, by settings from the environment."""
    (tmp_path / "imagenet").symlink_to(digits_folder)
    script = """
    set -e
    elbo prep imagenet/ out.h5
    elbo train --weighting sigmoid --bias 2
    elbo sample run -n 64 | elbo eval --ref out.h5 --extractor elbo-tiny | python3 -m json.tool
    elbo adapt run > s.yaml
    """
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ELBO_PREP_SIZE": "16",
        "ELBO_TRAIN_STEPS": "3",
        "ELBO_TRAIN_PREVIEW_EVERY": "0",
        "ELBO_SAMPLE_STEPS": "3",
    }
    result = subprocess.run(
        ["sh", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "preset digits, for 300 images of 16 pixels" in result.stderr
    assert result.stdout.startswith("run\n{")
    assert json.loads(result.stdout[4:])["n_samples"] == 64
    assert (tmp_path / "s.yaml").read_text().startswith("format: elbo-schedule")
