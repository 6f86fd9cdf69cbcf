"""The same code on a CUDA device: close to the CPU's numbers, compiled, in half precision.

Each test runs on the CPU as well. With `python -m pytest --noconftest -m cuda tests/train/test_cuda.py` it needs nothing but pytest.
"""

from contextlib import nullcontext
from typing import Any

import device_runs as on
import made_data
import pytest
import torch

NEEDS = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SMALL = {"batch_size": 16, "warmup_steps": 5, "log_every": 5, "save_every": 20, "preview_every": 0, "ema": ("0.9",)}
NETWORK = {"channels": 8}


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=[pytest.mark.cuda, NEEDS])])
def device(request):
    yield request.param
    if request.param == "cuda":
        torch.cuda.empty_cache()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return made_data.packed_digits(tmp_path_factory.mktemp("made"))


@pytest.mark.parametrize("preset", ["digits", "digits-uvit"])
def test_first_steps_agree_with_the_cpu(preset, device, data):
    options: dict[str, Any] = {"preset": preset, "precision": "fp32", "optimizer": "adamw", **SMALL}
    assert on.losses(data, device, 5, **options) == pytest.approx(on.losses(data, "cpu", 5, **options), rel=1e-3)


@pytest.mark.long
@pytest.mark.parametrize(("precision", "compile"), [("bf16", True), ("fp16", False)])
def test_half_precision_and_compiling_learn(precision, compile, device, data, tmp_path):
    options: dict[str, Any] = {"preset": "digits", "steps": 40, "precision": precision, "compile": compile, **SMALL}
    # A CPU takes minutes to compile what a test runs for seconds: there the way to it is tried.
    with nullcontext() if device == "cuda" else torch.compiler.set_stance("force_eager"):
        losses = on.trained(data, tmp_path / "run", device, network=NETWORK, **options)
    assert losses[-1] < 0.8 * losses[0]
