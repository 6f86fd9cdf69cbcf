"""The remedies that `elbo prep` names in its messages, followed to the letter: each leads to a dataset."""

import io
import re
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from published_sets import noise, png

from elbocli.errors import ElboError
from elbocli.files.dataset import Dataset
from elbocli.prep import pack
from elbocli.train.command import train

ROWS = noise(4, 0, (8, 8, 3))
Elbo = Callable[..., subprocess.CompletedProcess[bytes]]


def packed(sources: Path | list[Path], out: Path, **settings: Any) -> Dataset:
    for _ in pack.run(sources, out, pack.Settings(**{"overwrite": True, **settings})):
        pass
    return Dataset(out)


def refused(sources: Path | list[Path], out: Path, **settings: Any) -> str:
    """The message that packing ends with."""
    with pytest.raises(ElboError) as error:
        packed(sources, out, **settings)
    return str(error.value)


def class_folders(root: Path) -> Path:
    """Two class folders of two images each."""
    for index, row in enumerate(ROWS):
        path = root / "ab"[index % 2] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(row))
    return root


def zipped(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))
    return buffer.getvalue()


def dataset(folder: Path) -> bytes:
    packed(folder, folder.parent / "made.h5")
    return (folder.parent / "made.h5").read_bytes()


def test_one_image_is_packed_by_its_folder(tmp_path: Path) -> None:
    class_folders(tmp_path / "in")
    said = refused(tmp_path / "in/a/0.png", tmp_path / "out.h5")
    assert said.endswith("is one image; name the folder that it lies in")
    assert len(packed(tmp_path / "in/a", tmp_path / "out.h5")) == 2


def test_arrays_by_other_names_are_saved_as_said(tmp_path: Path) -> None:
    path, images, labels = tmp_path / "x.npz", ROWS, np.array([0, 1, 1, 0])
    np.savez(path, pictures=images, kinds=labels)
    (call,) = re.findall(
        r"holds pictures, kinds, but no images in arr_0; save them with numpy\.(.*)$",
        refused(path, path.with_suffix(".h5")),
    )
    assert call == "savez(path, images, labels)"
    np.savez(path, images, labels)
    assert packed(path, path.with_suffix(".h5")).labels.tolist() == labels.tolist()


def test_an_array_of_another_type_is_made_what_is_expected(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    for array in (ROWS / 255, np.asfortranarray(ROWS), ROWS.transpose(0, 3, 1, 2)):
        np.save(path, array)
        assert "expected uint8 (N, H, W, 1 or 3) or (N, H, W) with N > 0, C order" in refused(path, tmp_path / "a.h5")
    np.save(path, np.ascontiguousarray(ROWS))
    assert len(packed(path, tmp_path / "a.h5")) == 4
    np.save(path, ROWS[..., 0])
    assert packed(path, tmp_path / "a.h5").shape == (4, 8, 8, 1)


def test_loose_images_beside_class_folders_by_both_ways_that_are_said(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in")
    (source / "loose.png").write_bytes(png(ROWS[0]))
    said = refused(source, tmp_path / "a.h5")
    assert said.endswith("move one kind away, or say by --labels which class each image has")
    (tmp_path / "labels.csv").write_text("".join(f"{path.name},x\n" for path in source.rglob("*.png")))
    assert len(packed(source, tmp_path / "a.h5", labels=tmp_path / "labels.csv")) == 5
    (source / "loose.png").rename(tmp_path / "loose.png")
    assert len(packed(source, tmp_path / "a.h5")) == 4


def test_a_zip_among_images_by_both_ways_that_are_said(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in") / "a"
    (source / "b.zip").write_bytes(zipped(tmp_path / "in/b"))
    assert "a zip archive; unpack it, or give it as a source of its own" in refused(source, tmp_path / "a.h5")
    (source / "b.zip").rename(tmp_path / "b.zip")
    for name in ("a.h5.partial", "a.h5.partial.json"):  # which another message says: the files are others now
        (tmp_path / name).unlink()
    assert packed([source, tmp_path / "b.zip"], tmp_path / "a.h5").class_names == ["a", "b"]
    shutil.unpack_archive(tmp_path / "b.zip", source)
    assert len(packed(source, tmp_path / "a.h5")) == 4


def test_numbers_among_names_and_images_without_a_class(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in")
    labels = tmp_path / "labels.csv"
    labels.write_text("0.png,3\n1.png,cat\n2.png,cat\n3.png,cat\n")
    assert refused(source, tmp_path / "a.h5", labels=labels).endswith(
        "give all of them one kind, for instance by --labels"
    )
    labels.write_text("0.png,cat\n1.png,cat\n2.png,cat\n")
    assert refused(source, tmp_path / "a.h5", labels=labels).endswith(
        "give all of them one, or pack the two kinds apart"
    )
    labels.write_text("0.png,dog\n1.png,cat\n2.png,cat\n3.png,cat\n")
    assert packed(source, tmp_path / "a.h5", labels=labels).class_names == ["cat", "dog"]


def test_labels_as_an_array_are_of_as_many_images(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", ROWS[..., 0])
    labels = tmp_path / "y.npy"
    for array in (np.zeros(3, int), np.zeros(4), np.zeros((4, 2), int), np.array([{}] * 4, object)):
        np.save(labels, array)
        assert "y.npy: " in refused(tmp_path / "x.npy", tmp_path / "a.h5", labels=labels)
    np.save(labels, np.array([2, 2, 1, 2]))
    data = packed(tmp_path / "x.npy", tmp_path / "a.h5", labels=labels)
    assert data.labels.tolist() == [2, 2, 1, 2] and data.class_names == ["0", "1", "2"]


def test_images_of_another_size_than_crop_none_wants(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in")
    said = refused(source, tmp_path / "a.h5", crop="none", size=16)
    assert "8 x 8 pixels, but --crop none takes only those of --size 16" in said
    assert packed(source, tmp_path / "a.h5", crop="none", size=8).shape == (4, 8, 8, 3)
    assert packed(source, tmp_path / "a.h5", crop="none").shape == (4, 8, 8, 3)


@pytest.mark.parametrize("pixels", [np.ones((8, 8), np.float32), np.full((8, 8), 1 << 20, np.int32)])
def test_pixels_of_unknown_range_are_converted_first(tmp_path: Path, pixels: np.ndarray) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(pixels).save(tmp_path / "in/x.tif")
    assert "convert them first" in refused(tmp_path / "in", tmp_path / "a.h5")
    Image.fromarray((pixels / pixels.max() * 255).astype(np.uint8)).save(tmp_path / "in/x.tif")
    assert len(packed(tmp_path / "in", tmp_path / "a.h5")) == 1


def test_the_colours_that_are_named_are_colours(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in")
    said = refused(source, tmp_path / "a.h5", background="wite")
    (named,) = re.findall(r"not a colour; try (.*)$", said)
    for colour in re.split(", | or ", named):
        assert packed(source, tmp_path / "a.h5", background=colour).attributes.more["background"] == colour


def test_unfinished_work_with_other_settings_by_both_ways_that_are_said(tmp_path: Path) -> None:
    source = class_folders(tmp_path / "in")
    good = (source / "b/3.png").read_bytes()
    for way in ("finish", "delete"):
        (source / "b/3.png").write_bytes(b"bad")
        refused(source, tmp_path / "a.h5")
        said = refused(source, tmp_path / "a.h5", size=4)
        (source / "b/3.png").write_bytes(good)
        partial, journal = re.findall(r"finish that one, or delete (\S+) and (\S+) to start again", said)[0]
        if way == "finish":
            assert packed(source, tmp_path / "a.h5").shape == (4, 8, 8, 3)
            (tmp_path / "a.h5").unlink()
        else:
            (tmp_path / partial).unlink()
            (tmp_path / journal).unlink()
            assert packed(source, tmp_path / "a.h5", size=4).shape == (4, 4, 4, 3)


def test_what_does_not_go_with_latents_is_left_out(tmp_path: Path, autoencoder: Path) -> None:
    source, latents = class_folders(tmp_path / "in"), {"latents": autoencoder, "device": "cpu"}
    (multiple,) = re.findall(r"take a multiple of (\d+)", refused(source, tmp_path / "a.h5", size=15, **latents))
    for options in ({"channels": 1}, {"store": "png"}):
        said = refused(source, tmp_path / "a.h5", size=16, **options, **latents)
        assert said.endswith("leave --channels and --store out")
    list(pack.run(source, tmp_path / "a.h5", pack.Settings(size=8 * int(multiple), **latents)))
    assert len(Dataset(tmp_path / "a.h5", latents=True)) == 4
    assert refused(source, tmp_path / "b.h5", mirror=True).endswith(
        "pixels are mirrored while training: elbo train --flip"
    )
    assert "--flip" in {name for param in train.params for name in param.opts}


def test_what_is_typed_wrong_is_typed_as_said(elbo: Elbo, tmp_path: Path) -> None:
    class_folders(tmp_path / "in")
    steps = [
        (["in", "out"], r"name a file that ends in \.h5"),
        (["in", "no/out.h5"], r"there is no folder no; make it first"),
        (["in", "no/out.h5"], ""),
        (["in", "no/out.h5"], r"already exists; choose another name or add --overwrite"),
        (["in", "no/out.h5", "--overwrite"], ""),
        (["in", "other.h5"], ""),
    ]
    for args, complaint in steps:
        done = elbo("prep", *args, cwd=tmp_path)
        assert (done.returncode == 0) == (not complaint), done.stderr
        assert re.search(complaint, done.stderr.decode())
        if "make it first" in complaint:
            (tmp_path / "no").mkdir()


def test_a_run_is_drawn_from_instead_of_packing_its_previews(
    elbo: Elbo, tmp_path: Path, digits: Path, preset: Path
) -> None:
    trained = elbo(
        "train", digits, "-o", "my run", "--preset", preset, "--steps", 1, "--preview-every", 1, cwd=tmp_path
    )
    assert trained.returncode == 0, trained.stderr
    done = elbo("prep", "my run", "x.h5", cwd=tmp_path)
    assert done.returncode == 1 and not (tmp_path / "x.h5").exists()
    said = re.search(r"my run: is a run, .*'elbo (sample 'my run' -n 1000 -o samples.h5)'", done.stderr.decode())
    assert said, done.stderr
    words = ["sample", "my run", "-n", "4", "--steps", "1", "-o", "samples.h5"]
    assert elbo(*words, cwd=tmp_path).returncode == 0
    assert len(Dataset(tmp_path / "samples.h5")) == 4
    (tmp_path / "images").mkdir()
    (tmp_path / "images/0.png").write_bytes(png(ROWS[0]))
    (tmp_path / "images/config.yaml").write_text("mine: 1\n")
    assert len(packed(tmp_path / "images", tmp_path / "y.h5", on_error="skip")) == 1
