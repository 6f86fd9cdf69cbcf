"""A short run of the fuzzer over every format and the command line, and all that it has ever found."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from fuzz import CORPUS, Case, Found, Fuzzer, fuzz, kept, table
from mutations import ODD
from targets import TARGETS

CASES = kept()
PLUGIN = """
from elbocli.files import schedule_file

def read_json(path):
    import json
    return json.loads(path.read_text())["format"]

schedule_file.read_json = read_json
"""
"""A way to break elbo: a reader that trusts what it reads."""


@pytest.fixture(scope="module")
def fuzzer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzer]:
    fuzzer = Fuzzer(tmp_path_factory.mktemp("fuzz"))
    yield fuzzer
    fuzzer.zygote.close()


def test_an_input_of_every_format_ends_as_they_should(fuzzer: Fuzzer) -> None:
    rows, wrong = fuzz(fuzzer, 0, time.monotonic() + 600, len(TARGETS) + 4, kept=False)
    assert wrong == []
    assert len(rows) == len(TARGETS) + 1 and all(row.codes.total() for row in rows.values())
    assert f"| all | {len(TARGETS) + 4} |" in table(rows)


def test_a_process_for_many_inputs_finds_what_one_for_each_finds(fuzzer: Fuzzer) -> None:
    numbers = [*range(7, 13)]
    shared = fuzzer.series(0, numbers)
    assert [*shared] == numbers
    for number, (case, found) in shared.items():
        same, folder = fuzzer.drawn(0, number)
        alone = fuzzer.run(same, folder)
        assert (case, found.code, "error: " in found.said) == (same, alone.code, "error: " in alone.said)
        assert found.memory > 100 << 20 and found.wrong == alone.wrong == ""


@pytest.mark.parametrize(("name", "case"), CASES, ids=[name for name, _ in CASES])
def test_what_was_found_once_stays_mended(name: str, case: Case, fuzzer: Fuzzer) -> None:
    folder = fuzzer.fresh()
    if case.file:
        (folder / case.file).write_bytes((CORPUS / name).read_bytes())
    found = fuzzer.run(case, folder)
    assert found.wrong == "", found.said


def test_a_reader_that_trusts_is_found(fuzzer: Fuzzer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.py").write_text(PLUGIN)
    monkeypatch.setitem(fuzzer.env, "ELBO_PLUGIN", str(tmp_path / "broken.py"))
    found = fuzzer.run(Case("", "scheduler_config.json", ["weights", "check", "scheduler_config.json"]), fuzzer.fresh())
    assert found.wrong == "a traceback", found


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.file)
def test_damage_changes_the_file_and_can_be_repeated(fuzzer: Fuzzer, target: object) -> None:
    assert isinstance(target, type(TARGETS[0]))
    for mutation in set(target.mutations):
        results = []
        for seed in (0, 0, 1, 2, 3):
            folder = fuzzer.fresh()
            mutation(Random(seed), folder / target.file)
            results.append((folder / target.file).read_bytes())
        assert len({*results, (fuzzer.good / target.file).read_bytes()}) > 1
        assert results[0] == results[1] or target.file.endswith(".h5")  # HDF5 notes the time


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        (Found(0, 1.0, 1 << 20, "", ""), ""),
        (Found(1, 1.0, 1 << 20, "", "elbo info: error: x: not usable"), ""),
        (Found(1, 1.0, 1 << 20, "", "Traceback (most recent call last):"), "a traceback"),
        (Found(1, 1.0, 1 << 20, "", ""), "no sentence"),
        (Found(120, 1.0, 1 << 20, "", "error: x"), "code 120"),
        (Found(-11, 1.0, 1 << 20, "", ""), "code -11"),
        (Found(130, 1.0, 1 << 20, "", ""), "code 130"),
        (Found(1, 1.0, 1 << 20, "", "error: \x1b[31m"), "an escape on stderr"),
    ],
)
def test_all_that_is_amiss_is_noticed(fuzzer: Fuzzer, found: Found, wrong: str) -> None:
    assert fuzzer.verdict(Case("", "good.h5", ["train", "good.h5"]), found) == wrong


def test_odd_values_are_odd_in_many_ways() -> None:
    assert {type(each) for each in ODD} == {type(None), bool, int, float, str, list, dict}
