"""Print a table of the demo's results: Fréchet distance in classifier features, accuracy, seconds."""

import json
import sys
from pathlib import Path

folder = Path(sys.argv[1])
print(f"{'run':<24}{'Fréchet distance':>18}{'accuracy':>10}{'seconds':>9}")
for path in sorted(folder.glob("*.json")):
    result = json.loads(path.read_text())
    distance = next(value for key, value in result.items() if key.startswith("frechet"))
    seconds = path.with_suffix(".seconds")
    took = seconds.read_text().strip() if seconds.exists() else "-"
    print(f"{path.stem.partition('-')[2]:<24}{distance:>18.2f}{result['accuracy']:>10.1%}{took:>9}")
