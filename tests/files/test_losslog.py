"""Loss logs add up exactly and go on after a kill; damage is told with its line or key."""

import io
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elbocli.core.adaptive import bin_edges
from elbocli.errors import FormatError, UsageError
from elbocli.files import losslog

EDGES = bin_edges(-5, 7, 4)
SEEDS = st.lists(st.integers(0, 99), max_size=4)


def table(text):
    """The JSON of each line."""
    return [json.loads(line) for line in text.strip().splitlines()]


def sums(seed):
    generator = torch.Generator().manual_seed(seed)
    count = torch.randint(0, 50, (4,), generator=generator).double()
    return torch.stack([count, *torch.rand(2, 4, generator=generator, dtype=torch.float64)])


def lines(seeds, edges=EDGES):
    head = losslog.header(edges, dimensions=192, weighting="sigmoid", schedule="cosine", prediction="v")
    return [head, *(losslog.line(10 * i, 640 * i, sums(seed)) for i, seed in enumerate(seeds, 1))]


def read(*sources, since=0):
    """Logs added up. A source is lines, or the content of a file."""
    contents = [source if isinstance(source, bytes) else "".join(source).encode() for source in sources]
    return losslog.read_losslog(*map(io.BytesIO, contents)).chosen(after=since)


@given(SEEDS, SEEDS)
def test_logs_read_back_exactly_and_add_up_joined_or_apart(one, other):
    log = read(lines(one))
    together = read(lines(one) + lines(other))
    total = sum(map(sums, one), torch.zeros(3, 4, dtype=torch.float64))
    assert torch.equal(log.sums, total) and torch.equal(log.edges, EDGES)
    assert (len(log.rows), log.images, log.batch) == (len(one), 640 * len(one), 64 if one else 1)
    assert (log.headers[0].weighting, log.headers[0].dimensions) == ("sigmoid", 192)
    assert torch.equal(together.sums, read(lines(one), lines(other)).sums)
    torch.testing.assert_close(together.sums, total + read(lines(other)).sums, rtol=1e-14, atol=1e-14)
    assert together.images == 640 * max(len(one), len(other))


def test_since_leaves_out_the_steps_up_to_it():
    assert torch.equal(read(lines([1, 2, 3]), since=20).sums, sums(3))
    assert torch.equal(read(lines([1, 2, 3]), since=19).sums, sums(2) + sums(3))


def test_a_last_line_that_is_half_written_is_left_out_and_one_between_others_is_damage():
    whole = "".join(lines([1, 2])).encode()
    for end in range(len("".join(lines([1]))), len(whole) + 1):
        complete = end >= len(whole) - 1  # a line whose newline alone is missing says all
        assert torch.equal(read(whole[:end]).sums, read(lines([1, 2] if complete else [1])).sums)
    head, first, second = lines([1, 2])
    with pytest.raises(FormatError, match="line 2: "):
        read([head, first[:20] + "\n", second])


ROW = json.loads(losslog.line(10, 640, sums(0)))
BAD_ROWS = """
{"step": "x"}
{"step": Infinity}
{"step": -1}
{"images": null}
{"count": [1, 2]}
{"count": [1], "sum": [1], "sumsq": [1]}
{"sum": [1.0, 2.0, 3.0, NaN]}
{"sum": [-1, 1, 1, 1]}
{"sum": [5e-324, 1, 1, 1]}
{"step": 9}
{"sumsq": null}
"""
BAD_LINES = ["{", "", "[1]", "7", "\xff", *(json.dumps({**ROW, **change}) for change in table(BAD_ROWS))]


@pytest.mark.parametrize("text", BAD_LINES)
def test_a_bad_line_is_refused_by_number(text):
    with pytest.raises(FormatError, match="standard input: line 3: "):
        read([*lines([1]), text + "\n"])


BAD_HEADERS = """
{"format": "elbo-run"}
{"version": 0}
{"edges": null}
{"edges": [1]}
{"edges": [1, 1, 2]}
{"edges": [1, 0]}
{"edges": [0, 1e9]}
"""


@pytest.mark.parametrize("change", table(BAD_HEADERS))
def test_a_bad_header_is_refused(change):
    with pytest.raises(FormatError, match="line 1: "):
        read([json.dumps({**json.loads(lines([])[0]), **change})])


def test_logs_without_a_header_or_of_other_bins_or_of_too_many_are_refused():
    for other in ([], lines([1])[1:], lines([1], bin_edges(-5, 8, 4))):
        with pytest.raises(FormatError):
            read(lines([1]), other)
    with pytest.raises(UsageError):
        read()
    with pytest.raises(FormatError):
        lines([], bin_edges(-5, 7, losslog.MOST_BINS + 1))
    assert read(lines([], bin_edges(-5, 7, losslog.MOST_BINS))).sums.shape == (3, losslog.MOST_BINS)


def test_only_logs_of_the_same_bins_and_of_other_steps_are_added_up(tmp_path):
    log, held_out, other = (tmp_path / f"{name}.jsonl" for name in ("log", "held_out", "other"))
    log.write_text("".join(lines([1, 2])))
    held_out.write_text(losslog.header(EDGES, held_out=9) + lines([3])[1])
    other.write_text("".join([*lines([1]), *lines([2], bin_edges(-5, 8, 4))]))
    gone = tmp_path / "gone"
    for sources, error in (([log, log], UsageError), *((paths, FormatError) for paths in ([log, held_out], [other], [gone]))):
        with pytest.raises(error, match=f"^{sources[-1]}: "):
            losslog.read_losslog(*sources)
    assert len(losslog.read_losslog(held_out).rows) == 1


# A log that a program of the user writes


def written(path, steps, edges=EDGES, **how):
    """Write an interval at each step, and return the steps in the log."""
    log = losslog.LossLogWriter(path, edges, dimensions=192, **how)
    for step in steps:
        log.write(step, 64 * step, sums(step))
    return [row.step for row in losslog.read_losslog(path).rows]


@pytest.mark.parametrize("done", [0, 20, 25, 60])
def test_a_loop_that_resumes_or_begins_again_writes_the_log_of_an_undisturbed_one(done, tmp_path):
    steps = [10, 20, 30, 40]
    assert written(tmp_path / "whole", steps) == steps
    written(tmp_path / "log", steps)
    assert written(tmp_path / "log", [step for step in steps if step > done], step=done) == steps
    assert (tmp_path / "log").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_log_without_the_step_to_resume_at_is_continued_and_never_goes_back(tmp_path):
    written(tmp_path / "log", [10, 20])
    assert written(tmp_path / "log", [30]) == [10, 20, 30]
    with pytest.raises(UsageError):
        written(tmp_path / "log", [30])
    for how in ({}, {"step": 0}):
        with pytest.raises(FormatError):
            written(tmp_path / "log", [40], bin_edges(-5, 8, 4), **how)
    assert written(tmp_path / "log", []) == [10, 20, 30]
