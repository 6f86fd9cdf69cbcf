"""Tests of the pretend device, and of elbo on it, are skipped where there can be none."""

from pathlib import Path

import pytest

from pretend import lacking

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip where it can't be."""
    why = lacking()
    for item in items if why else []:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason=why))
