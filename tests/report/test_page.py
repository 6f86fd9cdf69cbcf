"""A run on one page: of a run in any state, with nothing in it but itself, whatever its strings are."""

import html
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from run_pages import ALERT, BOUND, HOSTILE, Reader, beyond_numbers, change, just_begun

from elbocli.core.adaptive import bin_edges
from elbocli.core.schedule_curves import SCHEDULES
from elbocli.core.weighting import parse_weighting
from elbocli.core.weighting_curves import WEIGHTINGS
from elbocli.errors import DataError, FormatError
from elbocli.files import losslog
from elbocli.files.grid import CELL
from elbocli.files.yaml_text import read_yaml, yaml_text
from elbocli.report.gather import RunFacts, RunReport, gather, report_of, weighting_terms
from elbocli.report.log_history import CELLS, POINTS
from elbocli.report.page import INKS, number, pictures, render

LARGEST = 8 << 20
"""Bytes, which no page exceeds: pictures are counted and of bounded size, curves have bounded numbers of points."""

RISES = "Where w rises"


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A run of its own to damage."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture(scope="module")
def shown(trained: Path) -> tuple[RunFacts, str]:
    """A finished run and its page."""
    facts = gather(trained)
    return facts, render(facts)


def test_a_finished_run_says_everything(trained: Path, shown: tuple[RunFacts, str]) -> None:
    facts, page = shown
    read = Reader(page)
    assert "step 40 of 40 (40 saved), 640 images" in " ".join(read.text.split())
    for term in (WEIGHTINGS["sigmoid"], SCHEDULES["cosine"]):
        assert term.formula in read.text and term.source in read.text
    assert "never rises for logsnr -10 to 10: its loss is the ELBO of noise-augmented data" in read.text
    assert html.unescape(number(facts.report.network["parameters"])) in read.text
    assert "elbo prep" in read.text and f"elbo train {facts.report.data['path']} -o {trained}" in read.text
    assert f"--config {trained}/config.yaml" in read.text
    assert facts.report.environment["device_name"] in read.text and torch.__version__ in read.text
    assert [strip.name for strip in facts.previews] == ["20", "40"]
    assert [strip.name for strip in facts.drawn] == [str(i) for i in range(10)]
    assert read.tags.count("svg") == 6  # no validation


def test_the_page_is_the_same_bytes_every_time(trained: Path, shown: tuple[RunFacts, str]) -> None:
    assert render(gather(trained)) == shown[1]


def test_the_page_needs_nothing_but_itself(shown: tuple[RunFacts, str]) -> None:
    page = shown[1]
    read = Reader(page)
    addresses = [value for name, value in read.attributes if name in ("src", "href", "xlink:href", "action", "srcset")]
    assert addresses and all(value and value.startswith(("data:image/png;base64,", "#")) for value in addresses)
    assert not {"script", "link", "iframe", "object", "embed"} & set(read.tags)
    assert "default-src 'none'" in page and "@import" not in page
    names = [value for name, value in read.attributes if name == "id"]
    assert len(names) == len(set(names))
    referred = {value[1:] for value in addresses if value and value[0] == "#"} | set(
        re.findall(r"url\(#([^)]+)\)", page)
    )
    assert referred <= set(names)


def test_drawings_have_the_pages_colours_and_text_that_is_text(shown: tuple[RunFacts, str]) -> None:
    facts, page = shown
    drawn = pictures(facts).values()
    assert all("var(--ink)" in svg and "<text" in svg and "<!--" not in svg for svg in drawn)
    assert not any(ink in svg for svg in drawn for ink in INKS)
    css = page.partition("</style>")[0]
    for block in re.findall(r":root \{(.*?)\}", css, re.DOTALL):
        assert all(f"{variable}:" in block for variable in INKS.values())
    assert css.count(":root {") == 3  # light, dark, paper


def test_strings_of_strangers_are_shown_as_text(copy: Path, tmp_path: Path) -> None:
    names = [HOSTILE, ALERT, *"23456789"]
    (copy / "status.json").write_text(
        json.dumps({"state": HOSTILE, "step": 1, "steps": 2, "images": 3, "message": HOSTILE, "time": 0})
    )
    config = read_yaml(copy / "config.yaml")
    config |= {"commands": [HOSTILE], "device_name": HOSTILE, "torch_version": HOSTILE}
    config["data"] |= {"class_names": names, "path": HOSTILE, "payload_sha256": HOSTILE}
    config["settings"] |= {"weighting": HOSTILE, "val": HOSTILE}
    (copy / "config.yaml").write_text(yaml_text(config))
    scores = {
        f"frechet_distance[{HOSTILE}]": 1.0,
        HOSTILE: HOSTILE,
        "n_samples": 2,
        "extractor": HOSTILE,
        "command": HOSTILE,
    }
    (copy / "a.json").write_text(json.dumps(scores))
    (copy / "b.json").write_text(json.dumps({**BOUND, HOSTILE: HOSTILE}))
    sides = {side: {"nats": 1.0, "se": 0.1, "relative_se": 0.1} for side in ("left", "right")}
    check = {"weighting": HOSTILE, "monotone": True, **sides, "difference_in_se": 0.1, "agree": True}
    theorem = {"agree": True, "checks": [check], "n_images": 9, "draws_per_side": 2}
    (copy / "c.json").write_text(json.dumps(theorem))
    plainly = Reader(render(gather(copy.rename(tmp_path / "r&<b>"))))
    assert "script" not in plainly.tags and "r&<b>" in plainly.text
    assert plainly.text.count(ALERT) >= 14
    assert "alert(1)" not in str([a for a in plainly.attributes if a[0] not in ("alt", "aria-label")])
    assert not any(name.startswith("on") for name, _ in plainly.attributes)


def no_checkpoint(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    shutil.rmtree(run / "previews")


def in_training(run: Path) -> None:
    for name in ("metrics.jsonl", "losslog.jsonl"):
        whole = (run / name).read_bytes()
        (run / name).write_bytes(whole[: len(whole) * 2 // 3])
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps({**status, "state": "running", "step": 20}))


def interrupted(run: Path) -> None:
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(
        json.dumps({**status, "state": "interrupted", "message": "SIGTERM; saved step 40"})
    )


def empty_logs(run: Path) -> None:
    for name in ("metrics.jsonl", "losslog.jsonl", "validation.jsonl", "status.json"):
        (run / name).write_bytes(b"")


def header_only(run: Path) -> None:
    (run / "losslog.jsonl").write_text((run / "losslog.jsonl").read_text().splitlines()[0] + "\n")
    (run / "validation.jsonl").write_text((run / "losslog.jsonl").read_text())


def damaged(run: Path) -> None:
    newest = max((run / "checkpoints").iterdir())
    (newest / "meta.json").write_text("{}")
    for path in (run / "previews").iterdir():
        path.write_bytes(path.read_bytes()[:50])
    (run / "status.json").write_text('{"state": "done", "time": 1e999}')


def gone(run: Path) -> None:
    change(run, "data", path="nowhere.h5", from_run="nowhere.h5")
    change(run, "settings", schedule="nowhere.yaml", weighting="v-mse@nowhere.yaml")


def other_images(run: Path) -> None:
    change(run, "data", payload_sha256="0" * 64)
    change(run, "network", channels=7)


def nested(run: Path) -> None:
    (run / "status.json").write_text("[" * 100_000)


def no_classes(run: Path) -> None:
    change(run, "network", num_classes="ten")


def too_large(run: Path) -> None:
    change(run, "network", channels=10**9)


STATES: dict[Callable[[Path], None], list[str]] = {
    no_checkpoint: [],
    in_training: [],
    interrupted: [],
    just_begun: [
        "status.json",
    ],
    empty_logs: ["status.json"],
    header_only: [],
    damaged: [
        "expected 'elbo-checkpoint'",
        "step-00000020.png",
        "step-00000040.png",
        "status.json: not usable JSON",
    ],
    gone: ["nowhere.h5", "nowhere.yaml: no such schedule"],
    nested: ["status.json: not usable JSON"],
    no_classes: ["num_classes"],
    too_large: ["config.yaml: network"],
    beyond_numbers: ["losslog.jsonl: shown up to a damaged line"],
    other_images: ["holds other images now", "channels"],
}


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_a_run_in_any_state_is_shown_and_what_is_missing_is_said(state: Callable[[Path], None], copy: Path) -> None:
    before = set(gather(copy).report.missing)
    state(copy)
    facts = gather(copy)
    said = [sentence for sentence in facts.report.missing if sentence not in before]
    for words in STATES[state]:
        assert any(words in sentence for sentence in said), (words, said)
    if not STATES[state]:
        assert not said
    text = Reader(render(facts)).text
    assert all(sentence in text for sentence in facts.report.missing)
    json.dumps(report_of([facts]), allow_nan=False)
    if state is interrupted:
        assert "interrupted" in text and "SIGTERM; saved step 40" in text


def test_a_folder_that_is_no_run_and_a_named_file_that_is_none_are_refused(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(FormatError):
        gather(tmp_path)
    (tmp_path / "bad.json").write_text("{}")
    with pytest.raises(FormatError):
        gather(copy, results=[tmp_path / "bad.json"])
    (tmp_path / "bad.npy").write_text("no")
    with pytest.raises((FormatError, DataError)):
        gather(copy, samples=tmp_path / "bad.npy")


def test_the_facts_are_json_and_the_same_as_on_the_page(trained: Path) -> None:
    facts = json.loads(json.dumps(report_of([gather(trained)]), allow_nan=False))
    assert RunReport.of(facts, "it").json() == facts
    assert facts["objective"]["weighting"] == "sigmoid:bias=2" and facts["objective"]["monotone"]
    assert facts["status"]["step"] == 40 and facts["curves"]["step"][-1] == 40
    errors = facts["errors"]
    assert len(errors["eps_mse"]) == len(errors["images"]) and len(errors["edges"]) == len(errors["eps_mse"][0]) + 1
    lines = [json.loads(line) for line in (trained / "losslog.jsonl").read_text().splitlines()[1:]]
    last = lines[-1]
    seen = [i for i, count in enumerate(last["count"]) if count]
    for i in seen:
        assert errors["eps_mse"][-1][i] == pytest.approx(last["sum"][i] / last["count"][i], rel=1e-5)


@pytest.mark.parametrize(
    "spec", [*WEIGHTINGS, "edm:monotone", "v-mse@cosine", "x-mse:min-snr:5@linear-beta", "schedule:edm"]
)
def test_every_weighting_says_what_it_is_made_of_and_is_drawn(spec: str, copy: Path) -> None:
    weighting = parse_weighting(spec)
    just_begun(copy)
    change(copy, "settings", weighting=weighting.spec)
    facts = gather(copy)
    assert facts.report.objective is not None
    terms = weighting_terms(weighting)
    assert terms[0].name == weighting.spec and all(term.formula and term.source for term in terms)
    rising = bool(facts.report.objective.rising)
    assert rising == bool(weighting.rising(-10, 10))
    assert "nan" not in pictures(facts)["noise"] and (RISES in Reader(render(facts)).text) == rising


def test_a_schedule_that_adapts_is_drawn_over_time(copy: Path) -> None:
    change(copy, "settings", schedule="adaptive")
    facts = gather(copy)
    text = Reader(render(facts)).text
    assert "schedule" in pictures(facts) and "Schedule, adaptive" in text and "fitted while training" in text


def test_a_weighting_of_less_than_the_range_does_not_rise_where_it_begins(copy: Path, tmp_path: Path) -> None:
    knots = [{"t": t, "logsnr": level} for t, level in ((0.0, 5.0), (0.5, 0.0), (1.0, -5.0))]
    table = {"format": "elbo-schedule", "version": 1, "logsnr_min": -5.0, "logsnr_max": 5.0, "knots": knots}
    (tmp_path / "s.yaml").write_text(yaml_text(table))
    change(copy, "settings", weighting=f"v-mse@{tmp_path / 's.yaml'}")
    facts = gather(copy)
    assert facts.report.objective is not None and not facts.report.objective.rising
    assert RISES not in Reader(render(facts)).text


def test_images_held_out_are_not_trained_on(copy: Path) -> None:
    whole = read_yaml(copy / "config.yaml")["data"]["count"]
    change(copy, "settings", val_split=50)
    assert f"trained on {whole - 50} images" in Reader(render(gather(copy))).text


def test_a_run_named_by_where_one_stands_has_its_name(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, path in ((copy, "."), (copy / "checkpoints", "..")):
        monkeypatch.chdir(folder)
        facts = gather(Path(path))
        assert facts.report.run == "run" and any(
            each.command.endswith(" -o run-again") for each in facts.report.commands
        )


def test_a_result_in_the_run_that_is_named_too_is_shown_once(copy: Path) -> None:
    (copy / "bound.json").write_text(json.dumps(BOUND))
    for given in ([], [copy / "bound.json"], [copy / "bound.json"] * 2, [copy / "checkpoints" / ".." / "bound.json"]):
        assert len(gather(copy, results=given).results["bound"]) == 1


def test_what_stands_after_a_plus_or_minus_is_said(copy: Path) -> None:
    scores = {"frechet_distance[a]": 1.5, "frechet_distance_se[a]": 0.25, "n_samples": 9, "extractor": "a"}
    (copy / "fid.json").write_text(json.dumps(scores))
    (copy / "bound.json").write_text(json.dumps(BOUND))
    text = Reader(render(gather(copy))).text
    assert "bits per dimension, ± 0.1 (2 standard errors)" in text and "a, ± 0.25 (standard error)" in text


def test_few_samples_and_a_bound_on_training_images_are_said_beside_their_numbers(copy: Path) -> None:
    """At the top of the page and in its tables."""
    scores = {"frechet_distance[a]": 1.5, "n_samples": 60, "extractor": "a"}
    (copy / "fid.json").write_text(json.dumps(scores))
    for digest, times in ((read_yaml(copy / "config.yaml")["data"]["payload_sha256"], 2), ("0" * 64, 0)):
        (copy / "bound.json").write_text(json.dumps({**BOUND, "payload_sha256": digest}))
        text = Reader(render(gather(copy))).text
        assert text.count("on training images") == times and text.count("n = 60") == 2


def test_validation_is_drawn_beside_training(copy: Path) -> None:
    (copy / "validation.jsonl").write_bytes((copy / "losslog.jsonl").read_bytes())
    line = {
        "step": 40,
        "images": 640,
        "val_images": 9,
        "val_loss": 0.5,
        "val_loss_se": 0.01,
        "val_bpd": 4.5,
        "val_bpd_se": 0.02,
    }
    with open(copy / "metrics.jsonl", "a") as file:
        file.write(json.dumps(line) + "\n")
    facts = gather(copy)
    drawn = pictures(facts)
    assert {"loss", "bits", "profiles"} <= set(drawn) and "validation" in drawn["loss"]
    assert "Validation uses the averaged weights" in Reader(render(facts)).text


LEVELS: dict[str, dict[int, tuple[float, float, float]]] = {
    "a draw in one bin": {5: (1, 0.5, 0.25)},
    "a draw in each of two": {5: (1, 0.5, 0.25), 9: (1, 0.4, 0.16)},
    "no error": {5: (2, 0, 0)},
    "nothing": {},
}


FIRST = [
    (loss, schedule, level) for loss in (0.5, 0.0, -1.0) for schedule in ("cosine", "adaptive") for level in LEVELS
]


def apart(loss: float, schedule: str, level: str) -> bool:
    """Whether one thing alone is odd: losses and errors per λ are in different logs and different plots."""
    return loss == 0.5 or (schedule, level) == ("cosine", "a draw in one bin")


@pytest.mark.parametrize(
    ("loss", "schedule", "level"),
    [pytest.param(*case, marks=() if apart(*case) else pytest.mark.slow) for case in FIRST],
)
@pytest.mark.filterwarnings("error")
def test_a_run_in_its_first_steps_has_its_plots_and_no_complaints(
    loss: float, schedule: str, level: str, copy: Path
) -> None:
    """One line in each log, with few draws or none, and with numbers that have no logarithm."""
    just_begun(copy)
    change(copy, "settings", schedule=schedule)
    sums = torch.zeros(3, 10, dtype=torch.float64)
    for place, values in LEVELS[level].items():
        sums[:, place] = torch.tensor(values)
    log = losslog.header(bin_edges(-10, 10, 10)) + losslog.line(1, 16, sums)
    for name in ("losslog.jsonl", "validation.jsonl"):
        (copy / name).write_text(log)
    numbers = {"loss": loss, "val_loss": loss, "val_loss_se": 0.5, "val_bpd": 3.0, "val_bpd_se": 5.0}
    (copy / "metrics.jsonl").write_text(json.dumps({"step": 1, "images": 16, **numbers}) + "\n")
    facts = gather(copy)
    errors = {"errors", "profiles"} if level.startswith("a draw") else set()
    assert {*pictures(facts)} & {"loss", "bits", "errors", "profiles"} == {"loss", "bits"} | errors
    assert Reader(render(facts)).text


def test_a_page_has_a_bound_that_a_long_run_with_noise_for_pictures_keeps(copy: Path, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    shutil.rmtree(copy / "previews")
    (copy / "previews").mkdir()
    for step in range(7):
        sheet = Image.fromarray(random.integers(0, 256, (1024, 1024, 3), np.uint8))
        sheet.save(copy / "previews" / f"step-{step:08d}.png", compress_level=0)
    images = random.integers(0, 256, (160, 128, 128, 3), np.uint8)
    np.savez(tmp_path / "s.npz", arr_0=images, arr_1=np.arange(160) % 20)
    row = {
        "loss": 0.123456789,
        "val_loss": 0.1,
        "val_loss_se": 0.01,
        "val_bpd": 4.2,
        "val_bpd_se": 0.01,
        "images_per_s": 1.0,
    }
    with open(copy / "metrics.jsonl", "w") as file:
        file.writelines(json.dumps({"step": i, "images": i, **row}) + "\n" for i in range(1, 20_000))
    edges = bin_edges(-10, 10)
    sums = torch.from_numpy(random.uniform(1, 9, (3, 100)))
    lines = [losslog.line(i, i, sums) for i in range(1, 400)]
    for name in ("losslog.jsonl", "validation.jsonl"):
        (copy / name).write_text(losslog.header(edges) + "".join(lines))
    facts = gather(copy, samples=tmp_path / "s.npz")
    page = render(facts)
    assert 0.5 * LARGEST < len(page.encode()) < LARGEST
    assert (
        len(facts.report.curves["loss"]) <= POINTS and facts.course is not None and len(facts.course.images) < 2 * CELLS
    )
    for strip in [*facts.previews, *facts.drawn]:
        with Image.open(io.BytesIO(strip.png)) as picture:
            assert picture.size == (strip.count * CELL, CELL)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (3, "3"),
        (1234567, "1&thinsp;234&thinsp;567"),
        (0.123456, "0.1235"),
        (-1.5, "\u22121.5"),
        (True, "True"),
        ("a", "a"),
        (None, "None"),
        (2.3e-5, "2.3e\u22125"),
        (1e20, "1e20"),
    ],
)
def test_numbers_for_people(value: Any, wanted: str) -> None:
    assert number(value) == wanted


def test_errors_have_two_digits() -> None:
    assert [number(value, 2) for value in (0.01234, 0.0, 12.6)] == ["0.012", "0", "13"]
