"""Tests of elbo on the pretend device are skipped where there can be none."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import pytest
from pretend import lacking

from elbocli.training import previews

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def short_previews() -> Iterator[None]:
    """Previews of a few images, in several parts of two steps."""
    with patch.object(previews, "PREVIEW", replace(previews.PREVIEW, n=10, steps=2)):
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip where it can't be."""
    why = lacking()
    for item in items if why else []:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.skip(reason=why))
