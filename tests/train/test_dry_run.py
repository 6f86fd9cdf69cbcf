"""`elbo train --dry-run`: what it prints where, and how it ends."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from elbocli.main import run

PLAN = ["train", "--dry-run"]


def test_a_preset_is_planned_without_a_dataset(
    elbo: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "plan")
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = elbo(
        *PLAN,
        *("--preset", "digits-uvit", "--parallel", "fsdp", "--micro-batch", 5, "--batch", 32),
        *("--precision", "bf16", "--device", "cuda", "--activation-checkpointing"),
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stderr
    plan = yaml.safe_load(result.stdout)
    assert plan["data"] == "preset digits-uvit" and plan["data_images"] == 1797
    assert [plan[key] for key in ("device", "devices", "parallel", "micro_batch", "micro_batches_per_step")] == [
        "cuda",
        2,
        "fsdp",
        4,
        4,
    ]
    assert plan["activation_checkpointing"] is True
    assert set(plan["memory_MB"]) == {
        *("weights", "gradients", "optimizer", "averages", "copies", "activations", "total")
    }
    assert result.stderr == b"" and list(tmp_path.iterdir()) == []


def test_under_torchrun_the_first_process_plans_for_all(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    line = [*PLAN, "--preset", "digits-uvit"]
    for key, value in {"WORLD_SIZE": "4", "RANK": "1"}.items():
        monkeypatch.setenv(key, value)
    assert run(line) == 0 and capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    assert run(line) == 0 and yaml.safe_load(capsys.readouterr().out)["devices"] == 4


def test_auto_is_planned_as_it_will_be_on_the_device(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    plans = []
    for device in ("cpu", "cuda"):
        monkeypatch.setenv("ELBO_DEVICE", device)
        assert run([*PLAN, "--preset", "cifar"]) == 0
        plans.append(yaml.safe_load(capsys.readouterr().out))
    assert [(plan["device"], plan["precision"]) for plan in plans] == [("cpu", "fp32"), ("cuda", "bf16")]
    assert plans[1]["memory_MB"]["copies"] > plans[0]["memory_MB"]["copies"] == 0


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (PLAN, 1, "0 datasets here; name one"),
        ([*PLAN, "--preset", "imagenet1024"], 2, "no preset is called 'imagenet1024'"),
        ([*PLAN, "--preset", "digits", "gone.h5"], 1, "gone.h5: no such dataset"),
        ([*PLAN, "--preset", "digits", "--batch", "4", "--micro-batch", "5"], 2, "micro-batch is 5"),
        ([*PLAN, "--preset", "digits", "--parallel", "mpi"], 2, "--parallel"),
        ([*PLAN, "--preset", "latents256", "--flip"], 2, "--flip: preset latents256 holds latents"),
    ],
)
def test_what_cannot_be_planned_is_said(
    line: list[str],
    code: int,
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(line) == code
    out, err = capsys.readouterr()
    assert out == "" and words in err and "Traceback" not in err and list(tmp_path.iterdir()) == []
