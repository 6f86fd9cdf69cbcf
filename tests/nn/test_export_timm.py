"""The recipe that makes an extractor of any network of timm's."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from elbocli.nn.extractors import make_extractor

ROOT = Path(__file__).parent.parent.parent
RECIPE = ROOT / "examples" / "extractors" / "export_timm.py"


@pytest.mark.parametrize("name", ["test_vit", pytest.param("test_resnet", marks=pytest.mark.slow)])
def test_it_writes_a_program_that_gives_the_networks_features(name: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network = timm.create_model(name).eval()
    torch.save(network.state_dict(), tmp_path / "w.pth")
    line = [sys.executable, RECIPE, name, "24", tmp_path / "out.pt2", tmp_path / "w.pth"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    images = torch.randint(0, 256, (3, 3, 24, 24), dtype=torch.uint8)
    config = timm.data.resolve_model_data_config(network)
    x = torch.nn.functional.interpolate(
        images.float(), config["input_size"][1:], mode=config["interpolation"], antialias=True
    )
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ("mean", "std"))
    network.reset_classifier(0)
    with torch.no_grad():
        expected = network((x / 255 - mean) / std)
        found = make_extractor(str(tmp_path / "out.pt2"), None, "cpu")(images)[0]
    assert torch.allclose(found, expected, atol=1e-5 * float(expected.abs().max()))
