"""Everything worth knowing of elbo on one card, in at most nine minutes: `make gpu`, or `python tools/gpu/run.py`.

Steps run in the order of their value. Results are saved as they come, as JSON; a table is printed at the end. `--device cpu` runs all of it small, to see that it
runs. It needs a checkout, and of packages what elbo trains with; what else is absent is skipped by name.
"""

import argparse
import json
import math
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

TOOLS = Path(__file__).resolve().parents[1]
ROOT = TOOLS.parent
sys.path[:0] = [str(ROOT), str(TOOLS), str(TOOLS / "bench")]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

from worker import CUT, FAILED, LATE, SKIPPED, Report, Session, Step, StepResult, Worker, page_table  # noqa: E402

from elbocli.main import extend_segments, share_cores  # noqa: E402


def ways(function: str, seconds: float, group: str, *names: str) -> list[Step]:
    """Return a step for each way, so that one that fails or hangs costs only its own row."""
    return [
        Step(f"{group}: {name}", function, seconds, (group, name), compiles="compiled" in name or name.endswith(", on"))
        for name in names
    ]


OTHERS = ("imagenet256", "latents256", "latents256-dit", "latents512-edm2", "cifar")
STEPS = (
    Step("environment", "environment.rows", 8),
    *ways("speed.training", 15, "imagenet64", "bf16 compiled"),
    *ways("speed.sampling", 20, "sampling", "auto, graphs"),
    Step("agreement: CPU and device", "checks.agreement", 25),
    Step("cuda-tests", "checks.cuda_tests", 60),
    Step("out-of-memory", "checks.out_of_memory", 20, fresh=True),
    Step("fsdp", "checks.one_card_fsdp", 20, fresh=True),
    Step("host-waits", "checks.host_waits", 45),
    *ways("speed.training", 15, "imagenet64", "bf16 compiled, bare loop"),
    *(step for preset in OTHERS for step in ways("speed.training", 15, preset, "bf16 compiled")),
    # The kernels are those of the first way, which the compiler finds in its cache.
    Step("agreement: compiled and eager", "speed.compiled", 40),
    *ways("speed.training", 12, "imagenet64", "bf16", "bf16, bare loop", "tf32", "fp32"),
    *ways("speed.sampling", 10, "sampling", "bf16, off", "tf32, graphs", "fp32, graphs", "fp32, off"),
    Step("inception", "speed.inception", 12),
    Step("end-to-end", "checks.end_to_end", 60),
    *(replace(step, compiles=False) for step in ways("speed.kernels", 40, "profile", "bf16 compiled", "bf16")),
    *(step for preset in OTHERS for step in ways("speed.training", 12, preset, "bf16", "bf16 compiled, bare loop")),
    *ways("speed.training", 15, "imagenet64", "tf32 compiled"),
    *ways("speed.sampling", 15, "sampling", "bf16, on"),
)
"""In the order of their value, which is that in which they run. A group's name, up to the colon, chooses all its steps."""
GROUPS = list(dict.fromkeys(step.group for step in STEPS))
STARTING_S = 15.0
"""Seconds that a process takes to start."""
PAGE = ROOT / "docs/gpu.md"


def simulated(steps: Iterable[Step], budget: float) -> str:
    """Tell which steps end within 200, 400 and 600 seconds of a card, for each of three times that compiling may take."""
    lines = []
    for compiling in (60, 100, 150):
        now = STARTING_S
        ends = list[tuple[float, str]]()
        late = list[str]()
        for step in steps:
            limit = step.limit(budget - now)
            took = step.seconds + compiling * step.compiles
            now += min(limit, took)
            ends, late = ([*ends, (now, step.name)], late) if limit >= took else (ends, [*late, step.name])
        lines.append(f"compiling takes {compiling} s")
        for since, until in ((0, 200), (200, 400), (400, 600)):
            lines += [f"  within {until} s", *(f"    {end:4.0f} s  {name}" for end, name in ends if since < end <= until)]
        lines += [f"  not within {budget:.0f} s: {', '.join(late)}"]
    return "\n".join(lines)


def filled(page: str, table: str) -> str:
    """Return a page with the table in its place, between two comments."""
    return re.sub(r"(?<=<!-- make gpu-report -->\n\n).*?(?=\n\n<!-- end -->)", lambda _: table, page, flags=re.DOTALL)


def run(report: Report, steps: list[Step], out: Path, folder: Path) -> None:
    """Do the steps, and write the report after each finding."""
    end = time.monotonic() + report.budget_s
    worker = Worker(report.device)
    beside = out.resolve().with_suffix("")
    try:
        for index, step in enumerate(steps):
            result = StepResult(step.name)
            report.steps.append(result)
            left = end - time.monotonic()
            limit = step.limit(left)
            if report.steps[0].name == "environment" and report.steps[0].status == FAILED and index:
                result.message = "the environment isn't one to measure in"
            elif not limit:
                result.message = f"no time: {max(left, 0):.0f} s are left"
            else:
                print(f"{step.name} …", file=sys.stderr, flush=True)
                session = Session(report.device, report.small, time.monotonic() + limit, folder, beside)
                worker.run(step, session, limit, result, lambda: report.write(out))
                if result.status == LATE and limit < step.limit(math.inf):
                    result.status = CUT
                    result.message = f"the budget ended after {limit:.0f} s of this step"
            report.write(out)
            if result.status == SKIPPED:
                print(f"{step.name}: skipped: {result.message}", file=sys.stderr, flush=True)
    finally:
        worker.close()


def main() -> None:
    """Exit 1 when a step failed or took too long; a step that the budget cut short is no failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="STEP", help=f"any of {', '.join(GROUPS)}; all by default")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu runs small")
    parser.add_argument("--budget", type=float, default=540.0, metavar="SECONDS", help="for all of it")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), metavar="FILE")
    parser.add_argument("--simulate", action="store_true", help="only print when steps are expected to end")
    parser.add_argument("--report", type=Path, nargs="*", metavar="FILE", help="only write the table of docs/gpu.md from reports")
    options = parser.parse_args()
    if unknown := set(options.names) - {name for step in STEPS for name in (step.group, step.name)}:
        parser.error(f"no step is called {', '.join(sorted(unknown))}; known: {', '.join(GROUPS)}")
    chosen = [step for step in STEPS if not options.names or {step.group, step.name} & {*options.names}]
    if options.simulate:
        print(simulated(chosen, options.budget))
        return
    if options.report is not None:
        table = page_table([json.loads(path.read_text()) for path in options.report])
        PAGE.write_text(filled(PAGE.read_text(), table))
        return
    share_cores()
    extend_segments()
    if options.device == "cpu":
        os.environ["TORCH_COMPILE_DISABLE"] = "1"  # a CPU compiles for minutes what a step here runs for moments
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the process that does the steps is ended, too
    started = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    report = Report(options.device, options.device == "cpu", options.budget, started)
    with tempfile.TemporaryDirectory(prefix="elbo-gpu-") as folder:
        run(report, chosen, options.out, Path(folder))
    print(report.table())
    sys.exit(1 if report.failed else 0)


if __name__ == "__main__":
    main()
