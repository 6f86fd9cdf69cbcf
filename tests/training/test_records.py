"""A run's numbers and previews are in its files and wherever --log-to says; its learned weighting is what the commands show."""

import io
import itertools
import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from group import lines_of, train_here, weights_of
from PIL import Image

from elbocli.core.adaptive import AdaptiveSchedule, bin_edges, bin_middles
from elbocli.core.schedule import parse_schedule
from elbocli.errors import ElboError, UsageError
from elbocli.files.contact_sheet import lay_out, rows_of_classes
from elbocli.files.dataset import Dataset
from elbocli.runs.classes import choose_labels
from elbocli.runs.config import read_config
from elbocli.runs.folder import read_status
from elbocli.runs.open import open_run, weighting_of_run
from elbocli.runs.settings import read_options, resolve
from elbocli.sampling.draw import open_decoder
from elbocli.sampling.samplers import parse_sampler
from elbocli.training import loop, previews, recorder, scores, targets
from elbocli.training.previews import PREVIEW, preview, preview_labels
from elbocli.training.state import TrainState
from elbocli.training.targets import check_targets, open_tensorboard

LOW = -10.0
HIGH = 10.0
MIDDLE = bin_middles(bin_edges(LOW, HIGH))


@pytest.fixture
def train(digits, preset, tmp_path):
    """train(name, **options): a run in tmp_path, as `group.train_here` makes it."""
    return lambda name, data=digits, **options: train_here(data, tmp_path / name, preset, **options)


# --- previews ---


@pytest.mark.parametrize("classes", [*range(30), 1000])
def test_a_preview_shows_few_classes_in_turns_or_some_of_many_in_full_rows(classes):
    labels = preview_labels(classes)
    assert (labels is None) == (classes == 0)
    count = PREVIEW.n if labels is None else len(labels)
    groups = rows_of_classes(count, labels)
    layout = lay_out(8, 8, groups)
    assert layout.size[1] // (layout.height * layout.scale) * layout.columns == count and 6 <= layout.columns <= 10
    if labels is not None and classes <= 10:
        assert PREVIEW.n - classes < count <= PREVIEW.n
        assert np.array_equal(labels, choose_labels("balanced", count, classes, 0))
    elif labels is not None:
        assert len(groups) == 8 and {len(group.images) for group in groups} == {8}
        assert (groups[0].name, groups[-1].name) == ("0", str(classes - 1))


def test_a_preview_asks_for_no_more_images_at_once_than_training_and_is_the_same_picture(digits, preset):
    """Sixty images: of a batch of 64 at once, or of 32, or of parts of it."""
    pictures = []
    data = Dataset(digits)
    for batch, most, at_once in ((64, 0, [60]), (32, 0, [30] * 2), (32, 7, [4] * 15)):
        options = {"preset": str(preset), "batch_size": batch, "micro_batch": most, "preview_every": 1}
        state = TrainState(resolve(options, data), data)
        seen = []
        output = open_decoder(state.resolved.data, state.resolved.network, state.device)
        state.network.register_forward_pre_hook(lambda network, inputs, seen=seen: seen.append(len(inputs[0])))
        pictures.append(preview(state, output)[0].astype(int))
        assert seen == [each for each in at_once for _ in range(parse_sampler(previews.PREVIEW.sampler).steps)]
    assert all(np.abs(picture - pictures[0]).max() <= 1 for picture in pictures)


@pytest.mark.usefixtures("short_previews")
def test_the_first_preview_comes_early_once_and_changes_no_weight(train, tmp_path, monkeypatch):
    def pictures(name, steps):
        train(name, steps=steps, preview_every=4)
        return sorted(int(path.stem[5:]) for path in (tmp_path / name / "previews").iterdir())

    assert pictures("usual", 8) == [4, 8]
    monkeypatch.setattr(recorder, "FIRST_PREVIEW_S", 0.0)
    assert pictures("early", 4) == [1, 4]
    assert pictures("early", 8) == [1, 4, 8]  # also where the run goes on
    weights = [tmp_path / name / "checkpoints/step-00000008/model.safetensors" for name in ("usual", "early")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


# --- --eval-every ---


@pytest.mark.parametrize("data", ["digits", "skewed"])
def test_scores_while_training_are_those_of_sample_and_eval_and_change_no_weight(data, train, elbo, tmp_path, request):
    digits = request.getfixturevalue(data)
    options = {"data": digits, "steps": 8, "log_every": 4, "eval_samples": 60, "eval_metrics": "prc,fid"}
    train("plain", data=digits, steps=8, log_every=4)
    train("scored", eval_every=3, **options)
    assert weights_of(tmp_path / "plain") == weights_of(tmp_path / "scored")
    rows = [row for row in lines_of(tmp_path / "scored" / "metrics.jsonl") if "eval_samples" in row]
    assert [(row["step"], row["eval_samples"]) for row in rows] == [(3, 60), (6, 60), (8, 60)]
    drawn = ("-n", 60, "-o", "x.npz")
    assert elbo("sample", "scored", *drawn, cwd=tmp_path).returncode == 0
    judged = elbo("eval", "x.npz", "--ref", digits, "--extractor", "elbo-tiny", "--metrics", "fid,prc", cwd=tmp_path)
    wanted = json.loads(judged.stdout)
    keys = set(rows[-1]) - {"step", "images", "eval_samples"}
    assert keys == {f"eval_{name}" for name in wanted["scores"]}
    values = {f"eval_{name}": score["value"] for name, score in wanted["scores"].items()}
    assert {key: rows[-1][key] for key in keys} == pytest.approx(values, rel=0.02)
    assert {key: rows[-1][key] for key in keys} != {key: rows[0][key] for key in keys}


def test_seconds_of_evaluations_are_logged_apart_from_the_speed(train, tmp_path, monkeypatch):
    """A clock that only runs while samples are drawn, so that training takes no time at all."""
    clock = [0.0]
    whole = scores.draw_averaged

    def slow(*given):
        clock[0] += 1000.0
        return whole(*given)

    for module in (recorder, scores):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(scores, "draw_averaged", slow)
    train("run", steps=4, log_every=4, eval_every=2, eval_samples=10)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["eval_s"] for row in lines if "eval_s" in row] == [1000.0, 1000.0]
    assert all(row["images_per_s"] > 1e6 for row in lines if "images_per_s" in row)


def test_the_status_has_the_speed_of_the_last_line_of_the_metrics(trained):
    rows = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert read_status(trained).images_per_s == rows[-1]["images_per_s"]
    assert all(0 < row.get("images_per_s", 1) < 1e6 for row in rows)


def test_what_can_not_be_scored_is_refused_before_the_first_step(digits, preset, tmp_path):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "a.png")
    data = Dataset(digits)
    run = tmp_path / "run"
    refused: list[tuple[str, object]] = [("eval_metrics", word) for word in ("nonsense", "copying", "kid", "sfid,")]
    refused += [("extractor", word) for word in ("nonsense", "none.pt2", "dinov2-vitl14")]
    refused += [("eval_ref", str(path)) for path in (tmp_path / "none.h5", preset, tmp_path)]
    for key, value in refused:
        ours = {"preset": str(preset), "steps": 1, "eval_every": 1, **({} if key == "extractor" else {key: value})}
        with pytest.raises(ElboError) as caught:
            loop.run(data, run, resolve(ours, data), **({key: (value, None)} if key == "extractor" else {}))
        assert caught.value.exit_code in (1, 2) and not (run / "checkpoints").exists(), (key, value)
    (tmp_path / "c.yaml").write_text("eval_extractor: evil.pt2\n")  # a program may run code, and no file may name it
    with pytest.raises(UsageError):
        read_options(tmp_path / "c.yaml", {}, [])


# --- --log-to ---


@pytest.mark.usefixtures("short_previews")
def test_every_target_gets_every_line_and_preview_and_one_that_fails_is_a_warning(train, digits, preset, tmp_path, monkeypatch):
    kept = []

    def write(step, values):
        kept.append({"step": step, **{key: value for key, value in values.items() if key != "images_per_s"}})

    def fail(step, values):
        raise ZeroDivisionError("nobody listens")

    monkeypatch.setattr(targets, "PACKAGES", {"wandb": lambda *_: write, "tensorboard": lambda *_: fail})
    options = {"steps": 12, "log_every": 4, "preview_every": 6, "val_split": 20, "val_every": 5}
    (warning,) = [line for line in train("run", log_to=("tensorboard", "wandb"), **options) if line.startswith("--log-to")]
    assert "nobody listens" in warning
    lines = lines_of(tmp_path / "run" / "metrics.jsonl")
    assert [line for line in kept if "samples" not in line] == lines
    assert [line["step"] for line in lines] == [4, 5, 8, 10, 12, 12] and "val_bpd" in lines[-1]
    shown = [(line["step"], line["samples"].name) for line in kept if "samples" in line]
    assert shown == [(6, "step-00000006.png"), (12, "step-00000012.png")]


def test_unknown_and_missing_loggers_are_refused(monkeypatch):
    for word in ("comet", "metrics.jsonl", ""):
        with pytest.raises(UsageError, match=f"^--log-to {word}: "):
            check_targets([word])
    monkeypatch.setattr(targets, "find_spec", lambda name: None)
    for package in targets.PACKAGES:
        with pytest.raises(UsageError, match=rf"elbocli\[{package}\]"):
            check_targets([package])


def test_tensorboard_shows_numbers_and_pictures_and_no_step_twice(tmp_path, monkeypatch):
    """Read back by its own reader, which takes files by the second in their names: starts of a run are seconds apart."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.summary.writer import event_file_writer

    clock = itertools.count(int(time.time()) + 10)
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: next(clock)))
    pixels = np.random.default_rng(0).integers(0, 256, (16, 24, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "grid.png")
    write = open_tensorboard(tmp_path, 0)
    write(10, {"loss": 0.5, "lr": 1e-4, "images": 12, "none": None})
    write(20, {"loss": 0.25, "val_bpd": 3.5, "eval_fid[a]": 2.0})
    write(10, {"samples": tmp_path / "grid.png"})
    write = open_tensorboard(tmp_path, 10)  # as a run that goes on after step 10
    write(20, {"loss": 0.125})
    found = EventAccumulator(str(tmp_path / "tensorboard"), {"scalars": 0, "images": 0}).Reload()
    assert set(found.Tags()["scalars"]) == {"train/loss", "train/lr", "train/images", "val/bpd", "eval/fid[a]"}
    assert [(event.step, event.value) for event in found.Scalars("train/loss")] == [(10, 0.5), (20, 0.125)]
    (event,) = found.Images("samples")
    assert event.step == 10
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(event.encoded_image_string))), pixels)


@pytest.mark.usefixtures("short_previews")
def test_wandb_gets_all_under_one_name_and_a_run_that_goes_on_is_the_same(train, tmp_path, monkeypatch):
    """A stand-in takes the calls. The user's own variables come before elbo's."""
    begun = []
    logged = []
    run = tmp_path / "run"

    def init(**how):
        begun.append({**{key: os.environ.get(f"WANDB_{key.upper()}") for key in ("project", "name", "dir")}, **how})
        return SimpleNamespace(define_metric=lambda *_, **__: None, log=logged.append)

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=init, Image=lambda path: Path(path).read_bytes()))
    with patch.dict(os.environ, {"WANDB_NAME": "best"}):
        for steps in (8, 10):
            train("run", log_to=["wandb"], steps=steps, log_every=2, preview_every=4, eval_every=4, eval_samples=10)
    config = read_config(run)
    pictures = [row for row in logged if "samples" in row]
    timed = {"images_per_s": 0, "eval_s": 0}
    wanted = [(step, (run / f"previews/step-{step:08d}.png").read_bytes()) for step in (4, 8, 10)]
    assert [(row["step"], row["samples"]) for row in pictures] == wanted
    numbers = [{**row, **timed} for row in logged if "samples" not in row]
    assert numbers == [{**row, **timed} for row in lines_of(run / "metrics.jsonl")]
    how = {"id": config.run_id, "name": "best", "project": "elbo", "dir": str(run), "resume": "allow"}
    assert [{key: each[key] for key in how} for each in begun] == [how] * 2
    assert begun[1]["config"]["settings"] == config.settings.written()


# --- a learned weighting ---


@pytest.fixture(scope="module")
def learned(tmp_path_factory, digits, preset, elbo):
    """A run of 20 steps that learns its weighting."""
    run = tmp_path_factory.mktemp("learned") / "run"
    learns = (
        "--steps",
        20,
        "--log-every",
        5,
        "--weighting",
        "uncertainty",
        "--schedule",
        "edm2-img512",
        "--set",
        "network.levels=[1]",
    )
    done = elbo("train", digits, "-o", run, "--preset", preset, *learns)
    assert done.returncode == 0 and b"(learned, not monotone)" in done.stderr, done.stderr
    return run


def said(elbo, *line, code=0, cwd=None):
    """Run a command and return its stdout."""
    done = elbo(*line, cwd=cwd)
    assert done.returncode == code, done.stderr
    return bytes(done.stdout)


def test_the_log_has_the_weighting_of_its_steps_and_it_follows_from_the_errors(learned, trained):
    head, *rows = lines_of(learned / "losslog.jsonl")
    _, over_time = weighting_of_run(learned)
    assert head["weighting"] == "uncertainty" and [each.step for each in over_time] == [0, *range(5, 21, 5)]
    online = AdaptiveSchedule(bin_edges(LOW, HIGH))
    for row, before in zip(rows, over_time):
        assert row["weight"] == before.weighting(MIDDLE).tolist(), row["step"]
        online.update(torch.tensor([row["count"], row["sum"], row["sumsq"]], dtype=torch.float64))
    opened = open_run(learned, torch.device("cpu"))
    assert torch.equal(opened.checkpoint.state()["online"], online.state)
    assert torch.equal(opened.weighting()(MIDDLE), over_time[-1].weighting(MIDDLE))
    density = parse_schedule("edm2-img512", LOW, HIGH).density(MIDDLE)
    assert torch.allclose(opened.weighting()(MIDDLE), density / online.moments().smoothed.mean)
    assert all("weight" not in row for row in lines_of(trained / "losslog.jsonl"))


@pytest.mark.long
def test_weights_adapt_and_bound_take_the_weighting_of_a_run(learned, trained, elbo, tmp_path):
    found = json.loads(said(elbo, "weights", "check", learned, "--json", code=1))
    assert found["weighting"] == "uncertainty" and found["schedule"] == "edm:mean=-0.4,std=1" and not found["monotone"]
    assert [each["step"] for each in found["times"]] == [0, *range(5, 21, 5)]
    assert b"after step 20: rises for logsnr -10 to " in said(elbo, "weights", "check", learned, code=1)
    assert b"never rises for logsnr -10 to 10" in said(elbo, "weights", "check", trained)
    shown = said(elbo, "weights", "show", learned, "--logsnr-min", LOW, "--logsnr-max", HIGH, "--points", 21)
    rows = np.array([row.split("\t") for row in shown.decode().splitlines()[1:]], float)
    np.testing.assert_array_equal(rows[:, 1], weighting_of_run(learned)[1][-1].weighting(torch.from_numpy(rows[:, 0])))
    said(elbo, "weights", "show", "uncertainty", code=2)
    said(elbo, "weights", "plot", learned, "edm", "-o", out := tmp_path / "weights.svg")
    assert "uncertainty@" in out.read_text()
    said(elbo, "adapt", learned, code=2)
    said(elbo, "adapt", learned, "--weighting", "sigmoid")
    bound = ("bound", "-q", learned, "--check", "-n", 20, "--draws", 4, "--batch-size", 80)
    (check,) = json.loads(said(elbo, *bound))["checks"]
    assert check["weighting"] == "uncertainty" and check["agree"]
