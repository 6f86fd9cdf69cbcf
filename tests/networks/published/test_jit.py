"""Checkpoints of JiT become networks of elbo's that compute its formulas, and runs that sample and train as JiT does."""

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peers.jit import JiT, training_file
from peers.parts import draw
from torch import Tensor

from elbocli.errors import ElboError
from elbocli.files.import_options import ImportOptions
from elbocli.files.yaml_text import read_yaml
from elbocli.networks import count_parameters
from elbocli.runs.imported import import_run
from elbocli.runs.open import TrainedRun, open_run
from elbocli.sampling.denoiser import Denoiser

CPU = torch.device("cpu")
SCRIPT = {
    "model": "JiT-B/16",
    "img_size": 8,
    "P_mean": -0.4,
    "P_std": 1.1,
    "t_eps": 0.1,
    "noise_scale": 1.5,
    "proj_dropout": 0.2,
    "label_drop_prob": 0.3,
}
TIMES = [0.001, 0.03, 0.1, 0.25, 0.4, 0.5, 0.65, 0.8, 0.95, 0.999]
SOME = torch.tensor([3, -1, 0, 9])
ROWS = torch.tensor([3, 10, 0, 9])


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    def save(content: Any) -> Path:
        torch.save(content, tmp_path / "jit.pth")
        return tmp_path / "jit.pth"

    return save


def imported(path: Path, **options: Any) -> TrainedRun:
    import_run(path, path.parent / "run", ImportOptions(**options))
    return open_run(path.parent / "run", CPU)


def agree(result: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(result.double(), wanted.double(), rtol=0, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("noise_scale", [1.0, 2.0])
@pytest.mark.parametrize(
    "shape",
    [{}, {"side": 3, "patch": 4, "width": 48, "heads": 3, "depth": 6, "bottleneck": 10, "tokens": 5}, {"channels": 1}],
    ids=["16 patches", "9 patches", "grey"],
)
@torch.inference_mode()
def test_its_image_is_that_of_its_formulas(shape, noise_scale, saved):
    """At z = t x + (1 − t) c e, and t, JiT gives x; λ = 2 ln(t/((1 − t) c))."""
    run = imported(saved(training_file({**SCRIPT, "noise_scale": noise_scale}, **shape)))
    peer = draw(JiT, seed=1, **shape).double()
    side = run.network.config.image_size
    z = torch.randn(4, run.network.config.image_channels, side, side, generator=torch.Generator().manual_seed(5)).double()
    for labels, rows in ((SOME, ROWS), (None, torch.full((4,), 10))):
        denoise = Denoiser(run.network, run.prediction, labels=labels)
        for t in TIMES:
            noise = (1 - t) * noise_scale
            x_hat = denoise((z / math.hypot(t, noise)).float(), 2 * math.log(t / noise))
            agree(x_hat, peer(z, torch.full((4,), t), rows))


def test_any_of_its_weights_can_be_chosen_and_the_first_average_is_the_default(saved):
    path = saved(training_file(SCRIPT))
    for number, (seed, options) in enumerate(((1, {}), (2, {"weights": "model_ema2"}), (0, {"weights": "model"}))):
        import_run(path, path.parent / f"{number}", ImportOptions(**options))
        run = open_run(path.parent / f"{number}", CPU)
        wanted = draw(JiT, seed=seed).state_dict()["blocks.2.mlp.w12.weight"]
        assert torch.equal(run.network.state_dict()["blocks.2.widen.weight"], wanted)
        assert run.about["weights"] == ("model" if seed == 0 else "ema-imported")


def loss_of_jit(x: Tensor, e: Tensor, t: float, x_hat: Tensor, noise_scale: float, least: float) -> float:
    """JiT's squared error of v = (x − z)/max(1 − t, least)."""
    z = t * x + (1 - t) * noise_scale * e
    return float((((x - z) - (x_hat - z)) / max(1 - t, least)).square().mean())


def test_the_run_is_trained_with_its_loss_at_its_times(saved):
    """elbo's integrand w(λ) ‖ε − ε̂‖²/2 is the density of λ times JiT's loss, up to the constant c²."""
    run = imported(saved(training_file(SCRIPT)))
    weighting = run.weighting()
    schedule = run.schedule()
    c = SCRIPT["noise_scale"]
    mean = SCRIPT["P_mean"]
    std = SCRIPT["P_std"]
    x, e, wrong = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for t in (0.05, 0.2, 0.5, 0.8, 0.97):
        level = 2 * math.log(t / ((1 - t) * c))
        logit = math.log(t / (1 - t))
        density = math.exp(-0.5 * ((logit - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi)) / 2  # of λ: logit = λ/2 + …
        at = torch.tensor([level], dtype=torch.float64)
        assert float(schedule.density(at)) == pytest.approx(density, rel=1e-4)
        error = float((wrong - x).square().mean()) * math.exp(level)  # ‖ε − ε̂‖² = e^λ ‖x − x̂‖²
        theirs = density * loss_of_jit(x, e, t, wrong, c, SCRIPT["t_eps"])
        assert 0.5 * float(weighting(at)) * error == pytest.approx(theirs / c**2, rel=1e-5)
    assert run.settings.label_dropout == 0.3 and run.network.config.dropout == 0.2


def test_a_file_without_arguments_is_taken_as_a_published_one(saved):
    """B/16's shape has the published number of parameters; at 512 pixels, the noise scale is 2."""
    run = imported(saved(training_file(side=32, patch=16, width=16, heads=1, depth=3)))
    assert run.settings.schedule == f"logit-normal:mean=0.8,std=0.8,shift={-2 * math.log(2)}"
    assert run.settings.prediction == "x-path:noise_scale=2" and run.settings.label_dropout == 0.1


def test_weights_alone_with_or_without_their_prefix(saved):
    tensors = draw(JiT).state_dict()
    plain = imported(saved(tensors)).network.state_dict()
    path = saved({f"module.net.{name}": tensor for name, tensor in tensors.items()})
    import_run(path, path.parent / "again", ImportOptions())
    again = open_run(path.parent / "again", CPU).network.state_dict()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


NET = "net.blocks.1.attn."


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda t: t.pop("net.blocks.1.mlp.w3.bias"), r"blocks\.1\.mlp\.w3\.bias"),
        (lambda t: t.pop("net.y_embedder.embedding_table.weight"), "embedding_table"),
        (lambda t: t.update({f"{NET}qkv.weight": torch.ones(7, 32)}), r"\[7, 32\]"),
        (lambda t: t.update({f"{NET}q_norm.weight": torch.ones(7)}), r"\[7\]"),
        (lambda t: t.update({"net.blocks.0.attn.q_norm.weight": torch.ones(0)}), "."),
        (lambda t: t.update({"net.pos_embed": torch.ones(1, 16, 32)}), "pos_embed"),
        (lambda t: t.update({"net.extra": torch.ones(2)}), "extra"),
        (lambda t: t.pop("net.blocks.0.mlp.w12.weight"), "no known format"),
    ],
    ids=range(8),
)
def test_another_network_than_jits_is_refused_by_the_names_in_its_file(spoil, word, saved):
    tree = training_file(SCRIPT)
    for weights in (tree["model"], tree["model_ema1"], tree["model_ema2"]):
        spoil(weights)
    path = saved(tree)
    with pytest.raises(ElboError, match=f"{path}.*{word}"):
        imported(path)
    assert not (path.parent / "run").exists()


@pytest.mark.parametrize("value", ["two", 0.0, -1.0, None, [1.0], float("nan")])
def test_odd_arguments_are_refused(value, saved):
    path = saved(training_file({**SCRIPT, "noise_scale": value}))
    with pytest.raises(ElboError, match=str(path)):
        imported(path)


def test_a_folder_from_the_hub_is_its_only_file_of_weights(saved, elbo, tmp_path):
    path = saved(training_file(SCRIPT))
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_name": "jit"}')
    moved = path.rename(folder / path.name)
    result = elbo("import", folder, "run", cwd=tmp_path)
    assert result.returncode == 0 and read_yaml(tmp_path / "run/config.yaml")["source"]["file"] == path.name, result.stderr
    (folder / "other.pth").write_bytes(moved.read_bytes())
    (folder / "config.json").unlink()
    several = elbo("import", folder, "again", cwd=tmp_path)
    assert several.returncode == 1 and b"'jit.pth', 'other.pth'" in several.stderr
    itself = elbo("import", "run", "again", cwd=tmp_path)
    assert itself.returncode == 2 and b"elbo sample" in itself.stderr


class Trap:
    """An object whose unpickling makes a folder."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_its_trainers_file_imports_samples_and_trains_on_without_running_code(elbo, digits, saved, tmp_path):
    """The digits are grey and have 8 pixels and 10 classes."""
    mark = tmp_path / "mark"
    path = saved({**training_file({**SCRIPT, "hook": Trap(mark)}, channels=1), "epoch": 3})
    made = elbo("import", path, "run", cwd=tmp_path)
    assert made.returncode == 0 and b"model_ema2" in made.stderr, made.stderr
    drawing = ("--sampler", "jit:noise_scale=1.5", "--schedule", "fm-ot:shift=-0.81093", "--spacing", "jit", "--steps", 3)
    drawn = elbo("sample", "run", "-n", 2, *drawing, "--guidance-scale", 2, "-o", "x.npy", cwd=tmp_path)
    assert drawn.returncode == 0 and np.load(tmp_path / "x.npy").shape == (2, 8, 8, 1), drawn.stderr
    tuned = elbo("train", digits, "--init", "run", "--steps", 2, "--batch-size", 4, "-o", "tuned", cwd=tmp_path)
    assert tuned.returncode == 0, tuned.stderr
    before, after = (open_run(tmp_path / name, CPU) for name in ("run", "tuned"))
    for key in ("prediction", "weighting", "schedule", "label_dropout"):
        assert getattr(before.settings, key) == getattr(after.settings, key)
    assert count_parameters(before.network) == count_parameters(after.network)
    assert not mark.exists()
    cut = tmp_path / "cut.pth"
    cut.write_bytes(path.read_bytes()[:-300])
    refused = elbo("import", cut, "other", cwd=tmp_path)
    assert refused.returncode == 1 and b"Traceback" not in refused.stderr and b"cut.pth" in refused.stderr
