"""Sampling: image i is a function of the seed and i."""

import os
import shutil
import signal
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from harness import heard
from PIL import Image
from torch._dynamo.utils import counters
from typed_settings import typed

from elbocli.core.samplers import SAMPLERS
from elbocli.core.sampling import Guidance
from elbocli.core.streams import choose_labels
from elbocli.errors import Interrupted, UsageError
from elbocli.files.dataset import Dataset
from elbocli.files.grid import CELL, PLACES, cut_up, layout_of
from elbocli.images.samples import read_samples
from elbocli.run import settings
from elbocli.sample import draw as sample
from elbocli.sample.draw import SampleSettings
from elbocli.train import loop


def drawn(run: Path, out: Path, **settings: object) -> np.ndarray:
    sample.draw_samples(run, out, typed(**{"n": 12, "steps": 6, **settings}))
    return np.load(out)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if not SAMPLERS[name].traits.learned])
def test_an_image_is_the_same_in_any_batch(sampler: str, trained: Path, tmp_path: Path) -> None:
    whole = drawn(trained, tmp_path / "a.npy", sampler=sampler)
    pieces = drawn(trained, tmp_path / "b.npy", sampler=sampler, batch=5)
    assert np.abs(whole.astype(int) - pieces.astype(int)).max() <= 1
    assert (whole == pieces).mean() > 0.99
    more = drawn(trained, tmp_path / "c.npy", sampler=sampler, n=20, batch=7)
    assert np.abs(whole.astype(int) - more[:12].astype(int)).max() <= 1
    other = drawn(trained, tmp_path / "d.npy", sampler=sampler, seed=1)
    assert not np.array_equal(whole, other)


def test_guidance_one_is_none_and_the_interval_bounds_it(trained: Path, tmp_path: Path) -> None:
    plain = drawn(trained, tmp_path / "a.npy", sampler="ddim")
    outside = drawn(trained, tmp_path / "b.npy", sampler="ddim", guidance=Guidance(4.0, 20.0, 30.0))
    guided = drawn(trained, tmp_path / "c.npy", sampler="ddim", guidance=Guidance(4.0))
    assert np.array_equal(plain, outside)
    assert not np.array_equal(plain, guided)


def test_the_number_of_network_evaluations_is_counted(trained: Path, tmp_path: Path) -> None:
    def evaluations(**settings: object) -> str:
        with heard() as lines:
            sample.draw_samples(trained, tmp_path / "x.npy", typed(n=2, steps=6, overwrite=True, **settings))
        return lines[-1]

    assert "6 network evaluations" in evaluations(sampler="ddim")
    assert "6 network evaluations" in evaluations(sampler="dpmpp-2m")
    assert "11 network evaluations" in evaluations(sampler="heun")
    assert "12 network evaluations" in evaluations(sampler="ddim", guidance=Guidance(2.0))


def test_classes_are_balanced_random_or_listed() -> None:
    assert choose_labels("balanced", 5, 3, 0).tolist() == [0, 1, 2, 0, 1]  # type: ignore[union-attr]
    assert choose_labels("2,0", 5, 3, 0).tolist() == [2, 0, 2, 0, 2]  # type: ignore[union-attr]
    assert choose_labels("cat", 2, 2, 0, ["dog", "cat"]).tolist() == [1, 1]  # type: ignore[union-attr]
    random = choose_labels("random", 4000, 4, 0)
    assert random is not None
    assert np.bincount(random).min() > 900
    assert np.array_equal(random[:10], choose_labels("random", 10, 4, 0))
    assert choose_labels("balanced", 5, 0, 0) is None
    for bad in ("3", "-1", "x", ""):
        with pytest.raises(UsageError):
            choose_labels(bad, 5, 3, 0)


def test_a_word_that_means_two_classes_is_refused_with_both_and_how_to_write_them() -> None:
    folders = sorted(map(str, range(12)))
    assert choose_labels("0,1", 2, 12, 0, folders).tolist() == [0, 1], "the name and the number are of one class"  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="'2'"):
        choose_labels("0,2", 2, 12, 0, folders)
    assert choose_labels("002,004", 2, 12, 0, folders).tolist() == [2, 4]  # type: ignore[union-attr]
    with pytest.raises(UsageError, match="crane"):
        choose_labels("crane", 2, 3, 0, ["crane", "heron", "crane"])


def test_classes_that_have_no_names_are_named_by_their_numbers(digits: Path, preset: Path, tmp_path: Path) -> None:
    """Or a file of the first class alone would be one of a single class, whose labels tell nothing."""
    path = Path(shutil.copy(digits, tmp_path / "nameless.h5"))
    with h5py.File(path, "r+") as file:
        del file["class_names"]
    resolved = settings.resolve({"preset": str(preset), "steps": 1}, Dataset(path))
    loop.run(Dataset(path), tmp_path / "run", resolved)
    sample.draw_samples(tmp_path / "run", tmp_path / "s.h5", SampleSettings(n=3, steps=2, classes="0"))
    with read_samples(tmp_path / "s.h5") as reader:
        assert reader.labels is not None and reader.labels.tolist() == [0, 0, 0]
        assert list(reader.class_names) == [str(k) for k in range(10)]


def test_every_format_holds_the_same_images(trained: Path, tmp_path: Path) -> None:
    expected = drawn(trained, tmp_path / "a.npy", sampler="ddim")
    for name in ("a.npz", "a.h5", "folder", "grid.png"):
        sample.draw_samples(trained, tmp_path / name, typed(n=12, steps=6, sampler="ddim"))
    with np.load(tmp_path / "a.npz") as archive:
        assert np.array_equal(archive["arr_0"], expected)
        assert archive["arr_1"].tolist() == [*range(10), 0, 1]
    with h5py.File(tmp_path / "a.h5") as file:
        assert np.array_equal(file["images"][()], expected)
        assert file["labels"][()].tolist() == [*range(10), 0, 1]
        assert file["seeds"][()].tolist() == list(range(12))
    assert len(Dataset(tmp_path / "a.h5")) == 12
    files = sorted((tmp_path / "folder").iterdir())
    assert np.array_equal(np.stack([np.asarray(Image.open(path)) for path in files]), expected[..., 0])
    with Image.open(tmp_path / "grid.png") as picture:
        layout = layout_of(picture.info[PLACES], picture.size, "grid.png")
        sheet = np.asarray(picture)[..., None]
    assert [group.name for group in layout.groups] == [str(k) for k in range(10)] and layout.groups[1].images == [1, 11]
    assert sheet.shape[0] == 10 * CELL and layout.scale == CELL // 8
    assert np.array_equal(cut_up(sheet, layout), expected)


def test_a_run_without_label_dropout_can_not_be_guided(digits: Path, preset: Path, tmp_path: Path) -> None:
    data = Dataset(digits)
    resolved = settings.resolve({"preset": str(preset), "steps": 1, "label_dropout": 0.0}, data)
    loop.run(data, tmp_path / "run", resolved)
    with pytest.raises(UsageError, match="label-dropout"):
        sample.draw_samples(tmp_path / "run", tmp_path / "x.npy", SampleSettings(guidance=Guidance(2.0)))


def test_interrupted_while_pngs_are_made_nothing_is_drawn_again(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    how = SampleSettings(n=12, steps=2)

    def kill(done: int, total: int, unit: str, *rest: object) -> None:
        if unit == "png" and done == 8:
            os.kill(os.getpid(), signal.SIGTERM)

    with heard(kill), pytest.raises(Interrupted, match="SIGTERM: 12 of 12 images are written"):
        sample.draw_samples(trained, tmp_path / "x", how)
    assert sorted(os.listdir(tmp_path)) == ["x.partial", "x.partial.json"]
    monkeypatch.setattr(sample, "draw", None)
    sample.draw_samples(trained, tmp_path / "x", how)
    assert len(os.listdir(tmp_path / "x")) == 12 and os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_draws_nearly_the_same(precision: str, trained: Path, tmp_path: Path) -> None:
    how = {"sampler": "ddim", "n": 32}
    exact, half = (drawn(trained, tmp_path / f"{p}.npy", precision=p, **how).astype(int) for p in ("fp32", precision))
    assert 0 < np.abs(exact - half).mean() < 3


@pytest.mark.parametrize("options", [{}, {"guidance": Guidance(2.0)}, {"precision": "bf16"}])
def test_a_compiled_network_is_compiled_once_whatever_is_left_for_the_last_batch(
    options: dict[str, Any], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []

    def backend(graph: Any, inputs: list[torch.Tensor]) -> Any:
        sizes.append(next(len(value) for value in inputs if value.ndim == 4 and value.shape[1:] == (1, 8, 8)))
        return graph.forward

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    torch.compiler.reset()
    counters.clear()
    plain = drawn(trained, tmp_path / "a.npy", sampler="ddim", n=17, batch=5, **options)
    compiled = drawn(trained, tmp_path / "b.npy", sampler="ddim", n=17, batch=5, compile="on", **options)
    assert sizes == [5] and not counters["graph_break"]
    assert np.abs(plain.astype(int) - compiled).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"guidance": Guidance(2.0)}, {"precision": "bf16"}])
def test_the_compiler_itself_draws_the_same(options: dict[str, Any], trained: Path, tmp_path: Path) -> None:
    plain = drawn(trained, tmp_path / "a.npy", sampler="ddim", n=17, batch=5, **options)
    compiled = drawn(trained, tmp_path / "b.npy", sampler="ddim", n=17, batch=5, compile="on", **options)
    assert np.abs(plain.astype(int) - compiled).mean() < (1 if "precision" in options else 0.1)
