"""Likelihoods image by image, as a table."""

from pathlib import Path

import numpy as np
import pytest

from elbocli.errors import FormatError
from elbocli.files.losslog import is_table, read_table, write_table

TABLE = {
    "index": np.array([0, 4, 9]),
    "label": np.array([1, 0, 1]),
    "nats": np.array([1.5, -0.1, 1e-300]),
    "nats_se": np.array([0.1, 1 / 3, 2.0]),
}


@pytest.mark.parametrize("ending", [".tsv", ".txt"])
def test_it_reads_back_to_the_bit(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    write_table(path, TABLE)
    found = read_table(path)
    assert {name: column.tolist() for name, column in found.items()} == {
        name: column.tolist() for name, column in TABLE.items()
    }
    assert is_table(path) and not is_table(path.with_suffix(".h5"))
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    "text",
    ["", "index\tlabel\tnats\n", "index\tlabel\tnats\n1\t2\n", "index\tlabel\tnats\n1\t0\tnan\n", "a\tb\n1\t2\n", "x"],
)
def test_a_damaged_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.tsv"
    path.write_text(text)
    with pytest.raises(FormatError, match=r"a\.tsv"):
        read_table(path)
