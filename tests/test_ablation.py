"""The paper's table in miniature: its script measures what it says, and docs/ablation.md says what was measured."""

import json
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from example_scripts import Classifier, load

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "examples" / "ablation" / "ablation.py"


@pytest.fixture
def ablation() -> ModuleType:
    return load(SCRIPT)


def row(prediction: str, schedule: str, seed: int, distance: float, **more: Any) -> dict[str, Any]:
    scores = {sampler: {"frechet": distance, "accuracy": 0.5} for sampler in ("ddpm", "heun")}
    return {
        "prediction": prediction,
        "weighting": "elbo",
        "schedule": schedule,
        "seed": seed,
        "steps": 7,
        "bpd": 4.0,
        "seconds": 1800,
        "machine": "a",
        **scores,
        **more,
    }


def test_every_choice_is_tried_with_every_other(ablation: ModuleType) -> None:
    found = ablation.cells(3)
    assert len(found) == len({cell.name for cell in found}) == 3 * 3 * (5 * 3 - 1)
    assert Counter(cell.seed for cell in found) == {0: 42, 1: 42, 2: 42}
    assert {cell.schedule for cell in found if cell.weighting == "own"} == {"cosine", "edm"}


def test_marginals_compare_like_with_like(ablation: ModuleType) -> None:
    """v halves every distance, edm multiplies it by 1 to 4: whatever else differs between pairs drops out."""
    rows = []
    for seed, size in enumerate((3.0, 7.0, 50.0)):
        for prediction, factor in (("eps", 1.0), ("v", 0.5)):
            rows.append(row(prediction, "cosine", seed, size * factor))
            rows.append(row(prediction, "edm", seed, size * factor * (1, 2, 4)[seed]))
    lines = dict(line.strip("| ").split(" | ", 1) for line in ablation.marginals(rows).splitlines())
    assert lines["prediction v"] == "eps | 0.50 (0.50 to 0.50) | 6"
    assert (
        lines["schedule edm"].startswith("cosine | 2.00 (1.")
        and lines["sampler heun"] == "ddpm | 1.00 (1.00 to 1.00) | 12"
    )
    spread = np.std(np.log(np.repeat([1, 2, 4], 2)), ddof=1) / 6**0.5
    assert f"({2 * np.exp(-2 * spread):.2f} to {2 * np.exp(2 * spread):.2f})" in lines["schedule edm"]


def test_a_failure_is_a_result_and_spreads_are_of_the_others(ablation: ModuleType, tmp_path: Path) -> None:
    rows = [
        row("v", "cosine", 0, 3.0),
        row("v", "cosine", 1, 5.0),
        row("v", "edm", 0, 1.0, failed="loss is not finite"),
    ]
    lines = ablation.table([*rows, row("v", "cosine", 2, 0.0, failed="x")]).splitlines()
    assert lines[2].startswith("| v | elbo | cosine (1 of 3 failed) | 4.00 ± 1.41 | 4.00 ± 1.41 | 50.00 ± 0.00 |")
    assert lines[3] == "| v | elbo | edm (1 of 1 failed) | failed | failed | failed | failed | failed |"
    assert ablation.summary(rows).startswith(
        "3 trainings of 7 steps, 1.5 hours of one core in all, on a.\n\n| prediction |"
    )
    ablation.picture(rows, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_cells_are_measured_once_by_elbos_own_commands(
    ablation: ModuleType, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("train", "test"):
        (tmp_path / f"{part}.h5").symlink_to(digits)
    exported = torch.export.export(
        Classifier(),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8),),
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1 << 20)},),
    )
    torch.export.save(exported, tmp_path / "classifier.pt2")
    monkeypatch.setattr(ablation, "SAMPLERS", {"ddpm": 2, "heun": 2})
    monkeypatch.setattr(ablation, "SAMPLES", 40)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    todo = [ablation.Cell("v", "own", "cosine", 0), ablation.Cell("v", "nosuch", "cosine", 0)]
    ablation.work(tmp_path, todo, 2, 2)
    good, bad = (json.loads((tmp_path / "results" / f"{cell.name}.json").read_text()) for cell in todo)
    assert "nosuch" in bad["failed"] and "ddpm" not in bad
    assert set(good) == {*todo[0]._fields, "steps", "machine", "bpd", "ddpm", "heun", "seconds"}
    assert all(good[sampler]["frechet"] > 0 and 0 <= good[sampler]["accuracy"] <= 1 for sampler in ("ddpm", "heun"))
    assert good["ddpm"] != good["heun"]
    config = (tmp_path / "runs" / todo[0].name / "config.yaml").read_text()
    assert "weighting: schedule:cosine\n" in config and "steps: 2\n" in config
    monkeypatch.setattr(ablation, "elbo", None)
    ablation.work(tmp_path, todo, 2, 2)  # calls nothing


def test_the_page_shows_what_was_measured(ablation: ModuleType) -> None:
    """`make docs` writes it: nothing there is typed by hand."""
    rows = ablation.gathered(SCRIPT.with_name("results.jsonl"))
    assert {tuple(row[key] for key in ablation.Cell._fields) for row in rows} == set(ablation.cells(3))
    assert len(rows) == len(ablation.cells(3)) and len({(row["steps"], row["machine"]) for row in rows}) == 1
    page = (ROOT / "docs" / "ablation.md").read_text()
    assert page.endswith(f"\n## Measured\n\n{ablation.summary(rows)}\n")
