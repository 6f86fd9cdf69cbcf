"""What W&B would upload, read back from what it keeps offline."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from elbocli.files.checkpoint import read_config

pytest.importorskip("wandb")
LINE = ("--save-every", 4, "--log-every", 2, "--preview-every", 4, "--log-to", "wandb")


@pytest.fixture
def train(elbo: Callable[..., Any], digits: Path, preset: Path, tmp_path: Path) -> Callable[..., None]:
    """train(*words, **env): a start of a run, offline."""

    def run(*words: Any, **env: str) -> None:
        offline = {"WANDB_MODE": "offline", "WANDB_SILENT": "true", **env}
        done = elbo("train", digits, "--preset", preset, *LINE, *words, cwd=tmp_path, env=offline)
        assert done.returncode == 0, done.stderr.decode()
        assert b"warning" not in done.stderr and done.stdout == b"run\n", done.stderr

    return run


def starts(folder: Path) -> list[Path]:
    return sorted(folder.glob("offline-run-*"))


BLOCK, HEADER = 1 << 15, 7
WHOLE, LAST = 1, 4


def records(start: Path) -> list[Any]:
    """Everything that one start of a run told W&B: a log as LevelDB has it, of records in protobuf."""
    protobuf = import_module("wandb.proto.wandb_internal_pb2")
    content = next(start.glob("*.wandb")).read_bytes()
    assert content[:4] == b":W&B"
    found, parts, at = [], b"", HEADER
    while at < len(content):
        left = BLOCK - at % BLOCK
        if left < HEADER:  # too little for a record's header
            at += left
            continue
        size, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        parts += content[at + HEADER : at + HEADER + size]
        at += HEADER + size
        if kind in (WHOLE, LAST):
            found.append(protobuf.Record.FromString(parts))
            parts = b""
    return found


def rows(start: Path) -> list[dict[str, Any]]:
    """What was logged, line by line, without W&B's own keys."""
    found = []
    for record in records(start):
        if record.WhichOneof("record_type") == "history":
            items = {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            found.append({key: value for key, value in items.items() if not key.startswith("_")})
    return found


def test_numbers_previews_and_settings_are_there_and_a_run_that_goes_on_is_the_same(
    train: Callable[..., None], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train("--steps", 8)
    (first,) = starts(run / "wandb")
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = rows(first)
    assert [row for row in logged if "samples.path" not in row] == metrics and len(metrics) == 4
    pictures = [row for row in logged if "samples.path" in row]
    assert [row["step"] for row in pictures] == [4, 8]
    for row in pictures:
        kept = first / "files" / row["samples.path"]
        assert kept.read_bytes() == (run / "previews" / f"step-{row['step']:08d}.png").read_bytes()
    train("--steps", 10)
    _, second = starts(run / "wandb")
    assert [row["step"] for row in rows(second) if "loss" in row] == [10]
    config = read_config(run)
    for start, steps in ((first, 8), (second, 10)):
        (begun,) = [record.run for record in records(start) if record.WhichOneof("record_type") == "run"]
        told = {item.key: json.loads(item.value_json) for item in begun.config.update}
        assert (begun.run_id, begun.project, begun.display_name) == (config.run_id, "elbo", "run")
        assert told["network"] == config.network and told["settings"] == {**config.settings, "steps": steps}


def test_its_own_variables_come_first(train: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    train("--steps", 2, WANDB_PROJECT="mine", WANDB_NAME="best", WANDB_DIR=str(tmp_path / "here"))
    (start,) = starts(tmp_path / "here" / "wandb")
    (begun,) = [record.run for record in records(start) if record.WhichOneof("record_type") == "run"]
    assert (begun.project, begun.display_name) == ("mine", "best") and not (tmp_path / "run" / "wandb").exists()


def test_what_it_cannot_begin_is_a_warning(
    elbo: Callable[..., Any], digits: Path, preset: Path, tmp_path: Path
) -> None:
    """It asks for a key where nobody can type one."""
    own = {"WANDB_MODE": "online", "HOME": str(tmp_path), "NETRC": str(tmp_path / "none"), "WANDB_API_KEY": ""}
    done = elbo("train", digits, "--preset", preset, "--steps", 2, *LINE, cwd=tmp_path, env=own)
    assert done.returncode == 0, done.stderr
    assert (
        done.stderr.count(b"--log-to wandb: ") == 1
        and b"nothing more goes there in this start of the run" in done.stderr
    )


def test_ctrl_c_keeps_what_was_logged(digits: Path, preset: Path, tmp_path: Path) -> None:
    """The signal goes to every process of the terminal's group, as from a keyboard."""
    words = ["train", digits, "--preset", preset, "--steps", 100_000, "--log-every", 5, "--log-to", "wandb"]
    environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    process = subprocess.Popen(
        [sys.executable, "-m", "elbocli", *map(str, words)], cwd=tmp_path, env=environment, start_new_session=True
    )
    log = tmp_path / "run" / "metrics.jsonl"
    while not log.exists() or not log.stat().st_size:
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=100) == 130
    (start,) = starts(tmp_path / "run" / "wandb")
    assert [row["step"] for row in rows(start)] == [json.loads(line)["step"] for line in log.read_text().splitlines()]
