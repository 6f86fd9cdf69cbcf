"""Families of networks: sections that read back, units that are recomputed, one graph."""

import copy
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd

from elbocli.errors import FormatError, UsageError
from elbocli.files.dataset import Dataset
from elbocli.nn import networks
from elbocli.nn.networks import (
    NETWORKS,
    Network,
    NetworkConfig,
    build,
    config_of,
    declaration_of,
    place,
    section_of,
)
from elbocli.nn.networks.edm2 import EDM2Config
from elbocli.nn.networks.transformers import PATCHINGS, DiTConfig, UViTConfig
from elbocli.nn.networks.unet import GroupNorm, UNetConfig
from elbocli.run.settings import resolve
from elbocli.runtime.device import Precision
from elbocli.sample import draw
from elbocli.train import loop
from elbocli.train.plan import plan

SMALL: dict[str, Any] = {
    "unet": UNetConfig(8, 3, 5, channels=8, levels=(1, 2), blocks=1, attention=(4,), dropout=0.3),
    "uvit": UViTConfig(16, 3, 5, 8, (1, 2, 3), blocks=1, depth=3, heads=2, embedding=24, patching="dwt-1", dropout=0.3),
    "edm2": EDM2Config(8, 3, 5, channels=8, levels=(1, 2), blocks=1, attention=(4,), dropout=0.3),
    "dit": DiTConfig(9, 3, 5, width=24, depth=3, heads=2, patch=2, variance=True, dropout=0.3),
}
SIZES = {"image_size": 8, "image_channels": 3, "num_classes": 5}
EVERY = pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)


def awake(config) -> Network:
    """A network whose zero-initialised layers are not zero."""
    torch.manual_seed(0)
    network = build(config)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return network


def fused(network: Network) -> Network:
    """The network with the norms that it has on a GPU."""
    for module in network.modules():
        if isinstance(module, GroupNorm):
            module.fused = True
    return network


def inputs(config, batch: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    z = torch.randn(batch, config.image_channels, config.image_size, config.image_size, generator=draw)
    return z, torch.randn(batch, generator=draw) * 5, torch.tensor([0, 1, -1, 3])


OTHERS = {"program", "diffusers-unet", "module"}
"""Networks of somebody else, which have files of their own here: they have no units."""


def test_every_family_is_tested_here():
    assert set(SMALL) | OTHERS == set(NETWORKS)


@EVERY
def test_a_section_reads_back_as_its_config(config):
    section = section_of(config)
    assert section["family"] == declaration_of(config).name
    assert not any(isinstance(value, tuple) for value in section.values())
    assert config_of(section, "here") == config


@pytest.mark.skipif(torch.__version__.startswith("2.8."), reason="this torch imports them for any check of a size")
def test_a_network_without_memory_costs_no_imports():
    """Of what torch decomposes random numbers with, which take 2 s: `elbo sample` and `elbo bound` begin with one."""
    code = (
        "import sys, torch\n"
        "from elbocli.nn.networks import build\n"
        "from elbocli.nn.networks.unet import UNetConfig\n"
        "with torch.device('meta'):\n"
        "    build(UNetConfig(image_size=8, image_channels=1, num_classes=3, channels=8, levels=(1,), blocks=1, attention=(), dropout=0.0))\n"
        "sys.exit('sympy' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=100, check=False).returncode == 0


def test_a_section_without_a_family_is_a_u_nets():
    section = section_of(SMALL["unet"])
    del section["family"]
    assert config_of(section, "here") == SMALL["unet"]


@pytest.mark.parametrize(
    "change",
    [
        {"family": "gan"},
        {"family": "unet", "colour": 3},
        {"levels": 3},
        {"channels": "x"},
        {"blocks": 1.5},
        {"levels": [1, "2"]},
        {"code": 0.5},
        {"dropout": True},
    ],
)
def test_a_section_of_another_form_is_refused(change):
    with pytest.raises(FormatError, match="here"):
        config_of({**section_of(SMALL["unet"]), **change}, "here")
    with pytest.raises(UsageError, match="network: "):
        config_of({**section_of(SMALL["unet"]), "image_size": 1}, "here")


@EVERY
def test_units_hold_nearly_all_parameters_and_none_twice(config):
    network = build(config)
    mine = [id(parameter) for unit in network.units() for parameter in unit.parameters()]
    assert len(set(mine)) == len(mine)
    assert set(mine) < {id(parameter) for parameter in network.parameters()}


@EVERY
def test_every_unit_runs_once_and_in_its_order(config):
    network, seen = build(config), []
    for index, unit in enumerate(network.units()):
        unit.register_forward_hook(lambda *_, index=index: seen.append(index))
    network(*inputs(config))
    assert seen == list(range(len(network.units())))


@EVERY
def test_recomputing_gives_the_same_gradients_with_dropout(config):
    plain = awake(config).train()
    spare = copy.deepcopy(plain)
    spare.recompute = True
    runs = [0]
    spare.units()[0].register_forward_pre_hook(lambda *_: runs.__setitem__(0, runs[0] + 1))
    for network in (plain, spare):
        torch.manual_seed(7)
        network(*inputs(config)).square().sum().backward()
    assert runs == [2]
    for (name, one), (_, other) in zip(plain.named_parameters(), spare.named_parameters(), strict=True):
        assert torch.equal(one.grad, other.grad), name


@EVERY
def test_recomputing_keeps_less_for_the_backward_pass(config):
    kept = {}
    for recompute in (False, True):
        network, found = build(config).train(), {}
        network.recompute = recompute
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, found=found: found.setdefault(x.data_ptr(), x), lambda x: x
        ):
            network(*inputs(config))
        own = {parameter.data_ptr() for parameter in network.parameters()}
        kept[recompute] = sum(tensor.numel() for place, tensor in found.items() if place not in own)
    assert kept[True] < 0.6 * kept[False]


@EVERY
@pytest.mark.parametrize("recompute", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_network_compiles_to_one_graph(config, recompute):
    network = awake(config).eval()
    network.recompute = recompute
    torch._dynamo.reset()
    found = torch._dynamo.explain(network)(*inputs(config))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
    whole = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(*inputs(config)), network(*inputs(config)))


@EVERY
def test_norms_of_a_gpu_are_those_of_a_cpu_in_a_whole_network(config):
    """With recomputing and without: outputs, and gradients of all parameters."""
    plain = awake(config).double().eval()
    for recompute in (False, True):
        lean = fused(copy.deepcopy(plain))
        lean.recompute = recompute
        z, logsnr, labels = inputs(config)
        both = [network(z.double(), logsnr, labels) for network in (plain, lean)]
        torch.testing.assert_close(*both)
        both = [
            torch.autograd.grad(out.square().sum(), [*network.parameters()])
            for out, network in zip(both, (plain, lean))
        ]
        for (name, _), one, other in zip(plain.named_parameters(), *both, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize(
    ("config", "precision"),
    [
        pytest.param(SMALL["unet"], "fp32", id="unet-fp32", marks=pytest.mark.slow),
        pytest.param(SMALL["unet"], "bf16", id="unet-bf16"),
        *(pytest.param(SMALL["edm2"], how, id=f"edm2-{how}", marks=pytest.mark.slow) for how in ("fp32", "bf16")),
        *(
            pytest.param(
                replace(SMALL["uvit"], patching=patching),
                "bf16",
                id=f"uvit-{patching}",
                marks=pytest.mark.slow,
            )
            for patching in PATCHINGS
        ),
        pytest.param(replace(SMALL["dit"], code="t-linear"), "bf16", id="dit"),
    ],
)
def test_a_gpus_network_compiles_to_one_graph_forward_and_one_back(config, precision):
    """A transform as on a GPU, but for the compiler's last step. No number is copied to the device within it."""
    graphs = []

    def count(graph, _):
        graphs.append([str(node.target) for node in graph.graph.nodes])
        return make_boxed_func(graph.forward)

    network = place(fused(awake(config)).train(), torch.device("cpu"))
    z, logsnr, labels = inputs(config)
    torch._dynamo.reset()
    whole = torch.compile(network, fullgraph=True, backend=aot_autograd(fw_compiler=count, bw_compiler=count))
    with Precision(precision, torch.device("cpu")).autocast():
        whole(z.contiguous(memory_format=torch.channels_last), logsnr, labels).float().square().sum().backward()
    assert len(graphs) == 2
    assert not [
        target for graph in graphs for target in graph if "lift_fresh" in target or "_tensor_constant" in target
    ]
    assert all(parameter.grad is not None for parameter in network.parameters())


# A network of somebody's own


@pytest.fixture
def perceptron():
    """Declared as a plug-in's file does, with no more than it needs."""

    @dataclass(frozen=True)
    class PerceptronConfig(NetworkConfig):
        width: int
        gains: tuple[float, ...] = (1.0,)
        tanh: bool = False

    @networks.network("perceptron", config=PerceptronConfig, source="this test")
    class Perceptron(Network):
        def __init__(self, config):
            super().__init__(config)
            inputs = config.image_channels * config.image_size**2
            self.first = torch.nn.Linear(inputs + 1, config.width)
            self.last = torch.nn.Linear(config.width, inputs)
            self.classes = torch.nn.Embedding(config.num_classes + 1, config.width)

        def forward(self, z, logsnr, labels=None):
            code = self.classes(torch.zeros(len(z), dtype=torch.long) if labels is None else labels + 1)
            hidden = self.first(torch.cat([z.flatten(1), logsnr[:, None]], 1)) + code
            return self.last(hidden.relu() * self.config.gains[0]).view_as(z)

    yield PerceptronConfig
    del NETWORKS["perceptron"]


def test_a_plug_ins_network_is_built_written_and_read_like_any(perceptron):
    config = config_of({"family": "perceptron", "width": 8, "gains": [2, 0.5], **SIZES}, "here")
    assert config == perceptron(8, 3, 5, width=8, gains=(2, 0.5)) and config_of(section_of(config), "here") == config
    network = build(config)
    assert network(*inputs(config)).shape == (4, 3, 8, 8)
    assert network.units() == [] and network.recompute is False
    assert config.for_size(16) == perceptron(16, 3, 5, width=8, gains=(2, 0.5))
    for bad in ({"tanh": 1}, {"gains": [1, "x"]}, {"gains": 2}, {"width": 8.0}, {"depth": 3}):
        with pytest.raises(FormatError, match="here"):
            config_of({**section_of(config), **bad}, "here")
    with pytest.raises(FormatError, match="num_classes"):
        config_of({**section_of(config), "num_classes": -1}, "here")


def test_a_plug_ins_network_trains_resumes_samples_and_compiles(perceptron, digits, tmp_path):
    preset = tmp_path / "mine.yaml"
    preset.write_text("network: {family: perceptron, width: 16}\ntrain: {logsnr_min: -9, logsnr_max: 9, batch: 8}\n")
    options = {"preset": str(preset), "save_every": 2, "activation_checkpointing": True, "ema": 0.9, "preview_every": 0}
    for name, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
        loop.run(Dataset(digits), tmp_path / name, resolve({**options, "steps": steps}, Dataset(digits)))
    whole, parts = (
        (tmp_path / name / "checkpoints" / "step-00000004" / "model.safetensors").read_bytes()
        for name in ("whole", "parts")
    )
    assert whole == parts
    out = tmp_path / "x.npy"
    draw.draw_samples(tmp_path / "parts", out, draw.SampleSettings(n=3, steps=3, batch=3, compile=True))
    assert np.load(out).shape[0] == 3
    assert plan(resolve(options, Dataset(digits)))["network"]["family"] == "perceptron"
