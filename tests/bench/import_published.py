"""What an import of published size costs: `python tests/bench/import_published.py [--folder DIR] [--json]`

Writes a pickle of EDM's 296 million weights with their structure and random values (1.2 GB), imports it, and draws one
image in one step from the run. Peak memory is the kernel's VmHWM of each command; an import may have 2.2 times the file.
Everything that it writes is deleted again. It exits 1 when the bound is missed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).parents[1]
SHAPE = {
    "size": 64,
    "channels": 192,
    "levels": (1, 2, 3, 4),
    "blocks": 3,
    "attention": (32, 16, 8),
    "classes": 1000,
}
WEIGHTS, BOUND = 295_899_267, 2.2


class Cost(NamedTuple):
    """seconds of wall clock; peak: bytes of memory."""

    seconds: float
    peak: int


def write(path: Path) -> None:
    """Write the pickle; in a process of its own, whose memory would count as that of its children."""
    sys.path.insert(0, str(TESTS))
    from peers import edm_files, edm_unet

    tensors = edm_unet.made(**SHAPE)  # type: ignore[arg-type]
    found = sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith("resample_filter"))
    assert found == WEIGHTS, found
    edm_files.write_pickle(path, {"ema": edm_files.preconditioned(tensors)})


def cost(*words: str | Path) -> Cost:
    """Run a command of elbo's to its end. Raises CalledProcessError when it fails."""
    line = [sys.executable, "-m", "elbocli", *map(str, words)]
    begun = time.perf_counter()
    with subprocess.Popen(line, stdout=subprocess.DEVNULL) as process:
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, line)
    return Cost(time.perf_counter() - begun, used.ru_maxrss * 1024)


def measured(folder: Path) -> dict[str, float]:
    """Seconds, and peaks as ratios to the file's size."""
    file, run = folder / "edm-imagenet-64x64-cond-adm.pkl", folder / "run"
    subprocess.run([sys.executable, __file__, "--write", file], check=True)
    size = file.stat().st_size
    imported = cost("import", file, run)
    bare, drawn = cost("--version"), cost("sample", run, "-n", "1", "--steps", "1", "-o", folder / "x.npy")
    return {
        "file_gb": size / 1e9,
        "import_s": imported.seconds,
        "import_peak_gb": imported.peak / 1e9,
        "import_peak_of_file": imported.peak / size,
        "start_s": bare.seconds,
        "sample_s": drawn.seconds,
        "sample_peak_of_file": drawn.peak / size,
    }


def main() -> None:
    """Exit 1 when the import's peak is above its bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to write 2.5 GB for a while; the system's temporary folder")
    parser.add_argument("--json", action="store_true", help="one object")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        write(options.write)
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        found = measured(Path(temporary))
    print(json.dumps(found) if options.json else "\n".join(f"{key:<22}{value:8.2f}" for key, value in found.items()))
    sys.exit(found["import_peak_of_file"] > BOUND)


if __name__ == "__main__":
    main()
