"""Train a small network in forked processes killed at random moments; print how many kills it took.

python kill_and_resume.py DATASET PRESET RUN KILLS SEED: with KILLS = 0 the run is not disturbed. Forking before
any tensor work saves the seconds that importing torch takes, so that kills fall into training.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

from elbocli.files.dataset import Dataset
from elbocli.loops import settings, train

data, preset, run = map(Path, sys.argv[1:4])
wanted, seed = map(int, sys.argv[4:6])


def child() -> None:
    dataset = Dataset(data)
    options = {
        "preset": str(preset),
        "steps": 160,
        "schedule": "adaptive",
        "weighting": "sigmoid",
        "save_every": 8,
        "log_every": 5,
    }
    for _ in train.run(dataset, run, settings.resolve(options, dataset)):
        pass
    os._exit(0)


random.seed(seed)
kills, pace = 0, 0.8
while True:
    process = os.fork()
    if process == 0:
        try:
            child()
        finally:
            os._exit(1)
    if kills < wanted:
        time.sleep(0.1 + random.random() * pace)
        os.kill(process, signal.SIGKILL)
    status = os.waitpid(process, 0)[1]
    if os.WIFSIGNALED(status):
        kills += 1
    elif status:
        sys.exit(f"training failed after {kills} kills")
    elif kills >= wanted:
        break
    else:
        # This machine is fast: it ended before it was killed often enough. From the start, with shorter lives.
        shutil.rmtree(run)
        kills, pace = 0, pace * 0.6
print(kills)
