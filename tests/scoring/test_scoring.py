"""Scores are those of torch-fidelity's network and of ADM's and EDM's references, and files of features stand for images."""

import hashlib
import io
import pickle
import tracemalloc

import numpy as np
import pytest
import torch
from calls import SPATIAL, TINY, result, save, score
from harness import heard
from msgspec import structs
from PIL import Image
from scipy.linalg import sqrtm
from scipy.spatial.distance import cdist
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.metric_isc import isc_features_to_metric

from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.contact_sheet import Group, draw_contact_sheet, lay_out
from elbocli.files.dataset import Dataset
from elbocli.files.features import read_features, read_statistics, write_features, write_statistics
from elbocli.files.sample_files import npy_header
from elbocli.scoring.extractors.vit import Tiny
from elbocli.scoring.metrics import METRICS, parse_metrics

INCEPTION = "inception-v3-compat"
ACCURACY = "accuracy[elbo-tiny]"


@pytest.fixture(scope="module")
def images(digits):
    """300 digits."""
    return Dataset(digits).read(np.arange(300))


def seen_by_torch_fidelity(weights, images):
    """Pooled features; 7 channels of Mixed_6d's 1 × 1 branch, in the order rows, columns, channels; and logits."""
    layers = ["2048", "logits_unbiased"]
    before = []
    network = FeatureExtractorInceptionV3(INCEPTION, layers, feature_extractor_weights_path=str(weights))
    network.Mixed_6d.register_forward_pre_hook(lambda module, given: before.append(given[0].clone()))
    pooled, logits = network(torch.from_numpy(images).permute(0, 3, 1, 2))
    branch = network.Mixed_6d.branch1x1
    with torch.no_grad():
        maps = branch.bn(branch.conv(before[0])).clamp(min=0)
    assert maps.shape[1:] == (192, 17, 17)
    return pooled, maps[:, :7].permute(0, 2, 3, 1).flatten(1), logits


def frechet(one, other):
    """The distance by scipy's root of the product, in the subspace that the few images span."""
    axes = np.linalg.svd(np.concatenate([one, other]) - one.mean(0), full_matrices=False)[2]
    one = one @ axes.T
    other = other @ axes.T
    apart = one.mean(0) - other.mean(0)
    first, second = (np.cov(each, rowvar=False) for each in (one, other))
    return apart @ apart + np.trace(first + second - 2 * sqrtm(first @ second).real)


@pytest.mark.long
def test_fid_sfid_and_inception_score_are_those_of_torch_fidelitys_network(inception_weights, tmp_path):
    coarse = np.random.default_rng(0).integers(0, 200, (8, 4, 4, 3), np.uint8)
    made = np.kron(coarse, np.ones((1, 4, 4, 1), np.uint8))
    made[4:] += 20
    paths = [save(tmp_path / "a.npy", made[:4]), save(tmp_path / "b.npy", made[4:])]
    seen = seen_by_torch_fidelity(inception_weights, made)
    saved = tmp_path / "f.safetensors"
    network = {"extractor": INCEPTION, "extractor_weights": inception_weights}
    found = score(*paths, ("fid", "sfid", "is"), splits=2, save_features=saved, **network)
    read = read_features(saved)
    for ours, theirs in zip((read.features, read.spatial, read.logits), seen):
        torch.testing.assert_close(ours, theirs[:4], rtol=0, atol=1e-4 * float(theirs.abs().max()))
    for name, features in zip(("frechet_distance", "spatial_frechet_distance"), seen):
        expected = frechet(*features.double().numpy().reshape(2, 4, -1))
        assert found[f"{name}[{INCEPTION}]"] == pytest.approx(expected, rel=1e-3)
    theirs = isc_features_to_metric(seen[2][:4], 2)
    for name, key in (("inception_score", "inception_score_mean"), ("inception_score_std_over_splits", "inception_score_std")):
        assert found[f"{name}[{INCEPTION}]"] == pytest.approx(theirs[key], rel=1e-6, abs=1e-6)
    assert theirs["inception_score_std"] > 1e-6


def test_saved_features_and_statistics_stand_for_their_images(images, digits, tmp_path):
    """On both sides, with every metric, labels and facts."""
    about = {"sampler": "heun", "steps": 4, "seed": 7}
    samples = save(tmp_path / "a.npz", images[100:220], np.arange(120) % 10, **about)
    own = tmp_path / "a.safetensors"
    ref = tmp_path / "ref.safetensors"
    stats = tmp_path / "ref.npz"
    metrics = ("fid", "sfid", "is", "kid", "prc", "accuracy")
    options = {"kid_subset_size": 50}
    plain = score(samples, digits, metrics, save_features=own, **options)
    assert score(digits, None, metrics, save_features=ref, save_stats=stats, classes="1")["n_samples"] == 300
    classes = (plain["classes"], plain["fewest_of_a_class"], plain["most_of_a_class"])
    assert plain["made"] == about and classes == (10, 12, 12)
    again = score(own, ref, metrics, extractor="", **options)
    assert set(again) == set(plain)
    for key in set(plain) - {"samples", "ref"}:
        wanted = pytest.approx(plain[key], rel=1e-6) if isinstance(plain[key], float) else plain[key]
        assert again[key] == wanted, key
    for one, other, extractor in ((samples, ref, ""), (own, stats, ""), (samples, stats, "elbo-tiny")):
        found = score(one, other, ("fid", "sfid"), extractor=extractor)
        for name in (TINY, SPATIAL):
            assert found[name] == pytest.approx(plain[name], rel=1e-6) and found[name] > 0


def test_references_of_adm_and_edm_give_the_scores_of_their_images(images, tmp_path):
    """ADM's: statistics by numpy.cov, also spatial ones, and images beside them, for precision. EDM's: sums over n - 1."""
    rgb = np.repeat(images, 3, 3)
    whole, part, half = (save(tmp_path / f"{k}.npy", each) for k, each in enumerate((rgb, rgb[:100], rgb[100:] // 2)))
    score(whole, None, ("sfid",), save_features=tmp_path / "f.safetensors")
    read = read_features(tmp_path / "f.safetensors")
    features = read.features.double().numpy()
    moments = {}
    for end, each in (("", features), ("_s", read.spatial.double().numpy())):
        moments |= {f"mu{end}": each.mean(0), f"sigma{end}": np.cov(each, rowvar=False)}
    np.savez(tmp_path / "adm.npz", rgb[:100], **moments)
    metrics = ("fid", "sfid", "prc")
    found, wanted, beside = (score(half, ref, metrics) for ref in (tmp_path / "adm.npz", whole, part))
    assert [found[name] for name in (TINY, SPATIAL)] == pytest.approx([wanted[TINY], wanted[SPATIAL]], rel=1e-6)
    assert wanted[TINY] > 1
    for key in ("precision[elbo-tiny]", "recall[elbo-tiny]"):
        assert found[key] == beside[key]
    assert (found["n_ref"], found["n_ref_images"]) == (None, 100)
    assert found["ref_preprocessing"] == {"image_size": 8, "channels": 3}
    assert found["ref_sha256"] == hashlib.sha256((tmp_path / "adm.npz").read_bytes()).hexdigest()

    mu = features.sum(0) / 300
    edm = tmp_path / "edm.npz"
    np.savez(edm, mu=mu, sigma=(features.T @ features - np.outer(mu, mu) * 300) / 299)
    assert score(half, edm)[TINY] == pytest.approx(wanted[TINY], abs=1e-4)
    for metric in ("kid", "sfid"):
        with pytest.raises(UsageError, match=metric):
            score(half, edm, (metric,))


def test_only_the_published_network_on_a_like_reference_has_the_published_names(digits, tmp_path):
    saved = tmp_path / "f.safetensors"
    score(digits, None, save_features=saved)
    read = read_features(saved)
    about = structs.replace(read.about, extractor=INCEPTION, weights_sha256="6726825d" + "0" * 56)
    write_features(saved, read._replace(about=about))
    found = score(saved, saved, ("fid", "prc"), extractor="")
    assert found["scores"]["frechet_inception_distance"]["se"] >= 0 and found["precision"] == 1


# References that don't fit


def test_a_mismatch_is_refused_unless_it_is_allowed_and_then_named(images, digits, tmp_path):
    stats = tmp_path / "ref.npz"
    score(digits, None, save_stats=stats)
    read = read_statistics(stats)
    assert read.about.preprocessing == {"image_size": 8, "channels": 1, "crop": "center", "filter": "box, bicubic"}
    other = {**read.about.preprocessing, "crop": "none", "filter": "lanczos"}
    write_statistics(stats, read._replace(about=structs.replace(read.about, preprocessing=other)))
    with pytest.raises(DataError, match=r"crop is none, .*filter is lanczos"):
        score(digits, stats)
    allowed = score(digits, stats, allow_mismatch=True)
    assert allowed["mismatch"] == {"crop": ["center", "none"], "filter": ["box, bicubic", "lanczos"]}
    assert "mismatch" not in score(save(tmp_path / "a.npy", images[:20]), stats), "of a file that says neither"


def test_samples_know_how_the_images_were_made_that_their_run_has_seen(trained, digits, digits_folder, tmp_path, elbo):
    assert elbo("sample", trained, "-n", 24, "--steps", 2, "--seed", 4, "-o", tmp_path / "s.h5").returncode == 0
    found = result(tmp_path / "s.h5", digits)
    made = found.json()["made"]
    assert (made["seed"], made["steps"], made["crop"]) == (4, 2, "center")
    other = ("--size", 8, "--channels", 1, "--crop", "resize", "--limit", 20)
    assert elbo("prep", digits_folder, tmp_path / "ref.h5", *other).returncode == 0
    with pytest.raises(DataError, match="crop is resize"):
        score(tmp_path / "s.h5", tmp_path / "ref.h5")


def test_references_and_features_that_do_not_fit_are_refused(images, digits, tmp_path):
    saved = tmp_path / "f.safetensors"
    other = tmp_path / "g.safetensors"
    stats = tmp_path / "s.npz"
    score(digits, None, save_features=saved, save_stats=stats)
    read = read_features(saved)
    assert read.spatial is None
    np.savez(tmp_path / "seven.npz", mu=np.zeros(7), sigma=np.eye(7))
    large = save(tmp_path / "large.npy", np.zeros((20, 16, 16, 1), np.uint8))
    for ref in (stats, digits):
        with pytest.raises(DataError, match=f"{ref.name}: image_size"):
            score(large, ref)
    with pytest.raises(DataError, match="64 features"):
        score(digits, tmp_path / "seven.npz")
    for pair in ((saved, digits), (digits, saved)):
        with pytest.raises(UsageError, match=r"f\.safetensors: no spatial"):
            score(*pair, ("sfid",))
    write_features(other, read._replace(about=structs.replace(read.about, weights_sha256="0" * 64)))
    with pytest.raises(DataError, match=r"g\.safetensors: weights_sha256"):
        score(digits, other)
    write_features(other, read._replace(about=structs.replace(read.about, extractor="mine.pt2")))
    with pytest.raises(UsageError, match=r"mine\.pt2"):  # a stranger's file is not opened
        score(digits, other, extractor="")
    write_features(other, read._replace(logits=None))
    with pytest.raises(UsageError, match="no logits"):
        score(other, saved, ("is",), extractor="")
    (tmp_path / "img512.pkl").write_bytes(pickle.dumps({"fid": {"mu": np.zeros(3), "sigma": np.eye(3)}}))
    with pytest.raises(FormatError, match="pickle"):
        score(digits, tmp_path / "img512.pkl")


# What can't be scored


def test_too_few_images_are_refused_by_every_metric(images, tmp_path):
    many = save(tmp_path / "many.npy", images[:70])
    options = {"kid_subset_size": 50, "splits": 4}
    for name in METRICS:
        for side, needed in enumerate(parse_metrics(name, options)[name].least):
            if needed > 1:
                few = save(tmp_path / f"{name}-{side}.npy", np.zeros((needed - 1, 8, 8, 1), np.uint8))
                sets = [few if at == side else many for at in range(2)]
                with pytest.raises(DataError, match=rf"{few.name}: .*{name} needs at least {needed}"):
                    score(*sets, (name,), **options)
    one = save(tmp_path / "1.npy", images[:1])
    for metrics, out in ((("fid",), None), (("is",), tmp_path / "s.npz")):
        with pytest.raises(DataError, match="2"):
            score(one, None if out else many, metrics, splits=1, save_stats=out)
    two = save(tmp_path / "2.npy", images[:2])
    assert score(two, None, save_stats=tmp_path / "s.npz") and score(one, many, ("accuracy",), classes="1")


def test_what_a_metric_lacks_is_named(images, digits, tmp_path, monkeypatch):
    path = save(tmp_path / "a.npy", images[:40])
    pair = (path, digits)
    for word, given, metrics in (
        ("ref", (path, None), ("fid",)),
        ("labels", pair, ("accuracy",)),
    ):
        with pytest.raises(UsageError, match=f"{metrics[0]} needs {word}"):
            score(*given, metrics)
    with pytest.raises(UsageError, match=INCEPTION):
        score(*pair, ("prc",), prc_protocol="adm")
    monkeypatch.setattr(Tiny, "forward", lambda self, images: images.float().flatten(1)[:, :64])
    with pytest.raises(UsageError, match="no logits"):
        score(*pair, ("is",))


def test_features_that_are_not_finite_name_the_image(images, digits, tmp_path, monkeypatch):
    whole = Tiny.forward

    def nan_for_black(self, pixels):
        values, logits = whole(self, pixels)
        return torch.where((pixels > 0).flatten(1).any(1)[:, None], values, torch.nan), logits

    monkeypatch.setattr(Tiny, "forward", nan_for_black)
    blank = images[:50].copy()
    blank[17] = 0
    with pytest.raises(DataError, match=r"a\.npy: .*image 17 "):
        score(save(tmp_path / "a.npy", blank), digits, batch_size=8)


def test_memory_does_not_grow_with_the_stream():
    class Zeros(io.RawIOBase):
        """A stream of black images after a header."""

        def __init__(self, count):
            self.header = io.BytesIO(npy_header((count, 64, 64, 3)))
            self.left = count * 64 * 64 * 3

        def read(self, size=-1):
            return self.header.read(size) or bytes(self.readinto(bytearray(size)))

        def readinto(self, buffer):
            count = min(self.left, len(buffer))
            self.left -= count
            return count

    def peak(count):
        tracemalloc.start()
        score(Zeros(count), None, ("is",))
        top = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return top

    assert peak(1200) < peak(200) + 6_000_000


# Classes


def test_accuracy_counts_the_labels_that_a_stream_was_drawn_with(images, digits, tmp_path):
    path = save(tmp_path / "a.npy", images[:40])
    by_class = [score(path, None, ("accuracy",), classes=str(c))[ACCURACY] for c in range(10)]
    assert sum(by_class) == pytest.approx(1)
    found = score(path, digits, ("accuracy", "fid"), classes="2,0,7")
    expected = score(save(tmp_path / "a.npz", images[:40], np.resize([2, 0, 7], 40)), digits, ("accuracy", "fid"))
    assert found[ACCURACY] == expected[ACCURACY] > 0
    assert (found["classes"], found["most_of_a_class"]) == (3, 14) == (expected["classes"], expected["most_of_a_class"])


def test_other_class_frequencies_than_the_references_are_a_warning(images, skewed, tmp_path):
    labels = Dataset(skewed).labels
    alike, balanced = (save(tmp_path / f"{k}.npz", images, rows) for k, rows in enumerate((labels, np.arange(300) % 10)))

    def warned(samples, metrics, ref=skewed, **options):
        with heard() as lines:
            score(samples, ref, metrics, **options)
        return [line for line in lines if "--classes data" in line]

    assert warned(balanced, ("fid",)) and not warned(alike, ("fid",)) and not warned(balanced, ("is",))
    draw = np.random.default_rng(0)
    even = save(tmp_path / "even.npz", images, np.arange(300) % 10)
    for _ in range(20):
        fair = save(tmp_path / "fair.npz", images[:100], draw.integers(0, 10, 100))
        assert not warned(fair, ("fid",), even)
    with pytest.raises(UsageError):
        score(save(tmp_path / "a.npy", images), skewed, ("fid", "accuracy"), classes="data")


def test_classes_of_a_stream_are_those_of_the_reference_by_name_and_number(images, pack, tmp_path):
    path = save(tmp_path / "a.npy", images[:40])
    three = pack("three.h5", images[:60], names=("ant", "bee", "cat"))
    twelve = pack("twelve.h5", images[:60], names=[*"abcdefghijkl"])
    by_name, by_number = (score(path, three, ("accuracy",), classes=said) for said in ("cat,ant", "2,0"))
    assert by_name[ACCURACY] == by_number[ACCURACY] and by_name["classes"] == 2
    with pytest.raises(DataError, match="0 to 11"):
        score(path, twelve, ("accuracy",), classes="balanced")


@pytest.mark.parametrize("labels", [np.arange(40), np.arange(40) % 10 - 1, np.full(40, 10)])
def test_labels_of_classes_that_the_network_does_not_know_are_refused(labels, images, tmp_path):
    saved = tmp_path / "s.safetensors"
    path = save(tmp_path / "s.npz", images[:40], labels)
    score(path, None, ("is",), save_features=saved)
    for each in (path, saved):
        with pytest.raises(DataError, match=rf"{each.name}: .*{labels.min()} to {labels.max()}"):
            score(each, None, ("accuracy",))


def test_what_is_drawn_by_a_seed_names_it(images, digits, tmp_path):
    path = save(tmp_path / "a.npy", images[:40])
    assert score(path, digits, ("accuracy",), classes="random", seed=3)["seed"] == 3
    assert "seed" not in score(path, digits, seed=3)


def test_the_sheet_of_neighbours_has_the_closest_pairs_pixel_for_pixel(images, tmp_path):
    samples = images[200:].copy()
    training = images[:200]
    sheet = tmp_path / "n.png"
    samples[33], samples[5] = training[17], training[3]
    saved = [tmp_path / f"{name}.safetensors" for name in "st"]
    paths = [save(tmp_path / "s.npz", samples), save(tmp_path / "t.npy", training)]
    for path, out in zip(paths, saved):
        score(path, None, save_features=out)
    score(*paths, neighbours=sheet)
    apart = cdist(*(read_features(path).features.double().numpy() for path in saved))
    order = apart.min(1).argsort(kind="stable")[:12]
    assert order[0] == 5
    rows = [[samples[index], *training[apart[index].argsort()[:5]]] for index in order]
    wanted = sheet_of(rows, [f"{index}: {apart[index].min():.3g}" for index in order])
    with Image.open(sheet) as picture:
        assert np.array_equal(picture, wanted)


def sheet_of(rows, names):
    """A sheet with a row of images behind each name."""
    images = np.concatenate(rows)
    columns = len(rows[0])
    groups = [Group(name, range(k * columns, (k + 1) * columns)) for k, name in enumerate(names)]
    return draw_contact_sheet(images, structs.replace(lay_out(8, 8, groups), columns=columns))


@pytest.mark.parametrize(("n", "ref"), [(1, 30), (30, 2)])
def test_few_images_make_a_small_sheet(n, ref, images, tmp_path):
    pair = save(tmp_path / "s.npy", images[:n]), save(tmp_path / "t.npy", images[n : n + ref])
    score(*pair, ("accuracy",), classes="1", neighbours=tmp_path / "n.png")
    rows = min(n, 12)
    columns = 1 + min(ref, 5)
    height = sheet_of(np.zeros((rows, columns, 8, 8, 1), np.uint8), ["0: 0"] * rows).height
    with Image.open(tmp_path / "n.png") as picture:
        assert picture.height == height


def test_a_sheet_needs_two_files_of_images_of_one_size(digits, tmp_path):
    features = tmp_path / "f.safetensors"
    stats = tmp_path / "f.npz"
    score(digits, None, save_features=features, save_stats=stats)
    large = save(tmp_path / "large.npy", np.zeros((30, 16, 16, 1), np.uint8))
    for pair in ((features, digits), (digits, features), (digits, stats), ([digits, digits], digits), (large, digits)):
        with pytest.raises(UsageError, match="neighbours"):
            score(*pair, allow_mismatch=True, neighbours=tmp_path / "n.png")
