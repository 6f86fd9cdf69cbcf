"""Every example of the man pages does what is said there, in a folder with small things of the names they use."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from harness import BIN
from scipy.io import savemat

from elbocli.files.checkpoint import checkpoints

ROOT = Path(__file__).parent.parent
SMALLER = {
    r"-n \d{4,}": "-n 60",
    "step-00010000": "step-00000010",
    "node 8": "node 2",
    "every 5000": "every 2",
    "split 1000": "split 100",
    "--protocol adm": "--protocol adm --allow-mismatch",
}
"""All that is changed of them, and settings that the environment gives where they are silent."""
ENVIRONMENT = {
    "ELBO_DATA": "out.h5",
    "ELBO_TRAIN_STEPS": "20",
    "ELBO_TRAIN_SNAPSHOT_EVERY": "2",
    "ELBO_SAMPLE_STEPS": "2",
    "ELBO_EVAL_EXTRACTOR": "elbo-tiny",
    "ELBO_EVAL_KID_SUBSET_SIZE": "40",
    "ELBO_BOUND_N": "40",
    "OMP_NUM_THREADS": "1",
}
WNIDS = ("n01440764", "n02119789", "n02100735")


def examples() -> list[Any]:
    """(command, text, code) of each, as man/build.py has them."""
    spec = importlib.util.spec_from_file_location("build", ROOT / "man" / "build.py")
    assert spec and spec.loader
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    return [
        pytest.param(
            code, id=f"{command.replace(' ', '-')}-{index}", marks=[] if command == "elbo sample" else pytest.mark.slow
        )
        for command, listed in build.EXAMPLES.items()
        for index, (_, code) in enumerate(listed)
    ]


class Classifier(torch.nn.Module):
    """uint8 [B,1,8,8] → (features [B,4], logits [B,10])."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.logits = torch.nn.Linear(64, 4), torch.nn.Linear(4, 10)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.features(images.flatten(1).float() / 255)
        return features, self.logits(features)


def tarred(path: Path, members: dict[str, bytes]) -> bytes:
    """A tar at a path, and its bytes."""
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path.read_bytes()


def lay_out_ilsvrc(folder: Path, pictures: list[bytes]) -> None:
    """Three classes of ImageNet as it is downloaded, as Kaggle has it, and as webdataset shards."""
    part = folder / "part.tar"
    classes = {
        f"{w}.tar": tarred(part, {f"{w}_{k}.JPEG": pictures[3 * i + k] for k in range(3)}) for i, w in enumerate(WNIDS)
    }
    tarred(folder / "ILSVRC2012_img_train.tar", classes)
    part.unlink()
    validation = [f"ILSVRC2012_val_{k + 1:08d}.JPEG" for k in range(3)]
    tarred(folder / "ILSVRC2012_img_val.tar", dict(zip(validation, pictures, strict=False)))
    devkit = folder / "devkit" / "data"
    devkit.mkdir(parents=True)
    (devkit / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n3\n")
    fields = ("ILSVRC2012_ID", "WNID", "words", "num_children")
    table = np.empty((3, 1), dtype=[(name, object) for name in fields])
    table[:, 0] = [(float(k + 1), wnid, f"animal {k}", 0.0) for k, wnid in enumerate(WNIDS)]
    savemat(devkit / "meta.mat", {"synsets": table})
    for k, wnid in enumerate(WNIDS):
        (folder / "CLS-LOC/train" / wnid).mkdir(parents=True)
        (folder / "CLS-LOC/train" / wnid / f"{wnid}_1.JPEG").write_bytes(pictures[k])
    (folder / "CLS-LOC/val").mkdir()
    for name, content in zip(validation, pictures, strict=False):
        (folder / "CLS-LOC/val" / name).write_bytes(content)
    (folder / "LOC_synset_mapping.txt").write_text("".join(f"{w} animal {k}\n" for k, w in enumerate(WNIDS)))
    rows = (f"{name[:-5]},{w} 1 2 3 4\n" for name, w in zip(validation, WNIDS, strict=True))
    (folder / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
    for shard in range(2):
        names = [f"{shard}{k:05d}" for k in range(10)]
        sides = {f"{n}.cls": str(k % 2).encode() for k, n in enumerate(names)}
        images = {f"{n}.jpg": picture for n, picture in zip(names, pictures, strict=False)}
        tarred(folder / f"train-{shard}.tar", dict(sorted((images | sides).items())))


@pytest.fixture(scope="module")
def world(
    elbo: Any,
    digits_folder: Path,
    digits: Path,
    preset: Path,
    photos: np.ndarray,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """All that examples name."""
    folder = tmp_path_factory.mktemp("world") / "world"
    folder.mkdir()
    for name in ("imagenet", "digits"):
        (folder / name).symlink_to(digits_folder)
    for name in ("out", "other", "test", "big"):
        shutil.copy(digits, folder / f"{name}.h5")
    preset_text = preset.read_text().replace("ema: 0.9,", "ema: [0.9, 'power:std=.1'],")
    (folder / "preset.yaml").write_text(preset_text)
    (folder / "settings.yaml").write_text("batch: 8\n")
    (folder / "shards").mkdir()
    for name in ("one", "two"):
        shutil.copy(digits, folder / "shards" / f"{name}.h5")
    (folder / "scheduler").mkdir()
    config = {
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "linear",
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "prediction_type": "epsilon",
    }
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(config))
    pictures = [path.read_bytes() for path in sorted(digits_folder.glob("*/*.png"))[:60:2]]
    lay_out_ilsvrc(folder, pictures)
    out = torch.export.export(
        Classifier(),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=4096)},),
    )
    torch.export.save(out, folder / "classifier.pt2")
    rng = np.random.default_rng(0)
    statistics = {"mu": np.zeros(2048), "sigma": np.eye(2048), "mu_s": np.zeros(2023), "sigma_s": np.eye(2023)}
    images = rng.integers(0, 256, (60, 8, 8, 1), np.uint8)
    np.savez_compressed(folder / "VIRTUAL_imagenet64_labeled.npz", images, **statistics)
    for line in (
        ("train", "out.h5", "-o", "run", "--preset", "preset.yaml", "--save-every", 10, "--keep", 3),
        ("sample", "run", "-n", 60, "-o", "samples.npz"),
        ("sample", "run", "-n", 60, "-o", "samples.h5"),
        ("eval", "out.h5", "--metrics", "fid", "--save-stats", "ref.npz"),
    ):
        result = elbo(
            *line, cwd=folder, env={key: value for key, value in ENVIRONMENT.items() if key.startswith("ELBO")}
        )
        assert result.returncode == 0, result.stderr
    for name in ("a", "b", "worse"):
        shutil.copytree(folder / "run", folder / name)
    assert len(checkpoints(folder / "run")) == 2
    return folder


@pytest.mark.parametrize("code", examples())
def test_an_example_runs(code: str, world: Path, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    here = tmp_path / "here"
    shutil.copytree(world, here, symlinks=True)
    if "elbo train" in code and "adapt run" not in code:
        shutil.rmtree(here / "run")  # it is this example that makes it
    for kept in re.findall(r"(?:-o|>|--save-stats|--save-features|--card|--plot|prep \S+|merge) (\S+\.\w+)", code):
        (here / kept).unlink(missing_ok=True)
    for pattern, other in SMALLER.items():
        code = re.sub(pattern, other, code)
    if "jq" in code and shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    environment = {**os.environ, **ENVIRONMENT, "PATH": BIN, "HOME": str(tmp_path)}
    if "--preset" not in code:
        environment["ELBO_TRAIN_PRESET"] = "preset.yaml"
    if "train --preset" in code:
        del environment["ELBO_DATA"]
        for data in here.glob("*.h5"):
            data.unlink()
    if "adm" in code:
        environment["ELBO_EVAL_EXTRACTOR"] = "inception-v3-compat"
        environment["ELBO_EVAL_EXTRACTOR_WEIGHTS"] = str(request.getfixturevalue("inception_weights"))
    result = subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", code],
        cwd=here,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert "error: " not in result.stderr and "Traceback" not in result.stderr, result.stderr
    # Checks of a weighting tell by their exit code.
    assert result.returncode == 0 or "weights check" in code, result.stderr
