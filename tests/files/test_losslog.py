import io
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elbocli.core.adaptive import bin_edges
from elbocli.errors import FormatError
from elbocli.files import losslog

EDGES = bin_edges(-5, 7, 4)


def sums(seed):
    generator = torch.Generator().manual_seed(seed)
    count = torch.randint(0, 50, (4,), generator=generator).double()
    return torch.stack([count, *torch.rand(2, 4, generator=generator, dtype=torch.float64)])


def text(seeds, start=0, edges=EDGES):
    head = losslog.header(edges, dimensions=192, weighting="sigmoid", schedule="cosine", prediction="v")
    return [head, *(losslog.line(start + 10 * (i + 1), 640 * (i + 1), sums(seed)) for i, seed in enumerate(seeds))]


def read(*sources, since=0):
    """Logs added up. A source is lines, or the content of a file."""
    contents = [source if isinstance(source, bytes) else "".join(source).encode() for source in sources]
    return losslog.read_logs(map(io.BytesIO, contents), since)


@given(st.lists(st.integers(0, 99), max_size=6))
def test_a_log_reads_back_exactly(seeds):
    log = read(text(seeds))
    total = torch.zeros(3, 4, dtype=torch.float64)
    for seed in seeds:
        total += sums(seed)
    assert torch.equal(log.sums, total)
    assert torch.equal(log.edges, EDGES)
    assert (log.lines, log.images) == (len(seeds), 640 * len(seeds))
    assert log.batch == (64 if seeds else 1)
    assert (log.header.weighting, log.header.dimensions) == ("sigmoid", 192)


@given(st.lists(st.integers(0, 99), max_size=4), st.lists(st.integers(0, 99), max_size=4))
def test_concatenated_logs_add_up_like_separate_ones(one, other):
    together, apart = read(text(one) + text(other)), read(text(one), text(other))
    assert torch.equal(together.sums, apart.sums)
    torch.testing.assert_close(apart.sums, read(text(one)).sums + read(text(other)).sums, rtol=1e-14, atol=1e-14)


def test_since_leaves_out_the_steps_up_to_it():
    assert torch.equal(read(text([1, 2, 3]), since=20).sums, sums(3))
    assert torch.equal(read(text([1, 2, 3]), since=19).sums, sums(2) + sums(3))


GOOD = json.loads(losslog.line(10, 640, sums(0)))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", ""),
        ("", ""),
        ("[1]", ""),
        ("7", ""),
        ("\xff", ""),
        (json.dumps({**GOOD, "step": "x"}), "step"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "sumsq"}), "sumsq"),
        (json.dumps({**GOOD, "count": [1, 2]}), "must be 4 numbers each"),
        (json.dumps({**GOOD, "sum": [1.0, 2.0, 3.0, float("nan")]}), ""),
        (json.dumps({**GOOD, "sum": [-1, 1, 1, 1]}), "sum"),
        (json.dumps({**GOOD, "count": [1], "sum": [1], "sumsq": [1]}), "must be 4 numbers each"),
        (json.dumps({**GOOD, "sum": "abcd"}), "sum"),
        (json.dumps({**GOOD, "images": None}), "images"),
    ],
)
def test_a_bad_line_is_refused_by_number(line, what):
    with pytest.raises(FormatError, match=f"standard input: line 3: .*{what}"):
        read([*text([1]), line + "\n"])


@pytest.mark.parametrize("value", ["1e999", "-1e999", "NaN"])
@pytest.mark.parametrize("key", ["step", "images"])
def test_a_step_beyond_all_numbers_is_refused(key, value):
    line = json.dumps({**GOOD, key: 0}).replace(f'"{key}": 0', f'"{key}": {value}')
    with pytest.raises(FormatError, match="line 2"):
        read([text([])[0], line])


def test_an_integer_beyond_float64_is_refused():
    with pytest.raises(FormatError, match="line 2"):
        read([text([])[0], json.dumps({**GOOD, "count": [10**400, 1, 1, 1]})])


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"format": "elbo-run"}, "format is 'elbo-run'"),
        ({"version": 0}, "version 0"),
        ({"edges": None}, "edges"),
        ({"edges": [1]}, "edges"),
        ({"edges": [1, "x"]}, "edges"),
        ({"edges": [1, 1, 2]}, "rise"),
        ({"edges": [1, 0]}, "rise"),
        ({"edges": [0, float("inf")]}, ""),
        ({"edges": [0, 1e9]}, "edges"),
        ({"edges": [0, 10**400]}, ""),
    ],
)
def test_a_bad_header_is_refused(change, what):
    head = {**json.loads(text([])[0]), **change}
    with pytest.raises(FormatError, match=f"line 1: .*{what}"):
        read([json.dumps(head)])


def test_logs_of_other_bins_are_refused():
    with pytest.raises(FormatError, match="other bins"):
        read(text([1]), text([1], edges=bin_edges(-5, 8, 4)))


@pytest.mark.parametrize("log", [[], text([1])[1:]])
def test_a_log_without_a_header_or_lines_is_refused(log):
    with pytest.raises(FormatError):
        read(log)
    with pytest.raises(FormatError):
        read(text([1]), log)


def test_a_last_line_that_is_half_written_is_left_out():
    """A run writes it just now, or was killed as it did."""
    whole = "".join(text([1, 2])).encode()
    first, last = len("".join(text([1])).encode()), len(whole)
    for end in range(first, last + 1):
        complete = end >= last - 1  # a line whose newline alone is missing says all
        assert torch.equal(read(whole[:end]).sums, read(text([1, 2] if complete else [1])).sums)
    with pytest.raises(FormatError):
        read(whole[:20])


def test_half_a_line_between_others_is_damage():
    lines = text([1, 2])
    with pytest.raises(FormatError, match="standard input: line 2: "):
        read([lines[0], lines[1][:20] + "\n", lines[2]])


def test_more_bins_than_can_be_fitted_are_refused():
    with pytest.raises(FormatError):
        text([], edges=bin_edges(-5, 7, losslog.MOST_BINS + 1))
    assert read(text([], edges=bin_edges(-5, 7, losslog.MOST_BINS))).sums.shape == (3, losslog.MOST_BINS)
