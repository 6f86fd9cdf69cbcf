"""One rule for numbers: the digits 0 to 9 alone, on the command line, in SPECs and in YAML."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elbocli.core.registry import plain_float, plain_int
from elbocli.files.yaml_text import parse_yaml

ODD = ("1_0", "١٢", "1_0.5", "1e1_0")


@given(st.floats(allow_nan=False) | st.integers())
def test_numbers_that_python_writes_are_read(number: float) -> None:
    assert plain_float(repr(number)) == float(number) == plain_float(number)
    if isinstance(number, int):
        assert plain_int(str(number)) == number == plain_int(number)


@pytest.mark.parametrize("word", ODD)
def test_others_are_text_in_yaml_and_refused_elsewhere(word: str) -> None:
    assert parse_yaml(f"a: {word}\nb: [-{word}]", "x") == {"a": word, "b": [f"-{word}"]}
    for read in (plain_float, plain_int):
        with pytest.raises(ValueError, match="is not a number; write it with the digits"):
            read(word)


@pytest.mark.parametrize("word", ODD[:2])
@pytest.mark.parametrize(
    "line",
    [
        "weights show sigmoid --points {}",
        "weights show sigmoid --logsnr-max {}",
        "weights show sigmoid:bias={}",
        "weights show sigmoid:{}",
        "train {data} --ema 0.9{} -o run",
        "train {data} --ema power:std=0.{} -o run",
        "train {data} --time-limit {}s -o run",
        "train {data} --config {yaml} -o run",
        "train {data} --preset {preset} -o run",
        "prep x.zip x.h5 --shard 1/{}",
        "sample {run} --classes {}",
    ],
)
def test_every_command_refuses_them(
    word: str, line: str, elbo: Callable[..., Any], digits: Path, trained: Path, preset: Path, tmp_path: Path
) -> None:
    (tmp_path / "x.yaml").write_text(f"lr: {word}\n")
    (tmp_path / "own.yaml").write_text(preset.read_text().replace("batch: 16", f"batch: {word}"))
    places = {"data": digits, "run": trained, "yaml": "x.yaml", "preset": "own.yaml"}
    done = elbo(*line.format(word, **places).split(), cwd=tmp_path)
    assert done.returncode in (1, 2) and b"error:" in done.stderr, done
    assert done.stdout == b"" and not (tmp_path / "run").exists()
