import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from elbocli.core.schedule import NARROWEST, Table, make_schedule, parse_schedule
from elbocli.errors import ElboError, FormatError, UsageError
from elbocli.files import schedule_file
from elbocli.files.yaml_text import read_yaml, yaml_text

T = torch.linspace(0, 1, 101, dtype=torch.float64)
ROWS = [(0.0, 9.5), (0.3, 2.0), (0.8, -1.25), (1.0, -7.0)]


def table(rows=ROWS):
    return make_schedule(Table(list(rows)), "fitted", None, None)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "schedule.yaml"
    path.write_text(schedule_file.to_text(table(), weighting="sigmoid:bias=2", criterion="loss", images=64))
    return path


@st.composite
def knots(draw):
    """Knots a millionth apart or more, at numbers that no short decimal is."""
    inner = sorted(draw(st.sets(st.integers(1, 10**6 - 1), max_size=30)))
    count = len(inner) + 2
    levels = sorted(draw(st.sets(st.integers(-(10**8), 10**8), min_size=count, max_size=count)), reverse=True)
    assume(levels[0] - levels[-1] >= 2_100_000 * NARROWEST)
    return [(t / 10**6, lam / 2_100_000) for t, lam in zip([0, *inner, 10**6], levels, strict=True)]


@given(knots())
def test_a_file_holds_the_schedule_to_the_last_bit(rows):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.yaml"
        path.write_text(schedule_file.to_text(table(rows)))
        found, _ = schedule_file.read_table(path)
    assert found.time.tolist() == [t for t, _ in rows]
    assert found.level.tolist() == [lam for _, lam in rows]


def test_a_file_says_how_it_was_made(path):
    _, content = schedule_file.read_table(path)
    assert (content.json()["format"], content.json()["version"]) == ("elbo-schedule", 1)
    assert (content.logsnr_min, content.logsnr_max) == (-7.0, 9.5)
    assert (content.about["weighting"], content.about["criterion"], content.about["images"]) == (
        "sigmoid:bias=2",
        "loss",
        64,
    )


def test_a_file_is_a_schedule_wherever_a_name_is(path):
    found = schedule_file.resolve_schedule(str(path))
    assert torch.equal(found.logsnr(T), table().logsnr(T))
    assert torch.equal(
        schedule_file.resolve_schedule("cosine", -9, 9).logsnr(T), parse_schedule("cosine", -9, 9).logsnr(T)
    )


def test_a_file_is_truncated_shifted_and_clipped_like_a_name(path):
    part = schedule_file.resolve_schedule(str(path), -5, 5)
    assert part.logsnr(T)[[0, -1]].tolist() == pytest.approx([5, -5])
    moved = schedule_file.resolve_schedule(f"{path}:shift=-1.5")
    np.testing.assert_allclose(moved.logsnr(T), table().logsnr(T) - 1.5, atol=1e-12)
    clipped = schedule_file.resolve_schedule(str(path), -15, 15, clip=True)
    assert (clipped.logsnr_min, clipped.logsnr_max) == (-7.0, 9.5)
    with pytest.raises(UsageError, match="covers logsnr"):
        schedule_file.resolve_schedule(str(path), -15, 15)


def test_a_shifted_files_base_reads_back(path):
    moved = schedule_file.resolve_schedule(f"{path}:shift=-1.5")
    assert torch.equal(schedule_file.resolve_schedule(moved.base).logsnr(T), moved.logsnr(T))


def test_a_file_is_a_weighting_too(path):
    w = schedule_file.resolve_weighting(f"schedule:{path}")
    lam = torch.tensor([5.0, 0.0, -5.0], dtype=torch.float64)
    density = table().density(lam)
    np.testing.assert_allclose(w(lam), density / table().curve.height.max(), rtol=1e-12)
    again = schedule_file.resolve_weighting(w.spec)
    assert torch.equal(again(lam), w(lam))


@pytest.mark.parametrize("modifier", [{"shift": 1.5}, {"monotone": True}, {"shift": -0.5, "monotone": True}])
def test_a_modified_weighting_of_a_file_reads_back_from_its_spec(path, modifier):
    w = schedule_file.resolve_weighting(f"schedule:{path}", **modifier)
    lam = torch.linspace(-12, 12, 97, dtype=torch.float64)
    assert torch.equal(schedule_file.resolve_weighting(w.spec)(lam), w(lam))


def test_a_files_monotone_weighting_never_rises_and_is_nowhere_below(path):
    lam = torch.linspace(-12, 12, 4801, dtype=torch.float64)
    plain, monotone = (
        schedule_file.resolve_weighting(f"schedule:{path}", monotone=flag)(lam) for flag in (False, True)
    )
    assert bool((monotone.diff() <= 0).all())
    assert bool((monotone >= plain).all())


@pytest.mark.parametrize("text", ["sigmoid:bias=1", "edm:shift=2,monotone", "schedule:cosine"])
def test_a_declared_weighting_resolves(text):
    assert schedule_file.resolve_weighting(text).spec.startswith(text.partition(":")[0])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"format": "elbo-run"}, "a config of a run, not a schedule"),
        ({"format": None}, "format is None"),
        ({"version": 0}, "version 0"),
        ({"knots": []}, "knots"),
        ({"knots": "x"}, "knots"),
        ({"knots": [1, 2]}, "knots"),
        ({"knots": [{"t": 0}, {"t": 1}]}, "logsnr"),
        ({"knots": [{"t": 0, "logsnr": "x"}, {"t": 1, "logsnr": 0}]}, "logsnr"),
        ({"knots": [{"t": 0, "logsnr": math.nan}, {"t": 1, "logsnr": 0}]}, "logsnr"),
        ({"knots": [{"t": 0, "logsnr": 0}, {"t": 1, "logsnr": 1}]}, "fall"),
        (
            {"knots": [{"t": 0, "logsnr": 60}, {"t": 1, "logsnr": 1}]},
            "logsnr",
        ),
    ],
)
def test_a_file_that_is_no_schedule_is_refused_by_name(path, change, what):
    content = read_yaml(path)
    content.update(change)
    path.write_text(yaml_text(content))
    with pytest.raises(FormatError, match=f"schedule.yaml: .*{what}"):
        schedule_file.read_table(path)


def test_a_table_of_absurd_length_is_refused(path):
    rows = "".join(f"- {{t: {i}, logsnr: {-i}}}\n" for i in range(2000))
    path.write_text("format: elbo-schedule\nversion: 1\nknots:\n" + rows)
    with pytest.raises(FormatError, match=r"schedule\.yaml"):
        schedule_file.read_table(path)


@pytest.mark.parametrize("text", ["gone.yaml", "no/such", "gone.yaml:shift=2"])
def test_a_missing_file_is_called_a_missing_file(text):
    with pytest.raises(FormatError, match="no such schedule"):
        schedule_file.resolve_schedule(text)


def test_a_misspelt_name_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean cosine"):
        schedule_file.resolve_schedule("cosin")


def test_a_shift_that_is_no_number_is_refused(path):
    with pytest.raises(ElboError):
        schedule_file.resolve_schedule(f"{path}:shift=x")


def test_the_file_behind_a_spec_is_found(path):
    for text in (f"{path}", f"{path}:shift=2"):
        assert schedule_file.resolve_schedule(text).file == path
    for text in (f"schedule:{path}", f"schedule:{path},monotone", f"v-mse@{path}:shift=1"):
        assert schedule_file.resolve_weighting(text).schedule.file == path
    assert schedule_file.resolve_schedule(f"{path}").shifted(1).file == path
    assert schedule_file.resolve_schedule("cosine").file is None
    for text in ("schedule:edm:mean=-1", "sigmoid:bias=2", "v-mse@cosine"):
        schedule = schedule_file.resolve_weighting(text).schedule
        assert schedule is None or schedule.file is None


def test_a_file_named_like_a_schedule_does_not_hide_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("cosine").write_text(schedule_file.to_text(table()))
    assert torch.equal(
        schedule_file.resolve_schedule("cosine", -9, 9).logsnr(T), parse_schedule("cosine", -9, 9).logsnr(T)
    )
    assert torch.equal(schedule_file.resolve_schedule("./cosine").logsnr(T), table().logsnr(T))


def test_infinity_is_null_in_json():
    assert [schedule_file.finite(v) for v in (1.5, math.inf, -math.inf, math.nan)] == [1.5, None, None, None]
