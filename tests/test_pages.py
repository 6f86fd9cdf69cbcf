"""docs/python.md and docs/extending.md: their code runs, from an installed wheel in an empty folder, and does what they say."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from wheel_fixtures import ROOT, Installed

from elbocli.files.yaml_text import read_yaml

TYPED = """
from collections.abc import Iterator
import torch
import elbocli
from torch import Tensor, nn


def batches(path: str) -> Iterator[tuple[Tensor, Tensor]]:
    data: elbocli.Dataset = elbocli.open_dataset(path)
    yield elbocli.normalised(data.batch(range(8)), torch.device("cpu")), torch.from_numpy(data.labels[:8])


def train(network: nn.Module, path: str) -> float:
    loss = elbocli.DiffusionLoss(elbocli.weighting("sigmoid:bias=2"), "adaptive", elbocli.prediction("v"))
    log = elbocli.LossLogWriter("losslog.jsonl", loss.edges, dimensions=64)
    for x, labels in batches(path):
        terms: elbocli.LossTerms = loss(network, x, labels)
        terms.loss.mean().backward()  # type: ignore[no-untyped-call]  # torch's own
        log.write(loss.step, loss.images, loss.take_sums())
    schedule: elbocli.Schedule = elbocli.schedule("cosine", -10, 10)
    drawn: Tensor = elbocli.draw(network, loss.prediction, (1, 8, 8), 4, schedule=schedule, sampler=elbocli.sampler("ddim"))
    bound = elbocli.variational_bound(network, pixels=elbocli.open_dataset(path).batch(range(8)), loss=loss)
    run: elbocli.TrainedRun = elbocli.open_run("run")
    return bound.bpd + float(drawn.mean()) + run.step
"""


@pytest.mark.parametrize(("epochs", "least", "most"), [(4, 6, 9), pytest.param(20, 5, 7, marks=pytest.mark.slow)])
def test_the_page_on_python_runs_and_its_network_learns(
    epochs: int, least: float, most: float, run_page: Callable[[Path, Path], str], tmp_path: Path
) -> None:
    page = (ROOT / "docs" / "python.md").read_text()
    assert "range(20)" in page
    (tmp_path / "page.md").write_text(page.replace("range(20)", f"range({epochs})"))
    said = run_page(tmp_path / "page.md", tmp_path)
    assert "never rises for logsnr -15 to 15" in said
    bpd = float(said.split(" ± ")[0].split()[-1])
    assert least < bpd < most, "this network is at 6.3 bits after 20 epochs, and above 14 before the first"
    assert read_yaml(tmp_path / "schedule.yaml")["format"] == "elbo-schedule"


def test_the_page_on_extending_runs_and_the_run_remembers_its_plugin(
    run_page: Callable[[Path, Path], str], installed: Installed, tmp_path: Path
) -> None:
    run_page(ROOT / "docs" / "extending.md", tmp_path)
    assert [plugin["file"] for plugin in read_yaml(tmp_path / "run" / "config.yaml")["plugins"]] == ["mine.py"]
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["spread[pooled]"] > 0 and scores["frechet_distance[pooled]"] > 0
    assert math.isfinite(json.loads((tmp_path / "bound.json").read_text())["bpd"])
    assert "bump:center=1" in (tmp_path / "report.html").read_text()
    lacking = installed.run("elbo", "sample", "run", "-n", 1, "-o", "x.npy", cwd=tmp_path)
    assert lacking.returncode == 2 and "plug-in mine.py" in lacking.stderr and "--plugin" in lacking.stderr
    (tmp_path / "mine.py").write_text((tmp_path / "mine.py").read_text() + "# changed\n")
    changed = installed.run(
        "elbo", "sample", "run", "-n", 1, "--steps", 2, "-o", "x.npy", "--plugin", "mine.py", cwd=tmp_path
    )
    assert changed.returncode == 0 and "has changed since" in changed.stderr


@pytest.mark.slow
def test_what_uses_the_api_passes_strict_type_checks(installed: Installed, tmp_path: Path) -> None:
    (tmp_path / "uses.py").write_text(TYPED)
    result = installed.run("python", "-m", "mypy", "--strict", "--cache-dir", "cache", "uses.py", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("import elbocli.plugin as elbo\n1 / 0\n", "ZeroDivisionError"),
        ("def f(:\n", "SyntaxError: invalid syntax (bad.py, line 1)"),
        (
            "import elbocli.plugin as elbo\n\n@elbo.weighting('edm', formula='1', monotone=True, source='x')\ndef f(l): return l\n",
            "'edm' already",
        ),
    ],
)
def test_a_plugin_that_fails_is_told_with_its_line(
    content: str, said: str, installed: Installed, tmp_path: Path
) -> None:
    (tmp_path / "bad.py").write_text(content)
    result = installed.run("elbo", "weights", "list", "--plugin", "bad.py", cwd=tmp_path)
    assert result.returncode == 2 and said in result.stderr and "Traceback" not in result.stderr


def test_an_installed_package_brings_plugins_by_its_entry_point(installed: Installed, tmp_path: Path) -> None:
    site = next((installed.folder / "lib").glob("python*/site-packages"))
    (site / "elbo_zoo.py").write_text(
        "from elbocli.plugin import weighting\n\n\n"
        "@weighting('zoo', formula='1/2', monotone=True, source='a package')\ndef zoo(logsnr):\n    return logsnr * 0 + 0.5\n"
    )
    metadata = site / "elbo_zoo-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: elbo-zoo\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[elbo.plugins]\nzoo = elbo_zoo\n")
    try:
        listed = installed.run("elbo", "weights", "list", cwd=tmp_path, fresh=True)
        assert listed.returncode == 0 and "zoo" in listed.stdout
        assert "never rises" in installed.run("elbo", "weights", "check", "zoo", cwd=tmp_path, fresh=True).stdout
    finally:
        (site / "elbo_zoo.py").unlink()
        for file in metadata.iterdir():
            file.unlink()
        metadata.rmdir()


def test_nothing_that_a_run_or_a_preset_says_is_run(installed: Installed, digits: Path, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("open('ran', 'w')\n")
    (tmp_path / "p.yaml").write_text("network: {channels: 8, levels: [1, 2]}\ntrain: {steps: 1, plugin: evil.py}\n")
    (tmp_path / "c.yaml").write_text("plugin: evil.py\n")
    for words in (("--preset", "p.yaml"), ("--config", "c.yaml")):
        result = installed.run("elbo", "train", digits, *words, "-o", "run", cwd=tmp_path)
        assert result.returncode in (1, 2) and "plugin" in result.stderr
    assert not (tmp_path / "ran").exists()
