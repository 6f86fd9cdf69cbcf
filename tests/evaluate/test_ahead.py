"""Images are read beside the extraction of those before, in their order, one batch ahead; and never from a pipe."""

from __future__ import annotations

import contextlib
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from elbocli.errors import DataError
from elbocli.evaluate.extract import FeatureSource, extract_features, open_source
from elbocli.files.sample_files import npy_header
from elbocli.nn.extractors import Extractor, make_extractor
from elbocli.runtime.processes import ALONE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """22 PNGs."""
    draw = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for k in range(22):
        Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(tmp_path / "images" / f"{k:02}.png")
    return tmp_path / "images"


def seen(source: FeatureSource, extractor: Extractor | None = None) -> FeatureSource:
    extractor = extractor or make_extractor("elbo-tiny", None, "cpu")
    extract_features(source, extractor, 4, ALONE, {"values"})
    return source


def test_features_and_digest_are_those_without_reading_ahead(folder: Path) -> None:
    with contextlib.ExitStack() as stack:
        source = open_source(folder, stack, ALONE)
        both = [seen(source), seen(replace(source, streamed=True))]
    assert torch.equal(both[0].features.values, both[1].features.values)
    assert both[0].about == both[1].about and both[0].about.images_sha256


def test_a_thread_of_its_own_reads_in_order_and_one_batch_ahead(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, extracted = [], []
    tiny = make_extractor("elbo-tiny", None, "cpu")

    class Slow(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if len(extracted) < 5:  # nothing follows the last
                assert following.wait(10)
                following.clear()
            extracted.append(len(asked))
            return tiny.module(images)[0]

    following = threading.Event()
    with contextlib.ExitStack() as stack:
        source = open_source(folder, stack, ALONE)

        at_once = source.reader.at

        def at(start: int, count: int) -> np.ndarray:
            asked.append((start, threading.current_thread() is threading.main_thread()))
            if len(asked) > 1:
                following.set()
            return at_once(start, count)

        monkeypatch.setattr(source.reader, "at", at)
        found = seen(source, Extractor("slow", Slow(), ""))
    assert found.features.values.shape == (22, 64)
    assert asked == [(start, False) for start in range(0, 22, 4)]
    assert extracted[0] == 2, "the second batch was read before the first was extracted"


def test_a_damaged_image_is_named_although_a_thread_reads_it(folder: Path) -> None:
    (folder / "09.png").write_bytes(b"no image")
    with contextlib.ExitStack() as stack, pytest.raises(DataError, match=r"09\.png"):
        seen(open_source(folder, stack, ALONE))


def test_a_pipe_is_read_by_the_main_thread(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, images = tmp_path / "pipe.npy", np.zeros((6, 8, 8, 3), np.uint8)
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(npy_header(images.shape) + images.tobytes()))
    writer.start()
    threads: list[Any] = []
    with contextlib.ExitStack() as stack:
        source = open_source(pipe, stack, ALONE)

        at_once = source.reader.at

        def at(start: int, count: int) -> np.ndarray:
            threads.append(threading.current_thread())
            return at_once(start, count)

        monkeypatch.setattr(source.reader, "at", at)
        assert source.streamed
        assert len(seen(source).features.values) == 6
    writer.join()
    assert set(threads) == {threading.main_thread()}
