"""A program of anyone's is a network, and an extractor: its function is the exported module's, and what doesn't fit is refused."""

import hashlib
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pretend
import pytest
import torch
from torch import Tensor, nn

import elbocli
from elbocli.errors import DataError, FormatError, UsageError
from elbocli.files.plugins import trust
from elbocli.nn.extractors import make_extractor
from elbocli.nn.networks import Network, build, config_of, place, section_of
from elbocli.nn.networks.own_network import ProgramConfig, open_program
from elbocli.nn.networks.transformers import DiTConfig

CPU = torch.device("cpu")
LEVELS, LABELS = torch.tensor([-15.0, -3.2, 0.0, 4.1, 15.0]), torch.arange(5)


class Net(nn.Module):
    """(z [B, 3, 8, 8], level [B, 1], labels [B]) → [B, 3 or 6, 8, 8], with a constant, a tied layer, and tensors of its own."""

    def __init__(self, classes: int = 5, out: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, out, 3, padding=1)
        self.level, self.classes = nn.Linear(8, 8), nn.Embedding(classes, 8)
        self.again = self.level
        self.rates = torch.linspace(0.1, 1, 8)

    def forward(self, z: Tensor, level: Tensor, labels: Tensor) -> Tensor:
        code = (level.float().view(-1, 1) * self.rates).sin() + 0.01 * torch.arange(8)
        code = self.again(self.level(code).sin())
        named = labels @ self.classes.weight if labels.dim() == 2 else self.classes(labels)
        x = self.first(z) + (code + named)[:, :, None, None]
        return self.last(x.relu().view(z.shape[0], 64, 8).transpose(1, 2).reshape(z.shape[0], 8, 8, 8))


class Calling(nn.Module):
    """A function of tensors as a module with one layer."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function, self.layer = function, nn.Conv2d(3, 3, 1)

    def forward(self, z: Tensor, level: Tensor | None = None) -> Tensor:
        z = self.layer(z) if z.dtype == self.layer.weight.dtype else z
        return self.function(z) if level is None else self.function(z, level)


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


def opened(folder: Path, net: nn.Module, *inputs: Tensor, **more: Any) -> ProgramConfig:
    """The config by which a module's program is opened, which the user trusts."""
    path = folder / "net.pt2"
    if not path.exists():
        elbocli.export_network(net, path, *inputs)
    trust(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ProgramConfig(8, 3, 5, file="net.pt2", sha256=digest, folder=str(folder), **more)


INPUTS = (images(2), torch.zeros(2), torch.zeros(2).long())


@pytest.fixture(scope="module")
def net() -> Net:
    return Net()


@pytest.fixture(scope="module")
def config(net: Net, tmp_path_factory: pytest.TempPathFactory) -> ProgramConfig:
    return opened(tmp_path_factory.mktemp("program"), net, *INPUTS)


@torch.no_grad()
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_program_computes_what_the_module_does_with_the_weights_of_the_checkpoint(device, net, config):
    """At every level and batch."""
    other = Net()
    other.load_state_dict({name: 2 * value for name, value in net.state_dict().items()})
    with torch.device(device):
        network = build(config)
    held = {f"program.{name}": value for name, value in other.state_dict().items()}
    network.load_state_dict({name: held[name] for name in network.state_dict()}, assign=True)
    network = place(network, CPU).eval()
    for count in (1, 2, 5):
        z = images(count).contiguous(memory_format=torch.channels_last)
        assert torch.equal(network(z, LEVELS[:count], LABELS[:count]), other(images(count), LEVELS[:count], LABELS[:count]))


@torch.no_grad()
def test_an_exported_network_of_elbo_is_the_same_function(tmp_path):
    own = build(DiTConfig(8, 3, 5, width=24, depth=1, heads=2, patch=2, code="t-linear", variance=True)).eval()
    for parameter in own.parameters():
        parameter.normal_(0, 0.2)
    made = build(opened(tmp_path, own, null_class=(-1,), variance=True)).eval()
    wanted = own.outputs(images(5), LEVELS, LABELS - 1)
    ours = made.outputs(images(5), LEVELS, LABELS - 1)
    assert ours.shape[1] in (3, 6) and float(ours.std()) > 0.1
    assert torch.allclose(ours, wanted[:, : ours.shape[1]], rtol=0, atol=1e-5 * float(ours.abs().max()))


@torch.no_grad()
def test_whole_timesteps_are_rounded_and_a_class_is_a_row_with_a_one_where_that_is_wanted(net, tmp_path):
    inputs = images(2), torch.zeros(2, 1).long(), torch.zeros(2, 5)
    network = build(opened(tmp_path, net, *inputs, code="t-linear:count=100")).eval()
    abar = (1 - torch.linspace(1e-4, 0.02, 100, dtype=torch.float64)).cumprod(0)
    nearest = (LEVELS.double()[:, None] - (abar / (1 - abar)).log()).abs().argmin(1)[:, None]
    labels = torch.tensor([0, 4, -1, 2, -1])
    rows = torch.eye(6)[labels][:, :5]
    assert torch.equal(network(images(5), LEVELS, labels), net(images(5), nearest, rows))
    assert torch.equal(network(images(5), LEVELS, None), net(images(5), nearest, torch.zeros(5, 5)))


@torch.no_grad()
def test_no_class_is_the_label_that_was_named_and_refused_where_none_was(net, config):
    told = build(replace(config, num_classes=4, null_class=(4,))).eval()
    for labels in (torch.full((2,), -1), None):
        assert torch.equal(told(images(2), LEVELS[:2], labels), net(images(2), LEVELS[:2], torch.full((2,), 4)))
        with pytest.raises(UsageError, match=r"net\.pt2"):
            build(config)(images(2), LEVELS[:2], labels)


@torch.no_grad()
def test_variances_are_the_second_half_and_half_precision_is_converted_at_the_door(tmp_path):
    net = Net(out=6)
    network = build(opened(tmp_path, net, *INPUTS, variance=True)).eval()
    wanted = net(images(5), LEVELS, LABELS)
    assert torch.equal(network.outputs(images(5), LEVELS, LABELS), wanted)
    assert torch.equal(network(images(5), LEVELS, LABELS), wanted[:, :3])
    (tmp_path / "half").mkdir()
    half = Calling(lambda z, level: z * level.to(z.dtype)[:, None, None, None]).half()
    network = build(opened(tmp_path / "half", half, images(2).half(), torch.zeros(2))).eval()
    out = network(images(5), LEVELS, None)
    assert out.dtype == torch.float32 and torch.equal(out, half(images(5).half(), LEVELS).float())


@pytest.mark.skipif(bool(pretend.lacking()), reason=pretend.lacking() or "")
def test_what_it_makes_itself_is_made_on_the_device_of_its_inputs(net, config):
    network = build(config).eval().requires_grad_(False)
    wanted = net(images(5), LEVELS, LABELS)
    with pretend.pretending() as device:
        place(network, torch.device("cuda:0"))
        out = network(images(5).cuda(), LEVELS.cuda(), LABELS.cuda())
        assert not device.waits.within("outputs")
        assert torch.allclose(out.cpu(), wanted, atol=1e-6)


def test_it_reads_back_from_a_section_and_follows_its_folder(config, tmp_path):
    shutil.copy(Path(config.folder) / config.file, tmp_path / "net.pt2")
    section = section_of(config)
    assert "folder" not in section
    moved = config_of(section, tmp_path / "config.yaml")
    assert isinstance(moved, ProgramConfig) and moved.folder == str(tmp_path) and isinstance(build(moved), Network)
    for change in ({"folder": "/"}, {"code": "sigmas"}):
        with pytest.raises((FormatError, UsageError)):
            config_of({**section, **change}, tmp_path / "config.yaml")


def test_a_file_that_is_gone_or_changed_or_that_no_user_named_is_refused(config, tmp_path, monkeypatch):
    """A run from a stranger may hold a program: it is not loaded."""
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("loaded"))
    copy, path = replace(config, folder=str(tmp_path)), tmp_path / "net.pt2"
    with pytest.raises(DataError, match=r"net\.pt2"):
        build(copy)
    path.write_bytes(b"a stranger's program")
    with pytest.raises(DataError, match=r"net\.pt2: has changed"):
        build(copy)
    with pytest.raises(UsageError, match="--plugin"):
        build(replace(copy, sha256=hashlib.sha256(path.read_bytes()).hexdigest()))


WRONG: list[tuple[Callable[..., Tensor], tuple[Tensor, ...], type[Exception]]] = [
    (lambda z, level: z.flatten(1) * level[:, None], INPUTS[:2], FormatError),
    (lambda z, level: torch.cat([z, z, z], 1) * level[:, None, None, None], INPUTS[:2], FormatError),
    (lambda z: z + 1, INPUTS[:1], FormatError),
    (lambda z, level: z * level[:, :1, None, None], (torch.zeros(2, 3, 8, 4), torch.zeros(2, 1)), FormatError),
    (lambda z, level: z * level[:, None, None, None].long(), (images(2).long(), torch.zeros(2)), FormatError),
    (lambda z, level: z.reshape(2, 3, 8, 8) * level[0], INPUTS[:2], UsageError),
]


@pytest.mark.parametrize(("function", "inputs", "error"), WRONG)
def test_a_program_of_other_inputs_or_outputs_or_of_one_batch_size_is_refused(function, inputs, error, tmp_path):
    with pytest.raises(error, match=r"net\.pt2: "):
        elbocli.export_network(Calling(function), tmp_path / "net.pt2", *inputs)
    with pytest.raises(UsageError, match=r"\.pt2"):
        elbocli.export_network(Net(), tmp_path / "net.pt", *INPUTS)


# Programs exported for batches of one size alone are refused with a way out, which works


class Features(nn.Module):
    """uint8 [B, 3, 8, 8] → features [B, 4], logits [B, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.features, self.logits = nn.Linear(192, 4), nn.Linear(4, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images.float().flatten(1))
        return features, self.logits(features)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_fixed_batch_is_refused_and_the_remedy_that_is_named_makes_it_good(batch, net, tmp_path):
    network, path = Features().eval(), tmp_path / "a net.pt2"
    levels = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    torch.export.save(torch.export.export(network, (levels[:batch],)), path)
    with pytest.raises(FormatError, match=f"batches of {batch} images") as caught:
        make_extractor(str(path), None, "cpu")
    (remedy,) = re.findall(r"elbocli\.export_extractor\(.*\)", str(caught.value))
    eval(remedy, {"elbocli": elbocli, "network": network, "images": levels[:batch]})
    for count in (1, 2, 5):
        for found, wanted in zip(make_extractor(str(path), None, "cpu")(levels[:count]), network(levels[:count])):
            assert found is not None and torch.allclose(found, wanted)
    torch.export.save(torch.export.export(net.eval(), INPUTS), path)
    with pytest.raises(FormatError, match=r"2 images; .*elbocli\.export_network"):
        open_program(path)


def test_an_extractor_of_one_batch_size_alone_is_refused_and_nothing_is_written(tmp_path):
    fixed = Calling(lambda images: images.float().reshape(2, 192))
    for network, name in ((fixed, "x.pt2"), (Features(), "x.pt")):
        with pytest.raises(UsageError):
            elbocli.export_extractor(network, torch.zeros(5, 3, 8, 8, dtype=torch.uint8), tmp_path / name)
    assert list(tmp_path.iterdir()) == []
