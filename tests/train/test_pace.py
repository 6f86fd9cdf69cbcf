"""Time that a run takes: right where steps take the same time, said once, and again only where it turns out otherwise."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from msgspec import structs

from elbocli.files.dataset import IMAGES, Dataset
from elbocli.run import settings
from elbocli.run.settings import PresetData
from elbocli.run.train_settings import TrainSettings
from elbocli.train import loop, pace
from elbocli.train.pace import Pace, short_size


@dataclass
class Held:
    """Stands where a Validation would."""

    rows: range
    every: int


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def asked(digits: Path, preset: Path, **options: object) -> TrainSettings:
    return settings.resolve({"preset": str(preset), "batch": 64, **options}, Dataset(digits)).settings


def said_seconds(text: str) -> float:
    found = re.search(r"take about (?:(\d+) h )?(?:(\d+) min|(\d+) s), until ", text)
    assert found, text
    hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return hours * 3600 + minutes * 60 + seconds


def walked(one: Pace, clock: Clock, steps: int, times: list[float], first: int = 0) -> list[tuple[float, str]]:
    """(time, what is said) of steps that take `times`, of which the last goes on."""
    told = []
    for step in range(first + 1, steps + 1):
        clock.now += times[min(step - first, len(times)) - 1]
        if text := one.after(step, asked=step % 20 == 0):
            told.append((clock.now, text))
    return told


def test_steady_steps_are_said_once_after_the_first_seconds_and_rightly(
    clock: Clock, digits: Path, preset: Path
) -> None:
    begun = clock.now
    one = Pace(asked(digits, preset, steps=5000), None, 0, waits=True)
    ((when, text),) = walked(one, clock, 5000, [6.0, 0.1])  # the first step compiles
    assert when - begun == pytest.approx(6 + 10, abs=0.3)
    assert text.startswith("0.1 s a step: 4899 steps left take about 8 min, until ")
    assert clock.now - when == pytest.approx(said_seconds(text), rel=0.1)


def test_previews_and_validations_to_come_are_counted(clock: Clock, digits: Path, preset: Path) -> None:
    chosen = asked(digits, preset, steps=1000, preview_every=100)
    held = Held(range(300), every=64 * 40)
    one = Pace(chosen, held, 0, waits=True)  # type: ignore[arg-type]
    step_s, drawn_s, held_s = 0.2, 0.2 * 64 * 32 / 64 / 3, 0.2 * 300 * 4 / 64 / 3
    times = [step_s + (step % 100 == 0) * drawn_s + (step % 40 == 0) * held_s for step in range(1, 1001)]
    told = walked(one, clock, 1000, times)
    assert len(told) == 1
    when, text = told[0]
    assert clock.now - when == pytest.approx(said_seconds(text), rel=0.1)
    assert said_seconds(text) > 1.15 * step_s * 1000


def test_the_last_step_brings_a_preview_also_between_two(digits: Path, preset: Path) -> None:
    one = Pace(asked(digits, preset, steps=150, preview_every=100), None, 0, waits=True)
    each = one.work(100) - one.work(99) - 1
    assert each == pytest.approx(64 * 32 / 64 / 3)
    assert one.work(150) == pytest.approx(150 + 2 * each)


def test_another_pace_is_said_again_and_that_is_better(clock: Clock, digits: Path, preset: Path) -> None:
    one = Pace(asked(digits, preset, steps=3000), None, 0, waits=True)
    told = walked(one, clock, 3000, [0.05] * 250 + [0.4])
    assert 2 <= len(told) <= 6 and told[0][1].startswith("0.05 s") and told[1][1].startswith("now 0.")
    off = [abs(said_seconds(text) - (clock.now - when)) / (clock.now - 1000) for when, text in told]
    assert off[0] > 0.5 and off[-1] < 0.25 and off == sorted(off, reverse=True)


def test_where_the_device_is_not_waited_for_only_numbers_asked_for_count(
    clock: Clock, digits: Path, preset: Path
) -> None:
    one = Pace(asked(digits, preset, steps=1000), None, 100, waits=False)
    ((_, text),) = walked(one, clock, 1000, [60.0, *[0.0] * 19, *[1.0] * 19, 1.0], first=100)
    assert text.startswith("1 s a step: 860 steps left") and said_seconds(text) == pytest.approx(860, abs=30)


def test_a_run_says_it(digits: Path, preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "MEASURED_S", 0.0)
    monkeypatch.setattr(pace, "OFF", 0.0)
    told, run = [], tmp_path / "run"
    for steps in (30, 60):
        options = {"preset": str(preset), "steps": steps, "preview_every": 20}
        reports = loop.run(Dataset(digits), run, settings.resolve(options, Dataset(digits)))
        told.append([(report.done, report.message) for report in reports if "steps left take about" in report.message])
    (before, *after), (again, *_) = told
    assert before[0] == 0 and "30 steps left" in before[1] and "first preview comes after about" in before[1]
    assert after and after[0][0] == 2 and "now " in after[0][1] and "28 steps left" in after[0][1]
    assert again[0] == 30 and "30 steps left" in again[1] and "first preview" not in again[1]


def test_a_size_is_named_that_takes_less_than_twenty_minutes_and_the_next_would_not() -> None:
    """The default network of 56 and 64 pixels is the same convolutions, so its time is proportional to the pixels."""
    photographs = settings.resolve({"device": "cpu"}, PresetData("", IMAGES, 64, 3, 10, 900))
    assert short_size(photographs, 1200 * (64 / 56) ** 2 * 0.98) == 56
    assert 8 <= short_size(photographs, 1200 * (64 / 56) ** 2 * 1.1) < 56
    assert short_size(photographs, 1e9) == 0
    assert (
        short_size(replace(photographs, settings=structs.replace(photographs.settings, preset="mine.yaml")), 3600) == 0
    )
