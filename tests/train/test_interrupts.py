"""A signal in the middle of a step, of a preview or of a validation: it is given up at once, and nothing is lost by that."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from elbocli.core.loss import denoising_losses
from elbocli.errors import Interrupted
from elbocli.files.checkpoint import checkpoints
from elbocli.files.dataset import Dataset
from elbocli.run import settings
from elbocli.run.status import read_status
from elbocli.runtime.processes import World
from elbocli.runtime.signals import Signals
from elbocli.train import loop, recorder, step, validate
from elbocli.train.preview import preview

pytestmark = pytest.mark.usefixtures("short_previews")

STEPS = 12
OPTIONS = {"steps": STEPS, "save_every": 100, "log_every": 4, "preview_every": 4, "val_split": 20, "val_every": 64}


def trained(digits: Path, preset: Path, out: Path, **options: object) -> Path:
    resolved = settings.resolve({"preset": str(preset), **OPTIONS, **options}, Dataset(digits))
    for _ in loop.run(Dataset(digits), out, resolved):
        pass
    return out


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def outcome(run: Path) -> dict[str, object]:
    """All that training is to have made, but for the times."""
    newest = checkpoints(run)[-1]
    found: dict[str, object] = {path.name: path.read_bytes() for path in newest.glob("*.safetensors")}
    found |= {path.name: path.read_bytes() for path in (run / "previews").iterdir()}
    found |= {name: (run / name).read_bytes() for name in ("losslog.jsonl", "validation.jsonl")}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {**found, "metrics": [{key: row[key] for key in row if key != "images_per_s"} for row in rows]}


@pytest.fixture(scope="module")
def whole(digits: Path, preset: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    return outcome(trained(digits, preset, tmp_path_factory.mktemp("whole") / "run", micro_batch=6))


Due = Callable[[], bool]


def in_forward(monkeypatch: pytest.MonkeyPatch, due: Due) -> None:
    before = denoising_losses

    def losses(network: Any, *given: Any) -> Any:
        def forward(*inputs: Any) -> Any:
            if due():
                interrupt()
            return network(*inputs)

        return before(forward, *given)

    monkeypatch.setattr(step, "denoising_losses", losses)


def in_backward(monkeypatch: pytest.MonkeyPatch, due: Due) -> None:
    """As if it came while torch is in C++: noted, and only what looks for it afterwards can see it."""
    before, abandoning = denoising_losses, Signals.abandoning
    caught = []

    class Acting(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Any) -> Any:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, grad: Any) -> Any:
            if due():
                caught[-1].received = signal.SIGINT
            return grad

    def losses(*given: Any) -> Any:
        terms = before(*given)
        return terms._replace(loss=Acting.apply(terms.loss))

    def remembered(self: Any, given_up: bool) -> Any:
        caught.append(self)
        return abandoning(self, given_up)

    monkeypatch.setattr(Signals, "abandoning", remembered)
    monkeypatch.setattr(step, "denoising_losses", losses)


def in_preview(monkeypatch: pytest.MonkeyPatch, due: Due) -> None:
    before = preview
    monkeypatch.setattr(recorder, "preview", lambda *given: (due() and interrupt(), before(*given))[1])


def in_validation(monkeypatch: pytest.MonkeyPatch, due: Due) -> None:
    before = validate.Validation.partial
    monkeypatch.setattr(validate.Validation, "partial", lambda *given: (due() and interrupt(), before(*given))[1])


@pytest.mark.parametrize(
    ("place", "time", "saved"),
    [
        (in_forward, 19, 4),
        pytest.param(in_backward, 19, 4, marks=pytest.mark.slow),
        (in_preview, 2, 8),
        pytest.param(in_preview, 3, 12, marks=pytest.mark.slow),
        pytest.param(in_validation, 2, 8, marks=pytest.mark.slow),
    ],
)
def test_what_a_signal_meets_is_given_up_and_the_run_that_goes_on_equals_one_undisturbed(
    place: Callable[[pytest.MonkeyPatch, Due], None],
    time: int,
    saved: int,
    whole: dict[str, object],
    digits: Path,
    preset: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    count = 0

    def due() -> bool:
        nonlocal count
        count += 1
        return count == time

    with monkeypatch.context() as patched:
        place(patched, due)
        with pytest.raises(Interrupted, match=f"^SIGINT: saved step {saved} of {STEPS}"):
            trained(digits, preset, tmp_path / "run", micro_batch=6)
    assert count == time, "the work that the signal met was done to its end"
    assert read_status(tmp_path / "run").state == "interrupted"
    assert outcome(trained(digits, preset, tmp_path / "run", micro_batch=6)) == whole


def test_under_several_processes_a_step_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    for size, device, given_up in ((1, "cpu", True), (2, "cpu", False), (1, "cuda", False)):
        training = object.__new__(loop._Training)
        training.world = World(size=size)
        training.state = type("State", (), {"device": torch.device(device)})()
        assert training._abandons is given_up
