"""The sheet of neighbours shows the closest pairs, pixel for pixel."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.spatial.distance import cdist
from scored import score

from elbocli.errors import UsageError
from elbocli.files.dataset import Dataset
from elbocli.files.grid import PLACES, cut_up, layout_of
from elbocli.nn.extractors import make_extractor


def features_of(images):
    with torch.inference_mode():
        return (
            make_extractor("elbo-tiny", None, "cpu")(torch.from_numpy(images).permute(0, 3, 1, 2))[0].double().numpy()
        )


def shown(path):
    """The images of a sheet [rows, columns, H, W, C], and the names of its rows."""
    with Image.open(path) as opened:
        layout = layout_of(opened.info[PLACES], opened.size, path)
        pixels = np.asarray(opened).reshape(*opened.size[::-1], -1)
    images = cut_up(pixels, layout)
    return images.reshape(-1, layout.columns, *images.shape[1:]), [group.name for group in layout.groups]


def test_the_closest_pairs_stand_there_closest_first(digits, tmp_path):
    images = Dataset(digits).batch(np.arange(300))
    samples, training = images[200:].copy(), images[:200]
    samples[33], samples[5] = training[17], training[3]
    np.savez_compressed(tmp_path / "s.npz", samples)
    np.save(tmp_path / "t.npy", training)
    score(tmp_path / "s.npz", tmp_path / "t.npy", ("fid",), neighbours=tmp_path / "n.png")
    rows, names = shown(tmp_path / "n.png")
    assert rows.shape == (12, 6, 8, 8, 1)
    apart = cdist(features_of(samples), features_of(training))
    order = apart.min(1).argsort(kind="stable")[:12]
    assert [int(name.partition(":")[0]) for name in names] == order.tolist() and names[0] == "5: 0"
    for row, index in zip(rows, order):
        assert (row[0] == samples[index]).all() and (row[1:] == training[apart[index].argsort()[:5]]).all()


@pytest.mark.parametrize(("n", "ref"), [(1, 30), (30, 2), (2, 3)])
def test_few_images_make_a_small_sheet(n, ref, digits, tmp_path):
    images = Dataset(digits).batch(np.arange(n + ref))
    np.save(tmp_path / "s.npy", images[:n])
    np.save(tmp_path / "t.npy", images[n:])
    job = {"neighbours": tmp_path / "n.png"}
    score(tmp_path / "s.npy", tmp_path / "t.npy", ("accuracy",), classes="1", **job)
    rows, _ = shown(tmp_path / "n.png")
    assert rows.shape == (min(n, 12), 1 + min(ref, 5), 8, 8, 1) and (rows[0, 0] == images[:n]).all((1, 2, 3)).any()


def test_what_has_no_images_is_refused_before_the_work(digits, tmp_path):
    score(digits, None, ("fid",), save_features=tmp_path / "f.safetensors", save_stats=tmp_path / "f.npz")
    out = {"neighbours": tmp_path / "n.png"}
    for pair in ((tmp_path / "f.safetensors", digits), (digits, tmp_path / "f.safetensors")):
        with pytest.raises(UsageError, match=r"--neighbours reads SAMPLES"):
            score(*pair, ("fid",), **out)
    with pytest.raises(UsageError, match="--neighbours reads SAMPLES"):
        score(digits, tmp_path / "f.npz", ("fid",), **out)
    with pytest.raises(UsageError, match="one set of samples"):
        score([digits, digits], digits, ("fid",), **out)
    np.save(tmp_path / "large.npy", np.zeros((30, 16, 16, 1), np.uint8))
    with pytest.raises(UsageError, match="of one size"):
        score(tmp_path / "large.npy", digits, ("fid",), allow_mismatch=True, **out)


def test_it_is_an_option_and_never_overwrites(digits, tmp_path, elbo):
    line = ("eval", digits, "--ref", digits, "--metrics", "fid", "--extractor", "elbo-tiny", "--neighbours")
    assert elbo(*line, tmp_path / "n.png").returncode == 0
    with Image.open(tmp_path / "n.png") as image:
        assert image.format == "PNG"
    assert b"already exists" in elbo(*line, tmp_path / "n.png").stderr
    with digits.with_name("s.npy").open("wb") as file:
        np.save(file, Dataset(digits).batch(np.arange(20)))
    stream = elbo("eval", "-", *line[2:], tmp_path / "m.png", stdin=digits.with_name("s.npy").read_bytes())
    assert stream.returncode == 2 and b"--neighbours reads" in stream.stderr
