"""Standard streams, pipes and terminals: data on stdout, words for people on stderr, and nothing that moves a cursor."""

import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import unicodedata
from contextlib import nullcontext

import numpy as np
import pytest
from harness import heed_signals, on_terminal, terminal
from hypothesis import given
from hypothesis import strategies as st

from elbocli.commands.shared import progress_bar
from elbocli.files.yaml_text import read_yaml, yaml_text
from elbocli.report.figure import lettered
from elbocli.runtime.progress import PAUSED, log, progress
from elbocli.runtime.text import visible, visible_lines

# Terminals


def test_binary_and_pages_never_go_onto_a_terminal(trained):
    for line in (("sample", trained, "-n", 2), ("report", trained)):
        code, shown = on_terminal(*line)
        assert code == 2 and "terminal" in shown and (line[0] != "report" or "-o FILE" in shown), line
    ours, its = os.openpty()
    code, shown = on_terminal("sample", trained, "-n", 1, "-o", os.ttyname(its))
    os.close(ours)
    os.close(its)
    assert code == 2 and "terminal" in shown


@pytest.mark.parametrize("columns", [80, 200])
def test_the_bar_keeps_its_time_and_its_loss(columns, shown):
    values = {"loss": 0.123456, "eps_mse": 0.0712, "lr": 2e-4, "grad_norm": 0.3123, "images_per_s": 1234.5}
    with terminal(columns) as screen, progress_bar.shown_on_stderr("elbo train"):
        progress(199_990, 400_000, "step")
        for step in range(199_991, 200_004):
            time.sleep(0.12)
            said = values if step % 4 == 0 else {"val_loss": 2.0} if step % 4 == 2 else {}
            progress(step, 400_000, "step", **said)
    lines = [line for line in re.split(r"[\r\n]+", screen[0]) if "step/s" in line or "s/step" in line]
    assert all(len(line) <= columns for line in lines), lines
    assert re.search(r"\| 20000\d/400000 00:\d\d<(\d+:)?\d+:\d\d, ", lines[-1]), lines[-1]
    assert "loss=0.1235" in lines[-1], "a validation's numbers push out no loss"
    assert all(len(line.split("|")[1]) >= 20 for line in lines if "loss" in line), "values squeeze no bar"
    assert ("images_per_s=1234" in lines[-1]) == (columns > 80)


@pytest.fixture
def shown(monkeypatch):
    """Messages without a wait for the first."""
    monkeypatch.setattr(progress_bar, "FIRST_S", 0.0)


def test_without_a_terminal_a_line_has_count_rate_and_each_value_once(monkeypatch, capsys, shown):
    now = 0.0
    for clock in ("time.monotonic", "tqdm.std.time"):
        monkeypatch.setattr(clock, lambda: now)
    with progress_bar.shown_on_stderr("elbo train"):
        for done in range(6):
            progress(done, 10, "step", **({"loss": 0.5} if done == 2 else {}))
            now += 5
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[2] for line in lines] == ["1/10", "3/10", "5/10"]
    assert "5.00s/step" in lines[1] and "00:35 left" in lines[1]
    assert ["loss" in line for line in lines] == [False, True, False]


def test_the_first_report_of_a_count_is_no_line_because_its_rate_is_unknown(capsys, shown):
    with progress_bar.shown_on_stderr("elbo eval"):
        progress(64, 64, "img")
        progress(32, 64, "img")
        assert not capsys.readouterr().err
        progress(64, 64, "img")
    assert capsys.readouterr().err.startswith("elbo eval: 64/64 img")


@pytest.mark.parametrize("columns", [0, 80])
def test_the_time_left_leaves_out_pauses(columns, monkeypatch, shown, capsys):
    now = 0.0
    for clock in ("time.monotonic", "tqdm.std.time"):
        monkeypatch.setattr(clock, lambda: now)
    with terminal(columns) if columns else nullcontext([""]) as screen, progress_bar.shown_on_stderr("elbo train"):
        progress(0, 100, "step")
        for done in range(1, 41):
            now += 1001.0 if done == 30 else 1.0
            progress(done, 100, "step", **({PAUSED: 1000.0} if done == 30 else {}))
    lines = re.split(r"[\r\n]+", screen[0] + capsys.readouterr().err)
    last = [line for line in lines if "40/100" in line][-1]
    assert re.search(r"01:00 left|<01:00", last), last


@pytest.mark.parametrize(("level", "count"), [(logging.INFO, 2), (logging.WARNING, 1), (logging.CRITICAL, 0)])
def test_quiet_keeps_warnings_and_another_rank_says_nothing(capsys, shown, level, count):
    with progress_bar.shown_on_stderr("elbo train", level):
        log.info("one")
        log.debug("detail")
        log.warning("two")
    assert len(capsys.readouterr().err.splitlines()) == count


# Pipes


def test_samples_go_through_a_pipe_and_a_producer_that_dies_is_noticed(elbo, digits, trained):
    samples = elbo("sample", trained, "-n", 24, "--steps", 2).stdout
    results = []
    for sent in (samples, samples[:-100]):
        reader, writer = os.pipe()
        with os.fdopen(reader, "rb") as stream:
            os.write(writer, sent)
            os.close(writer)
            results.append(elbo("eval", "--ref", digits, "--extractor", "elbo-tiny", stdin=stream))
    whole, result = results
    numbers = json.loads(whole.stdout)
    assert (whole.returncode, numbers["n_samples"], numbers["n_ref"]) == (0, 24, 300)
    assert (result.returncode, result.stdout) == (1, b"") and b"standard input: " in result.stderr


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('sample "$1" -n 2000 --steps 1 --batch-size 500 | head -c 10', 141),
        ('info "$2" > /dev/full', 1),
        ('info "$2" <&-', 0),
        ('info "$2" >&-', 1),
        ('info "$2" 2>&-', 0),
        ('info "$2" >&- 2>&-', 1),
        ('sample "$1" -n 4 --steps 1 2>/dev/full >/dev/null', 0),
    ],
)
@pytest.mark.long
def test_streams_that_end_early_or_were_never_open(line, code, trained, digits):
    words = ["bash", "-o", "pipefail", "-c", f'"$0" -m elbocli {line}', sys.executable, trained, digits]
    done = subprocess.run(words, capture_output=True, check=False, preexec_fn=heed_signals)
    assert done.returncode == code, done
    assert b"Traceback" not in done.stderr and b"Exception" not in done.stderr


@pytest.mark.parametrize("name", ["out", "out.npy"])
def test_samples_are_streamed_into_a_named_pipe(name, elbo, trained, tmp_path):
    os.mkfifo(tmp_path / name)
    received = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / name).read_bytes()))
    reader.start()
    result = elbo("sample", trained, "-n", 3, "--steps", 2, "-o", tmp_path / name)
    reader.join()
    assert (result.returncode, result.stdout) == (0, b""), result.stderr
    assert received == [elbo("sample", trained, "-n", 3, "--steps", 2).stdout]
    assert len(np.load(io.BytesIO(received[0]))) == 3
    assert (tmp_path / name).is_fifo() and os.listdir(tmp_path) == [name]


# Names that would move a terminal's cursor, colour it or turn its letters

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
NASTY = "a\n\x1b[31mred\r\x07\u202eb\x9b$x_{$"
SHOWN = "a\\n\\x1b[31mred\\r\\x07\\u202eb\\x9b$x_{$"


def hidden(text):
    return {letter for letter in text if unicodedata.category(letter) in HIDDEN} - {"\n"}


@given(st.text())
def test_any_text_is_shown_as_printable_lines(text):
    lines = visible(text).split("\n")
    whole = visible_lines(text)
    assert all(line.isprintable() for line in lines) and all(line.startswith("  ") for line in lines[1:])
    assert not hidden(whole) and whole.count("\n") == text.count("\n")
    assert (visible(visible(text)), visible_lines(whole)) == (visible(text), whole)
    assert text.isascii() <= (visible_lines(text) == text or not text.replace("\n", "").isprintable())
    assert "$" not in lettered(text).replace(r"\$", "") and lettered(text).isprintable()


@pytest.fixture(scope="module")
def nasty(elbo, trained, tmp_path_factory):
    """A folder with files of that name: a run whose classes are called so, samples, a scheduler, and a plug-in."""
    folder = tmp_path_factory.mktemp("nasty")
    shutil.copytree(trained, folder / NASTY)
    config = read_yaml(folder / NASTY / "config.yaml")
    config["data"]["class_names"] = [f"{NASTY}{index}" for index in range(10)]
    config["commands"] = [f"elbo train '{NASTY}'"]
    (folder / NASTY / "config.yaml").write_text(yaml_text(config))
    assert elbo("sample", NASTY, "-n", 20, "--steps", 2, "-o", f"{NASTY}.h5", cwd=folder).returncode == 0
    beta = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "epsilon"}
    scheduler = {"_class_name": "DDPMScheduler", "num_train_timesteps": 10, **beta}
    (folder / f"{NASTY}.json").write_text(json.dumps(scheduler))
    (folder / "own.py").write_text(
        f"import elbocli.plugin as elbo\n@elbo.weighting({NASTY!r}, formula={NASTY!r}, monotone=True, source='')\n"
        "def odd(logsnr):\n    return logsnr.exp()\n"
    )
    return folder


@pytest.mark.parametrize(
    "line",
    [
        ("report", NASTY, NASTY, f"{NASTY}.h5"),
        ("info", NASTY),
        ("info", f"{NASTY}.h5"),
        ("weights", "check", f"eps-mse@{NASTY}.json"),
        ("weights", "show", f"eps-mse@{NASTY}.json", "--points", 3),
        ("list", "--plugin", "own.py"),
        ("info", "-v", f"{NASTY}.none"),
    ],
)
def test_such_names_are_shown_escaped(line, elbo, nasty):
    done = elbo(*line, cwd=nasty)
    text = (done.stdout or done.stderr).decode()
    assert ("\\x1b[31mred" in text or line[0] == "info") and "red" in text, done
    assert not hidden(text.replace("\t", ""))
    if "own.py" in line:
        assert text.count(SHOWN) == 2
