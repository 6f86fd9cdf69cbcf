"""Pictures while training: rows are classes with their names."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from elbocli.core.streams import choose_labels
from elbocli.files.dataset import Dataset
from elbocli.files.grid import CELL, PLACES, lay_out, layout_of, rows_of_classes
from elbocli.run import settings
from elbocli.sample.draw import open_decoder
from elbocli.train import loop, recorder
from elbocli.train.recorder import PREVIEW, preview, preview_labels
from elbocli.train.state import TrainState


@pytest.mark.parametrize("classes", [1, 2, 3, 7, 9, 10])
def test_few_classes_are_all_drawn_in_turns(classes: int) -> None:
    labels = preview_labels(classes, PREVIEW.n)
    assert labels is not None and PREVIEW.n - classes < len(labels) <= PREVIEW.n
    assert np.array_equal(labels, choose_labels("balanced", len(labels), classes, 0))


@pytest.mark.parametrize("classes", range(30))
def test_no_cell_of_a_preview_is_empty(classes: int) -> None:
    labels = preview_labels(classes, PREVIEW.n)
    count = PREVIEW.n if labels is None else len(labels)
    layout = lay_out(8, 8, rows_of_classes(count, labels))
    assert layout.size[1] // (layout.height * layout.scale) * layout.columns == count and 6 <= layout.columns <= 10


@pytest.mark.parametrize("classes", [11, 37, 1000])
def test_of_many_classes_some_fill_whole_rows(classes: int) -> None:
    labels = preview_labels(classes, PREVIEW.n)
    assert labels is not None
    groups = rows_of_classes(PREVIEW.n, labels)
    assert len(groups) == 8 and {len(group.images) for group in groups} == {8}
    assert (groups[0].name, groups[-1].name) == ("0", str(classes - 1))


def test_without_classes_there_are_no_labels() -> None:
    assert preview_labels(0, PREVIEW.n) is None


def test_a_preview_names_the_classes_of_its_rows(digits: Path, preset: Path, tmp_path: Path) -> None:
    path, names = Path(shutil.copy(digits, tmp_path / "named.h5")), [f"digit {k}" for k in range(10)]
    with h5py.File(path, "r+") as file:
        file["class_names"][:] = names
    resolved = settings.resolve({"preset": str(preset), "steps": 1, "preview_every": 1}, Dataset(path))
    loop.run(Dataset(path), tmp_path / "run", resolved)
    with Image.open(tmp_path / "run" / "previews" / "step-00000001.png") as picture:
        layout = layout_of(picture.info[PLACES], picture.size, path)
    assert [group.name for group in layout.groups] == names
    assert layout.height * layout.scale == CELL and layout.groups[3].images == list(range(3, 60, 10))


@pytest.mark.parametrize(("micro_batch", "at_once"), [(0, [30, 30]), (7, [4] * 15), (1, [1] * 60)])
def test_a_preview_shows_the_network_no_more_at_once_than_a_micro_batch_and_is_the_same_picture(
    micro_batch: int, at_once: list[int], digits: Path, preset: Path
) -> None:
    """Sixty images: of a batch of 32 at once, or of parts of it."""
    whole, parted = (
        settings.resolve(
            {"preset": str(preset), "batch": batch, "micro_batch": most, "preview_every": 1}, Dataset(digits)
        )
        for batch, most in ((64, 0), (32, micro_batch))
    )
    pictures, seen = [], list[int]()
    for resolved in (whole, parted):
        state = TrainState(resolved, Dataset(digits))
        output = open_decoder(resolved.data, resolved.network, state.device)
        seen.clear()
        state.network.register_forward_pre_hook(lambda network, inputs: seen.append(len(inputs[0])))
        pictures.append(preview(state, output)[0].astype(int))
    assert seen == [each for each in at_once for _ in range(PREVIEW.steps)]
    assert pictures[0].shape == pictures[1].shape and np.abs(pictures[0] - pictures[1]).max() <= 1


@pytest.mark.usefixtures("short_previews")
def test_the_first_preview_comes_early_once_and_changes_no_weight(
    digits: Path, preset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run goes on."""

    def train(name: str, steps: int) -> set[str]:
        options = {"preset": str(preset), "steps": steps, "preview_every": 4}
        loop.run(Dataset(digits), tmp_path / name, settings.resolve(options, Dataset(digits)))
        return {path.name for path in (tmp_path / name / "previews").iterdir()}

    assert train("usual", 8) == {"step-00000004.png", "step-00000008.png"}
    monkeypatch.setattr(recorder, "FIRST_PREVIEW_S", 0.0)
    assert train("early", 4) == {"step-00000001.png", "step-00000004.png"}
    assert train("early", 8) == {"step-00000001.png", "step-00000004.png", "step-00000008.png"}
    usual, early = (
        (tmp_path / name / "checkpoints" / "step-00000008" / "model.safetensors").read_bytes()
        for name in ("usual", "early")
    )
    assert usual == early
