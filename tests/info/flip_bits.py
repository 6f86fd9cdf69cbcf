"""Flip one bit at a time all over a dataset and verify it; print as JSON how often which outcome came.

python flip_bits.py FILE STRIDE: found (an ElboError), harmless (plain h5py reads the same), missed (it does not), or
dead (the HDF5 library crashed or hung; positions are listed).
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from elbocli.errors import ElboError
from elbocli.info.describe import verify

path, stride = Path(sys.argv[1]), int(sys.argv[2])
good = path.read_bytes()
draw = np.random.default_rng(0)
flips = [(position, int(draw.integers(8))) for position in range(0, len(good), stride)]
work = path.with_name("flipped.h5")


def everything(file_path: Path) -> dict[str, Any]:
    with h5py.File(file_path, "r") as file:
        arrays = {name: (str(file[name].dtype), file[name][()].tolist()) for name in file}
        return {**arrays, **{key: np.asarray(value).tolist() for key, value in file.attrs.items()}}


def outcome(position: int, bit: int) -> str:
    content = bytearray(good)
    content[position] ^= 1 << bit
    work.write_bytes(content)
    try:
        verify(work)
    except ElboError:
        return "found"
    try:
        return "harmless" if everything(work) == expected else "missed"
    except Exception:
        return "missed"


results: dict[str, list[Any]] = {"found": [], "harmless": [], "missed": [], "dead": []}
expected = everything(path)
while flips:
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        with os.fdopen(writer, "w") as out:
            for flip in flips:
                signal.alarm(3)  # kills this child
                out.write(outcome(*flip) + "\n")
                out.flush()
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as lines:
        for line in lines:
            results[line.strip()].append(flips.pop(0))
    status = os.waitpid(child, 0)[1]
    if flips:
        assert os.WIFSIGNALED(status), f"a traceback at {flips[0]}"
        results["dead"].append(flips.pop(0))
print(json.dumps({**{key: len(value) for key, value in results.items()}, "at": results["dead"] + results["missed"]}))
