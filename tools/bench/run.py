"""Run the benchmarks, or those named: `python tools/bench/run.py [NAME…] [--json]`. Ratios below 1: elbo is faster."""

import argparse
import importlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

from compare import Row

from elbocli.main import share_cores

sys.path.insert(0, str(Path(__file__).parents[1]))  # modules that tools share
NAMES = [path.stem.removeprefix("bench_") for path in sorted(Path(__file__).parent.glob("bench_*.py"))]
LINE = "{:<58} {:>10} {:>10} {:>6} {:>6}  {}"


def text(row: Row) -> str:
    """A line of the table, times in milliseconds."""
    bound = "" if row.bound is None else f"{row.bound:.2f}"
    return LINE.format(row.name, f"{1e3 * row.ours:.3f}", f"{1e3 * row.peer:.3f}", f"{row.ratio:.2f}", bound, row.verdict)


def main() -> None:
    """Exit 1 when a bound is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(NAMES)}; all by default")
    parser.add_argument("--json", action="store_true", help="a list of objects, times in seconds")
    parser.add_argument("--small", action="store_true", help="each once at its smallest size, to see that it runs")
    parser.add_argument("--threads", type=int, default=2, help="of torch; 1 is steadier on a machine that does other work")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"no benchmark is called {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    share_cores()
    import torch

    torch.set_num_threads(options.threads)
    rows = []
    if os.getloadavg()[0] > 1:
        print("note: the machine is busy; threads that wait for each other mislead, try --threads 1", file=sys.stderr)
    if not options.json:
        print(LINE.format("name (times in ms)", "ours", "peer", "ratio", "bound", ""))
    for name in options.names or NAMES:
        for row in importlib.import_module(f"bench_{name}").rows(options.small):
            rows.append(row)
            if not options.json:
                print(text(row), flush=True)
    if options.json:
        print(json.dumps([{**asdict(row), "verdict": row.verdict} for row in rows], indent=1))
    sys.exit(not options.small and any(row.verdict == "over" for row in rows))


if __name__ == "__main__":
    main()
