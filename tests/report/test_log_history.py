"""The logs of a run as they are found: whole, growing, cut anywhere, damaged."""

import json
import math
from pathlib import Path

import pytest
import torch

from elbocli.core.adaptive import bin_edges
from elbocli.errors import FormatError
from elbocli.files import losslog
from elbocli.report.log_history import CELLS, POINTS, LogHistory, curve, read_curves, read_log_history

EDGES = bin_edges(-5, 5, 4)


def metrics(path: Path, count: int) -> None:
    rows = [{"step": i, "images": 10 * i, "loss": 1 / i} for i in range(1, count + 1)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def log(path: Path, count: int) -> list[torch.Tensor]:
    draws = [torch.arange(12, dtype=torch.float64).reshape(3, 4) + i for i in range(count)]
    lines = [losslog.line(i + 1, 10 * (i + 1), sums) for i, sums in enumerate(draws)]
    path.write_text(losslog.header(EDGES, weighting="elbo") + "".join(lines))
    return draws


@pytest.mark.parametrize("count", [1, 7, POINTS, POINTS + 1, 5 * POINTS + 3])
def test_a_long_curve_is_averaged_and_keeps_its_ends_and_its_mean(count: int, tmp_path: Path) -> None:
    metrics(tmp_path / "m", count)
    found = read_curves(tmp_path / "m", [])
    images, loss = curve(found, "loss")
    assert len(loss) == len(images) <= POINTS and images[-1] == 10 * count
    size = -(-count // POINTS)
    whole = loss[: count // size]
    assert sum(whole) * size == pytest.approx(sum(1 / i for i in range(1, len(whole) * size + 1)))


def test_validations_of_a_long_run_are_shown_as_they_were(tmp_path: Path) -> None:
    rows = [{"step": i, "images": i, "loss": i, "val_bpd": i, "val_bpd_se": 1 / i} for i in range(1, 3 * POINTS + 1)]
    (tmp_path / "m").write_text("\n".join(map(json.dumps, rows)))
    found = read_curves(tmp_path / "m", [])
    assert curve(found, "val_bpd")[1][-1] == 3 * POINTS and curve(found, "val_bpd_se")[1][-1] == 1 / (3 * POINTS)


def test_columns_that_some_lines_lack_are_read_where_they_are(tmp_path: Path) -> None:
    rows = [{"step": 1, "images": 10, "loss": 2.0}, {"step": 1, "images": 10, "val_bpd": 5.0}]
    (tmp_path / "m").write_text("\n".join(map(json.dumps, rows)))
    found = read_curves(tmp_path / "m", [])
    assert curve(found, "loss") == ([10], [2.0]) and curve(found, "val_bpd") == ([10], [5.0])
    assert curve(found, "nothing") == ([], [])


@pytest.mark.parametrize("cut", range(0, 120, 7))
def test_metrics_cut_anywhere_lose_one_line_at_most(cut: int, tmp_path: Path) -> None:
    metrics(tmp_path / "m", 3)
    text = (tmp_path / "m").read_bytes()[:cut]
    (tmp_path / "m").write_bytes(text)
    said: list[str] = []
    found = read_curves(tmp_path / "m", said)
    whole = sum(line.endswith("}") for line in text.decode().splitlines())
    assert len(curve(found, "loss")[0]) == whole
    assert not any("damaged" in each for each in said), "half a line at the end is one that is being written"


@pytest.mark.parametrize(
    "line",
    [
        *["", "[1]", "null", "{}", '"text"', "7", "\x00\xff", "[" * 100_000, '{"step": 1}'],
        *['{"step": 1, "images": "many"}', '{"step": 1, "images": NaN}', '{"step": 1, "images": 1e999}'],
        '{"step": 1, "images": ' + "9" * 5000 + "}",
    ],
)
def test_a_line_that_is_none_is_left_out_and_counted(line: str, tmp_path: Path) -> None:
    metrics(tmp_path / "m", 2)
    whole = (tmp_path / "m").read_text()
    (tmp_path / "m").write_text(whole + line + "\n" + whole, encoding="latin-1")
    said: list[str] = []
    assert len(curve(read_curves(tmp_path / "m", said), "loss")[0]) == 4
    assert len(said) == 1 and "damaged lines left out: 1" in said[0]


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_a_line_with_a_number_that_json_does_not_have_is_left_out_and_counted(number: str, tmp_path: Path) -> None:
    lines = f'{{"step": 1, "images": 5, "loss": {number}}}\n{{"step": 2, "images": 10, "loss": 3}}\n'
    (tmp_path / "m").write_text(lines)
    said: list[str] = []
    assert curve(read_curves(tmp_path / "m", said), "loss") == ([10], [3])
    assert len(said) == 1 and "damaged lines left out: 1" in said[0]


@pytest.mark.parametrize("count", [1, 2 * CELLS - 1, 2 * CELLS, 7 * CELLS + 5])
def test_a_long_log_is_added_up_and_loses_nothing(count: int, tmp_path: Path) -> None:
    draws = log(tmp_path / "l", count)
    course = read_log_history(tmp_path / "l", [])
    assert course is not None and len(course.images) <= 2 * CELLS
    assert course.images[-1] == 10 * count
    torch.testing.assert_close(course.late(1.0), torch.stack(draws).sum(0))
    assert torch.equal(course.sums[-1], draws[-1])  # of a validation, the last


def test_the_late_part_is_of_the_last_images(tmp_path: Path) -> None:
    draws = log(tmp_path / "l", 10)
    course = read_log_history(tmp_path / "l", [])
    assert course is not None
    torch.testing.assert_close(course.late(0.2), draws[8] + draws[9])


def test_densities_integrate_to_one_and_errors_are_carried_on() -> None:
    course = LogHistory(EDGES)
    course.add(10, torch.tensor([[2, 0, 1, 1], [4, 0, 3, 5], [8, 0, 9, 25]], dtype=torch.float64))
    course.add(20, torch.tensor([[0, 0, 1, 3], [0, 0, 2, 6], [0, 0, 4, 12]], dtype=torch.float64))
    torch.testing.assert_close((course.density * EDGES.diff()).sum(1), torch.ones(2, dtype=torch.float64))
    expected = torch.tensor([[2, math.nan, 3, 5], [2, math.nan, 2, 2]], dtype=torch.float64)
    torch.testing.assert_close(course.error, expected, equal_nan=True)


def test_an_interval_that_goes_back_is_refused() -> None:
    course = LogHistory(EDGES)
    course.add(10, torch.zeros(3, 4))
    with pytest.raises(FormatError):
        course.add(10, torch.zeros(3, 4))


@pytest.mark.parametrize("cut", range(0, 700, 41))
def test_a_log_cut_anywhere_keeps_its_whole_lines(cut: int, tmp_path: Path) -> None:
    draws = log(tmp_path / "l", 4)
    text = (tmp_path / "l").read_bytes()[:cut]
    (tmp_path / "l").write_bytes(text)
    said: list[str] = []
    course = read_log_history(tmp_path / "l", said)
    whole = max(0, sum(line.endswith(b"}") for line in text.splitlines()) - 1)
    assert (course is None) == (whole == 0)
    if course is not None:
        torch.testing.assert_close(course.late(1.0), torch.stack(draws[:whole]).sum(0))


def test_a_damaged_log_is_shown_up_to_there_and_named(tmp_path: Path) -> None:
    log(tmp_path / "l", 3)
    header, *lines = (tmp_path / "l").read_text().splitlines()
    (tmp_path / "l").write_text("\n".join([header, lines[0], lines[1], "rubbish", lines[2]]))
    said: list[str] = []
    course = read_log_history(tmp_path / "l", said)
    assert course is not None and course.images == [10, 20]
    assert len(said) == 1 and "damaged line" in said[0] and "line 4" in said[0]
