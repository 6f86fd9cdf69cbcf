"""What samples are compared with: a pickle never, whatever it is called."""

import contextlib
import pickle
from pathlib import Path

import numpy as np
import pytest

from elbocli.errors import FormatError
from elbocli.evaluate.extract import open_reference
from elbocli.runtime.processes import World


@pytest.mark.parametrize("name", ["img512.pkl", "img512"])
def test_edm2s_pickled_references_are_refused_with_what_to_do(name: str, tmp_path: Path) -> None:
    content = {"fid": {"mu": np.zeros(3), "sigma": np.eye(3)}}
    (tmp_path / name).write_bytes(pickle.dumps(content))
    with (
        contextlib.ExitStack() as stack,
        pytest.raises(FormatError, match=rf"{name}: a pickle.*an \.npz of its mu and sigma"),
    ):
        open_reference(tmp_path / name, stack, World())
