"""`elbo import` through the shell: a run's own weights, saved as somebody else would, give the same run again."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from elbocli.files.yaml_text import read_yaml

Elbo = Callable[..., CompletedProcess[bytes]]
PLUGIN = """
from elbocli.importer.formats import Imported, entries, fitted, source_format, state_dict
from elbocli.nn.networks import config_of

NETWORK = {network}

def recognises(source):
    tree = source.tree
    return entries(tree) or (isinstance(tree, dict) and ("ema" in tree or "epoch" in tree))

@source_format("mine", about="A format of one's own.", source="here", licence="Free.", recognises=recognises)
def mine(source, options):
    config = config_of(NETWORK, source.path)
    tensors, averaged, _ = state_dict(source, options)
    weights = fitted(tensors, config, source)
    known = {{"prediction": "v", "schedule": "cosine", "weighting": "sigmoid", "logsnr_min": -10.0, "logsnr_max": 10.0}}
    return Imported(config, weights, {{**known, "label_dropout": 0.1}}, averaged)
"""


@pytest.fixture(scope="module")
def folder(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plug-in that declares the format of `trained`'s weights, and these as a state dict, w.pt."""
    made = tmp_path_factory.mktemp("imports")
    network = read_yaml(trained / "config.yaml")["network"]
    (made / "mine.py").write_text(PLUGIN.format(network=network))
    torch.save(weights_of(trained), made / "w.pt")
    return made


def weights_of(run: Path) -> dict[str, torch.Tensor]:
    newest = max((run / "checkpoints").iterdir())
    return load_file(next(newest.glob("ema-*.safetensors")))


def test_an_imported_run_is_the_run_that_it_was_made_of(
    elbo: Elbo, folder: Path, trained: Path, digits: Path, tmp_path: Path
) -> None:
    plugin = ("--plugin", folder / "mine.py")
    result = elbo("import", folder / "w.pt", "run", *plugin, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, b"run\n"), result.stderr
    assert b"licence: Free." in result.stderr
    draw = ("-n", 6, "--steps", 4, "--seed", 3)
    ours = elbo("sample", "run", *plugin, *draw, cwd=tmp_path)
    assert ours.stdout == elbo("sample", trained, *draw).stdout and len(ours.stdout) > 6 * 64
    measure = ("-n", 20, "--draws", 4, "--schedule", "uniform")
    ours, theirs = (
        elbo("bound", run, digits, *measure, *plugin, "--log", f"{name}.jsonl", cwd=tmp_path)
        for name, run in (("ours", "run"), ("theirs", trained))
    )
    assert json.loads(ours.stdout)["bpd"] == json.loads(theirs.stdout)["bpd"]
    assert elbo("bound", "run", digits, *plugin, "--check", *measure[:4], cwd=tmp_path).returncode == 0
    fitted = [elbo("adapt", f"{name}.jsonl", cwd=tmp_path).stdout.splitlines() for name in ("ours", "theirs")]
    assert [line for line in fitted[0] if b"logsnr" in line] == [line for line in fitted[1] if b"logsnr" in line]
    page = elbo("report", "run", *plugin, cwd=tmp_path).stdout.decode()
    assert "imported from <code>w.pt</code>" in page and "learning_rate" not in page
    told = json.loads(elbo("info", "run", "--json", cwd=tmp_path).stdout)
    assert told["imported_format"] == "mine" and "lr" not in told


def test_a_card_names_the_source_and_nothing_that_nobody_knows(
    elbo: Elbo, folder: Path, digits: Path, tmp_path: Path
) -> None:
    plugin = ("--plugin", folder / "mine.py")
    assert elbo("import", folder / "w.pt", "run", *plugin, cwd=tmp_path).returncode == 0
    assert elbo("sample", "run", *plugin, "-n", 20, "--steps", 2, "-o", "s.npz", cwd=tmp_path).returncode == 0
    score = ("eval", "s.npz", "--ref", digits, "--extractor", "elbo-tiny", "--card", "card.md")
    assert elbo(*score, cwd=tmp_path).returncode == 0
    card = (tmp_path / "card.md").read_text()
    assert "- its file: `w.pt`" in card and "- images trained on, with repetition: *not known*" in card


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "module._orig_mod.", "net.model."])
def test_wrappers_and_prefixes_are_taken_off(
    wrapper: str, elbo: Elbo, folder: Path, trained: Path, tmp_path: Path
) -> None:
    save_file({wrapper + name: tensor for name, tensor in weights_of(trained).items()}, tmp_path / "w.safetensors")
    said = ("--prefix", wrapper) if wrapper.startswith("net") else ()
    result = elbo("import", "w.safetensors", "run", *said, "--plugin", folder / "mine.py", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    held = load_file(tmp_path / "run/checkpoints/step-00000000/model.safetensors")
    assert {name: tensor.tolist() for name, tensor in held.items()} == {
        name: tensor.tolist() for name, tensor in weights_of(trained).items()
    }


def test_the_average_is_taken_unless_the_last_weights_are_asked_for(
    elbo: Elbo, folder: Path, trained: Path, tmp_path: Path
) -> None:
    average = weights_of(trained)
    last = {name: tensor + 1 for name, tensor in average.items()}
    torch.save({"ema": average, "model": last, "opt": {"step": 3}}, tmp_path / "both.pt")
    for name, wanted, said in (("ema-imported", average, ()), ("model", last, ("--weights", "model"))):
        result = elbo("import", "both.pt", name, *said, "--plugin", folder / "mine.py", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        held = load_file(tmp_path / name / f"checkpoints/step-00000000/{name}.safetensors")
        assert all(torch.equal(held[key], wanted[key]) for key in wanted)
        assert (b"takes the weights ema" in result.stderr) == (said == ()), result.stderr


def test_any_weights_are_taken_by_their_key_and_several_averages_are_not_guessed_between(
    elbo: Elbo, folder: Path, trained: Path, tmp_path: Path
) -> None:
    """The keys of JiT's checkpoints."""
    average = weights_of(trained)
    keys = {"model": 0, "model_ema1": 1, "model_ema2": 2}
    held = {key: {name: tensor + more for name, tensor in average.items()} for key, more in keys.items()}
    torch.save({**held, "epoch": 3}, tmp_path / "jit.pt")
    plugin = ("--plugin", folder / "mine.py")
    for said in ((), ("--weights", "ema"), ("--weights", "model_ema3")):
        result = elbo("import", "jit.pt", "run", *said, *plugin, cwd=tmp_path)
        assert result.returncode == 2 and b"under model, model_ema1, model_ema2; choose by --weights" in result.stderr
    for key, name in (("model_ema2", "ema-imported"), ("model", "model")):
        result = elbo("import", "jit.pt", key, "--weights", key, *plugin, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        found = load_file(tmp_path / key / f"checkpoints/step-00000000/{name}.safetensors")
        assert all(torch.equal(found[each], held[key][each]) for each in average)


def test_the_last_weights_are_taken_where_there_is_no_average_and_it_is_said(
    elbo: Elbo, folder: Path, trained: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine.py").write_text((folder / "mine.py").read_text().replace('"ema" in tree', '"net" in tree'))
    torch.save({"net": weights_of(trained)}, tmp_path / "w.pt")
    result = elbo("import", "w.pt", "run", "--plugin", "mine.py", cwd=tmp_path)
    assert result.returncode == 0 and b"takes the weights net" in result.stderr


def test_weights_are_renamed_and_halves_become_whole(elbo: Elbo, folder: Path, trained: Path, tmp_path: Path) -> None:
    halves = {name.replace("down.", "encoder."): tensor.half() for name, tensor in weights_of(trained).items()}
    torch.save(halves, tmp_path / "w.pt")
    said = ("--rename", "encoder.=down.", "--plugin", folder / "mine.py")
    result = elbo("import", "w.pt", "run", *said, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert elbo("sample", "run", "-n", 1, "--steps", 1, "--plugin", folder / "mine.py", cwd=tmp_path).returncode == 0


ADM = {"time_embed.0.weight": torch.zeros(8, 8), "input_blocks.0.0.weight": torch.zeros(8, 3, 3, 3)}
ADM["out.2.weight"] = torch.zeros(3, 8, 3, 3)
EDM = {"map_layer0.weight": torch.zeros(8, 8)}


def cut(tree: dict[str, Any]) -> dict[str, Any]:
    return {**tree, "last.bias": torch.zeros(7)}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tree: {key: tree[key] for key in tree if key != "norm.weight"}, "lacks 'norm.weight'"),
        (lambda tree: tree | {"extra.weight": torch.zeros(2)}, "has 'extra.weight'"),
        (cut, "'last.bias' has the shape [7]"),
        (lambda tree: {"a": 1}, "no known format (it holds 'a')"),
        (lambda tree: {"ema": 3}, "holds no weights by names; it holds 'ema'"),
        (lambda tree: {f"output_blocks.{'9' * 5000}.0.in_layers.0.weight": torch.zeros(1), **ADM}, "can't be imported"),
        (lambda tree: {f"enc.{'9' * 5000}x{'9' * 5000}_conv.weight": torch.zeros(1), **EDM}, "w.pt: "),
    ],
    ids=["missing", "extra", "shape", "unknown", "none", "adm", "edm"],
)
def test_a_checkpoint_that_does_not_fit_is_named_with_what_was_found(
    change: Callable[[dict[str, Any]], dict[str, Any]],
    told: str,
    elbo: Elbo,
    folder: Path,
    trained: Path,
    tmp_path: Path,
) -> None:
    torch.save(change(weights_of(trained)), tmp_path / "w.pt")
    result = elbo("import", "w.pt", "run", "--plugin", folder / "mine.py", cwd=tmp_path)
    assert result.returncode == 1 and told in result.stderr.decode() and b"Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["w.pt"]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (("w.pt",), b"name the RUN to make, after SOURCE"),
        (("w.pt", "old"), b"old: already exists"),
        (("w.pt", "run", "--levels", "sigma"), b"--levels: says nothing of the format mine"),
        (("w.pt", "run", "--rename", "down"), b"--rename down: expected OLD=NEW"),
        (("w.pt", "run", "--format", "mein"), b"did you mean mine?"),
        (("w.pt", "run", "--prediction", "w"), b"prediction"),
    ],
    ids=range(6),
)
def test_wrong_usage_is_told_and_makes_nothing(
    said: tuple[str, ...], told: bytes, elbo: Elbo, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "w.pt").write_bytes((folder / "w.pt").read_bytes())
    result = elbo("import", *said, "--plugin", folder / "mine.py", cwd=tmp_path)
    assert result.returncode == 2 and told in result.stderr, result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old", "w.pt"]


def test_a_source_that_is_not_there_is_named_with_what_to_name(elbo: Elbo, tmp_path: Path) -> None:
    result = elbo("import", "w.pt", "run", cwd=tmp_path)
    assert result.returncode == 1 and not any(tmp_path.iterdir())
    assert b"No such file" in result.stderr, result.stderr


def test_nothing_in_a_source_is_run(elbo: Elbo, folder: Path, trained: Path, bomb: Any, tmp_path: Path) -> None:
    weights = weights_of(trained)
    torch.save({"ema": weights, "more": bomb}, tmp_path / "w.pt")
    (tmp_path / "w.pkl").write_bytes(pickle.dumps({"ema": weights, "more": bomb}))
    for name in ("w.pt", "w.pkl"):
        result = elbo("import", name, f"{name}-run", "--plugin", folder / "mine.py", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
    assert not bomb.went_off


def test_an_imported_run_does_not_go_on(elbo: Elbo, folder: Path, digits: Path, tmp_path: Path) -> None:
    plugin = ("--plugin", folder / "mine.py")
    assert elbo("import", folder / "w.pt", "run", *plugin, cwd=tmp_path).returncode == 0
    for words in (("train", "-o", "run"), ("train", digits, "-o", "run")):
        result = elbo(*words, *plugin, cwd=tmp_path)
        assert result.returncode == 2 and b"--init run -o NEW" in result.stderr, result.stderr
    result = elbo("bound", "run", *plugin, cwd=tmp_path)
    assert result.returncode == 2 and b"has no dataset of its own" in result.stderr, result.stderr


def test_the_list_names_each_format_with_its_licence(elbo: Elbo, folder: Path) -> None:
    told = elbo("import", "list", "--plugin", folder / "mine.py").stdout.decode()
    assert "mine\n    A format of one's own.\n    Licence: Free" in told


def test_an_imported_run_is_trained_further(
    elbo: Elbo, folder: Path, trained: Path, digits: Path, tmp_path: Path
) -> None:
    """Under a weighting of one's own, from its very weights; what isn't known of it is said."""
    plugin = ("--plugin", folder / "mine.py")
    assert elbo("import", folder / "w.pt", "run", *plugin, cwd=tmp_path).returncode == 0
    words = ("--weighting", "edm", "--steps", 2, "--save-every", 1, "--lr", 1e-30, "--batch", 8)
    done = elbo("train", digits, "--init", "run", "-o", "new", *words, *plugin, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert b"new run from run, weights ema-imported" in done.stderr or b"weights model" in done.stderr
    assert b"other than there: weighting" in done.stderr
    init = read_yaml(tmp_path / "new" / "config.yaml")["init"]
    assert init["imported_format"] == "mine" and "step" not in init
    ours = load_file(tmp_path / "new" / "checkpoints" / "step-00000001" / "model.safetensors")
    assert all(torch.equal(ours[name], weight) for name, weight in weights_of(trained).items())
    for line in (("info", "new"), ("report", "new", "-o", "page.html", *plugin), ("train", "-o", "new", *plugin)):
        again = elbo(*line, cwd=tmp_path)
        assert again.returncode == 0, again.stderr
    assert "of <code>run</code> as imported" in (tmp_path / "page.html").read_text()
