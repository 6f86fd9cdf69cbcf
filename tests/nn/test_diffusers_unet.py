"""UNet2DModel as a network of elbo's: diffusers' own numbers, classes and none of them, and settings that are refused."""

import json
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from elbocli.errors import FormatError, UsageError
from elbocli.nn.networks import build, config_of, section_of
from elbocli.nn.networks.diffusers import DiffusersUNetConfig

LAYOUT: dict[str, Any] = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": 4,
}
CONFIG = DiffusersUNetConfig(8, 3, 4, model=json.dumps(LAYOUT), code="logsnr:factor=-0.125")
LEVELS = torch.tensor([-10.0, 0.0, 9.0])


def images(count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_it_is_diffusers_own_network() -> None:
    torch.manual_seed(0)
    ours = build(CONFIG).eval()
    theirs: Any = UNet2DModel(sample_size=8, in_channels=3, out_channels=3, num_class_embeds=4, **LAYOUT)
    theirs.eval()
    theirs.load_state_dict({name.removeprefix("model."): value for name, value in ours.state_dict().items()})
    labels = torch.tensor([0, 3, 1])
    wanted = theirs(images(), LEVELS * -0.125, labels).sample
    assert torch.allclose(ours(images(), LEVELS, labels), wanted, atol=1e-6 * float(wanted.abs().max()))


@torch.no_grad()
@pytest.mark.parametrize("null_class", [False, True])
def test_no_class_is_the_last_row_or_adds_nothing(null_class: bool) -> None:
    network: Any = build(replace(CONFIG, null_class=null_class)).eval()
    table = network.model.class_embedding.weight
    assert len(table) == 4 + null_class
    none = network(images(), LEVELS, torch.full((3,), -1))
    assert torch.equal(none, network(images(), LEVELS, None))
    before = network(images(), LEVELS, torch.tensor([0, 1, 2]))
    table[:4] = table[-1] if null_class else 0.0
    assert not torch.allclose(none, before)
    assert torch.allclose(network(images(), LEVELS, torch.tensor([0, 1, 2])), none, atol=1e-6)


@torch.no_grad()
def test_variances_are_the_second_half() -> None:
    network = build(replace(CONFIG, variance=True)).eval()
    every, first = (call(images(), LEVELS, None) for call in (network.outputs, network))
    assert every.shape == (3, 6, 8, 8) and torch.equal(first, every[:, :3]) and first.is_contiguous()


def test_it_trains_and_reads_back() -> None:
    assert config_of(section_of(CONFIG), "here") == CONFIG
    network = build(replace(CONFIG, dropout=0.1)).train()
    network(images(), LEVELS, torch.tensor([0, -1, 2])).square().sum().backward()
    assert all(each.grad is not None for each in network.parameters())


@pytest.mark.parametrize(
    "change",
    [
        {"block_out_channels": [1 << 40]},
        {"layers_per_block": 1.5},
        {"down_block_types": "DownBlock2D"},
        {"down_block_types": ["os.system", "x"]},
        {"act_fn": "evil"},
        {"attention_head_dim": 0},
        {"time_embedding_type": "learned"},
        {"quantization_config": "x"},
    ],
    ids=str,
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises((FormatError, UsageError)), torch.device("meta"):
        build(replace(CONFIG, model=json.dumps({**LAYOUT, **change})))


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000, '{"norm_eps": NaN}', '{"norm_eps": 1e999}'])
def test_text_that_is_no_settings_is_refused(text: str) -> None:
    with pytest.raises(FormatError, match="network: model"):
        build(replace(CONFIG, model=text))


def test_a_size_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(UsageError, match="multiple of 2"):
        build(CONFIG.for_size(9))


def test_without_diffusers_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UsageError, match=r"needs the extra 'latents': pip install 'elbocli\[latents\]'"):
        build(CONFIG)
