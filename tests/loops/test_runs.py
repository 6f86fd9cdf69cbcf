"""A run is opened at its newest checkpoint, or at the one that is named."""

import shutil
from pathlib import Path

import pytest
import torch

from elbocli.errors import FormatError
from elbocli.loops.runs import open_run

CPU = torch.device("cpu")


def test_a_checkpoint_is_opened_as_a_run_of_that_step(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older, newer = sorted((trained / "checkpoints").iterdir())
    newest, then = open_run(trained, CPU, print), open_run(older, CPU, print)
    assert newest.checkpoint.path == newer and then.checkpoint.path == older
    assert then.path == trained and then.settings == newest.settings
    assert not torch.equal(*(next(run.network.parameters()) for run in (newest, then)))
    monkeypatch.chdir(older)
    assert open_run(Path(), CPU, print).checkpoint.step == then.checkpoint.step


def test_a_checkpoint_that_is_damaged_or_of_no_run_is_refused(trained: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run" / "checkpoints" / "step-00000040"
    shutil.copytree(max((trained / "checkpoints").iterdir()), copy)
    with pytest.raises(FormatError, match=r"run: not a run \(no config.yaml inside\)"):
        open_run(copy, CPU, print)
    (copy / "model.safetensors").write_bytes(b"")
    with pytest.raises(FormatError, match=r"model\.safetensors: damaged"):
        open_run(copy, CPU, print)
