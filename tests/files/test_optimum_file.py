"""The file of an optimum."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs

from elbocli.core.adaptive import bin_edges
from elbocli.errors import FormatError, UsageError
from elbocli.files.losslog import LeastCurve, Optimum, SampleCheck, read_optimum

EDGES = bin_edges(-4, 4, 8)
FOUND = Optimum(
    edges=EDGES.tolist(),
    eps_mse=[0.1 * k for k in range(8)],
    eps_mse_se=[0.01] * 8,
    classes=2,
    nats=1.5,
    nats_se=0.1,
    log_images=1.6,
    images=5,
    flip=False,
    sources=4,
    draws=2,
    dimensions=3,
    label_dropout=0.25,
    without_class=LeastCurve([0.2 * k for k in range(8)], [0.02] * 8),
    sample=SampleCheck(3, 2, [0.0] * 8, [0.1] * 8),
    dataset="x.h5",
)


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    path.write_text(FOUND.text())
    assert read_optimum(path) == FOUND
    plain = structs.replace(FOUND, without_class=None, sample=None)
    path.write_text(plain.text())
    assert read_optimum(path) == plain and "sample" not in json.loads(plain.text())


def test_training_that_drops_classes_has_both_least_errors() -> None:
    value, se = FOUND.least(EDGES, training=True)
    torch.testing.assert_close(value, torch.arange(8).double() * (0.75 * 0.1 + 0.25 * 0.2))
    assert float(se[0]) == pytest.approx(0.75 * 0.01 + 0.25 * 0.02)
    torch.testing.assert_close(FOUND.least(EDGES)[0], torch.arange(8).double() * 0.1)


def test_other_bins_have_the_same_integral() -> None:
    own = FOUND.least(EDGES)[0]
    for edges in (bin_edges(-4, 4, 4), bin_edges(-4, 4, 7), bin_edges(-4, 4, 50)):
        value = FOUND.least(edges)[0]
        assert float((value * edges.diff()).sum()) == pytest.approx(float((own * EDGES.diff()).sum()))
    merged = FOUND.least(bin_edges(-4, 4, 4))[0]
    torch.testing.assert_close(merged, own.view(4, 2).mean(1))
    torch.testing.assert_close(FOUND.least(torch.tensor([0.2, 0.7]).double())[0], own[4:5])


def test_levels_beyond_the_file_are_refused() -> None:
    with pytest.raises(UsageError, match="covers logsnr -4 to 4, and -4 to 5 is needed"):
        FOUND.least(bin_edges(-4, 5, 9))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"edges": [0.0]}, "edges"),
        ({"edges": [*EDGES.tolist()[:-1], 1e9]}, "edges"),
        ({"edges": [*EDGES.tolist()[:-1], -9.0]}, "edges must rise"),
        ({"eps_mse": [0.0]}, "8 numbers each"),
        ({"eps_mse": [float("nan")] * 8}, "o.json: "),
        ({"eps_mse_se": [-1.0] * 8}, "eps_mse_se"),
        ({"label_dropout": 2.0}, "label_dropout"),
        ({"sources": 0}, "sources"),
        ({"classes": "two"}, "classes"),
        ({"format": "elbo-losslog"}, "not an? "),
        ({"version": 0}, "version"),
        ({"without_class": {"eps_mse": [1.0], "eps_mse_se": [1.0]}}, "8 numbers each"),
    ],
)
def test_a_damaged_file_is_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    path.write_text(json.dumps({**FOUND.json(), **change}))
    with pytest.raises(FormatError, match=words):
        read_optimum(path)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"a": 1}', "[" * 100_000])
def test_what_is_no_optimum_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "o.json"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"o\.json"):
        read_optimum(path)
    with pytest.raises(FormatError, match="no such optimum"):
        read_optimum(tmp_path / "other.json")
