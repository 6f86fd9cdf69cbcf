"""Families of networks: sections that read back, units that are recomputed, one graph."""

import copy
import subprocess
import sys

import pytest
import torch

from elbocli.errors import FormatError, UsageError
from elbocli.nn.blocks import Network
from elbocli.nn.networks import CONFIGS, build, config_of, section_of
from elbocli.nn.unet import UNetConfig
from elbocli.nn.uvit import UViTConfig

SMALL = {
    "unet": UNetConfig(8, 3, 5, channels=8, levels=(1, 2), blocks=1, attention=(4,), dropout=0.3),
    "uvit": UViTConfig(16, 3, 5, 8, (1, 2, 3), blocks=1, depth=3, heads=2, embedding=24, patching="dwt-1", dropout=0.3),
}
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


def inputs(config, batch: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    z = torch.randn(batch, config.image_channels, config.image_size, config.image_size, generator=draw)
    return z, torch.randn(batch, generator=draw) * 5, torch.tensor([0, 1, -1, 3])


def test_every_family_is_tested_here():
    assert set(SMALL) == set(CONFIGS)


@EVERY
def test_a_section_reads_back_as_its_config(config):
    section = section_of(config)
    assert section["family"] == config.family
    assert not any(isinstance(value, tuple) for value in section.values())
    assert config_of(section, "here") == config


def test_a_network_without_memory_costs_no_imports():
    """Of what torch decomposes random numbers with, which take 2 s: `elbo sample` and `elbo bound` begin with one."""
    code = (
        "import sys, torch\n"
        "from elbocli.nn.networks import UNetConfig, build\n"
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
        {"levels": [1, 2.0]},
        {"dropout": True},
    ],
)
def test_a_section_of_another_form_is_refused(change):
    with pytest.raises(FormatError, match="here"):
        config_of({**section_of(SMALL["unet"]), **change}, "here")
    with pytest.raises(UsageError, match="network: "):
        config_of({**section_of(SMALL["unet"]), "image_size": 7}, "here")


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
@pytest.mark.parametrize("recompute", [False, True])
def test_a_network_compiles_to_one_graph(config, recompute):
    network = awake(config).eval()
    network.recompute = recompute
    torch._dynamo.reset()
    found = torch._dynamo.explain(network)(*inputs(config))
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
    whole = torch.compile(network, backend="eager", fullgraph=True)
    torch.testing.assert_close(whole(*inputs(config)), network(*inputs(config)))
