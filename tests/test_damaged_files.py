"""Files never run code, and a damaged or hostile one ends every command that reads it in one sentence.

`FUZZ=200` tries 200 seeds for each file instead of a few, `FUZZ="200 300"` those from 200 to 299; `make fuzz` does so.
"""

import ast
import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import tarfile
import zipfile
from random import Random

import h5py
import numpy as np
import pytest
import torch
import yaml
from formats import places
from harness import run_elbo
from PIL import Image

SEEDS = range(*map(int, os.environ.get("FUZZ", "3").split()))
CHECKPOINT = "run/checkpoints/step-00000010"
SCORES = "--extractor elbo-tiny --metrics fid -q"
NETWORK = {"channels": 8, "levels": [1, 2], "blocks": 1, "attention": [4]}
TRAIN = {"steps": 10, "batch_size": 4, "save_every": 10, "log_every": 5, "preview_every": 0}
CONFIG = {"num_train_timesteps": 50, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
MAKING = {
    "prep good.npy data.h5 -q": "",
    "train data.h5 --preset tiny.yaml -o run -q --snapshot-every 5": "",
    "sample run -n 12 --steps 2 -o samples.h5": "",
    "sample run -n 12 --steps 2 -o samples.npz": "",
    f"eval samples.h5 --ref data.h5 {SCORES} --save-stats stats.npz --save-features features.safetensors": "run/scores.json",
    "bound run -n 4 --draws 2 -q": "run/bound.json",
    "bound run -n 4 --draws 2 -q --check": "run/theorem.json",
    "ema run --std .1 -o average.safetensors -q": "",
    "adapt run -o schedule.yaml -q": "",
}
"""Commands that make good files, and where their output goes."""
DRY = "train data.h5 --preset tiny.yaml -o new --dry-run"
SAMPLE = "sample run -n 1 --steps 2 -o x.npy"
REPORT = "report run -o x.html"
OF_RUN = ["info run", SAMPLE, REPORT, "adapt run -o x.yaml", "train -o run --dry-run"]
OF_WEIGHTS = [
    *(SAMPLE, f"info {CHECKPOINT}", "info --verify run", "train -o run --steps 11 -q", "bound run -n 2 --draws 2"),
    *(f"{DRY} --init run", "ema run --std .1 -o x.safetensors"),
]
OF_RESULTS = [REPORT]
READERS = {
    "data.h5": [
        *("info --verify {0}", "prep {0} x.h5 -q", "bound run {0} -n 2 --draws 2 -q"),
        *(DRY, f"eval samples.npz --ref {{0}} {SCORES}", "info {0} --sheet x.png"),
    ],
    "samples.h5": ["info {0}", f"eval {{0}} --ref data.h5 {SCORES}", "report run {0} -o x.html"],
    "good.npy": ["info {0}", "prep {0} x.h5 -q", f"eval {{0}} --ref data.h5 {SCORES}"],
    "samples.npz": ["info {0}", "prep {0} x.h5 -q", f"eval {{0}} --ref data.h5 {SCORES}"],
    "stats.npz": ["info {0}", f"eval samples.npz --ref {{0}} {SCORES}"],
    "features.safetensors": ["info {0}", "eval {0} --ref stats.npz -q", "compare {0} {0} --ref stats.npz"],
    "average.safetensors": ["info {0}", SAMPLE + " --weights {0}", "info --verify {0}"],
    "schedule.yaml": ["info {0}", "weights show u-mse@{0}", DRY + " --schedule {0}", SAMPLE + " --schedule {0}"],
    "tiny.yaml": [DRY, "presets show {0}"],
    "scheduler_config.json": ["weights check {0}", DRY + " --schedule {0}"],
    "run/config.yaml": [*OF_RUN, "train data.h5 --config {0} -o new --dry-run"],
    "run/status.json": ["info run", REPORT],
    "run/metrics.jsonl": ["info run", REPORT],
    "run/losslog.jsonl": [*OF_RUN, "info {0}"],
    "run/scores.json": [*OF_RESULTS, "compare {0} {0}"],
    "run/bound.json": OF_RESULTS,
    "run/theorem.json": OF_RESULTS,
    f"{CHECKPOINT}/meta.json": OF_WEIGHTS,
    f"{CHECKPOINT}/model.safetensors": OF_WEIGHTS,
    f"{CHECKPOINT}/state.pt": OF_WEIGHTS[2:4],
    "run/snapshots/step-00000010/meta.json": OF_WEIGHTS[-1:],
    "weights.pt": ["import {0} new --format dit", "import {0} new"],
    "images.tar": ["prep {0} x.h5 -q", "prep {0} x.h5 -q --on-error skip"],
    "images.zip": ["prep {0} x.h5 -q", "prep {0} x.h5 -q --on-error skip"],
    "images/0.png": ["prep images x.h5 -q", f"eval images --ref data.h5 {SCORES}"],
    "labels.txt": ["prep images x.h5 -q --labels {0}"],
}
"""Files of every format → the command lines that read them, {0} in place of the file."""
ONLY_PICKLES = {
    "labels.npy": ["prep images x.h5 -q --labels {0}"],
    "weights.pth": ["eval good.npy --ref data.h5 -q --extractor-weights {0}"],
    "program.pt2": ["import {0} new", "eval good.npy --ref data.h5 -q --extractor {0}"],
    "reference.pkl": [f"eval samples.npz --ref {{0}} {SCORES}", "info {0}", "prep {0} x.h5 -q"],
    "vae/diffusion_pytorch_model.bin": ["prep images x.h5 -q --latents vae"],
}
"""Other names under which files of numbers often are pickles."""
ANSWERS = ("bound", "weights", "info")
"""Commands that also say no by exit code 1, with the answer on standard output."""


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with a good file of every format."""
    folder = tmp_path_factory.mktemp("good")
    for name in ("images", "vae"):
        (folder / name).mkdir()
    np.save(folder / "good.npy", np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8))
    (folder / "tiny.yaml").write_text(json.dumps({"network": NETWORK, "train": TRAIN}))
    (folder / "scheduler_config.json").write_text(json.dumps(CONFIG))
    (folder / "vae/config.json").write_text('{"_class_name": "AutoencoderKL"}')
    (folder / "labels.txt").write_text("".join(f"{number}.png {number % 2}\n" for number in range(3)))
    weights = {"pos_embed": torch.zeros(1, 16, 8), "x_embedder.proj.weight": torch.zeros(8, 4, 2, 2)}
    torch.save(weights, folder / "weights.pt")
    with tarfile.open(folder / "images.tar", "w") as tar, zipfile.ZipFile(folder / "images.zip", "w") as packed:
        for name in ("0.png", "1.png", "2.png"):
            Image.new("RGB", (8, 8)).save(folder / "images" / name)
            tar.add(folder / "images" / name, name)
            packed.write(folder / "images" / name, name)
    for line, output in MAKING.items():
        made = run_elbo(*line.split(), cwd=folder)
        assert made.returncode == 0, (line, made.stderr)
        if output:
            (folder / output).write_bytes(made.stdout)
    return folder


@pytest.fixture
def folder(good, tmp_path):
    return shutil.copytree(good, tmp_path / "copy")


def check(folder, file, line):
    """Run a command line: it succeeds, or says in one sentence what is wrong; return the exit code. An exception is raised."""
    command = line.split()[0]
    done = run_elbo(*line.format(file).split(), cwd=folder)
    said = done.stderr.decode()
    assert done.returncode in (0, 1, 2, 4) and "Traceback" not in said and "\x1b" not in said, said
    if done.returncode and not (done.returncode == 1 and command in ANSWERS and done.stdout):
        last = said.splitlines()[-1]
        assert last.startswith(f"elbo {command}") and ": error: " in last and said.count(": error: ") == 1, said
    return done.returncode


@pytest.mark.parametrize("line", dict.fromkeys(line.format(file) for file in READERS for line in READERS[file]))
@pytest.mark.long
def test_every_command_line_reads_the_whole_file(line, folder):
    assert (check(folder, "", line) == 0) == (not line.startswith("import"))


def seal(path):
    """Put the digest of a checkpoint's file right, as one who means harm would."""
    meta = path.parent / "meta.json"
    if meta.exists() and meta != path:
        content = path.read_bytes()
        about = json.loads(meta.read_text())
        about["files"][path.name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        meta.write_text(json.dumps(about))


# Seeded damage that knows a format, so that the outer form mostly still stands

ODD = [
    *(None, True, 0, 1, -1, 0.5, 1e-320, 1e308, 2**31, 2**53 + 1, 2**63 - 1, 2**63, -(2**63), 10**30),
    *(float("nan"), float("inf"), "", " ", "\n", "nan", "1_000", "x" * 5000, "\x1b[31m", "\u202e", "é\ud800"),
    *("../x", "/dev/zero", "a:b=c@d", [], {}, [[]], [0] * 3000, {"": {}}),
]
HEADERS = [
    *({"descr": each} for each in ("|O", "<f8", ">i2", "<U9", "<c16", "<M8[ns]", [("a", "<i8")], 1)),
    *({"shape": each} for each in ((), (0,), (-1, 8), (10**12, 8, 8, 3), (2**63,), (1,) * 40, (12, 8, 8))),
    {"fortran_order": True},
]
ATTRIBUTES = [h5py.Empty("f4"), -1, 10**15, np.uint64(2**63), 0.5, np.nan, *ODD[16:23], np.zeros(3)]


def odd(random, tree):
    """A tree of JSON with one of its places changed or taken out."""
    if isinstance(tree, str) and tree[:1] == "{":
        return json.dumps(odd(random, json.loads(tree)))
    box = {"": tree}
    *path, key = random.choice(places(box))
    node = box
    for each in path:
        node = node[each]
    value = node.pop(key)
    if random.random() < 0.8 or node is box:
        inside = odd(random, value) if isinstance(value, str) and value[:1] == "{" else str(value)
        changed = random.choice([*ODD, [value] * 3000, {str(key): value}, *[inside] * 9])
        node.insert(key, changed) if isinstance(node, list) else node.update({key: changed})
    return box[""]


def any_bytes(random, content):
    """Bytes with one place flipped, overwritten, taken out, doubled or cut off."""
    at = random.randrange(min(len(content), random.choice([16, 512, 10**9])) + 1)
    length = random.choice([1, 2, 8, 64, 1000])
    middle = content[at : at + length]
    flipped = bytes(byte ^ 1 << random.randrange(8) for byte in middle[:1]) + middle[1:]
    middle = random.choice([flipped, random.randbytes(length), bytes(length), b"\xff" * length, b"", middle * 2])
    return content[:at] + (middle + content[at + length :] if random.random() < 0.8 else b"")


def in_text(random, content):
    for load in (json.loads, yaml.safe_load):
        with contextlib.suppress(ValueError, yaml.YAMLError):
            return json.dumps(odd(random, load(content.decode()))).encode()
    lines = content.decode().splitlines()
    at = random.randrange(len(lines))
    line = json.dumps(odd(random, json.loads(lines[at])))
    lines[at : at + 1] = random.choice([[line], [line], [], [line[:-9]], lines[at : at + 1] * 2])
    return "\n".join(lines).encode()


def in_zip(random, content):
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        members = {name: file.read(name) for name in file.namelist()}
    name = random.choice(sorted(members))
    inside = members.pop(name)
    renamed = random.choice([name] * 6 + [f"../{name}", "x" * 300, f"{name}.npy"])
    members[renamed] = random.choice([damaged(random, inside)] * 3 + [b"", *members.values()])
    with zipfile.ZipFile(box := io.BytesIO(), "w", random.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])) as file:
        for name, inside in members.items():
            file.writestr(name, inside)
    return box.getvalue()


def in_npy(random, content):
    start = 10 + int.from_bytes(content[8:10], "little")
    header = repr(ast.literal_eval(content[10:start].decode()) | random.choice(HEADERS)).encode()
    return content[:8] + len(header).to_bytes(2, "little") + header + content[start:]


def in_tensors(random, content):
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.dumps(odd(random, json.loads(content[8:start]))).encode()
    length = random.choice([len(header)] * 8 + [0, len(header) + 1, 2**40, 2**64 - 1])
    return length.to_bytes(8, "little") + header + content[start:]


def in_hdf5(random, content):
    box = io.BytesIO(content)
    with h5py.File(box, "r+") as file:
        attributes = file.attrs
        owner = random.choice([file, attributes])
        name = random.choice(sorted(owner))
        value = owner[name] if owner is attributes else owner[name][()]
        del owner[name]
        if owner is attributes:
            changes = [*ATTRIBUTES, *[odd(random, value)] * 5 * isinstance(value, str)]
        else:
            kinds = ["i1", "i8", "u8", "f2", "f8", "c8"] if value.dtype.kind in "iuf" else []
            changes = [value[:-1], value[None], value.reshape(-1), np.float64(0), *map(value.astype, kinds)]
        with contextlib.suppress(TypeError, ValueError, OverflowError):  # values that HDF5 cannot hold
            owner[name] = random.choice(changes)
    return box.getvalue()


FORMATS = {b"PK\3\4": in_zip, b"\x93NUM": in_npy, b"\x89HDF": in_hdf5}


def damaged(random, content):
    """Damage to a file's bytes, or to the values in it."""
    change = in_tensors if content[8:9] == b"{" else FORMATS.get(content[:4], in_text)
    if random.random() < 0.7:
        with contextlib.suppress(ValueError):  # neither text nor values
            return change(random, content)
    return any_bytes(random, content)


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=[pytest.mark.long] * (seed > 0)) for seed in SEEDS])
@pytest.mark.parametrize("file", READERS)
def test_a_damaged_file_is_refused_in_a_sentence_or_harmless(file, seed, folder):
    random = Random(f"{file} {seed}")
    path = folder / file
    path.write_bytes(damaged(random, path.read_bytes()))
    if random.random() < 0.7:
        seal(path)
    check(folder, file, random.choice(READERS[file]))


# Hostile files


def saved(write, *args, **options):
    write(box := io.BytesIO(), *args, **options)
    return box.getvalue()


def payloads(bomb):
    """Contents that run code where a reader unpickles or trusts, and some that exhaust a careless parser."""
    objects = np.array([bomb], object)
    yield pickle.dumps({"x": bomb}, 2)
    yield saved(lambda box: torch.save({"x": bomb}, box))
    yield saved(lambda box: torch.save({"x": bomb}, box, _use_new_zipfile_serialization=False))
    yield saved(np.save, objects, allow_pickle=True)
    yield saved(np.savez, arr_0=objects, mu=objects, sigma=objects, about=objects)
    yield f"!!python/object/apply:os.mkdir [{bomb.folder}]".encode()
    yield b'{"format": ' + b"[" * 10**6
    yield b'{"version": 1, "step": ' + b"1" * 10**5 + b"}"
    yield b"a: &a [x,x,x]\n" + b"".join(b"%c: &%c [*%c,*%c,*%c]\n" % (k, k, k - 1, k - 1, k - 1) for k in range(98, 122))
    yield b""


@pytest.mark.parametrize("file", READERS | ONLY_PICKLES)
def test_nothing_in_a_file_is_run_and_a_hostile_one_is_refused_in_a_sentence(file, folder, bomb, monkeypatch):
    monkeypatch.setattr("elbocli.report.page._plots", lambda *entries: [])  # a refused file changes none
    lines = (READERS | ONLY_PICKLES)[file]
    path = folder / file
    before = folder.parent / "before"
    shutil.copytree(folder, before)
    for number, content in enumerate(payloads(bomb)):
        path.write_bytes(content)
        seal(path)
        check(folder, file, lines[number % len(lines)])
        assert not bomb.went_off
        shutil.rmtree(folder)
        shutil.copytree(before, folder)


@pytest.mark.parametrize("file", READERS)
def test_an_endless_device_in_place_of_a_file_is_refused(file, folder):
    (folder / file).unlink()
    (folder / file).symlink_to("/dev/zero")
    check(folder, file, READERS[file][0])


def huge(**change):
    return json.dumps({"network": {**NETWORK, **change}, "train": TRAIN})


CONTENTS = {
    "channels": ("tiny.yaml", huge(channels=10**9)),
    "blocks": ("tiny.yaml", huge(blocks=10**9)),
    "levels": ("tiny.yaml", huge(levels=[1] * 10**4)),
    "a level": ("tiny.yaml", huge(levels=[10**9, 1])),
    "a list for a number": (
        "run/scores.json",
        '{"format": "elbo-scores", "version": 1, "scores": {"frechet_distance[elbo-tiny]": {"value": []}}, "n_samples": 2}',
    ),
    "names of metrics": ("run/metrics.jsonl", "".join(f'{{"step":1,"images":1,"n{i}":1}}\n' for i in range(1000))),
}


@pytest.mark.parametrize("what", CONTENTS)
def test_odd_content_is_refused_before_memory_is_taken_for_it(what, folder):
    file, text = CONTENTS[what]
    (folder / file).write_text(text)
    for line in READERS[file]:
        check(folder, file, line)
