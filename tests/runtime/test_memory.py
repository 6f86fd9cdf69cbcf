"""What a process may still take is what its machine and each cgroup above it leave."""

from pathlib import Path

import pytest
import torch

from elbocli.runtime import device
from elbocli.runtime.device import free_bytes

CPU = torch.device("cpu")
GB = 10**9


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(device, "ROOT", tmp_path)
    _write(tmp_path / "proc/meminfo", "MemTotal: 16000000 kB\nMemFree: 1000 kB\nMemAvailable: 8000000 kB\n")
    return tmp_path


def _write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def test_without_limits_it_is_what_the_system_has(kernel: Path) -> None:
    assert free_bytes() == 8_000_000 * 1024
    _write(kernel / "proc/self/cgroup", "0::/user.slice")
    _write(kernel / "sys/fs/cgroup/user.slice/memory.max", "max")
    _write(kernel / "sys/fs/cgroup/user.slice/memory.current", GB)
    assert free_bytes() == 8_000_000 * 1024


def test_the_tightest_cgroup_decides_and_caches_of_files_are_free(kernel: Path) -> None:
    _write(kernel / "proc/self/cgroup", "0::/job/task")
    for name, limit, used in (("job", 4 * GB, 3 * GB), ("job/task", 5 * GB, 3 * GB)):
        _write(kernel / "sys/fs/cgroup" / name / "memory.max", limit)
        _write(kernel / "sys/fs/cgroup" / name / "memory.current", used)
    assert free_bytes() == GB
    _write(kernel / "sys/fs/cgroup/job/memory.stat", f"anon 5\ninactive_file {GB // 2}")
    assert free_bytes() == GB + GB // 2
    _write(kernel / "sys/fs/cgroup/job/memory.current", 5 * GB)
    assert free_bytes() == 0


def test_this_machine_has_some() -> None:
    assert 1 << 20 < free_bytes() < 1 << 50
