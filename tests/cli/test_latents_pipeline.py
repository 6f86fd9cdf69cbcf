"""Latents through the commands: trained on, drawn, decoded, with nothing said that isn't ours."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from packing import pack
from PIL import Image

from elbocli.errors import UsageError
from elbocli.prep.encode_latents import LatentEncoder

WITHOUT = "import sys; sys.modules['diffusers'] = None; from elbocli.main import main; main()"


@pytest.fixture(scope="module")
def trained_by_command(
    elbo: Callable[..., Any],
    autoencoder: Path,
    pack_latents: Callable[..., Path],
    preset: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Any:
    """(run, what the command left), with an autoencoder about whose config diffusers has something to say."""
    folder = tmp_path_factory.mktemp("commands")
    config = Path(shutil.copytree(autoencoder, folder / "vae")) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "surprise": 1}))
    run = folder / "run"
    done = elbo(
        "train", pack_latents(folder / "vae"), "-o", run, "--preset", preset, "--steps", 4, "--preview-every", 4
    )
    return run, done


def only_ours(stderr: bytes, command: str) -> bool:
    return all(line.startswith(f"elbo {command}: ".encode()) for line in stderr.splitlines())


def test_trained_and_sampled_by_the_commands_alone(elbo: Callable[..., Any], trained_by_command: Any) -> None:
    run, trained = trained_by_command
    assert (trained.returncode, trained.stdout) == (0, f"{run}\n".encode()), trained.stderr
    assert only_ours(trained.stderr, "train") and b"warning" not in trained.stderr, trained.stderr
    assert (run / "previews" / "step-00000004.png").exists()
    drawn = elbo("sample", run, "-n", 5, "--steps", 3)
    assert drawn.returncode == 0 and only_ours(drawn.stderr, "sample"), drawn.stderr
    images = np.load(io.BytesIO(drawn.stdout))
    assert images.dtype == np.uint8 and images.shape == (5, 16, 16, 3) and images.std() > 1


def test_without_the_extra_sampling_says_what_to_install(trained_by_command: Any, tmp_path: Path) -> None:
    line = [sys.executable, "-c", WITHOUT, "sample", str(trained_by_command[0]), "-n", "1", "-o", "x.npy"]
    drawn = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert drawn.returncode == 2 and "Traceback" not in drawn.stderr
    assert "needs the extra 'latents': pip install 'elbocli[latents]'" in drawn.stderr
    assert not (tmp_path / "x.npy").exists()


# Packed by the command


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory, photos: np.ndarray) -> Path:
    """The photographs as class folders of PNGs."""
    folder = tmp_path_factory.mktemp("colours") / "src"
    for index, image in enumerate(photos):
        path = folder / "ab"[index % 2] / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    return folder


def test_packed_trained_and_sampled_by_the_commands(
    elbo: Callable[..., Any], colours: Path, photos: np.ndarray, autoencoder: Path, preset: Path, tmp_path: Path
) -> None:
    size = photos.shape[1]
    packed = elbo("prep", colours, "l.h5", "--size", size, "--latents", autoencoder, "--mirror", cwd=tmp_path)
    assert packed.returncode == 0 and packed.stdout == b"" and only_ours(packed.stderr, "prep"), packed.stderr
    with h5py.File(tmp_path / "l.h5") as file:
        assert file["latents"].dtype == np.float16 and len(file["latents"]) == 2 * len(photos)
        assert file["files"][0] == file["files"][1] != file["files"][2]
        assert file["labels"][:].tolist() == sorted(file["labels"][:]) and file["class_counts"][:].sum() == 2 * len(
            photos
        )
    line = ["train", "l.h5", "--preset", preset, "--steps", 3, "--preview-every", 0]
    trained = elbo(*line, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    drawn = elbo("sample", "run", "-n", 3, "--steps", 2, "-o", "x.npz", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    with np.load(tmp_path / "x.npz") as drawn:
        assert drawn["arr_0"].shape == (3, size, size, 3)
    about = json.loads(elbo("info", "l.h5", "--json", cwd=tmp_path).stdout)
    assert about["latent_convention"] == "diffusers" and about["mirrored"]


KILLED = """
import os, sys
from pathlib import Path
import torch
from elbocli.prep import encode_latents as encode
from elbocli.prep import pack as prep
torch.set_num_threads(1)
encode.comfortable_batch = lambda size, cpu: 3
real = encode.LatentEncoder.rows
prep.SAFE_EVERY_S = 0

def pack(out, after):
    calls = []
    def rows(self, pixels):
        calls.append(len(pixels))
        if len(calls) > after:
            os.kill(os.getpid(), 9)
        return real(self, pixels)
    encode.LatentEncoder.rows = rows
    settings = prep.Settings(size=int(sys.argv[4]), latents=Path(sys.argv[3]), mirror=True, on_error="skip")
    pid = os.fork()
    if pid == 0:
        prep.pack_images([Path(sys.argv[1])], Path(sys.argv[2]) / out, settings)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

assert [pack("whole.h5", 10**6), pack("killed.h5", 2), pack("killed.h5", 1), pack("killed.h5", 10**6)] == [0, 9, 9, 0]
"""


@pytest.mark.slow
def test_killed_while_encoding_the_latents_are_the_same(
    colours: Path, photos: np.ndarray, autoencoder: Path, tmp_path: Path
) -> None:
    """Groups of images go through the autoencoder as they would have without the kill, also past a broken file."""
    src = Path(shutil.copytree(colours, tmp_path / "src"))
    (src / "a" / "0000.png").write_text("broken")
    line = [sys.executable, "-c", KILLED, src, tmp_path, autoencoder, photos.shape[1]]
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_shards_of_latents_add_up_to_the_whole(
    colours: Path, photos: np.ndarray, autoencoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Numbers may depend on the images that go through the autoencoder together; here they do."""
    monkeypatch.setattr("elbocli.prep.encode_latents.comfortable_batch", lambda size, cpu: 5)
    real = LatentEncoder.rows

    def rows(self: LatentEncoder, pixels: list[np.ndarray]) -> list[np.ndarray]:
        return [row + np.float16(np.mean(pixels)) for row in real(self, pixels)]

    monkeypatch.setattr(LatentEncoder, "rows", rows)
    parts = []
    for shard in (None, (1, 3), (2, 3), (3, 3)):
        path = tmp_path / f"{shard}.h5"
        pack(colours, path, size=photos.shape[1], latents=autoencoder, mirror=True, shard=shard)
        with h5py.File(path) as file:
            parts.append((file["latents"][:], file["labels"][:], file["files"][:]))
    for whole, *rest in zip(*parts, strict=True):
        assert min(map(len, rest)) > 0
        np.testing.assert_array_equal(np.concatenate(rest), whole)


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"latents": True, "store": "png"}, "leave --channels and --store out"),
        ({"latents": True, "channels": 1}, "leave --channels and --store out"),
        ({"latents": True, "size": 15}, "take a multiple of"),
        ({"mirror": True}, "elbo train --flip"),
    ],
)
def test_latents_that_can_not_be_are_refused_before_any_work(
    settings: dict[str, Any], word: str, colours: Path, autoencoder: Path, tmp_path: Path
) -> None:
    settings = {**settings, **({"latents": autoencoder} if "latents" in settings else {})}
    with pytest.raises(UsageError, match=word):
        pack(colours, tmp_path / "x.h5", **settings)
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_packing_says_what_to_install(colours: Path, autoencoder: Path, tmp_path: Path) -> None:
    line = [sys.executable, "-c", WITHOUT, "prep", str(colours), "x.h5", "--latents", str(autoencoder)]
    done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2 and "pip install 'elbocli[latents]'" in done.stderr
    assert list(tmp_path.iterdir()) == []
