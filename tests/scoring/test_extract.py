"""Images are read once, ahead of the network, by any number of processes and in any precision, which changes no number."""

import contextlib
import io
import json
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from calls import TINY, save, score
from harness import environment, run_code
from PIL import Image

from elbocli.errors import DataError
from elbocli.files.dataset import Dataset
from elbocli.files.features import FeatureFacts, read_features, read_statistics
from elbocli.files.sample_files import npy_header
from elbocli.runtime.processes import ALONE
from elbocli.scoring import scoring
from elbocli.scoring.extract import extract_features
from elbocli.scoring.extractors import DEFAULT, PUBLISHED_INCEPTION, Extractor, make_extractor
from elbocli.scoring.metrics import parse_metrics
from elbocli.scoring.opening import Evaluation
from elbocli.scoring.result import name_of
from elbocli.scoring.sets import open_set
from elbocli.scoring.settings import EvalSettings

KEY = "feature_precision"


@pytest.fixture
def network():
    """The tiny extractor."""
    return make_extractor("elbo-tiny", None, "cpu")


def evaluation(images, extractor, batch):
    """An evaluation of these images, without metrics."""
    return Evaluation(EvalSettings(metrics={}, batch_size=batch), ALONE, [images], extractor=extractor)


def extracted(path, monkeypatch, extractor, asked):
    """The file's images with their features, extracted in batches of 4; `asked` has the start and the thread of each read."""
    with contextlib.ExitStack() as stack:
        images = open_set(path, stack, ALONE)
        at_once = images.reader.at

        def at(start, count):
            asked.append((start, threading.current_thread() is threading.main_thread()))
            return at_once(start, count)

        monkeypatch.setattr(images.reader, "at", at)
        return extract_features(images, evaluation(images, extractor, 4), {"values"})


def test_a_thread_reads_files_one_batch_ahead_and_the_main_thread_pipes(tmp_path, monkeypatch, network, within):
    images = np.random.default_rng(0).integers(0, 256, (22, 8, 8, 3), dtype=np.uint8)
    folder = tmp_path / "images"
    folder.mkdir()
    for k, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{k:02}.png")
    asked = []
    seen = []

    def slow(batch):
        while len(asked) < min(len(seen) + 2, 6):
            time.sleep(0.001)
        seen.append(len(asked))
        return network.module(batch)[0]

    module = torch.nn.Module()
    module.forward = slow
    with within(300):
        files = extracted(folder, monkeypatch, Extractor("slow", module, ""), asked)
    starts = list(range(0, 22, 4))
    assert asked == [(start, False) for start in starts]
    assert seen[0] == 2, "the second batch was read before the first was extracted"
    pipe = tmp_path / "pipe.npy"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes(npy_header(images.shape) + images.tobytes()))
    writer.start()
    asked.clear()
    piped = extracted(pipe, monkeypatch, network, asked)
    writer.join()
    assert asked == [(start, True) for start in starts]
    assert torch.equal(piped.features.values, files.features.values) and len(files.features.values) == 22
    assert piped.about.images_sha256 == files.about.images_sha256 != None  # noqa: E711


def test_the_batch_changes_no_number(digits, tmp_path):
    path = save(tmp_path / "a.npy", Dataset(digits).read(np.arange(100)))
    found = [score(path, digits, batch_size=batch) for batch in (1, 7, 300)]
    assert [each[TINY] for each in found] == pytest.approx([found[0][TINY]] * 3, rel=1e-6)
    assert len({each["samples_sha256"] for each in found}) == 1


# Several processes


def scored(world, job):
    """The result that a process gets; the first one's is saved."""
    metrics = parse_metrics("fid,sfid,is,kid,prc", {"kid_subset_size": 50})
    outputs = {"save_features": Path(job["out"] + ".safetensors")} if world.size > 1 else {}
    settings = EvalSettings(metrics=metrics, extractor="elbo-tiny", batch_size=7, **outputs)
    samples: Any = Path(job["samples"])
    if job["streamed"]:
        samples = io.BytesIO(samples.read_bytes()) if world.first else io.BytesIO()
    result = scoring.run([samples], Path(job["ref"]), settings, world)
    assert (result is not None) == world.first
    if world.first:
        Path(job["out"]).write_text(json.dumps(result.json()))


CODE = f"""
import json, sys
from elbocli import main
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parent.parent)!r}]
import group
from test_extract import scored
jobs = json.loads(sys.argv[1])
codes = [group.forked(job["size"], lambda world: scored(world, job)) for job in jobs]
group._exit_code = main.run  # the command itself joins the processes
print(json.dumps([group.forked(2, sys.argv[2:]), *codes]))
"""


@pytest.mark.long
def test_numbers_do_not_depend_on_processes_and_an_error_of_any_ends_all(digits, tmp_path):
    """100 images in batches of 7, which no 2 or 3 processes share evenly; a picture is cut short in the second's part."""
    images = Dataset(digits).read(np.arange(100))
    folder = tmp_path / "cut"
    np.save(tmp_path / "a.npy", images)
    np.savez_compressed(tmp_path / "a.npz", images)
    folder.mkdir()
    for index, image in enumerate(images[:60]):
        Image.fromarray(image[:, :, 0]).save(folder / f"{index:02d}.png")
    (folder / "10.png").write_bytes((folder / "10.png").read_bytes()[:-30])
    cases = [(2, "a.npy", False), (3, "a.npz", False), (2, "a.npy", True), (2, "cut", False)]
    jobs = [
        {"size": size, "samples": f"{tmp_path}/{name}", "streamed": streamed, "ref": str(digits), "out": f"{tmp_path}/{k}"}
        for k, (size, name, streamed) in enumerate(cases)
    ]
    line = ["eval", "-", "--ref", digits, "--extractor", "elbo-tiny", "--metrics", "fid", "--batch-size", 16]
    given = {"env": environment(OMP_NUM_THREADS="1"), "input": (tmp_path / "a.npy").read_bytes()}
    done = run_code(CODE, json.dumps(jobs), *line, **given)
    assert done.returncode == 0, done.stderr
    *told, codes = done.stdout.splitlines()
    *codes, failed = json.loads(codes)
    assert not any(map(any, codes)) and failed == [1, 1] and b"10.png" in done.stderr, done.stderr
    scored(ALONE, {**jobs[0], "out": str(tmp_path / "alone")})
    alone, *shared = (json.loads((tmp_path / name).read_text()) for name in ("alone", "0", "1", "2"))
    command = json.loads(b"".join(told))
    said = done.stderr.count(b"standard input: has 100 images")
    assert said == 2, "once for each stream"
    assert command["samples_sha256"] == alone["samples_sha256"]
    assert command["scores"][TINY]["value"] == pytest.approx(alone["scores"][TINY]["value"], rel=1e-9)
    for found in shared:
        assert set(found) == set(alone)
        for key in set(alone) - {"samples", "scores"}:
            assert found[key] == alone[key], key
        assert {*found["scores"]} == {*alone["scores"]}
        for name, parts in alone["scores"].items():
            for part, value in parts.items():
                assert found["scores"][name][part] == pytest.approx(value, rel=1e-9), (name, part)
    saved = [read_features(tmp_path / f"{k}.safetensors") for k in range(3)]
    for each in saved[1:]:
        assert torch.equal(each.features, saved[0].features) and torch.equal(each.logits, saved[0].logits)


# Precision


@pytest.fixture
def pair(tmp_path):
    """Two files of images."""
    draw = np.random.default_rng(0)
    return [save(tmp_path / f"{name}.npy", draw.integers(0, 256, (70, 8, 8, 3), dtype=np.uint8)) for name in "ab"]


def test_features_in_bf16_are_those_of_autocast_and_every_file_says_so(pair, tmp_path, network):
    features = tmp_path / "f.safetensors"
    stats = tmp_path / "s.npz"
    found = score(pair[0], None, precision="bf16", save_features=features, save_stats=stats)
    kept = read_features(features)
    images = torch.from_numpy(np.load(pair[0])).permute(0, 3, 1, 2)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        parts = [network.module(part)[0] for part in images.split(64)]
    assert torch.equal(kept.features, torch.cat(parts).float())
    strict = network.module(images)[0]
    off = (kept.features - strict).norm() / (strict - strict.mean(0)).norm()
    assert 1e-4 < off < 0.05
    said = [found[KEY], kept.about.feature_precision, read_statistics(stats).about.feature_precision]
    assert said == ["bf16"] * 3 and score(*pair)[KEY] == "fp32"
    for ref in (features, stats):
        assert score(pair[1], ref, precision="bf16")[KEY] == "bf16"
        with pytest.raises(DataError, match=rf"{ref.name}: {KEY} is bf16"):
            score(pair[1], ref)
        assert score(pair[1], ref, allow_mismatch=True)["mismatch"] == {KEY: ["fp32", "bf16"]}


@pytest.mark.parametrize(
    ("precision", "name"),
    [(None, "frechet_inception_distance"), ("fp32", "frechet_inception_distance"), ("bf16", f"frechet_distance[{DEFAULT}]")],
)
def test_only_fp32_has_published_names(precision, name):
    about = FeatureFacts(extractor=DEFAULT, weights_sha256=PUBLISHED_INCEPTION, feature_precision=precision)
    assert name_of("frechet_distance", about) == name
    assert name_of("frechet_distance", about, comparable=False) == f"frechet_distance[{DEFAULT}]"
