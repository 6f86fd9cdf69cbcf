"""The score card: everything that is known stands in it, what is not known says so, and no text of a stranger's means anything."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import markdown
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from elbocli.cli.commands import visible
from elbocli.core.metrics import asked
from elbocli.evaluate import scoring
from elbocli.evaluate.result import EvalResult, code, said, score_card
from elbocli.evaluate.settings import EvalSettings
from elbocli.files.dataset import Dataset

MADE = {
    "run": "runs/a",
    "step": 40,
    "weights": "ema-0.999",
    "weights_sha256": "ab" * 32,
    "images_trained": 640,
    "init_run": "runs/c",
    "init_weights": "ema-0.5",
    "init_step": 1200,
    "init_images": 76800,
    "init_sha256": "ef" * 32,
    "trained_on": "cd" * 32,
    "crop": "center",
    "filter": "box, bicubic",
    "trained_weighting": "sigmoid:bias=2",
    "trained_schedule": "adaptive",
    "prediction": "v",
    "sampler": "heun:s_churn=40",
    "schedule": "edm-sample:rho=7",
    "steps": 8,
    "nfe": 15,
    "guidance": 1.5,
    "guidance_low": -2.0,
    "guidance_high": 4.0,
    "guidance_channels": 3,
    "guide": "runs/b",
    "spacing": "even",
    "start": "edm",
    "rounding": "truncate",
    "clip": "none",
    "classes": "balanced",
    "seed": 0,
    "noise": "edm",
    "noise_device": "cuda",
    "imported_format": "edm",
    "imported_file": "net.pkl",
    "imported_sha256": "ef" * 32,
    "command": "elbo sample runs/a",
}
NASTY = [
    "<script>alert(1)</script>",
    "`</code><b>x",
    "``",
    "a | b",
    "[x](http://y)",
    "*a* _b_ # c\n# d",
    "![i](j)",
    "\\`<i>",
]


def scored(digits: Path, folder: Path, count: int = 1, **made: Any) -> EvalResult:
    paths = []
    for seed in range(count):
        paths.append(folder / f"{seed}.npz")
        about = np.array(json.dumps({**MADE, **made, "seed": seed}))
        np.savez(paths[-1], Dataset(digits).batch(np.arange(seed, 300, 3)), np.arange(100) % 10, about=about)
    metrics = asked(("fid", "is", "kid", "prc", "accuracy"), fid_infinity=True, kid_subset_size=50)
    settings = EvalSettings(metrics=metrics, extractor="elbo-tiny", command="elbo eval 0.npz")
    found = scoring.run(paths, digits, settings)
    assert found is not None
    return found


def test_all_that_is_known_stands_in_it(digits: Path, tmp_path: Path) -> None:
    result = scored(digits, tmp_path)
    card, found = score_card(result), result.json()
    assert "not known" not in card
    for value in MADE.values():
        assert f": {said(value)}\n" in card
    for fact in (found["samples_sha256"], found["ref_sha256"], found["extractor_sha256"], found["torch_version"]):
        assert fact in card
    assert "10, each with 10 to 10 images" in card and "elbo eval 0.npz" in card and "elbo sample runs/a" in card
    number, error = (found[f"frechet_distance{part}[elbo-tiny]"] for part in ("", "_se"))
    assert (
        f"Fréchet distance by `elbo-tiny`: **{number:.5g}** ± {error:.5g} (standard error, n = 100); of infinitely"
        in card
    )
    assert "over 10 splits" in card and "over subsets of 50" in card and "FID" not in card


def test_of_repeats_the_spread_and_every_file(digits: Path, tmp_path: Path) -> None:
    result = scored(digits, tmp_path, 3)
    card, found = score_card(result), result.json()
    key = "frechet_distance{}[elbo-tiny]"
    mean, spread = found[key.format("")], found[key.format("_sd")]
    assert f"**{mean:.5g}** ± {spread:.5g} (mean and standard deviation of 3 repeats, n = 100)" in card
    assert (
        all(f"{k}.npz`, sha256" in card for k in range(3)) and "- seed: 0, 1, 2\n" in card and "- n: 100 each" in card
    )
    assert card.count("elbo sample runs/a") == 1 and "not known" not in card


def test_what_is_not_known_says_so(digits: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", Dataset(digits).batch(np.arange(50)))
    found = scoring.run([tmp_path / "a.npy"], digits, EvalSettings(extractor="elbo-tiny"))
    assert found is not None
    card = score_card(found)
    assert "- seed: *not known*\n" in card and "- guide: " not in card
    assert "- classes: *not known*" in card


def test_strings_of_strangers_mean_nothing(digits: Path, tmp_path: Path) -> None:
    found = scored(digits, tmp_path)
    plain, (one,) = markdown.markdown(score_card(found)), found.repeats
    for text in NASTY:
        facts = structs.replace(
            one.facts, samples=text, extractor=text, command=text, made={**MADE, "run": text, text: text}
        )
        nasty = markdown.markdown(score_card(EvalResult([replace(one, network=text, facts=facts)])))
        assert nasty.count("<li>") == plain.count("<li>") + 1
        for tag in ("<script", "<b>", "<i>", "<a", "<em>a", "<img", "<h1>d"):
            assert tag not in nasty, nasty
        assert nasty.count("<code>") > plain.count("<code>") and nasty.count("<h2>") == plain.count("<h2>")


@given(st.text())
def test_a_code_span_ends_where_it_should(text: str) -> None:
    """By CommonMark: at the next run of as many backticks as began it."""
    span = code(text)
    words = visible(" ".join(text.split()))
    if not words:
        assert span == "*not known*"
        return
    fence = span[: len(span) - len(span.lstrip("`"))]
    inside = span[len(fence) : -len(fence)]
    assert span.endswith(fence) and inside.strip(" ") == words.strip(" ") and "\n" not in inside
    assert not inside.startswith("`") and not inside.endswith("`")
    assert fence not in re.findall("`+", inside)
