"""Roundings against what their authors write, at and around every boundary between levels."""

import numpy as np
import pytest
import torch

from elbocli.core.sampling import ROUNDINGS, SIGNED, to_levels

UNSIGNED = (255.0, 0.0)
PEERS = {
    # Levels of float32 pixels by numpy, in the order of operations of whoever publishes figures.
    ("edm", SIGNED): lambda x: np.clip(x * np.float32(127.5) + np.float32(128), 0, 255),
    ("dit", SIGNED): lambda x: np.clip(np.float32(127.5) * x + np.float32(128), 0, 255),
    ("adm", SIGNED): lambda x: np.clip((x + np.float32(1)) * np.float32(127.5), 0, 255),
    ("edm2", UNSIGNED): lambda x: np.clip(x, 0, 1) * np.float32(255),
    ("nearest", SIGNED): lambda x: np.clip(np.round((x + np.float32(1)) * np.float32(127.5)), 0, 255),
    ("nearest", UNSIGNED): lambda x: np.clip(np.round(x * np.float32(255)), 0, 255),
}


def around_boundaries(span):
    """Every level and every half, each with its nine nearest float32 numbers; and far beyond both ends."""
    divisor, offset = span
    at = (np.arange(-2, 514) / 2 / divisor + offset).astype(np.float32)
    found = [at]
    for way in (np.float32(-np.inf), np.float32(np.inf)):
        step = at
        for _ in range(4):
            step = np.nextafter(step, way)
            found.append(step)
    return np.concatenate([*found, np.array([-1e6, -3, 3, 1e6], np.float32)])


@pytest.mark.parametrize(("name", "span"), PEERS, ids=str)
def test_a_rounding_is_its_authors_at_every_boundary(name, span):
    x = around_boundaries(span)
    found = to_levels(torch.from_numpy(x).view(1, 1, 1, -1), ROUNDINGS.find(name), span)
    assert found.dtype == torch.uint8 and found.shape == (1, 1, len(x), 1)
    np.testing.assert_array_equal(found.flatten().numpy(), PEERS[name, span](x).astype(np.uint8))


@pytest.mark.parametrize("span", [SIGNED, UNSIGNED], ids=str)
def test_levels_come_back_and_what_lies_between_goes_where_the_name_says(span):
    """In numbers that are exact: a quarter of a level beside each."""
    divisor, offset = span
    levels = torch.arange(256, dtype=torch.float64)
    inner = levels[1:-1]
    for name, low, high in (("nearest", 0, 0), ("half-up", 0, 0), ("truncate", -1, 0)):
        for by, wanted in ((-0.25, inner + low), (0.25, inner + high)):
            x = ((inner + by) / divisor + offset).view(1, 1, 1, -1)
            assert torch.equal(to_levels(x, ROUNDINGS[name], span).flatten().double(), wanted), (name, by)
    for name in ("nearest", "half-up"):
        x = (levels / divisor + offset).view(1, 1, 1, -1)
        assert torch.equal(to_levels(x, ROUNDINGS[name], span).flatten().double(), levels)


def test_a_half_goes_up_or_to_the_even_level():
    x = torch.tensor([0.5, 1.5, 2.5, 254.5], dtype=torch.float64).view(1, 1, 1, -1) / 255
    for name, wanted in (("nearest", [0, 2, 2, 254]), ("half-up", [1, 2, 3, 255]), ("truncate", [0, 1, 2, 254])):
        assert to_levels(x, ROUNDINGS[name], UNSIGNED).flatten().tolist() == wanted


def test_pixels_are_left_as_they_were_and_channels_come_last():
    x = torch.rand(2, 3, 4, 5) * 2 - 1
    before = x.clone()
    for rounding in ROUNDINGS.values():
        assert to_levels(x, rounding).shape == (2, 4, 5, 3)
        assert torch.equal(x, before)
