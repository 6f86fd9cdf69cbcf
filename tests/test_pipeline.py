"""The whole pipeline on real images, through a shell: a broken build could not reach these figures."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from calls import with_values
from harness import BIN, environment, heed_signals

ROOT = Path(__file__).parent.parent
DISTANCE = "frechet_distance[classifier.pt2]"
ACCURACY = "accuracy[classifier.pt2]"


def shell(*line, cwd, **variables):
    """Stdout of a command that ends well, where `elbo` and `python3` are these."""
    how = {"capture_output": True, "text": True, "check": False, "preexec_fn": heed_signals}
    done = subprocess.run(line, cwd=cwd, env=environment(PATH=BIN, PYTHON=sys.executable, **variables), **how)
    assert done.returncode == 0, done.stderr
    return done


def demo(folder, **settings):
    """Run the demo in a folder; what it says at its end, and how to read a file of its results."""
    said = shell("sh", ROOT / "examples/digits/demo.sh", folder, cwd=folder, **settings).stdout
    return said, lambda name: json.loads((folder / "results" / name).read_text())


def test_the_demo_learns_digits(tmp_path):
    """Chance is 10 % and 8 bits; in 120 steps a sound build reaches 80 % and 6.5 bits, and a sixth of the untrained distance."""
    small = {"STEPS": "120", "IMAGES": "150", "ELBO_SAMPLE_STEPS": "10", "ELBO_BOUND_N": "100"}
    said, read = demo(tmp_path, LEAVE_OUT="0-untrained 1-elbo-cosine", **small)
    for name in ("2-sigmoid-cosine", "3-sigmoid-fitted"):
        score = with_values(read(f"{name}.json"))
        assert score[ACCURACY] > 0.6 and score[DISTANCE] < 60, score
        assert read(f"{name}.bound")["bpd"] < 7
    real = with_values(read("4-test-images.json"))
    assert real[ACCURACY] > 0.97 and real[DISTANCE] < 5
    for name in ("weights.png", "fitted.png", "run-2-sigmoid-cosine/previews/step-00000120.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert "\nsigmoid-cosine " in said
    report = (tmp_path / "report.html").read_text()
    for shown in ("Variational bound", "frechet distance", "its loss is the ELBO", "elbo train train.h5"):
        assert shown in report
    assert read("theorem")["agree"]


def test_paths_must_be_utf_8_but_images_and_classes_need_not(elbo, digits_folder, tmp_path):
    """A class has a line break of Unicode in its name, too."""
    shutil.copytree(digits_folder, tmp_path / "in")
    (tmp_path / "in" / "3").rename(tmp_path / "in" / "3\x85\udce9")
    (tmp_path / "in" / "4").rename(tmp_path / "\udcff")
    assert elbo("prep", "in", "d.h5", cwd=tmp_path).returncode == elbo("info", "d.h5", cwd=tmp_path).returncode == 0
    refused = elbo("prep", "\udcff", "e.h5", cwd=tmp_path)
    assert refused.returncode == 2 and b"UTF-8" in refused.stderr


@pytest.mark.slow
def test_the_elbos_weighting_has_the_better_bound_and_the_sigmoid_the_better_images(tmp_path):
    """The paper's trade-off, which shows after a few hundred steps; and an untrained network's distance and accuracy."""
    _, read = demo(tmp_path, STEPS="400")
    elbo = "1-elbo-cosine"
    sigmoid = "2-sigmoid-cosine"
    untrained, of_elbo, of_sigmoid = (with_values(read(f"{name}.json")) for name in ("0-untrained", elbo, sigmoid))
    assert of_sigmoid[DISTANCE] < untrained[DISTANCE] / 10 and untrained[ACCURACY] < 0.3
    assert read(f"{elbo}.bound")["bpd"] < read(f"{sigmoid}.bound")["bpd"]
    assert of_elbo[ACCURACY] < of_sigmoid[ACCURACY]


@pytest.mark.long
def test_the_four_lines_of_the_readme(tmp_path, digits_folder):
    """The lines run as typed in a folder that holds only imagenet/; variables of the environment make them small."""
    (tmp_path / "imagenet").symlink_to(digits_folder)
    script = re.findall(r"^```\n(elbo prep imagenet/.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    small = {"PREP_SIZE": "16", "TRAIN_STEPS": "3", "TRAIN_PREVIEW_EVERY": "0", "SAMPLE_STEPS": "3"}
    done = shell("sh", "-ec", *script, cwd=tmp_path, **{f"ELBO_{name}": value for name, value in small.items()})
    assert "preset digits" in done.stderr and done.stdout.startswith("run\n{")
    scores = json.loads(done.stdout[4:])
    assert scores["n_samples"] == 64 and not any("inception" in name for name in scores), "elbo-tiny's classes are random"
    assert (tmp_path / "s.yaml").read_text().startswith("format: elbo-schedule")
