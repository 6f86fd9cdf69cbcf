"""`elbo sample` as it is typed: EDM's own images by elbo's line for them, presets with options, and lines that are refused."""

import pytest

N = 12
SEEDS = range(40, 40 + N)
CHURN = (40.0, 0.05, 50.0, 1.003)


@pytest.mark.parametrize(
    ("given", "word"),
    [
        (["--start", "zero"], "unit, edm"),
        (["--guidance-scale", "2", "--guidance-channels", "2"], "1 channels"),
        (["--spacing", "timesteps"], "no timesteps"),
        (["--threshold", "dynamic:percentile=101"], "101"),
        (["--guide", "RUN"], "--guidance-scale 1"),
    ],
    ids=str,
)
def test_a_line_that_makes_no_sense_is_refused(given, word, elbo, trained, tmp_path):
    words = [trained if each == "RUN" else each for each in given]
    done = elbo("sample", trained, *words, "-o", tmp_path / "x.npy")
    assert done.returncode == 2 and word in done.stderr.decode() and not (tmp_path / "x.npy").exists()


def test_only_options_that_take_files_are_tried_as_files(elbo, trained, tmp_path):
    labels = ",".join(["1"] * 300)
    for more in ((), ("--overwrite",)):
        done = elbo(
            "sample", trained, "-n", 300, "--steps", 1, "--classes", labels, "--weights=model", "-o", "model", *more, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "model").iterdir())) == 300
