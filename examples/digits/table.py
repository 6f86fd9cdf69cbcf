"""Print a table of the demo's results: Fréchet distance in classifier features, accuracy, bits per dimension of test images, seconds."""

import json
import sys
from pathlib import Path

folder = Path(sys.argv[1])
print(f"{'run':<24}{'Fréchet distance':>18}{'accuracy':>10}{'bits/dim':>18}{'seconds':>9}")
for path in sorted(folder.glob("*.json")):
    result = json.loads(path.read_text())
    distance, accuracy = (result["scores"][f"{name}[classifier.pt2]"]["value"] for name in ("frechet_distance", "accuracy"))
    seconds = path.with_suffix(".seconds")
    took = seconds.read_text().strip() if seconds.exists() else "-"
    bound = path.with_suffix(".bound")
    bits = "-"
    if bound.exists():
        found = json.loads(bound.read_text())
        bits = f"{found['bpd']:.3f} ± {found['bpd_se']:.3f}"
    print(f"{path.stem.partition('-')[2]:<24}{distance:>18.2f}{accuracy:>10.1%}{bits:>18}{took:>9}")
