"""Latents through the commands: trained on, drawn, decoded, with nothing said that isn't ours."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WITHOUT = "import sys; sys.modules['diffusers'] = None; from elbocli.cli.main import main; main()"


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
