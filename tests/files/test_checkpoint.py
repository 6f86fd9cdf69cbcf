import hashlib
import io
import json
import math
import os
import pickle

import pytest
import torch

from elbocli.errors import DataError, FormatError
from elbocli.files import checkpoint as store
from elbocli.files.run_config import RunConfig
from elbocli.files.tensor_files import load_tensors
from elbocli.files.yaml_text import yaml_text

WEIGHTS = {
    "model": {"a.weight": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1.5], dtype=torch.float64)},
    "ema-0.999": {"a.weight": torch.ones(2, 3)},
}
STATE = {
    "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
    "online": None,
}


def save(run, step, keep=3, weights=WEIGHTS, **meta):
    path = store.save(run, step, weights, STATE, {"images": 64 * step, "log_bytes": {}, **meta})
    store.drop(run, lambda steps: sorted(steps)[-keep:])
    return path


def names(run):
    return sorted(os.listdir(run / "checkpoints"))


def unwarned(text):
    pytest.fail(text)


def test_a_checkpoint_reads_back_to_the_last_bit(tmp_path):
    path = save(tmp_path, 7, seed=5)
    found = store.latest(tmp_path, unwarned)
    assert (found.path, found.step, found.meta.images, found.meta.seed) == (path, 7, 448, 5)
    for name, tensors in WEIGHTS.items():
        read = found.weights(name)
        assert set(read) == set(tensors)
        assert all(torch.equal(read[key], value) and read[key].dtype == value.dtype for key, value in tensors.items())
    assert found.state()["optimizer"]["param_groups"] == STATE["optimizer"]["param_groups"]
    assert found.state()["online"] is None


def test_the_average_is_found_by_what_it_is(tmp_path):
    save(tmp_path, 1)
    found = store.latest(tmp_path, unwarned)
    assert found.names == ["ema-0.999", "model"]
    assert torch.equal(found.weights("ema-0.999")["a.weight"], torch.ones(2, 3))


def test_views_and_strided_tensors_are_saved_as_what_they_show(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    save(tmp_path, 1, weights={"model": {"t": base.T, "part": base[:, 1:3]}, "ema-0.9": {"t": base}})
    read = store.latest(tmp_path, unwarned).weights("model")
    assert torch.equal(read["t"], base.T)
    assert torch.equal(read["part"], base[:, 1:3])


def test_meta_holds_the_digest_of_every_file(tmp_path):
    path = save(tmp_path, 1)
    meta = json.loads((path / "meta.json").read_text())
    assert (
        set(meta["files"])
        == {"model.safetensors", "ema-0.999.safetensors", "state.pt"}
        == set(os.listdir(path)) - {"meta.json"}
    )
    for name, known in meta["files"].items():
        content = (path / name).read_bytes()
        assert known == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_only_the_last_few_are_kept(tmp_path):
    for step in (1, 2, 10, 100, 99_999):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-00000010", "step-00000100", "step-00099999"]
    assert store.latest(tmp_path, unwarned).step == 99_999


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 3)
    save(tmp_path, 3, weights={"model": {"x": torch.zeros(1)}, "ema-0.9": {}})
    found = store.latest(tmp_path, unwarned)
    assert list(found.weights("model")) == ["x"]
    assert names(tmp_path) == ["step-00000003"]


@pytest.mark.parametrize("file", ["model.safetensors", "ema-0.999.safetensors", "state.pt", "meta.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
def test_a_damaged_newest_is_named_and_the_one_before_used(tmp_path, file, how):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / file
    content = path.read_bytes()
    if how == "flip":
        path.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    elif how == "cut":
        path.write_bytes(content[:-9])
    else:
        path.unlink()
    warnings = []
    assert store.latest(tmp_path, warnings.append).step == 1
    (warning,) = warnings
    assert "step-00000002" in warning
    assert "using the checkpoint before it" in warning


def test_when_all_are_damaged_nothing_is_silently_started_again(tmp_path):
    (save(tmp_path, 1) / "state.pt").write_bytes(b"")
    with pytest.raises(FormatError, match=r"every checkpoint is damaged.*state\.pt: damaged: its sha256"):
        store.latest(tmp_path, unwarned)


def test_without_any_there_is_none(tmp_path):
    assert store.latest(tmp_path, unwarned) is None


@pytest.mark.parametrize(
    "change",
    [
        {"format": "other"},
        {"version": 0},
        {"files": None},
        {"files": {"../../secret": {"sha256": "x"}}},
        {"files": {"..": {"sha256": "x"}}},
        {"step": "x"},
        {"step": None},
        {"images": None},
        {"files": {"model.safetensors": {}}},
        {"files": ["model.safetensors"]},
        {"step": math.inf},
    ],
)
def test_a_meta_that_lies_is_refused(tmp_path, change):
    path = save(tmp_path, 1) / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(FormatError, match="step-00000001"):
        store.read_checkpoint(path.parent)


@pytest.mark.parametrize("known", ["x", {"bytes": "x"}, {"bytes": None}])
def test_a_meta_that_lies_of_a_file_is_refused_unverified_too(tmp_path, known):
    path = save(tmp_path, 1) / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "files": {"model.safetensors": known}}))
    with pytest.raises(FormatError, match="step-00000001"):
        store.read_checkpoint(path.parent, verify=False)


@pytest.mark.parametrize("key", ["step", "images", "files", "log_bytes"])
def test_a_meta_without_what_a_run_goes_on_with_is_refused(tmp_path, key):
    path = save(tmp_path, 1) / "meta.json"
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key}))
    with pytest.raises(FormatError, match=f"step-00000001: not a whole checkpoint: .*{key}"):
        store.read_checkpoint(path.parent)


@pytest.mark.parametrize("text", ["", "[]", "1", '"x"', "null", '{"format": "elbo-checkpoint"}', "[" * 100_000])
def test_a_meta_of_another_kind_is_refused(tmp_path, text):
    path = save(tmp_path, 1) / "meta.json"
    path.write_text(text)
    with pytest.raises(FormatError, match="step-00000001"):
        store.read_checkpoint(path.parent)


def test_a_kill_at_any_moment_leaves_a_whole_checkpoint_to_go_on_from(tmp_path, crashes):
    code = """
import torch
from elbocli.files import checkpoint as store
torch.set_num_threads(1)
run = Path(sys.argv[1])
def save(step, value):
    store.save(run, step, {"model": {"x": torch.full((4,), value)}, "ema-0.9": {}}, {}, {"images": step, "log_bytes": {}})
    store.drop(run, lambda steps: sorted(steps)[-2:])
def value():
    return float(store.latest(run, lambda text: None).weights("model")["x"][0])
save(1, 1.0)
save(2, 2.0)
k = 0
while crashed(lambda: save(3, 3.0), k):
    assert value() in (2.0, 3.0), k
    store.clean(run)
    assert value() in (2.0, 3.0), k
    assert not [path for path in (run / "checkpoints").iterdir() if path.name.startswith(".")]
    k += 1
assert value() == 3.0
print(k)
"""
    output = crashes(code, tmp_path)
    assert int(output) >= 10, output


def test_cleaning_removes_what_a_killed_writer_left_and_nothing_else(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "previews").mkdir()
    left = [
        tmp_path / "checkpoints/.step-00000002.77.tmp",
        tmp_path / "checkpoints/.step-00000001.77.trash",
        tmp_path / ".config.yaml.77.tmp",
        tmp_path / "previews/.a.png.77.tmp",
    ]
    for path in left[:2]:
        path.mkdir()
        (path / "model.safetensors").touch()
    for path in left[2:]:
        path.touch()
    mine = [tmp_path / "notes.tmp", tmp_path / "checkpoints/.keep", tmp_path / "previews/a.png", tmp_path / ".lock"]
    for path in mine:
        path.touch()
    store.clean(tmp_path)
    assert not any(path.exists() for path in left)
    assert all(path.exists() for path in mine)
    assert store.latest(tmp_path, unwarned).step == 1


def test_a_run_that_is_gone_is_not_made_again(tmp_path):
    with pytest.raises(DataError, match=r"checkpoints: could not write: No such file"):
        save(tmp_path / "gone", 1)
    assert not (tmp_path / "gone").exists()


# Hostile files


def hostile(path, content):
    """Put content in place of state.pt, with the digest that belongs to it."""
    (path / "state.pt").write_bytes(content)
    meta = json.loads((path / "meta.json").read_text())
    meta["files"]["state.pt"]["sha256"] = hashlib.sha256(content).hexdigest()
    (path / "meta.json").write_text(json.dumps(meta))
    return store.read_checkpoint(path)


@pytest.mark.parametrize("kind", ["torch", "legacy", "pickle"])
def test_code_in_the_state_is_refused_and_not_run(tmp_path, bomb, kind):
    buffer = io.BytesIO()
    if kind == "pickle":
        pickle.dump({"optimizer": bomb}, buffer)
    else:
        torch.save({"optimizer": bomb}, buffer, _use_new_zipfile_serialization=kind == "torch")
    found = hostile(save(tmp_path, 1), buffer.getvalue())
    with pytest.raises(FormatError, match=r"state\.pt"):
        found.state()
    assert not bomb.went_off
    with pytest.raises(FormatError, match="weights"):
        load_tensors(io.BytesIO(buffer.getvalue()), "weights")
    assert not bomb.went_off


def test_the_bomb_would_go_off_in_a_plain_load(tmp_path, bomb):
    buffer = io.BytesIO()
    torch.save({"optimizer": bomb}, buffer)
    buffer.seek(0)
    torch.load(buffer, weights_only=False)
    assert bomb.went_off


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04", bytes(1000), b"\x80\x02}q\x00."[:4]])
def test_a_state_that_is_none_is_refused(tmp_path, content):
    with pytest.raises(FormatError, match=r"state\.pt"):
        hostile(save(tmp_path, 1), content).state()


def test_weights_that_are_none_are_refused(tmp_path):
    path = save(tmp_path, 1)
    (path / "model.safetensors").write_bytes(b"\xff" * 100)
    found = store.read_checkpoint(path, verify=False)
    with pytest.raises(FormatError, match=r"model\.safetensors: not usable as weights"):
        found.weights("model")
    with pytest.raises(FormatError, match="other"):
        found.weights("other")


def test_a_checkpoint_without_an_average_says_so(tmp_path):
    save(tmp_path, 1, weights={"model": WEIGHTS["model"]})
    with pytest.raises(FormatError, match=r"holds no weights ema-0\.9; it holds model"):
        store.latest(tmp_path, unwarned).weights("ema-0.9")


def test_a_full_disk_leaves_the_checkpoint_before_it(small_disk):
    save(small_disk, 1)
    big = {"model": {"x": torch.zeros(1 << 18)}, "ema-0.9": {}}
    with pytest.raises(DataError, match="step-00000002"):
        save(small_disk, 2, weights=big)
    assert names(small_disk) == ["step-00000001"]
    assert store.latest(small_disk, unwarned).step == 1
    (small_disk / "checkpoints/step-00000001").rename(small_disk / "done")


# Config

CONFIG = {
    "settings": {"lr": 1e-4, "weighting": "sigmoid:bias=2"},
    "network": {"channels": 16},
    "data": {"class_names": ["1e5", "λ", "no"]},
    "files": {},
}


def test_a_config_reads_back(tmp_path):
    config = RunConfig.of({"format": "elbo-run", "version": 1, **CONFIG})
    store.write_config(tmp_path, config)
    assert store.read_config(tmp_path) == config
    assert config.json() == {"format": "elbo-run", "version": 1, "commands": [], **CONFIG}


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(FormatError, match="not a run"):
        store.read_config(tmp_path)
    with pytest.raises(FormatError, match="no such run"):
        store.read_config(tmp_path / "gone")


@pytest.mark.parametrize(
    "change",
    [{"format": "elbo-dataset"}, {"version": 0}, {"settings": None}, {"network": []}, {"data": "x"}, {"files": None}],
)
def test_a_config_of_another_kind_is_refused(tmp_path, change):
    content = {"format": "elbo-run", "version": 1, **CONFIG, **change}
    (tmp_path / "config.yaml").write_text(yaml_text(content))
    with pytest.raises(FormatError, match=r"config\.yaml"):
        store.read_config(tmp_path)
