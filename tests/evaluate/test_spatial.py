"""sFID: spatial features are those of torch-fidelity's network at the layer that ADM taps, and go into every file."""

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from scored import score
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from elbocli.errors import UsageError
from elbocli.files.dataset import Dataset
from elbocli.files.features import read_features, read_statistics
from elbocli.nn.extractors import make_extractor

TINY = "spatial_frechet_distance[elbo-tiny]"
INCEPTION = "inception-v3-compat"


def pictures(seed, count=8):
    """Coarse random images [N, 16, 16, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 200, (count, 4, 4, 3), np.uint8)
    return np.kron(coarse, np.ones((1, 4, 4, 1), np.uint8)) + np.uint8(20 * seed)


def tapped(weights, images):
    """A plain loop over torch-fidelity's own network, image by image: pooled features, and those of Mixed_6d's 1 × 1 branch.

    The latter by the layer's own steps: convolution, batch norm, ReLU; 7 channels, in the order rows, columns, channels.
    """
    network = FeatureExtractorInceptionV3(INCEPTION, ["2048"], feature_extractor_weights_path=str(weights))
    before = []
    network.Mixed_6d.register_forward_pre_hook(lambda module, given: before.append(given[0].clone()))
    pooled, spatial = [], []
    for image in images:
        pooled.append(network(torch.from_numpy(image).permute(2, 0, 1)[None])[0][0])
        branch = network.Mixed_6d.branch1x1
        with torch.no_grad():
            maps = branch.bn(branch.conv(before.pop())).clamp(min=0)[0]
        assert maps.shape == (192, 17, 17)
        spatial.append(torch.stack([maps[c, y, x] for y in range(17) for x in range(17) for c in range(7)]))
    return [torch.stack(each).double().numpy() for each in (pooled, spatial)]


def frechet(one, other):
    """By scipy's root of the product."""
    apart = one.mean(0) - other.mean(0)
    first, second = (np.cov(each, rowvar=False) for each in (one, other))
    return apart @ apart + np.trace(first + second - 2 * sqrtm(first @ second).real)


def test_spatial_features_are_those_of_the_tapped_layer(inception_weights):
    images = pictures(0, 2)
    extractor = make_extractor(INCEPTION, inception_weights, "cpu")
    with torch.inference_mode():
        features, _, spatial = extractor.with_spatial(torch.from_numpy(images).permute(0, 3, 1, 2))
        assert torch.equal(features, extractor(torch.from_numpy(images).permute(0, 3, 1, 2))[0])
    pooled, expected = tapped(inception_weights, images)
    assert spatial.shape == (2, 2023) and (expected == 0).any() and (expected > 0).any()
    np.testing.assert_allclose(spatial, expected, atol=1e-4 * np.abs(expected).max())
    np.testing.assert_allclose(features, pooled, atol=1e-4 * np.abs(pooled).max())


def test_fid_and_sfid_are_those_of_the_tapped_network(inception_weights, tmp_path):
    """In a subspace of few images, whose singular covariances scipy takes in the images' own directions."""
    pair = [pictures(seed) for seed in range(2)]
    for name, images in zip("ab", pair):
        np.save(tmp_path / f"{name}.npy", images)
    found = score(
        tmp_path / "a.npy",
        tmp_path / "b.npy",
        ("fid", "sfid"),
        extractor=INCEPTION,
        extractor_weights=inception_weights,
    )
    sides = [tapped(inception_weights, images) for images in pair]
    for name, which in (("frechet_distance", 0), ("spatial_frechet_distance", 1)):
        both = [side[which] for side in sides]
        axes = np.linalg.svd(np.concatenate(both) - both[0].mean(0), full_matrices=False)[2]
        expected = frechet(*(each @ axes.T for each in both))
        assert found[f"{name}[{INCEPTION}]"] == pytest.approx(expected, rel=1e-3), name


@pytest.fixture
def images(digits, tmp_path):
    np.save(tmp_path / "a.npy", Dataset(digits).batch(np.arange(100)))
    return tmp_path / "a.npy"


def test_saved_features_and_statistics_stand_for_their_images(digits, images, tmp_path):
    plain = score(images, digits, ("fid", "sfid"))
    own, other, stats = tmp_path / "own.safetensors", tmp_path / "ref.safetensors", tmp_path / "ref.npz"
    score(images, None, ("sfid",), save_features=own)
    score(digits, None, ("sfid",), save_features=other, save_stats=stats)
    assert read_features(own).spatial.shape == (100, 7) and read_statistics(stats).spatial.mu.shape == (7,)
    for samples, ref in ((own, other), (own, stats), (images, other), (images, stats)):
        found = score(samples, ref, ("fid", "sfid"), extractor="elbo-tiny" if samples == images else "")
        assert found[TINY] == pytest.approx(plain[TINY], rel=1e-6, abs=1e-9) and found[TINY] > 0, (samples, ref)


def test_references_of_adms_layout_are_read(digits, images, tmp_path):
    score(digits, None, ("sfid",), save_features=tmp_path / "ref.safetensors")
    read = read_features(tmp_path / "ref.safetensors")
    named = {"": read.features, "_s": read.spatial}
    arrays = {f"mu{end}": each.double().numpy().mean(0) for end, each in named.items()}
    arrays |= {f"sigma{end}": np.cov(each.double().numpy(), rowvar=False) for end, each in named.items()}
    beside = Dataset(digits).batch(np.arange(50))
    np.savez(tmp_path / "adm.npz", arr_0=beside, **arrays)
    found = score(images, tmp_path / "adm.npz", ("fid", "sfid", "prc"))
    assert found[TINY] == pytest.approx(score(images, digits, ("sfid",))[TINY], rel=1e-6)
    np.savez(tmp_path / "edm.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    with pytest.raises(UsageError, match=r"edm\.npz: no spatial features, which sfid needs"):
        score(images, tmp_path / "edm.npz", ("sfid",))


def test_what_has_no_spatial_features_is_refused(digits, images, tmp_path):
    score(images, None, ("fid",), save_features=tmp_path / "own.safetensors")
    assert read_features(tmp_path / "own.safetensors").spatial is None
    with pytest.raises(UsageError, match=r"own\.safetensors: no spatial features, which sfid needs"):
        score(tmp_path / "own.safetensors", digits, ("sfid",))
    with pytest.raises(UsageError, match=r"ref\.safetensors: no spatial features"):
        (tmp_path / "own.safetensors").rename(tmp_path / "ref.safetensors")
        score(images, tmp_path / "ref.safetensors", ("sfid",))
