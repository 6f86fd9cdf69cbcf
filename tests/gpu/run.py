"""Everything worth knowing of elbo on one card, in at most nine minutes: `make gpu`, or `python tests/gpu/run.py`.

Results are saved as they come, as JSON; a table is printed at the end. `--device cpu` runs all of it small, to see that it
runs. It needs a checkout, and of packages what elbo trains with; what else is absent is skipped by name.
"""

import argparse
import os
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
sys.path[:0] = [str(ROOT), str(TESTS), str(TESTS / "bench")]
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

from worker import FAILED, SKIPPED, Report, Session, Step, StepResult, Worker  # noqa: E402  # noqa: E402

from elbocli.main import extend_segments, share_cores  # noqa: E402

STEPS = (
    Step("environment", "environment.rows", 8),
    Step("cuda tests", "checks.cuda_tests", 60),
    Step("host waits", "checks.host_waits", 45),
    Step("cpu and device agree", "checks.agreement", 25),
    Step("fsdp2 on one card", "checks.one_card_fsdp", 20, fresh=True),
    Step("out of memory", "checks.out_of_memory", 20, fresh=True),
    Step("imagenet64", "speed.imagenet64", 120),
    Step("imagenet256", "speed.imagenet256", 60),
    Step("latents256", "speed.latents256", 45),
    Step("cifar", "speed.cifar", 25),
    Step("sampling", "speed.sampling", 45),
    Step("inception", "speed.inception", 12),
    Step("profile", "speed.kernels", 15),
    Step("end to end", "checks.end_to_end", 60),
)
"""In the order that they run."""
LEAST, KEPT = 0.25, 0.4
"""Shares of its seconds: without the first a step isn't begun, the second no step before it may take."""


def planned(step: Step, later: list[Step], left: float) -> tuple[float, float]:
    """Seconds that a step should take, and after which it is ended: all steps share alike the time that is left."""
    rest = sum(other.seconds for other in later)
    share = left * step.seconds / (step.seconds + rest)
    return share, min(max(share, left - KEPT * rest), 2 * share + 30)


def run(report: Report, steps: list[Step], out: Path, folder: Path) -> None:
    """Do the steps, and write the report after each finding."""
    end, worker = time.monotonic() + report.budget_s, Worker(report.device)
    try:
        for index, step in enumerate(steps):
            result = StepResult(step.name)
            report.steps.append(result)
            left = end - time.monotonic()
            share, limit = planned(step, steps[index + 1 :], left)
            if report.steps[0].name == "environment" and report.steps[0].status == FAILED and index:
                result.message = "the environment isn't one to measure in"
            elif share < LEAST * step.seconds:
                result.message = f"no time: {max(left, 0):.0f} s are left for it and what follows"
            else:
                print(f"{step.name} …", file=sys.stderr, flush=True)
                session = Session(report.device, report.small, time.monotonic() + share, folder)
                worker.run(step, session, limit, result, lambda: report.write(out))
            report.write(out)
            if result.status == SKIPPED:
                print(f"{step.name}: skipped: {result.message}", file=sys.stderr, flush=True)
    finally:
        worker.close()


def main() -> None:
    """Exit 1 when a step failed or took too long."""
    known = [step.name for step in STEPS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="STEP", help=f"any of {', '.join(known)}; all by default")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu runs small")
    parser.add_argument("--budget", type=float, default=540.0, metavar="SECONDS", help="for all of it")
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), metavar="FILE")
    options = parser.parse_args()
    unknown = set(options.names) - set(known)
    if unknown:
        parser.error(f"no step is called {', '.join(sorted(unknown))}; known: {', '.join(known)}")
    chosen = [step for step in STEPS if step.name in (options.names or known)]
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
