import json
import pickle
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from elbocli.errors import ElboError, FormatError
from elbocli.files.features import FeatureFacts, Statistics, is_statistics, read_statistics, write_statistics


def some(width=5, seed=0):
    random = np.random.default_rng(seed)
    root = random.normal(size=(width, width))
    return random.normal(size=width), root @ root.T


@given(st.integers(1, 8), st.integers(0, 99))
def test_statistics_read_back_to_the_last_bit(tmp_path_factory, width, seed):
    path = tmp_path_factory.mktemp("s") / "ref.npz"
    mu, sigma = some(width, seed)
    about = {"n": 50000, "extractor": "inception-v3-compat", "preprocessing": {"image_size": 64, "crop": "center"}}
    write_statistics(path, Statistics(mu, sigma, FeatureFacts(**about)))
    found = read_statistics(path)
    np.testing.assert_array_equal(found.mu, mu)
    np.testing.assert_array_equal(found.sigma, sigma)
    assert found.about == FeatureFacts(**about)
    assert is_statistics(path)


def test_the_file_is_npz_without_pickle(tmp_path):
    mu, sigma = some()
    write_statistics(tmp_path / "ref.npz", Statistics(mu, sigma, FeatureFacts(n=2)))
    with np.load(tmp_path / "ref.npz", allow_pickle=False) as content:
        np.testing.assert_array_equal(content["mu"], mu)
        assert json.loads(str(content["about"])) == {"version": 1, "n": 2}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_files_of_adm_and_edm_are_read(tmp_path, save):
    """mu and sigma alone; ADM's files hold the images' own statistics (mu_s, sigma_s) beside them."""
    mu, sigma = some()
    save(tmp_path / "edm.npz", mu=mu, sigma=sigma)
    save(tmp_path / "adm.npz", mu=mu, sigma=sigma, mu_s=np.zeros(3), sigma_s=np.eye(3))
    for name in ("edm.npz", "adm.npz"):
        found = read_statistics(tmp_path / name)
        np.testing.assert_array_equal(found.mu, mu)
        np.testing.assert_array_equal(found.sigma, sigma)
        assert found.about == FeatureFacts()
        assert is_statistics(tmp_path / name)


def test_single_precision_is_read_as_double(tmp_path):
    mu, sigma = some()
    np.savez(tmp_path / "ref.npz", mu=mu.astype("f4"), sigma=sigma.astype("f4"))
    assert read_statistics(tmp_path / "ref.npz").sigma.dtype == np.float64


MU, SIGMA = some()
NAN_MU, INF_SIGMA = MU.copy(), SIGMA.copy()
NAN_MU[1], INF_SIGMA[0, 3] = np.nan, np.inf


@pytest.mark.parametrize(
    "arrays",
    [
        {"mu": NAN_MU, "sigma": SIGMA},
        {"mu": MU, "sigma": INF_SIGMA},
        {"mu": MU},
        {"mu": MU[:4], "sigma": SIGMA},
        {"mu": SIGMA, "sigma": SIGMA},
        {"mu": MU, "sigma": SIGMA[:4]},
        {"mu": np.arange(5), "sigma": SIGMA},
        {"mu": MU.astype(complex), "sigma": SIGMA},
        {"mu": MU, "sigma": SIGMA + np.triu(np.ones((5, 5)), 1)},
        {"mu": MU + 1e30, "sigma": SIGMA},
        {"mu": MU, "sigma": SIGMA * 1e60},
        {"mu": MU, "sigma": SIGMA - 99 * np.eye(5)},
        {"mu": np.zeros(0), "sigma": np.zeros((0, 0))},
        {"mu": MU, "sigma": SIGMA, "about": np.array("{")},
        {"mu": MU, "sigma": SIGMA, "mu_s": MU[:4], "sigma_s": SIGMA},
        {"mu": MU, "sigma": SIGMA, "mu_s": NAN_MU, "sigma_s": SIGMA},
    ],
)
def test_statistics_that_cannot_be_used_are_refused(tmp_path, arrays):
    np.savez(tmp_path / "ref.npz", **arrays)
    with pytest.raises(FormatError, match=r"ref\.npz"):
        read_statistics(tmp_path / "ref.npz")


@pytest.mark.parametrize("hostile", ["mu", "sigma", "about"])
def test_a_pickle_is_refused_and_not_run(tmp_path, bomb, hostile):
    arrays = {"mu": MU, "sigma": SIGMA, hostile: np.array([bomb], object)}
    np.savez(tmp_path / "ref.npz", allow_pickle=True, **arrays)
    with pytest.raises(FormatError, match=r"ref\.npz"):
        read_statistics(tmp_path / "ref.npz")
    assert not bomb.went_off


def test_a_bare_pickle_is_refused_and_not_run(tmp_path, bomb):
    (tmp_path / "ref.npz").write_bytes(pickle.dumps(bomb))
    with pytest.raises(FormatError, match=r"ref\.npz"):
        read_statistics(tmp_path / "ref.npz")
    assert not bomb.went_off


def test_a_file_cut_short_or_missing_is_refused(tmp_path):
    path = tmp_path / "ref.npz"
    with pytest.raises(FormatError, match=r"ref\.npz"):
        read_statistics(path)
    write_statistics(path, Statistics(MU, SIGMA))
    whole = path.read_bytes()
    for size in (0, 10, 100, 300, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert not is_statistics(path)
        with pytest.raises(FormatError, match=r"ref\.npz"):
            read_statistics(path)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_a_damaged_file_is_called_damaged(tmp_path, save):
    path = tmp_path / "ref.npz"
    save(path, mu=np.zeros(400), sigma=np.tile(np.arange(400.0), (400, 1)))
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("sigma.npy")
    content = bytearray(path.read_bytes())
    at = info.header_offset + 60 + info.compress_size // 2
    content[at : at + 40] = b"\xff" * 40
    path.write_bytes(content)
    with pytest.raises(ElboError, match=r"ref\.npz"):
        read_statistics(path)


@pytest.mark.parametrize("offset", [6, 10], ids=["a later zip", "an unknown packing"])
def test_a_file_packed_in_an_unknown_way_is_refused(tmp_path, offset):
    path = tmp_path / "ref.npz"
    write_statistics(path, Statistics(MU, SIGMA))
    content = bytearray(path.read_bytes())
    for at in [i for i in range(len(content)) if content[i : i + 4] == b"PK\x01\x02"]:
        content[at + offset : at + offset + 2] = (99).to_bytes(2, "little")
    path.write_bytes(content)
    assert is_statistics(path) in (True, False)
    with pytest.raises(FormatError, match=r"ref\.npz"):
        read_statistics(path)


def test_images_are_not_statistics(tmp_path, images):
    np.savez(tmp_path / "x.npz", images(2))
    assert not is_statistics(tmp_path / "x.npz")
    assert not is_statistics(tmp_path)
    assert not is_statistics(tmp_path / "gone.npz")
