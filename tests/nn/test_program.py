"""A program of anyone's as a network: its function is the exported module's, and what doesn't fit is said."""

import hashlib
import shutil
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
from elbocli.nn.networks import Network, build, config_of, place, section_of
from elbocli.nn.networks.own_network import ProgramConfig, open_program
from elbocli.nn.networks.unet import UNetConfig

LEVELS = torch.tensor([-15.0, -3.2, 0.0, 4.1, 15.0])


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


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        return self.layer(z) * level.to(z.dtype)[:, None, None, None]


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(count))


def trusted(path: Path) -> str:
    """The digest of a program that the user trusts."""
    trust(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def written(folder: Path, net: nn.Module, *inputs: Tensor, **more: Any) -> ProgramConfig:
    """A program of a module, and the config by which it is opened."""
    path = folder / "net.pt2"
    elbocli.export_network(net, path, *(inputs or (images(2), torch.zeros(2), torch.zeros(2).long())))
    digest = trusted(path)
    return ProgramConfig(8, 3, 5, file="net.pt2", sha256=digest, folder=str(folder), **more)


def weights(net: nn.Module, times: int, network: nn.Module) -> dict[str, Tensor]:
    """A module's, by the names in its program; torch 2.6 has a layer that is tied there once."""
    found = {f"program.{name}": times * value for name, value in net.state_dict().items()}
    return {name: found[name] for name in network.state_dict()}


@pytest.fixture(scope="module")
def net() -> Net:
    return Net()


@pytest.fixture(scope="module")
def config(net: Net, tmp_path_factory: pytest.TempPathFactory) -> ProgramConfig:
    return written(tmp_path_factory.mktemp("program"), net)


@torch.no_grad()
def test_a_program_computes_what_the_module_does_at_every_level_and_batch(net: Net, config: ProgramConfig) -> None:
    with torch.device("meta"):
        network = build(config)
    network.load_state_dict(weights(net, 1, network), assign=True)
    network = place(network, torch.device("cpu")).eval()
    for count in (1, 2, 5):
        labels = torch.arange(count)
        z = images(count).contiguous(memory_format=torch.channels_last)
        assert torch.equal(network(z, LEVELS[:count], labels), net(images(count), LEVELS[:count], labels))


@torch.no_grad()
def test_weights_are_those_of_the_checkpoint_not_of_the_file(net: Net, config: ProgramConfig) -> None:
    network = build(config).eval()
    network.load_state_dict(weights(net, 2, network), assign=True)
    other = Net()
    other.load_state_dict({name: 2 * value for name, value in net.state_dict().items()})
    labels = torch.arange(5)
    assert torch.equal(network(images(5), LEVELS, labels), other(images(5), LEVELS, labels))


@torch.no_grad()
def test_an_exported_network_of_elbo_is_the_same_function(tmp_path: Path) -> None:
    torch.manual_seed(0)
    own = build(UNetConfig(8, 3, 4, channels=8, levels=(1,), blocks=1, attention=())).eval()
    for parameter in own.parameters():
        parameter.normal_(0, 0.2)
    elbocli.export_network(own, tmp_path / "net.pt2")
    digest = trusted(tmp_path / "net.pt2")
    config = ProgramConfig(8, 3, 4, file="net.pt2", sha256=digest, null_class=(-1,), folder=str(tmp_path))
    labels = torch.arange(5) - 1
    ours = build(config).eval()(images(5), LEVELS, labels)
    assert torch.allclose(ours, own(images(5), LEVELS, labels), rtol=0, atol=1e-5 * float(ours.abs().max()))
    assert float(ours.std()) > 0.1


@torch.no_grad()
def test_whole_timesteps_are_rounded(net: Net, tmp_path: Path) -> None:
    inputs = images(2), torch.zeros(2, 1).long(), torch.zeros(2).long()
    network = build(written(tmp_path, net, *inputs, code="t-linear:count=100")).eval()
    labels = torch.arange(5)
    steps = nearest_steps(LEVELS)
    assert torch.equal(network(images(5), LEVELS, labels), net(images(5), steps[:, None], labels))


def nearest_steps(logsnr: Tensor) -> Tensor:
    """The nearest of 100 timesteps of betas from 1e-4 to 0.02, by looking at every one."""
    abar = (1 - torch.linspace(1e-4, 0.02, 100, dtype=torch.float64)).cumprod(0)
    return (logsnr.double()[:, None] - (abar / (1 - abar)).log()).abs().argmin(1)


@torch.no_grad()
def test_a_class_is_a_row_with_a_one_where_that_is_wanted(net: Net, tmp_path: Path) -> None:
    network = build(written(tmp_path, net, images(2), torch.zeros(2), torch.zeros(2, 5))).eval()
    labels = torch.tensor([0, 4, -1])
    rows = torch.cat([torch.eye(5)[[0, 4]], torch.zeros(1, 5)])
    assert torch.equal(network(images(3), LEVELS[:3], labels), net(images(3), LEVELS[:3], rows))
    assert torch.equal(network(images(3), LEVELS[:3], None), net(images(3), LEVELS[:3], torch.zeros(3, 5)))


@torch.no_grad()
def test_no_class_is_the_label_that_was_named_and_refused_where_none_was(net: Net, config: ProgramConfig) -> None:
    told = build(replace(config, num_classes=4, null_class=(4,))).eval()
    for labels in (torch.full((2,), -1), None):
        assert torch.equal(told(images(2), LEVELS[:2], labels), net(images(2), LEVELS[:2], torch.full((2,), 4)))
        with pytest.raises(UsageError, match=r"net\.pt2: doesn't know images of no class"):
            build(config)(images(2), LEVELS[:2], labels)


@torch.no_grad()
def test_variances_are_the_second_half(tmp_path: Path) -> None:
    net = Net(out=6)
    network = build(written(tmp_path, net, variance=True)).eval()
    labels = torch.arange(5)
    wanted = net(images(5), LEVELS, labels)
    assert torch.equal(network.outputs(images(5), LEVELS, labels), wanted)
    first = network(images(5), LEVELS, labels)
    assert torch.equal(first, wanted[:, :3])


@torch.no_grad()
def test_half_precision_is_converted_at_the_door(tmp_path: Path) -> None:
    net = Half().half()
    network = build(written(tmp_path, net, images(2).half(), torch.zeros(2))).eval()
    out = network(images(2), LEVELS[:2], None)
    assert out.dtype == torch.float32 and torch.equal(out, net(images(2).half(), LEVELS[:2]).float())


@pytest.mark.skipif(bool(pretend.lacking()), reason=pretend.lacking() or "")
def test_what_it_makes_itself_is_made_on_the_device_of_its_inputs(net: Net, config: ProgramConfig) -> None:
    network, labels = build(config).eval().requires_grad_(False), torch.arange(5)
    wanted = net(images(5), LEVELS, labels)
    with pretend.pretending() as device:
        place(network, torch.device("cuda:0"))
        out = network(images(5).cuda(), LEVELS.cuda(), labels.cuda())
        assert not device.waits.within("outputs")
        assert torch.allclose(out.cpu(), wanted, atol=1e-6)


def test_it_reads_back_from_a_section_and_follows_its_folder(config: ProgramConfig, tmp_path: Path) -> None:
    shutil.copy(Path(config.folder) / config.file, tmp_path / "net.pt2")
    section = section_of(config)
    assert "folder" not in section
    moved = config_of(section, tmp_path / "config.yaml")
    assert isinstance(moved, ProgramConfig) and moved.folder == str(tmp_path)
    assert isinstance(build(moved), Network)
    with pytest.raises(FormatError, match="folder is unknown"):
        config_of({**section, "folder": "/"}, tmp_path / "config.yaml")
    with pytest.raises(FormatError, match=r"'\.\./net\.pt2', expected the name of a \.pt2 file"):
        config_of({**section, "file": "../net.pt2"}, tmp_path / "config.yaml")


def test_a_file_that_changed_or_is_gone_is_refused(config: ProgramConfig, tmp_path: Path) -> None:
    copy = replace(config, folder=str(tmp_path))
    with pytest.raises(DataError, match=r"net\.pt2"):
        build(copy)
    elbocli.export_network(Net(classes=6), tmp_path / "net.pt2", images(2), torch.zeros(2), torch.zeros(2).long())
    with pytest.raises(DataError, match=r"net\.pt2: has changed since it was imported; .*import it anew"):
        build(copy)


def test_a_program_that_no_user_named_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run from a stranger may hold one."""
    path = tmp_path / "net.pt2"
    path.write_bytes(b"a stranger's program")
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("loaded"))
    with pytest.raises(UsageError, match=r"net\.pt2: is a program, .* add --plugin"):
        build(
            ProgramConfig(
                8, 3, 5, file="net.pt2", sha256=hashlib.sha256(path.read_bytes()).hexdigest(), folder=str(tmp_path)
            )
        )


class Flat(nn.Module):
    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        return z.flatten(1) * level[:, None]


class Wide(nn.Module):
    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        return torch.cat([z, z, z], 1) * level[:, None, None, None]


class Alone(nn.Module):
    def forward(self, z: Tensor) -> Tensor:
        return z + 1


class Long(nn.Module):
    def forward(self, z: Tensor, level: Tensor) -> Tensor:
        return z * level[:, :1, None, None]


@pytest.mark.parametrize(
    ("net", "inputs"),
    [
        (Flat(), (images(2), torch.zeros(2))),
        (Wide(), (images(2), torch.zeros(2))),
        (Alone(), (images(2),)),
        (Wide(), (torch.zeros(2, 3, 8, 4), torch.zeros(2))),
        (Long(), (torch.zeros(2, 3, 8, 4), torch.zeros(2, 1))),
        (Long(), (torch.zeros(2, 3, 8, 8).long(), torch.zeros(2, 1))),
    ],
)
def test_a_program_of_other_inputs_or_outputs_is_refused(
    net: nn.Module, inputs: tuple[Tensor, ...], tmp_path: Path
) -> None:
    with pytest.raises(FormatError, match="no network for square images"):
        elbocli.export_network(net, tmp_path / "net.pt2", *inputs)


def test_a_fixed_batch_is_refused_with_a_way_out(net: Net, tmp_path: Path) -> None:
    path, inputs = tmp_path / "net.pt2", (images(2), torch.zeros(2), torch.zeros(2).long())
    torch.export.save(torch.export.export(net.eval(), inputs), path)
    with pytest.raises(FormatError, match=r"takes batches of 2 images alone; .* elbocli\.export_network\(network"):
        open_program(path)


def test_a_network_that_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, z: Tensor, level: Tensor) -> Tensor:
            return z.reshape(2, 3, 8, 8) * level[0]

    with pytest.raises(UsageError, match="for batches of any size"):
        elbocli.export_network(Fixed(), tmp_path / "x.pt2", images(2), torch.zeros(2))
    with pytest.raises(UsageError, match=r"ends in \.pt2"):
        elbocli.export_network(Fixed(), tmp_path / "x.pt", images(2), torch.zeros(2))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("change", [{"code": "sigmas"}, {"file": "net.bin"}])
def test_a_config_that_cannot_be_is_refused(config: ProgramConfig, change: dict[str, Any]) -> None:
    with pytest.raises((UsageError, FormatError)):
        replace(config, **change)
