"""A run that can't fit into memory is refused before it begins, and what the message advises fits."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs

from elbocli.errors import UsageError
from elbocli.files.dataset import Dataset
from elbocli.main import run as command
from elbocli.run import settings
from elbocli.run.settings import Resolved
from elbocli.runtime import device as memory
from elbocli.runtime.processes import World
from elbocli.train import memory_check
from elbocli.train.memory_check import CLEARLY, check_memory, remedy
from elbocli.train.plan import Plan

GB = 10**9
CARD = torch.device("cuda", 0)


def resolved(preset: str = "cifar", **options: Any) -> Resolved:
    data = settings.preset_data(preset)
    assert data is not None
    return settings.resolve({"preset": preset, "device": "cpu", **options}, data)


def needed(asked: Resolved, processes: int = 1) -> int:
    return sum(Plan(asked, processes).memory().values())


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """What the machine says: bytes that are free."""
    said = {"free": 0}
    monkeypatch.setattr(memory_check, "free_bytes", lambda device: said["free"])
    monkeypatch.setattr(memory_check, "held_bytes", lambda: 0)
    return said


def test_what_fits_is_not_spoken_of_what_may_fit_is_warned_of_and_what_cant_is_refused(free: dict[str, int]) -> None:
    asked = resolved()
    free["free"] = needed(asked)
    assert check_memory(asked, World()) == ""
    free["free"] = needed(asked) - 1
    assert "should it be killed: add --micro-batch" in check_memory(asked, World())
    free["free"] = int(needed(asked) / CLEARLY) - 1
    said = rf"^training takes about {needed(asked) / GB:.1f} GB of memory, and this process can have [\d.]+ GB; add --micro-"
    with pytest.raises(UsageError, match=said) as refused:
        check_memory(asked, World())
    assert refused.value.exit_code == 2


@pytest.mark.parametrize(
    "preset", ["cifar", "small64", pytest.param("imagenet64", marks=pytest.mark.slow), "small32-uvit"]
)
def test_advice_of_options_fits_and_the_next_larger_micro_batch_doesnt(preset: str, free: dict[str, int]) -> None:
    asked, advised = resolved(preset, batch=512), set()
    for share in (0.004, 0.02, 0.05, 0.1, 0.3, 0.7):
        free["free"] = room = int(share * needed(asked))
        advice = remedy(asked, 1, room)
        options = dict(re.findall(r"--(micro-batch|preview-every) (\d+)", advice))
        if not options:
            assert advice.startswith("choose a smaller network")
            continue
        change = {name.replace("-", "_"): int(value) for name, value in options.items()}
        change |= {"activation_checkpointing": True} if "--activation-checkpointing" in advice else {}
        advised.add(frozenset(change))
        followed = replace(asked, settings=structs.replace(asked.settings, **change))
        assert check_memory(followed, World()) == ""
        more = replace(followed, settings=structs.replace(followed.settings, micro_batch=change["micro_batch"] + 1))
        assert needed(more) >= 0.9 * room or needed(more) == needed(followed)
    assert advised


def test_without_room_for_one_image_another_network_is_advised(free: dict[str, int]) -> None:
    free["free"] = GB // 2
    with pytest.raises(UsageError, match="; choose a smaller network with --preset"):
        check_memory(resolved("imagenet512"), World())


def test_processes_of_one_machine_share_what_is_free(free: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    asked, world = resolved(), World(0, 4)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    free["free"] = 4 * needed(asked, 4)
    assert check_memory(asked, world) == ""
    free["free"] -= 4
    assert check_memory(asked, world) != ""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # on each of two machines
    assert check_memory(asked, world) == ""


def test_on_a_card_the_search_decides_and_only_a_network_that_cant_fit_is_refused(free: dict[str, int]) -> None:
    asked, world = resolved(device="cuda", precision="bf16"), World(device=CARD)
    one = replace(asked, settings=structs.replace(asked.settings, micro_batch=1))
    free["free"] = needed(one)
    assert check_memory(asked, world) == ""
    free["free"] = int(needed(one) / CLEARLY) - 1
    with pytest.raises(UsageError, match=r"and the device has [\d.]+ GB; "):
        check_memory(asked, world)
    whole = replace(asked, settings=structs.replace(asked.settings, micro_batch=512))
    free["free"] = 4 * needed(one)
    with pytest.raises(UsageError, match="; add --micro-batch"):
        check_memory(whole, world)


def test_a_card_holds_no_checkpoint_while_it_is_written_and_no_process() -> None:
    assert not {"checkpoint", "process"} & set(Plan(resolved(device="cuda", precision="tf32"), 1).memory())
    parts = Plan(resolved(ema=("0.99", "0.999")), 1).memory()
    assert parts["checkpoint"] == 5 * parts["weights"]  # weights, two moments, two averages


@pytest.mark.parametrize("preset", ["digits", "small64", "imagenet64", "small32-uvit"])
@pytest.mark.parametrize("again", [False, True])
def test_previews_are_planned_as_they_are_drawn_and_take_no_more_than_a_step(preset: str, again: bool) -> None:
    options = {"batch": 64, "activation_checkpointing": again}
    for micro_batch in (1, 7, 64):
        with_previews, without = (
            Plan(resolved(preset, **options, micro_batch=micro_batch, preview_every=every), 1) for every in (5, 0)
        )
        assert with_previews.memory() == without.memory()
        assert with_previews.drawn_at_once(micro_batch) == micro_batch and without.drawn_at_once(micro_batch) == 0


def test_validation_is_planned_for_where_it_takes_more_than_a_step() -> None:
    plain, held = (Plan(resolved("small64", batch=1, val_split=split), 1).memory()["activations"] for split in (0, 500))
    assert plain < held / 5  # 64 images of 64 pixels each


def test_what_this_process_holds_is_part_of_what_it_can_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = memory.held_bytes()
    taken = bytearray(b"x") * (200 << 20)
    assert memory.held_bytes() - before > 150 << 20
    del taken


def test_the_command_refuses_in_one_line_and_its_advice_trains(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["train", str(digits), "-o", str(tmp_path / "run"), "--preset", "digits", "--batch", "1024", "--steps", "1"]
    asked = settings.resolve({"preset": "digits", "batch": 1024}, Dataset(digits))
    room = int(0.75 * needed(asked))
    monkeypatch.setattr(memory_check, "free_bytes", lambda device: room - memory.held_bytes())
    assert command(line) == 2
    said = capsys.readouterr().err
    assert said.startswith("elbo train: error: training takes about 0.8 GB of memory") and said.count("\n") == 1
    assert not (tmp_path / "run").exists()
    advice = re.search(r"add (--micro-batch \d+),", said)
    assert advice, said
    assert command([*line, *advice.group(1).split()]) == 0
