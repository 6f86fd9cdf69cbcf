"""Train a small network in forked processes killed at random moments; print how many kills it took.

python kill_and_resume.py DATASET PRESET RUN KILLS SEED SIZE PARALLEL: SIZE processes, one of which is killed at a time,
whereupon the others end by themselves (those that still wait for it to join are ended, as torchrun does); with
KILLS = 0 the run is not disturbed. Forking before any tensor work saves the seconds that importing torch takes, so
that kills fall into training.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from group import ended, started, trained

data, preset, run = sys.argv[1:4]
wanted, seed, size = map(int, sys.argv[4:7])
OPTIONS = {
    "preset": preset,
    "parallel": sys.argv[7],
    "steps": {"ddp": 160 // size, "fsdp": 40}[sys.argv[7]],
    "schedule": "adaptive",
    "weighting": "sigmoid",
    "save_every": 8,
    "log_every": 5,
}

random.seed(seed)
kills, pace = 0, 0.8 * size
while True:
    processes = started(size, lambda world: trained(world, data, run, OPTIONS))
    if kills < wanted:
        time.sleep(0.1 * size + random.random() * pace)
        os.kill(random.choice(processes), signal.SIGKILL)
    codes = ended(processes, patience=30)
    if -signal.SIGKILL in codes:
        kills += 1
    elif any(codes):
        sys.exit(f"training failed after {kills} kills: {codes}")
    elif kills >= wanted:
        break
    else:
        # This machine is fast: it ended before it was killed often enough. From the start, with shorter lives.
        shutil.rmtree(Path(run))
        kills, pace = 0, pace * 0.6
print(kills)
