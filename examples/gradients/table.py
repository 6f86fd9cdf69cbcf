"""A Markdown table from what gradient_variance.py printed: table.py TITLE=FILE…"""

import json
import sys
from pathlib import Path

rows = []
for word in sys.argv[1:]:
    title, _, file = word.partition("=")
    found = json.loads(Path(file).read_text())["gradient_variance"]
    schedules = list(dict.fromkeys(row["schedule"].partition(":mean")[0] for row in found))
    for weighting in dict.fromkeys(row["weighting"] for row in found):
        mine = [row for row in found if row["weighting"] == weighting]
        cells = [f"{row['relative']:.2f} ± {row['relative_se']:.2f}" for row in mine]
        best = min(mine, key=lambda row: row["relative"])
        rows.append([title, weighting.partition(":mean")[0], *cells, f"{best['ratio']:.3g} ± {best['ratio_se']:.1g}"])
head = ["run", "weighting", *(f"`{name}`" for name in schedules), "least tr Cov / ‖mean‖²"]
for row in [head, ["---"] * len(head), *rows]:
    print("| " + " | ".join(row) + " |")
