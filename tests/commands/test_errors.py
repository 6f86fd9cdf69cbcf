"""Each mistake on a command line ends with its exit code, names its cause in one sentence, and leaves nothing behind."""

import json
import os
import re
import shlex
import shutil
import stat

import h5py
import pytest
from harness import run_code

from elbocli.files.recognise import recognise
from elbocli.files.sample_files import npy_header

TRAIN = """
float > 0 | --lr nan
float <= | --lr inf
expected float | --lr x
int >= 1 | --steps 0
1.5 | --ema 1.5
twice | --ema 0.9 --ema decay:beta=.9
sigmoid | --weighting sigmoidal
'bias' | --weighting edm --bias 2
cosine | --schedule cosin
'w' | --prediction w
5 to -5 | --logsnr-min 5 --logsnr-max -5
>= -50 | --logsnr-min -1e5
imagenet64 | --preset huge
pixels | --preset latents256
'fp8' | --precision fp8
duration | --time-limit 90
training.KEY | --set lr=1
beta2 | --set training.beta2=1
'tpu9' | --device tpu9
No such option | --bogus
"""
"""Word of the message, and options that end with exit code 2."""
CONFIGS = r"""
2 | lr | learning_rate: 1e-3
1 | twice | lr: 1e-3\nlr: 1e-4
2 | float > 0 | lr: nan
2 | expected float | lr: true
2 | [1, 2] | lr: [1, 2]
2 | expected int | seed: 1.5
2 | expected int <= 1000000000000 | steps: '9999999999999999'
2 | expected bool | flip: 3
2 | expected str | schedule: no
1 | c.yaml | format: elbo-run\nversion: 1\nsettings: [1]
2 | averages | ema: {power: .1}
1 | 'key: value' | - lr
1 | YAML | lr: {
2 | 'log_to' | log_to: hacked.jsonl
2 | 'out' | out: elsewhere
1 | YAML | lr: !!python/object/apply:os.system ['touch hacked']
"""
LINES = """
2 | Training: |
2 | No such option | -v train x.h5
1 | 0 datasets | train
1 | link.h5 | train link.h5
1 | expected a dataset, found no file or folder; 'elbo prep | train none.h5
1 | nowhere.yaml | train {data} --schedule nowhere.yaml
1 | 'log_to' | train {data} --preset stranger.yaml
1 | none of elbo's | info text.h5
1 | knows | info .
1 | expected a run, found a folder that is none of elbo's; 'elbo train | sample . -o x.npy
1 | expected a run, found an empty file | sample empty.h5 -o x.npy
1 | expected a run, found a dataset; 'elbo train DATA.h5 | sample {data} -o x.npy
1 | expected a run, found a dataset | sample {run} --guidance-scale 2 --guide {data}
1 | expected a run, found an autoencoder of diffusers | ema {vae} --std .1 -o x.safetensors
1 | expected a run, found images in class folders | report {images}
1 | expected a dataset, found a run | train {run}
1 | expected a schedule, found a run | train {data} --schedule {run}
1 | expected images, found a run | eval {run} --ref {data}
1 | an autoencoder of diffusers | info {vae}
1 | knots | sample {run} -n 2 -o x.npy --schedule knots.yaml
1 | loss log | adapt .
1 | loss log | adapt . --json
2 | 'bias' | adapt {run} --weighting edm:bias=2
2 | --overwrite | adapt {run} -o text.h5
1 | folder.h5 | prep folder.h5 x.h5
2 | --channels | prep {images} x.h5 --latents {vae} --channels 1
2 | multiple | prep {images} x.h5 --latents {vae} --size 15
2 | --flip | prep {images} x.h5 --mirror
2 | range | weights check scheduler.json --logsnr-min 12
1 | none.json | weights check v-mse@none.json
2 | 'nope' | weights check v-mse:nope@cosine
2 | .svg | weights plot sigmoid -o c.jpg
1 | none.npy | eval none.npy --ref {data}
2 | cifar | presets show cifr
2 | replaces only | grid {run} -o stranger.yaml --overwrite
2 | --out | weights plot sigmoid
"""
"""Exit code, word of the message, and command line."""
OUTPUTS = [
    "adapt {run} -o out.yaml",
    "bound {run} -n 8 --log out.jsonl",
    "eval {data} --ref {data} --save-features out.safetensors",
    "prep {images} out.h5",
    "report {run} -o out.html",
    "sample {run} -n 2 --steps 2 -o out.npz",
    "train {data} -o out",
    "weights plot sigmoid -o out.svg",
]


def rows(table):
    """The cells of each line."""
    return [[cell.strip().replace("\\n", "\n") for cell in line.split("|")] for line in table.strip().splitlines()]


def check(result, code, word):
    """The exit code; a word on stderr; no traceback; nothing on stdout."""
    stderr = result.stderr.decode()
    assert (result.returncode, result.stdout) == (int(code), b""), stderr
    assert word in stderr and "Traceback" not in stderr, stderr
    assert "error: " in stderr or "Usage:" in stderr


def fill(line, **places):
    """The words of a line, with paths in place of names."""
    return shlex.split(line.format(**{name: shlex.quote(str(path)) for name, path in places.items()}))


@pytest.fixture(scope="module")
def odd(digits, preset, trained, elbo, tmp_path_factory):
    """A folder of files that no command should take."""
    folder = tmp_path_factory.mktemp("odd")
    (folder / "empty.h5").touch()
    (folder / "text.h5").write_text("hello")
    (folder / "folder.h5").mkdir()
    with h5py.File(shutil.copy(digits, folder / "link.h5"), "r+") as file:
        del file["images"]
        file["images"] = h5py.ExternalLink("/etc/passwd", "images")
    stranger = preset.read_text().replace("steps: 40", "steps: 1, log_to: hacked")
    (folder / "stranger.yaml").write_text(stranger)
    (folder / "knots.yaml").write_bytes(elbo("adapt", trained).stdout.replace(b"t: 0.0,", b"t: 0.5,"))
    beta = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear", "prediction_type": "v_prediction"}
    (folder / "scheduler.json").write_text(json.dumps({"num_train_timesteps": 1000, **beta}))
    return folder


def refuse(line, code, word, elbo, folder, **places):
    """Run a command line in a folder; check that elbo refuses the line and changes no file."""
    before = sorted(folder.iterdir())
    check(elbo(*fill(line, **places), cwd=folder), code, word.format(**places))
    assert sorted(folder.iterdir()) == before


@pytest.mark.parametrize(("word", "options"), rows(TRAIN))
def test_options_of_training(word, options, elbo, odd, digits):
    refuse(f"train {{data}} {options}", 2, word, elbo, odd, data=digits)


@pytest.mark.parametrize(("code", "word", "content"), rows(CONFIGS))
def test_config_files(code, word, content, elbo, digits, tmp_path):
    (tmp_path / "c.yaml").write_text(f"{content}\n")
    refuse("train {data} --config c.yaml", code, word, elbo, tmp_path, data=digits)


@pytest.mark.parametrize(("code", "word", "line"), rows(LINES))
def test_lines(code, word, line, elbo, odd, digits, digits_folder, trained, autoencoder):
    folder = odd / "folder.h5" if line == "train" else odd
    refuse(line, code, word, elbo, folder, data=digits, images=digits_folder, run=trained, vae=autoencoder)


@pytest.mark.parametrize(("stdin", "word"), [(b"hello", "NPY"), (npy_header((3, 8, 8, 1)) + bytes(100), "truncated")])
def test_standard_input(stdin, word, elbo, digits):
    check(elbo("eval", "--ref", digits, "--extractor", "elbo-tiny", stdin=stdin), 1, word)


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("line", OUTPUTS)
def test_outputs_that_are_no_files(line, kind, elbo, trained, digits, digits_folder, tmp_path):
    out = tmp_path / re.search(r"\bout\S*", line)[0]
    try:
        os.mkfifo(out) if kind == "pipe" else os.mknod(out, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("making a device is not allowed here")
    before = out.lstat()
    for more in ("", " --overwrite")[: 1 if "train" in line else 2]:
        refuse(line + more, 2, "another", elbo, tmp_path, run=trained, data=digits, images=digits_folder)
    assert (out.lstat().st_ino, out.lstat().st_mode) == (before.st_ino, before.st_mode)


def test_a_loss_that_is_not_finite_exits_four(elbo, digits, preset, tmp_path):
    options = (
        "--precision bf16 --lr 1000 --warmup-steps 0 --grad-clip none --weighting elbo:shift=0 --logsnr-max 50 --prediction x"
    )
    result = elbo("train", digits, "-o", "run", "--preset", preset, *options.split(), "--steps", 400, cwd=tmp_path)
    check(result, 4, "gradient norm ")
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "failed"


def test_quiet_says_nothing_and_verbose_shows_where(elbo, digits_folder, tmp_path):
    assert elbo("prep", "-q", digits_folder, tmp_path / "a.h5").stderr == b""
    assert b"Traceback" in elbo("prep", "-v", tmp_path / "none", tmp_path / "b.h5").stderr


def test_a_system_that_is_not_posix():
    result = run_code("import os\nfrom elbocli.__main__ import main\nos.name = 'nt'\nmain()")
    assert result.returncode == 1 and result.stdout == b""
    assert result.stderr.startswith(b"elbo: error: ") and result.stderr.count(b"\n") == 1


# A path that is something else: messages say by this table what it is


KINDS = {
    "pipe/model_index.json": ("a pipeline of diffusers", "{}"),
    "vae/config.json": ("an autoencoder of diffusers", '{"_class_name": "AutoencoderKL"}'),
    "unet/config.json": ("a model of diffusers", '{"_class_name": "UNet2DModel"}'),
    "scheduler/scheduler_config.json": ("a scheduler of diffusers", "{}"),
    "pictures/1.png": ("a folder of images", "x"),
    "classes/cat/1.jpg": ("images in class folders", "x"),
    "docs/a/b.txt": ("a folder that is none of elbo's", "x"),
    "x.pt2": ("a program of torch.export", "PK\3\4"),
    "b.npz": ("samples", "PK\3\4" + 26 * "." + "arr_0.npy"),
    "c.npy": ("samples", "\x93NUMPY"),
    "a.zip": ("a zip archive", "PK\3\4"),
    "a.tar": ("a tar archive", "."),
    "a.tar.gz": ("a compressed archive", "\x1f\x8b"),
    "a.h5": ("a dataset", "\x89HDF\r\n\x1a\n"),
    "a.safetensors": ("an average of weights", '{"__metadata__":{"format":"elbo-ema"}}'),
    "b.safetensors": ("features", '{"__metadata__":{"format":"elbo-features"}}'),
    "scheduler.json": ("a scheduler of diffusers", '{"_class_name": "DDIMScheduler"}'),
    "a.pkl": ("a pickle, which could run code", "\x80\4\x95"),
    "a.txt": ("a file that is none of elbo's", "hello"),
    "empty": ("an empty file", ""),
}


@pytest.mark.parametrize("name", KINDS)
def test_files_are_recognised_by_their_beginning(name, tmp_path):
    kind, content = KINDS[name]
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("latin-1"))
    assert recognise(tmp_path / path.relative_to(tmp_path).parts[0]) == kind


def test_what_elbo_writes_is_recognised_and_known_to_info(elbo, trained, digits, tmp_path):
    for line in (
        ("adapt", trained, "-o", "s.yaml"),
        ("sample", trained, "-n", 4, "--steps", 2, "-o", "samples.npy"),
        ("eval", digits, "--extractor", "elbo-tiny", "--metrics", "fid", "--save-stats", "r.npz"),
    ):
        assert elbo(*line, cwd=tmp_path).returncode == 0, line
    for path, kind, told in (
        (trained, "a run", "run"),
        (min((trained / "checkpoints").iterdir()), "a checkpoint of a run", "checkpoint of a run"),
        (trained / "losslog.jsonl", "a loss log", "loss log"),
        (trained / "config.yaml", "a config of a run", "config of a run"),
        (digits, "a dataset", "dataset"),
        (tmp_path / "s.yaml", "a schedule", "schedule"),
        (tmp_path / "samples.npy", "samples", "samples"),
        (tmp_path / "r.npz", "statistics", "statistics"),
    ):
        assert recognise(path) == kind
        if told:
            assert json.loads(elbo("info", path, "--json").stdout)["is"] == told
