import hashlib
import io
import json
import math
import os
import pickle
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from elbocli.errors import DataError, FormatError
from elbocli.files import checkpoint as store
from elbocli.files.checkpoint import RunConfig
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
    store.drop(run, step, keep, 0, ())
    return path


def names(run):
    return sorted(os.listdir(run / "checkpoints"))


def test_a_checkpoint_reads_back_to_the_last_bit(tmp_path):
    path = save(tmp_path, 7, seed=5)
    found = store.latest(tmp_path)
    assert (found.path, found.step, found.meta.images, found.meta.seed) == (path, 7, 448, 5)
    for name, tensors in WEIGHTS.items():
        read = found.weights(name)
        assert set(read) == set(tensors)
        assert all(torch.equal(read[key], value) and read[key].dtype == value.dtype for key, value in tensors.items())
    assert found.state()["optimizer"]["param_groups"] == STATE["optimizer"]["param_groups"]
    assert found.state()["online"] is None


def test_the_average_is_found_by_what_it_is(tmp_path):
    save(tmp_path, 1)
    found = store.latest(tmp_path)
    assert found.names == ["ema-0.999", "model"]
    assert torch.equal(found.weights("ema-0.999")["a.weight"], torch.ones(2, 3))


def test_views_and_strided_tensors_are_saved_as_what_they_show(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    save(tmp_path, 1, weights={"model": {"t": base.T, "part": base[:, 1:3]}, "ema-0.9": {"t": base}})
    read = store.latest(tmp_path).weights("model")
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
    assert store.latest(tmp_path).step == 99_999


def test_saving_a_step_again_replaces_it(tmp_path):
    save(tmp_path, 3)
    save(tmp_path, 3, weights={"model": {"x": torch.zeros(1)}, "ema-0.9": {}})
    found = store.latest(tmp_path)
    assert list(found.weights("model")) == ["x"]
    assert names(tmp_path) == ["step-00000003"]


@pytest.mark.parametrize("file", ["model.safetensors", "ema-0.999.safetensors", "state.pt", "meta.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "delete"])
def test_a_damaged_newest_is_named_and_the_one_before_used(tmp_path, file, how, caplog):
    save(tmp_path, 1)
    path = save(tmp_path, 2) / file
    content = path.read_bytes()
    if how == "flip":
        path.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    elif how == "cut":
        path.write_bytes(content[:-9])
    else:
        path.unlink()
    assert store.latest(tmp_path).step == 1
    (record,) = caplog.records
    assert "step-00000002" in record.getMessage()


def test_when_all_are_damaged_nothing_is_silently_started_again(tmp_path):
    (save(tmp_path, 1) / "state.pt").write_bytes(b"")
    with pytest.raises(FormatError, match="every checkpoint is damaged"):
        store.latest(tmp_path)


def test_without_any_there_is_none(tmp_path):
    assert store.latest(tmp_path) is None


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
    store.drop(run, step, 2, 0, ())
def value():
    return float(store.latest(run).weights("model")["x"][0])
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
    assert store.latest(tmp_path).step == 1


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
    found = store.read_checkpoint(path, verify=False)
    (path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(FormatError, match=r"model\.safetensors: not usable"):
        found.weights("model")
    with pytest.raises(FormatError, match="other"):
        found.weights("other")


def test_a_checkpoint_without_an_average_says_so(tmp_path):
    save(tmp_path, 1, weights={"model": WEIGHTS["model"]})
    with pytest.raises(FormatError, match=r"holds no weights ema-0\.9; it holds model"):
        store.latest(tmp_path).weights("ema-0.9")


def test_a_full_disk_leaves_the_checkpoint_before_it(small_disk):
    save(small_disk, 1)
    big = {"model": {"x": torch.zeros(1 << 18)}, "ema-0.9": {}}
    with pytest.raises(DataError, match="step-00000002"):
        save(small_disk, 2, weights=big)
    assert names(small_disk) == ["step-00000001"]
    assert store.latest(small_disk).step == 1
    (small_disk / "checkpoints/step-00000001").rename(small_disk / "done")


# Snapshots

AVERAGES = {
    "ema-power-0.05": {"a.weight": torch.arange(6.0).reshape(2, 3).T, "n": torch.tensor(3)},
    "ema-power-0.1": {"a.weight": torch.ones(3, 2), "n": torch.tensor(3)},
}


def write(run, step, averages=AVERAGES):
    return store.save(run, step, averages, None, {"images": 64 * step}, store.SnapshotMeta)


def steps(run, until=None):
    return [snapshot.step for snapshot in store.whole_snapshots(run, until)]


def test_a_snapshot_reads_back_to_the_last_bit(tmp_path):
    path = write(tmp_path, 7)
    (found,) = store.whole_snapshots(tmp_path)
    assert (found.path, found.step, found.images, found.names) == (path, 7, 448, sorted(AVERAGES))
    for name, tensors in AVERAGES.items():
        read = found.weights(name)
        assert all(torch.equal(read[key], value) for key, value in tensors.items())


def test_snapshots_come_by_step_and_up_to_a_step(tmp_path):
    assert steps(tmp_path) == []
    for step in (100, 20, 3, 99_999_999):
        write(tmp_path, step)
    assert steps(tmp_path) == [3, 20, 100, 99_999_999]
    assert steps(tmp_path, until=99) == [3, 20]


def test_a_damaged_snapshot_is_named_and_left_out(tmp_path, caplog):
    write(tmp_path, 1)
    path = write(tmp_path, 2) / "ema-power-0.1.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(FormatError, match="step-00000002"):
        store.read_checkpoint(path.parent, verify=False)
    assert steps(tmp_path) == [1]
    assert "step-00000002" in caplog.messages[0]


def test_snapshots_after_a_step_are_dropped(tmp_path):
    store.drop_snapshots_after(tmp_path, 0)
    for step in (10, 20_000_000, 30_000_000, 100_000_000):
        write(tmp_path, step)
    left = tmp_path / "snapshots/.step-00000040.77.tmp"
    left.mkdir()
    (left / "ema.safetensors").touch()
    others = ["notes", "step-30000000-good", "step-copy"]
    for name in others:
        (tmp_path / "snapshots" / name).touch()
    store.clean(tmp_path)
    store.drop_snapshots_after(tmp_path, 20_000_000)
    assert sorted(os.listdir(tmp_path / "snapshots")) == sorted(["step-00000010", "step-20000000", *others])


def test_a_kill_at_any_moment_leaves_whole_snapshots(tmp_path, crashes):
    code = """
import torch
from elbocli.files import checkpoint as store
torch.set_num_threads(1)
run = Path(sys.argv[1])
def save(step, value=1.0):
    averages = {"ema-power-0.1": {"x": torch.full((4,), value)}}
    store.save(run, step, averages, None, {"images": step}, store.SnapshotMeta)
def values():
    return {s.step: float(s.weights("ema-power-0.1")["x"][0]) for s in store.whole_snapshots(run)}
save(1)
k = 0
while crashed(lambda: save(1, 2.0), k):  # a step written again: the old one or the new one, never neither for long
    assert values().get(1) in (None, 1.0, 2.0), k
    save(1)
    store.drop_snapshots_after(run, 1)
    k += 1
assert values() == {1: 2.0}
n = 0
while crashed(lambda: save(2), n):
    assert set(values()) <= {1, 2}, n
    store.clean(run)
    store.drop_snapshots_after(run, 1)
    assert os.listdir(run / "snapshots") == ["step-00000001"], n
    n += 1
save(3)
m = 0
while crashed(lambda: store.drop_snapshots_after(run, 1), m):
    assert set(values()) <= {1, 2, 3}, m
    save(2), save(3)
    m += 1
store.clean(run)
assert values() == {1: 2.0} and os.listdir(run / "snapshots") == ["step-00000001"]
print(k, n, m)
"""
    output = crashes(code, tmp_path)
    assert all(int(word) >= 4 for word in output.split()), output


@given(
    st.sets(st.integers(1, 60), min_size=1, max_size=12),
    st.integers(1, 10),
    st.integers(0, 50),
    st.sets(st.integers(1, 60), max_size=5),
)
@settings(deadline=None, max_examples=30)
def test_a_checkpoint_stays_for_a_reason(numbers, keep, milestone_every, held):
    with tempfile.TemporaryDirectory() as folder:
        for step in numbers:
            (Path(folder) / "checkpoints" / store.folder_name(step)).mkdir(parents=True)
        last = max(numbers)
        store.drop(Path(folder), last, keep, milestone_every, held)
        found = {store.step_of(path) for path in store.checkpoints(Path(folder))}
    for step in numbers:
        newer = sum(other > step for other in numbers)
        reasons = [newer < keep, milestone_every > 0 and step % milestone_every == 0, step in held]
        assert (step in found) == any(reasons)


def test_a_milestone_is_saved_even_where_no_checkpoint_was_due():
    assert [step for step in range(1, 41) if store.due(step, 10, 15)] == [10, 15, 20, 30, 40]
    assert [step for step in range(1, 41) if store.due(step, 10, 0)] == [10, 20, 30, 40]


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
