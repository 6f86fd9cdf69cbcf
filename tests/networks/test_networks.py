"""Networks keep the laws of their families, in every command and precision, and a stranger's network is as good as elbo's."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import calls
import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func
from PIL import Image
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import elbocli
from elbocli import networks
from elbocli.bound.estimate import measure_bound
from elbocli.bound.judge import check_theorem
from elbocli.bound.measure import open_measurement
from elbocli.bound.settings import BoundSettings
from elbocli.errors import FormatError, UsageError
from elbocli.files.dataset import Dataset
from elbocli.networks import NETWORKS, Network, NetworkConfig, build, config_of, count_parameters, place, section_of
from elbocli.networks.edm2 import EDM2Config
from elbocli.networks.transformers import DiTConfig, JiTConfig, UViTConfig
from elbocli.networks.unet import GroupNorm, UNetConfig
from elbocli.runs.presets import load_preset
from elbocli.runs.settings import resolve
from elbocli.runtime.device import Precision
from elbocli.sampling import draw
from elbocli.sampling.settings import SampleSettings
from elbocli.scoring import scoring
from elbocli.scoring.settings import EvalSettings
from elbocli.training import loop

UNET = UNetConfig(8, 3, 5, channels=8, levels=(1, 2), blocks=1, attention=(4,), dropout=0.3)
UVIT = UViTConfig(16, 3, 5, 8, (1, 2, 3), blocks=1, depth=3, heads=2, embedding=24, patching="dwt-1", dropout=0.3)
EDM2 = EDM2Config(8, 3, 5, channels=8, levels=(1, 2), blocks=1, attention=(4,), dropout=0.3)
DIT = DiTConfig(9, 3, 5, width=24, depth=3, heads=2, patch=2, variance=True, dropout=0.3)
JIT = JiTConfig(9, 3, 5, width=24, depth=4, heads=2, patch=2, bottleneck=6, class_tokens=3, class_start=1, dropout=0.3)
SMALL: dict[str, Any] = {"unet": UNET, "uvit": UVIT, "edm2": EDM2, "dit": DIT, "jit": JIT}
VARIANTS = {
    **SMALL,
    "unet-half": replace(UNET, image_size=7, channels=16, levels=(0.5, 1.0, 2), variance=True, code="t-linear"),
    "uvit-none": replace(UVIT, patching="none", levels=(1, 3), blocks=2),
    "uvit-dwt-2": replace(UVIT, patching="dwt-2", levels=(0.5, 2)),
    "edm2-unconditional": replace(EDM2, num_classes=0, levels=(2, 1, 0.5), blocks=2),
    "jit-unconditional": replace(JIT, num_classes=0),
    "dit-plain": replace(DIT, variance=False, patch=4, null_class=False),
}
FAMILY = pytest.mark.parametrize("config", SMALL.values(), ids=SMALL)
VARIANT = pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)


def awake(config: Any, std: float = 0.1) -> Any:
    """A network none of whose weights are zero."""
    torch.manual_seed(0)
    network = build(config)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=std)
    return network


def inputs(config: Any) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(config.example(4)[0].shape), torch.randn(4) * 5, torch.tensor([0, 1, -1, 3])


# Configs


def test_every_family_is_tested_here_or_where_strangers_networks_are():
    assert set(SMALL) | {"diffusers-unet"} == set(NETWORKS)


@VARIANT
def test_a_section_reads_back_as_its_config(config):
    section = section_of(config)
    assert not any(isinstance(value, tuple) for value in section.values())
    assert config_of(section, "here") == config


def test_a_section_without_a_family_is_a_u_nets_and_codes_and_levels_are_written_in_full():
    section = section_of(VARIANTS["unet-half"])
    assert section.pop("family") == "unet" and config_of(section, "here") == VARIANTS["unet-half"]
    assert section["code"] == "t-linear:count=1000,start=0.0001,end=0.02"
    assert list(map(repr, section["levels"])) == ["0.5", "1", "2"]


WRONG: dict[str, list[dict[str, Any]]] = {
    "unet": [
        *({"levels": (1, 0)}, {"levels": (0.3,)}, {"levels": ()}, {"channels": 6}, {"image_size": 1}, {"norm_eps": 0.0}),
        *({"code": "t:lineal"}, {"code": "sigma:factor=2"}, {"colour": 3}, {"heads": 3}, {"groups": 3}, {"family": "gan"}),
    ],
    "uvit": [{"patching": "dwt-2", "image_size": 8}, {"patching": "haar"}, {"heads": 5}],
    "dit": [{"width": 22}, {"heads": 5}, {"patch": 0}],
    "jit": [{"heads": 4}, {"class_start": 4}],
}


@pytest.mark.parametrize(("family", "change"), [(name, each) for name in WRONG for each in WRONG[name]], ids=str)
def test_what_does_not_fit_is_refused(family, change):
    with pytest.raises((FormatError, UsageError), match=r"here|network: "), torch.device("meta"):
        build(config_of({**section_of(SMALL[family]), **change}, "here"))


@pytest.mark.parametrize(
    ("section", "size", "parameters"),
    [
        ({**load_preset("latents256-dit").network, "variance": True}, (32, 4), 675_129_632 - 256 * 1152),  # positions
        *((load_preset(f"imagenet{size}").network, (size, 3), pytest.approx(2e9, rel=0.1)) for size in (128, 256, 512)),
    ],
)
def test_published_sizes_have_the_papers_parameters(section, size, parameters):
    config = config_of({**section, "image_size": size[0], "image_channels": size[1], "num_classes": 1000}, "")
    with torch.device("meta"):
        assert count_parameters(build(config)) == parameters


@pytest.mark.long
def test_a_network_without_memory_costs_no_imports(python):
    """Torch decomposes random numbers with sympy, which takes 2 s to import."""
    if torch.__version__.startswith(("2.8.", "2.10.")):
        pytest.skip("this torch imports it for any layer without memory")
    code = "import sys, torch; from elbocli.networks import build, unet, edm2, transformers\n"
    for config in (UNET, EDM2, DIT):
        code += f"with torch.device('meta'): build({type(config).__module__.rpartition('.')[2]}.{config})\n"
    assert python(f"{code}print('sympy' in sys.modules)") == "False\n"


# What comes out


@torch.no_grad()
@VARIANT
def test_a_new_network_gives_zeros_in_the_layout_of_its_images(config):
    """And no view, which FSDP would hook itself to."""
    network, (z, *rest) = place(build(config), torch.device("cpu")), inputs(config)
    out, every = (call(z.contiguous(memory_format=torch.channels_last), *rest) for call in (network, network.outputs))
    assert out.shape == z.shape and not every.any()
    assert every.shape[1] == 3 * (1 + getattr(config, "variance", False))
    for each in (out, every):
        assert each._base is None and each.is_contiguous(memory_format=torch.channels_last)


@torch.no_grad()
@VARIANT
def test_an_output_is_of_its_own_image_level_and_class(config):
    network = awake(config).eval()
    (z, logsnr, labels) = inputs(config)
    out = network(z, logsnr, labels)
    every = network.outputs(z, logsnr, labels)
    assert torch.equal(out, every[:, :3]) and (out.shape == every.shape or not torch.allclose(out, every[:, 3:]))
    torch.testing.assert_close(network(z[1:2], logsnr[1:2], labels[1:2]), out[1:2], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(out, network(z, logsnr + 0.3, labels))
    none = network(z, logsnr, None)
    assert torch.equal(none, network(z, logsnr, torch.full((4,), -1)))
    torch.testing.assert_close(none[2:3], out[2:3], rtol=1e-4, atol=1e-5)
    one, other = (network(z, logsnr, torch.full((4,), label)) for label in (0, 3))
    different = config.num_classes > 0
    assert torch.allclose(one, other) != different and torch.allclose(one, none) != different


@pytest.mark.parametrize("size", [9, 15, 16])
@VARIANT
def test_an_odd_size_is_the_next_that_can_be_halved_with_zeros_around(config, size):
    """Every parameter counts."""
    odd = replace(config.for_size(size), dropout=0.0)
    whole = odd.for_size(odd.side)
    more = odd.side - size
    assert (more == 0) == (size == 16) and whole.side == whole.image_size
    torch.manual_seed(1)
    network = build(odd).double()
    wider = build(whole).double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    wider.load_state_dict(network.state_dict())
    z, logsnr, labels = inputs(odd)
    out = network(z.double(), logsnr, labels)
    wanted = wider(F.pad(z, (0, more, 0, more)).double(), logsnr, labels)[..., :size, :size]
    torch.testing.assert_close(out, wanted)
    out.square().sum().backward()
    assert all(each.grad is not None and each.grad.any() for each in network.parameters())


def test_attention_stays_as_many_halvings_down_at_odd_sizes():
    config = replace(UNET, levels=(1, 2, 2), attention=(2, 4))
    assert config.for_size(25).attention == (7, 14) and config.for_size(25).for_size(8) == config


# Units, recomputed; graphs


@FAMILY
def test_units_run_once_each_in_their_order_and_share_no_parameter(config):
    network = build(config)
    seen = list[int]()
    units = network.units()
    for index, unit in enumerate(units):
        unit.register_forward_hook(lambda *_, index=index: seen.append(index))
    network(*inputs(config))
    assert seen == list(range(len(units)))
    mine = [id(parameter) for unit in units for parameter in unit.parameters()]
    assert len(set(mine)) == len(mine) and set(mine) < {id(each) for each in network.parameters()}


@FAMILY
def test_recomputing_gives_the_same_gradients_with_dropout_and_keeps_less(config):
    plain = awake(config).train()
    spare = copy.deepcopy(plain)
    spare.recompute = True
    sizes = list[int]()
    runs = list[int]()
    spare.units()[0].register_forward_pre_hook(lambda *_: runs.append(1))
    for network in (plain, spare):
        kept: list[Tensor] = [*network.parameters()]
        own = len(kept)

        def keep(value: Tensor, kept: list[Tensor] = kept) -> Tensor:
            kept.append(value)
            return value

        torch.manual_seed(7)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            out = network(*inputs(config)).square().sum()
        places = {value.data_ptr(): value.numel() for value in reversed(kept)}
        sizes.append(sum(places.values()) - sum(value.numel() for value in kept[:own]))
        out.backward()
    assert len(runs) == 2 and sizes[1] < 0.6 * sizes[0]
    assert all(torch.equal(one.grad, other.grad) for one, other in zip(plain.parameters(), spare.parameters()))


@pytest.mark.long
@FAMILY
def test_a_network_compiles_to_one_graph_in_which_no_number_is_copied_to_the_device(config):
    network = awake(config).eval()
    network.recompute = True
    torch._dynamo.reset()
    whole = torch.compile(network, backend="eager", fullgraph=True)
    given = inputs(config)
    with Kernels() as kernels:
        wanted = network(*given)
    assert not any("lift" in name for name in kernels.names)
    torch.testing.assert_close(whole(*given), wanted)


@pytest.mark.long
def test_a_gpus_network_compiles_to_one_graph_forward_and_one_back():
    """A transform as on a GPU, with the norms that it has there, but for the compiler's last step."""
    plain = place(awake(replace(UNET, dropout=0.0, levels=(1,), attention=())), torch.device("cpu"))
    lean = copy.deepcopy(plain)
    graphs = list[Any]()
    for module in lean.modules():
        if isinstance(module, GroupNorm):
            module.fused = True

    def count(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    whole = torch.compile(lean, fullgraph=True, backend=aot_autograd(fw_compiler=count, bw_compiler=count))
    for call in (plain, whole):
        call(*inputs(UNET)).square().sum().backward()
    assert len(graphs) == 2
    for one, other in zip(plain.parameters(), lean.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-3)


# The kernels that CUDA would take of a training step, seen without a card.

IMAGES = 256
LARGE = 1_500_000
"""LARGE: bytes that all images have in bf16, and no weight."""
aten = torch.ops.aten
CONVOLUTIONS = {aten.convolution: 2, aten.convolution_backward: 3}
"""Tensors among the first arguments that cuDNN wants in one memory layout."""
WIDE: list[Any] = [
    UNetConfig(16, 3, 10, channels=64, levels=(1, 2), blocks=1, attention=(8,), dropout=0.1),
    UViTConfig(32, 3, 10, 64, (1, 2, 4), 1, 3, 2, 64, patching="dwt-1", dropout=0.1),
    DiTConfig(32, 3, 10, width=256, depth=3, heads=4, patch=2, dropout=0.1),
]


class Card(TorchFunctionMode):
    """Run functions in the precision of CUDA's autocast to bfloat16, and attention by the kernel that CUDA takes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.linear, F.conv2d, F.scaled_dot_product_attention):
            args = [value.to(torch.bfloat16) if isinstance(value, Tensor) else value for value in args]
        elif func in (F.group_norm, F.layer_norm):
            args = (args[0].float(), *args[1:])
        if func is F.scaled_dot_product_attention and all(q.stride(-1) == 1 for q in args):
            return aten._scaled_dot_product_flash_attention(*args)[0]
        return func(*args, **(kwargs or {}))


class Kernels(TorchDispatchMode):
    """Count operations by name; those of large images as `large NAME`, with cuDNN's copies on meta tensors as `layout`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func.overloadpacket
        out = func(*args, **(kwargs or {}))
        large = any(isinstance(each, Tensor) and each.numel() * each.itemsize > LARGE for each in args)
        self.names.update([packet.__name__, f"large {packet.__name__}"] if large else [packet.__name__])
        count = CONVOLUTIONS.get(packet, 0)
        if not count or not args[0].is_meta:
            return out
        last = any(each.stride(1) == 1 and each.stride(3) >= each.shape[1] for each in args[count - 2 : count])
        layout = torch.channels_last if last else torch.contiguous_format
        for each in args[:count]:
            copied = not each.is_contiguous(memory_format=layout)
            self.names["large layout"] += copied and each.numel() * each.itemsize > LARGE
        if isinstance(out, Tensor):
            return torch.empty_like(out, memory_format=layout)
        return tuple(torch.empty_like(o, memory_format=layout) if o is not None and o.dim() == 4 else o for o in out)


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("config", WIDE, ids=["unet", "uvit", "dit"])
def test_in_bf16_no_image_is_copied_and_attention_is_flash(config, sharded):
    with torch.device("meta"):
        network = build(config)
        network.to(torch.bfloat16) if sharded else place(network, torch.device("meta"))
        z = torch.empty(IMAGES, 3, config.image_size, config.image_size).contiguous(memory_format=torch.channels_last)
        with Kernels() as forward, Card():
            loss = network(z, torch.empty(IMAGES), torch.empty(IMAGES, dtype=torch.int64)).float().square().sum()
        with Kernels() as backward:
            loss.backward()
    flash = "_scaled_dot_product_flash_attention"
    assert forward.names[flash] == backward.names[f"{flash}_backward"] >= 2
    assert not {"native_group_norm", "_safe_softmax", "_softmax", "large layout"} & {*(+forward.names)}
    if isinstance(config, UNetConfig):  # tokens of the others are float32
        assert not {"large _to_copy", "large clone"} & {*forward.names}


# A network of somebody's own


@dataclass(frozen=True)
class PerceptronConfig(NetworkConfig):
    width: int
    gains: tuple[float, ...] = (1.0,)
    tanh: bool = False


@pytest.fixture
def perceptron() -> Iterator[None]:
    """Declared as a plug-in's file does, with no more than it needs."""

    @networks.network("perceptron", config=PerceptronConfig, source="this test")
    class Perceptron(Network):
        config: PerceptronConfig

        def __init__(self, config: PerceptronConfig):
            super().__init__(config)
            pixels = config.image_channels * config.image_size**2
            self.first = nn.Linear(pixels + 1, config.width)
            self.last = nn.Linear(config.width, pixels)

        def forward(self, z: Tensor, logsnr: Tensor, labels: Tensor | None = None) -> Tensor:
            hidden = self.first(torch.cat([z.flatten(1), logsnr[:, None]], 1))
            return self.last(hidden.relu() * self.config.gains[0]).view_as(z)

    yield
    del NETWORKS["perceptron"]


def test_a_plug_ins_network_trains_resumes_and_samples(perceptron, digits, tmp_path):
    preset = tmp_path / "mine.yaml"
    data = Dataset(digits)
    preset.write_text("network: {family: perceptron, width: 16}\ntrain: {logsnr_min: -9, logsnr_max: 9, batch_size: 8}")
    options = {"preset": str(preset), "save_every": 2, "activation_checkpointing": True, "preview_every": 0}
    for name, steps in (("whole", 4), ("parts", 2), ("parts", 4)):
        loop.run(data, tmp_path / name, resolve({**options, "steps": steps}, data))
    whole, parts = (tmp_path / f"{name}/checkpoints/step-00000004/model.safetensors" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()
    draw.draw_samples(tmp_path / "parts", tmp_path / "x.npy", SampleSettings(n=3, steps=3, compile="on"))
    assert np.load(tmp_path / "x.npy").shape[0] == 3


# One place switches on the precision in which every command runs its network.


@pytest.fixture
def switched(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the precisions under which convolutions were computed, forward and backward; "" is none."""
    under = [""]
    seen = set[str]()
    conv2d = F.conv2d

    @contextmanager
    def applied(self: Precision, benchmark: bool = False) -> Iterator[None]:
        under.append(self.name)
        yield
        under.pop()

    def noted(*args: Any, **how: Any) -> Tensor:
        out = conv2d(*args, **how)
        seen.add(under[-1])
        if out.requires_grad:
            out.register_hook(lambda _: seen.add(under[-1]))
        return out

    monkeypatch.setattr(Precision, "applied", applied)
    monkeypatch.setattr(F, "conv2d", noted)
    return seen


def test_training_its_previews_sampling_and_decoding_run_in_their_precision(latents, preset, tmp_path, short_previews, switched):
    data = Dataset(latents, latents=True)
    run = tmp_path / "run"
    options = {"preset": str(preset), "steps": 2, "preview_every": 2, "val_split": 8, "val_every": 2}
    loop.run(data, run, resolve({**options, "precision": "bf16"}, data))
    assert switched == {"bf16"}
    draw.draw_samples(run, tmp_path / "x.h5", SampleSettings(n=2, steps=2, precision="tf32", device="cpu"))
    assert switched == {"bf16", "tf32"}


def test_bounds_encoding_scores_and_the_api_run_in_their_precision(trained, digits, autoencoder, photos, tmp_path, switched):
    run = elbocli.open_run(trained)
    pixels = elbocli.open_dataset(digits).read(np.arange(2))
    network: Any = (run.network, run.prediction)
    stats = EvalSettings(metrics={}, extractor="elbo-tiny", save_stats=tmp_path / "stats.npz")
    bf16: Any = {"device": "cpu", "precision": "bf16"}
    (tmp_path / "images").mkdir()
    Image.fromarray(photos[0]).save(tmp_path / "images/x.png")

    def measurement() -> Any:
        return open_measurement(trained, None, BoundSettings(images=4, draws=2, **bf16))

    jobs: list[Callable[[], Any]] = [
        lambda: measure_bound(measurement()),
        lambda: check_theorem(measurement()),
        lambda: calls.pack(tmp_path / "images", tmp_path / "x.h5", size=16, latents=autoencoder, **bf16),
        lambda: elbocli.variational_bound(*network, pixels, draws=2, precision="bf16"),
        lambda: elbocli.draw(*network, (1, 8, 8), 2, steps=2, precision="bf16"),
        lambda: scoring.run([digits], None, stats),
    ]
    for job in jobs:
        switched.clear()
        job()
        assert switched == {"fp32" if job is jobs[-1] else "bf16"}
