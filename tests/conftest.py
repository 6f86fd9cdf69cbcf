"""The environment of all tests, and the command line as a fixture; `harness` runs it, `shared_fixtures` makes its files."""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

# As the commands do: several processes share the cores. Before anything imports torch.
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
# What `auto` is in all tests and in the commands they run, but for tests marked cuda, whatever there is.
os.environ["ELBO_DEVICE"] = "cpu"
if "PYTEST_XDIST_WORKER" in os.environ:
    # One process a core already: more threads only wait for each other, which made the demo three times as long.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

from harness import Result, run_elbo
from hypothesis import settings

LONG = (
    "test_pages.py",
    "commands/test_interruption.py",
    "scoring/test_export.py",
)
"""Files of tests that are all marked long."""
LONGEST = ("test_pipeline.py", "training/test_resume.py", "test_pages.py", "training/test_group.py")
"""Files that take longest, by the time that they take on an idle core."""
TESTS = Path(__file__).parent
pytest_plugins = ["shared_fixtures", "gaussian_fixtures", "wheel_fixtures"]
settings.register_profile("elbo", deadline=None, max_examples=50, derandomize=True)
settings.load_profile("elbo")


@pytest.fixture(autouse=True)
def device_of_marked_tests(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests marked cuda say which device they mean; `auto` is CUDA there, as for a user."""
    if request.node.get_closest_marker("cuda"):
        monkeypatch.delenv("ELBO_DEVICE")


@pytest.fixture(scope="session")
def elbo() -> Callable[..., Result]:
    """elbo(*args, cwd, stdin, env): run a command line, as harness.run_elbo does."""
    return run_elbo


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, so that no core waits for one of them at the end."""
    long = {TESTS / name for name in LONG}
    for item in items:
        if item.path in long:
            item.add_marker("long")
    longest = [TESTS / name for name in LONGEST]
    items.sort(key=lambda item: longest.index(item.path) if item.path in longest else len(longest))


def pytest_collection_finish() -> None:
    """Leave out of garbage collection all that the tests are made of: it is a twentieth of their time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """And what they imported: some commands collect a dozen times, half a second each."""
    if nextitem is not None and nextitem.path != item.path:
        gc.collect()
        gc.freeze()
