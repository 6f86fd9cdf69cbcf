"""Samplers, presets, guides and clips as they are typed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Elbo = Callable[..., Any]


def test_a_preset_with_options_over_it_guided_by_a_checkpoint_and_clipped(
    elbo: Elbo, trained: Path, tmp_path: Path
) -> None:
    guide = sorted((trained / "checkpoints").iterdir())[0]
    done = elbo(
        *("sample", trained, "-n", 3, "--sampler", "heun:edm-imagenet64,s_churn=3", "--steps", 4, "--schedule"),
        *("run", "--guidance", 2, "--guide", guide, "--clip", "dynamic:percentile=99", "-o", "x.npy"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert np.load(tmp_path / "x.npy").shape == (3, 8, 8, 1)
    said = done.stderr.decode()
    assert "heun:s_churn=3,s_min=0.05,s_max=50,s_noise=1.003, 4 steps" in said
    assert "14 network evaluations each" in said


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (["--sampler", "heun:edm"], "heun has no parameter"),
        (["--sampler", "plms"], "no sampler is called 'plms'"),
        (["--sampler", "ddim:eta=1"], "no parameter 'eta'"),
        (["--sampler", "dpmpp-2m-sde:eta=0"], "eta is 0; it must be above 0"),
        (["--start", "zero"], "no start is called 'zero'; known: unit, edm"),
        (["--start", "edm:80"], "edm has no parameter"),
        (["--noise", "cuda"], "no noise is called 'cuda'; known: elbo, edm, edm2"),
        (["--guidance", "2", "--guidance-channels", "2"], "draws 1 channels"),
        (["--rounding", "up"], "no rounding is called 'up'"),
        (["--spacing", "trailing"], "no spacing is called 'trailing'; known: even, timesteps, stride"),
        (["--spacing", "timesteps"], "has no timesteps"),
        (["--schedule", "t-linear", "--spacing", "ddim", "--steps", "300"], "no stride takes 300 of the"),
        (["--schedule", "t-linear", "--steps", "1001"], "timesteps in this range, and 1001 steps were asked for"),
        (["--schedule", "t-linear:end=2"], "a beta is not between 0 and 1"),
        (["--clip", "hard"], "no clip is called 'hard'; known: none, static, dynamic"),
        (["--clip", "dynamic:percentile=101"], "percentile is 101"),
        (["--guide", "RUN"], "a guide does nothing at --guidance 1"),
    ],
    ids=str,
)
def test_what_makes_no_sense_is_refused(
    given: list[str], complaint: str, elbo: Elbo, trained: Path, tmp_path: Path
) -> None:
    words = [trained if word == "RUN" else word for word in given]
    done = elbo("sample", trained, *words, "-o", tmp_path / "x.npy")
    assert done.returncode == 2
    assert complaint in done.stderr.decode()
    assert not (tmp_path / "x.npy").exists()
