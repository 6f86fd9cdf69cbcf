"""Run the commands of a page in a folder: `python run_page.py PAGE FOLDER`. Those that have ended well are not run again.

A block of code that begins with ```sh NAME is run by a shell that stops at the first failure. What it printed and how long
it took goes into FOLDER/steps/NAME.json: the times of all attempts, and what the last of them printed.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path

BLOCK = re.compile(r"^```sh (\w+)\n(.*?)^```$", re.M | re.S)


def run(code: str, folder: Path, record: Path) -> bool:
    """Run a block, show what it prints, and record it. Says whether it ended well."""
    before = json.loads(record.read_text()) if record.exists() else {"seconds": 0.0, "begun": time.time()}
    begin = time.time()
    process = subprocess.Popen(["sh", "-e", "-c", code], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    lines = []
    try:
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    finally:
        done = process.wait() == 0
        found = {
            "done": done,
            "begun": before["begun"],
            "seconds": before["seconds"] + time.time() - begin,
            "output": "".join(lines),
        }
        record.write_text(json.dumps(found, ensure_ascii=False, indent=1))
    return done


def main() -> int:
    """Exit status: 1 when a block fails, which is then named."""
    page, folder = map(Path, sys.argv[1:])
    steps = folder / "steps"
    steps.mkdir(parents=True, exist_ok=True)
    for name, code in BLOCK.findall(page.read_text()):
        record = steps / f"{name}.json"
        if record.exists() and json.loads(record.read_text())["done"]:
            continue
        print(f"\n== {name}\n{code}", flush=True)
        if not run(code, folder, record):
            print(f"{name} failed; the same command tries it again and goes on", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
