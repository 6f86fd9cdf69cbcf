"""Logs, results and pictures of a run are read whole, growing, cut anywhere or damaged, and the rest is named."""

import base64
import io
import json

import numpy as np
import pytest
import torch
from PIL import Image
from run_pages import BOUND
from scipy import stats

from elbocli.bound.result import Bound, Theorem
from elbocli.core.adaptive import bin_edges
from elbocli.errors import FormatError
from elbocli.files import losslog
from elbocli.report.gather import SHEET, TIMES, chosen_times, read_preview
from elbocli.report.log_history import POINTS, curve, read_curves, read_log_history
from elbocli.report.results import drawn_by, read_result, results_in, score_rows
from elbocli.scoring.result import EvalResult, Facts, Scores

EDGES = bin_edges(-5, 5, 3)


@pytest.fixture
def path(tmp_path):
    """A file to write."""
    return tmp_path / "a.json"


def metrics(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def losses(count):
    return [{"step": i, "images": 10 * i, "loss": 1 / i} for i in range(1, count + 1)]


def log(path, count):
    """Write a loss log; the sums of its intervals."""
    draws = [torch.arange(9, dtype=torch.float64).reshape(3, 3) + i for i in range(count)]
    lines = [losslog.line(i + 1, 10 * (i + 1), sums) for i, sums in enumerate(draws)]
    path.write_text(losslog.header(EDGES, weighting="elbo") + "".join(lines))
    return draws


@pytest.mark.parametrize("count", [1, POINTS, POINTS + 1, 5 * POINTS + 3])
def test_a_long_curve_is_averaged_and_keeps_its_ends_and_its_mean(count, path):
    metrics(path, losses(count))
    images, loss = curve(read_curves(path, []), "loss")
    assert len(loss) == len(images) <= POINTS and images[-1] == 10 * count
    size = -(-count // POINTS)
    whole = loss[: count // size]
    assert sum(whole) * size == pytest.approx(sum(1 / i for i in range(1, len(whole) * size + 1)))


def test_validations_are_shown_as_they_were_and_columns_where_they_are(path):
    rows = [{"step": i, "images": i, "loss": i, "val_bpd": i} for i in range(1, 3 * POINTS + 1)]
    metrics(path, rows)
    assert curve(read_curves(path, []), "val_bpd")[1][-1] == 3 * POINTS
    metrics(path, [{"step": 1, "images": 10, "loss": 2.0}, {"step": 1, "images": 10, "val_bpd": 5.0}])
    found = read_curves(path, [])
    assert [curve(found, name) for name in ("loss", "val_bpd")] == [([10], [2.0]), ([10], [5.0])]


def test_logs_cut_anywhere_lose_one_line_at_most(path):
    """Half a line at the end is one that is being written."""
    metrics(path, losses(3))
    text = path.read_bytes()
    for cut in range(0, len(text), 7):
        path.write_bytes(text[:cut])
        said = []
        assert len(curve(read_curves(path, said), "loss")[0]) == text[:cut].count(b"}") and not said
    draws = log(path, 4)
    text = path.read_bytes()
    for cut in range(0, len(text), 41):
        path.write_bytes(text[:cut])
        course = read_log_history(path, [])
        whole = max(0, text[:cut].count(b"}\n") + text[:cut].endswith(b"}") - 1)
        assert (course is None) == (whole == 0)
        if course is not None:
            assert torch.equal(course.sums, torch.stack(draws[:whole]))


@pytest.mark.parametrize(
    "line",
    [
        *("[1]", "\x00\xff", "[" * 100_000, '{"step": 1, "images": "many"}', '{"step": 1, "images": 5, "loss": NaN}'),
    ],
)
def test_a_line_that_is_none_is_left_out_and_counted(line, path):
    metrics(path, losses(2))
    whole = path.read_text()
    said = []
    path.write_text(whole + line + "\n" + whole, encoding="latin-1")
    assert len(curve(read_curves(path, said), "loss")[0]) == 4
    assert len(said) == 1 and "left out: 1" in said[0]


def test_the_late_part_is_of_the_last_fifth_of_the_images_and_the_early_part_of_the_first_tenth(path):
    draws = log(path, 10)
    course = read_log_history(path, [])
    torch.testing.assert_close(course.late(), draws[8] + draws[9])
    torch.testing.assert_close(course.early(), draws[0])
    assert torch.equal(course.last(), draws[-1])


def test_a_log_with_another_runs_log_behind_it_is_shown_up_to_there_and_named(path):
    for edges in (bin_edges(-6, 5, 3), bin_edges(-5, 5, 2), EDGES):
        draws = log(path, 2)
        more = [losslog.line(9 + i, 90 + i if edges is not EDGES else 5, torch.ones(3, len(edges) - 1)) for i in range(2)]
        path.write_text(path.read_text() + losslog.header(edges) + "".join(more))
        said = []
        history = read_log_history(path, said)
        assert torch.equal(history.edges, EDGES) and torch.equal(history.sums, torch.stack(draws))
        assert len(said) == 1 and str(path) in said[0]


def test_a_damaged_log_is_shown_up_to_there_and_named(path):
    log(path, 3)
    header, *lines = path.read_text().splitlines()
    for damage in ("rubbish", lines[0]):
        path.write_text("\n".join([header, lines[0], lines[1], damage, lines[2]]))
        said = []
        assert read_log_history(path, said).images.tolist() == [10, 20]
        assert len(said) == 1 and str(path) in said[0]


# Results

SIDE = {"nats": 1.0, "se": 0.1, "relative_se": 0.1}
CHECK = {"weighting": "edm", "monotone": False, "left": SIDE, "right": SIDE, "difference_in_se": 0, "agree": True}
THEOREM = {"agree": True, "checks": [CHECK], "n_images": 9, "draws_per_side": 2}
SCORES = {
    "frechet_distance[a.pt2]": 1.5,
    "inception_score_mean[a.pt2]": 8.0,
    "inception_score_std[a.pt2]": 0.2,
    "accuracy": 1,
    "n_samples": 900,
    "n_ref": None,
    "extractor": "a.pt2",
    "guidance": 1.5,
}


def written(path, content):
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize(("kind", "content"), [(EvalResult, SCORES), (Bound, BOUND), (Theorem, THEOREM)])
def test_each_kind_is_known_by_its_content_and_read_whole(kind, content, path):
    found = read_result(written(path, content)).record
    assert isinstance(found, kind)
    assert found.json().items() >= content.items(), "nothing is lost, of other versions too"


def test_scores_are_told_from_what_is_said_about_them(path):
    assert score_rows(read_result(written(path, SCORES)).record) == [
        ("frechet distance", "a.pt2", 1.5, "n = 900", None),
        ("inception score", "a.pt2", 8.0, "n = 900", None),
        ("accuracy", "", 1.0, "n = 900", None),
    ]
    enough = EvalResult.of({**SCORES, "n_samples": 10_000})
    assert {row.note for row in score_rows(enough)} == {""}


def test_the_interval_of_repeats_comes_before_others_and_nothing_is_shown_twice(path):
    distance = "frechet_inception_distance"
    score = "inception_score"
    values = [{distance: v, f"{distance}_se": 0.1, f"{score}_mean": v, f"{score}_std": 0.2} for v in (1.0, 3.0)]
    facts = [{"n_samples": 9, "extractor": "x", "made": {"command": f"sample {k}"}} for k in range(2)]
    repeats = [Scores(None, each, Facts.of(about)) for each, about in zip(values, facts)]
    found = read_result(written(path, EvalResult(repeats).json())).record
    assert found == EvalResult(repeats) and drawn_by(*(one.facts.made for one in found.repeats)) == ["sample 0", "sample 1"]
    name = "frechet inception distance"
    within = pytest.approx(stats.t(1, 2.0, 1.0).interval(0.95))
    assert score_rows(found) == [
        (name, "", 2.0, "n = 9", within),
        ("inception score", "", 2.0, "n = 9", within),
    ]
    alone = score_rows(EvalResult(repeats[:1]))[0]
    assert alone.interval == pytest.approx(stats.norm(1.0, 0.1).interval(0.95))


@pytest.mark.parametrize(
    ("content", "word"),
    [
        ([], "JSON"),
        ({"state": "running"}, "expected a result"),
        ({**BOUND, "diffusion": 5}, "diffusion"),
        ({**BOUND, "nats": 10**399}, ""),
        ({**SCORES, "accuracy": 1e308}, "accuracy"),
        ({**SCORES, "made": 3}, "made"),
        ({**SCORES, "deviates": {"n": [1]}}, "deviates"),
    ],
)
def test_a_damaged_result_is_refused_with_the_key(content, word, path):
    with pytest.raises(FormatError, match=rf"a\.json: .*{word}"):
        read_result(written(path, content))


def test_a_folder_gives_its_results_and_passes_over_the_rest(tmp_path):
    for name, content in (("b", SCORES), ("a", BOUND), ("status", {"state": "done"}), ("text", "[")):
        written(tmp_path / f"{name}.json", content)
    assert [result.path.name for result in results_in(tmp_path)] == ["a.json", "b.json"]


# Pictures


@pytest.mark.parametrize("count", [0, 1, TIMES, TIMES + 1, 1000])
def test_the_first_and_the_last_preview_are_shown(count):
    chosen = chosen_times(count)
    assert chosen == sorted(set(chosen)) and len(chosen) <= TIMES
    assert not count or (chosen[0], chosen[-1]) == (0, count - 1)


@pytest.mark.parametrize("side", [4, 100])
def test_a_preview_is_the_contact_sheet_made_smaller_where_it_is_large(side, tmp_path):
    sheet = np.broadcast_to(np.arange(9, dtype=np.uint8).repeat(side), (side, 9 * side))
    Image.fromarray(sheet).save(tmp_path / "step-00000040.png")
    preview = read_preview(tmp_path / "step-00000040.png")
    width = min(9 * side, SHEET)
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(preview.png))))
    assert preview.name == "40" and shown[0, width // 18 :: width // 9][:9].tolist() == [*range(9)]
