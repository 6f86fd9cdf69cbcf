"""Run the code blocks of a Markdown page in order, in the folder of this process: `python page_runner.py PAGE.md`.

Blocks of python that come after one another share their names; one whose first line is `# NAME.py` is written to that
file, and so are the blocks of python after it. A block of yaml is written to the file that its first line names. Blocks
of sh are run by a shell that stops at the first failure. Other blocks are only shown.
"""

import re
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
NAMED = re.compile(r"# (\S+\.(?:py|yaml))\n")

page = Path(sys.argv[1])
text = page.read_text()
names: dict[str, object] = {"__name__": "__main__"}
file: Path | None = None
blocks = BLOCK.findall(text)
for language, code in blocks:  # a file is whole before anything uses it
    named = NAMED.match(code)
    if language in ("python", "yaml") and named:
        path = Path(named[1])
        path.write_text(code)
        file = path if language == "python" else file
    elif language == "python" and file is not None:
        file.write_text(file.read_text() + "\n\n" + code)
for language, code in blocks:
    if language == "python" and file is None:
        exec(compile(code, f"{page.name}: {code.splitlines()[0]}", "exec"), names)
    elif language == "sh":
        subprocess.run(["sh", "-e", "-c", code], check=True)
