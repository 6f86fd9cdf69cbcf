"""The U-ViT of simple diffusion: its size, its start, its patches, where its dropout is."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from elbocli.errors import FormatError, UsageError
from elbocli.nn.networks import build, config_of, count_parameters, section_of
from elbocli.nn.networks.transformers import PATCHINGS, TransformerBlock, UViT, UViTConfig, dwt, idwt
from elbocli.nn.networks.unet import Block
from elbocli.nn.presets import FOLDER, NAMES, load_preset

SMALL = UViTConfig(16, 3, 5, channels=8, levels=(1, 2, 3), blocks=1, depth=2, heads=3, embedding=12, dropout=0.5)


def changed(**change) -> UViTConfig:
    return UViTConfig(**{**SMALL.__dict__, **change})


def awake(config: UViTConfig = SMALL) -> UViT:
    """A network whose zero-initialised layers are not zero."""
    torch.manual_seed(0)
    network = UViT(config).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.1)
    return network


def inputs(batch: int = 4, size: int = 16) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    z = torch.randn(batch, 3, size, size, generator=draw)
    return z, torch.randn(batch, generator=draw) * 5, torch.arange(batch) % 5


@pytest.mark.parametrize("size", [128, 256, 512])
def test_the_imagenet_networks_have_two_billion_parameters(size):
    preset = load_preset(f"imagenet{size}")
    data = preset.data
    fits = {
        "image_size": data.image_size,
        "image_channels": data.channels,
        "num_classes": data.classes if data.classes > 1 else 0,
    }
    with torch.device("meta"):
        network = build(config_of({**preset.network, **fits}, size))
        assert count_parameters(network) == pytest.approx(2e9, rel=0.1)
        assert network.position.shape == (1, 2048, 16, 16)
        assert len(network.transformer) == 36
        inside = dwt(torch.empty(1, 3, size, size), network.patches) if network.patches else torch.empty(1, 3, 128, 128)
        assert inside.shape == (1, {128: 3, 256: 12, 512: 48}[size], 128, 128)
        assert network.first.in_channels == inside.shape[1]


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_says_how_many_parameters_it_has(name):
    preset = load_preset(name)
    data = preset.data
    fits = {
        "image_size": data.image_size,
        "image_channels": data.channels,
        "num_classes": data.classes if data.classes > 1 else 0,
    }
    with torch.device("meta"):
        count = count_parameters(build(config_of({**preset.network, **fits}, name)))
    text = (FOLDER / f"{name}.yaml").read_text("utf-8")
    assert f"{count:,} parameters" in " ".join(text.replace("#", "").split())


@pytest.mark.parametrize("patching", PATCHINGS)
def test_a_new_network_says_nothing_whatever_its_patches(patching):
    network = UViT(changed(patching=patching))
    out = network(*inputs())
    assert out.shape == (4, 3, 16, 16)
    assert not out.any()
    with torch.no_grad():
        assert network(*inputs())._base is None


@pytest.mark.parametrize("patching", ["dwt-1", "dwt-2"])
def test_patches_are_undone_exactly_on_the_way_out(patching):
    """With everything between first and last layer taken out, each band is given back as it came in."""
    network = UViT(changed(patching=patching)).double()
    inside, z = {}, inputs()[0].double()
    network.first.register_forward_pre_hook(lambda _, args: inside.__setitem__("first", args[0]))
    network.last.register_forward_hook(lambda *_: inside["first"])
    torch.testing.assert_close(network(z, *inputs()[1:]), z, rtol=0, atol=1e-14)
    torch.testing.assert_close(inside["first"], dwt(z, PATCHINGS[patching]))


def test_bands_are_put_together_in_the_precision_of_the_image():
    network = awake(changed(patching="dwt-2"))
    seen = {}
    network.last.register_forward_hook(lambda _, args, out: seen.__setitem__("last", out))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = network(*inputs())
    assert (seen["last"].dtype, out.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(out, idwt(seen["last"].float(), 2))


def test_dropout_is_in_the_transformer_alone():
    network = UViT(SMALL)
    rates = {name: module.p for name, module in network.named_modules() if isinstance(module, nn.Dropout)}
    assert {rate for name, rate in rates.items() if name.startswith("transformer.")} == {0.5}
    assert {rate for name, rate in rates.items() if not name.startswith("transformer.")} == {0.0}
    assert {"down", "transformer", "up"} == {name.split(".")[0] for name in rates}


def test_units_are_the_levels_blocks_around_the_transformers():
    kinds = [type(unit) for unit in UViT(changed(blocks=2)).units()]
    assert kinds == [Block] * 4 + [TransformerBlock] * 2 + [Block] * 4


def test_a_transformer_block_is_attention_and_a_conditioned_mlp():
    torch.manual_seed(0)
    block = TransformerBlock(12, 3, 8, 0.0).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(0, 0.3)
    x, code = torch.randn(2, 5, 12, dtype=torch.float64), torch.randn(2, 8, dtype=torch.float64)
    q, k, v = block.qkv(block.norm1(x)).view(2, 5, 3, 3, 4).unbind(2)
    weight = torch.softmax(torch.einsum("bqhc,bkhc->bhqk", q, k) / 2, -1)
    y = x + block.mix(torch.einsum("bhqk,bkhc->bqhc", weight, v).reshape(2, 5, 12))
    centred = (y - y.mean(-1, keepdim=True)) / (y.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    scale, shift = (code @ block.scale_shift.weight.T + block.scale_shift.bias).view(2, 2, 1, 12).unbind(1)
    y = y + block.narrow(F.gelu(block.widen((1 + scale) * centred + shift)))
    torch.testing.assert_close(block(x, code), y)


def test_a_place_matters_to_the_transformer():
    network = awake(changed(levels=(1,), heads=2, image_channels=3))
    with torch.no_grad():
        network.first.weight.zero_()
        flat = network(*inputs())
        assert flat.std((2, 3)).min() > 1e-3
        network.position.zero_()
        assert network(*inputs())[:, :, 1:-1, 1:-1].std((2, 3)).max() < 1e-4


def test_level_and_class_matter_and_no_class_is_minus_one():
    network = awake()
    z, logsnr, labels = inputs()
    with torch.no_grad():
        out = network(z, logsnr, labels)
        assert not torch.allclose(out, network(z, logsnr + 0.1, labels))
        assert not torch.allclose(out, network(z, logsnr, (labels + 1) % 5))
        assert torch.equal(network(z, logsnr, torch.full_like(labels, -1)), network(z, logsnr, None))


def test_examples_of_a_batch_do_not_mix():
    network = awake(changed(patching="dwt-1"))
    z, logsnr, labels = inputs()
    with torch.no_grad():
        alone = network(z[2:3], logsnr[2:3], labels[2:3])
        torch.testing.assert_close(network(z, logsnr, labels)[2:3], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", [{}, {"patching": "dwt-2"}, {"levels": (3,)}, {"blocks": 2}], ids=str)
def test_a_gradient_reaches_every_parameter(change):
    network = awake(changed(**change))
    network(*inputs(5)).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_size": 3}, "halves the image 2 times, too often for 3 pixels"),
        ({"patching": "dwt-2", "image_size": 8}, "halves the image 4 times, too often for 8 pixels"),
        ({"image_size": 0}, "image_size"),
        ({"patching": "haar"}, "patching"),
        ({"channels": 6}, "channels"),
        ({"levels": ()}, "levels"),
        ({"levels": (1, 0)}, "levels"),
        ({"blocks": 0}, "blocks"),
        ({"depth": 0}, "depth"),
        ({"heads": 5}, "width 24"),
        ({"heads": 0}, "heads"),
        ({"embedding": 0}, "embedding"),
        ({"dropout": 1.0}, "dropout"),
    ],
)
def test_what_does_not_fit_is_refused(change, said):
    with pytest.raises((FormatError, UsageError)) as caught:
        config_of({**section_of(SMALL), **change}, "here")
    assert said in str(caught.value)
