import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from elbocli.core.sampling import CLIPS
from elbocli.errors import UsageError


def estimate(scale, seed=0):
    return scale * torch.randn(3, 2, 5, 7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", CLIPS)
@given(st.floats(0.01, 20))
def test_a_clip_leaves_its_input_alone_and_what_lies_inside_as_it_is(name, scale):
    x = estimate(scale)
    before, inside = x.clone(), x / x.abs().max()
    clip = CLIPS.parse(name)
    clip(x)
    assert torch.equal(x, before)
    assert torch.equal(clip(inside), inside)


@given(st.floats(0.01, 20))
def test_static_cuts_at_the_range_of_pixels(scale):
    x = estimate(scale)
    np.testing.assert_array_equal(CLIPS.parse("static")(x), np.clip(x.numpy(), -1, 1))


@given(st.floats(0.5, 20), st.floats(1, 100))
def test_dynamic_is_imagens_thresholding_of_each_image(scale, percentile):
    """The percentile by numpy's definition of the nearest rank from above."""
    x = estimate(scale) * torch.tensor([0.01, 1.0, 3.0]).view(3, 1, 1, 1)
    found = CLIPS.parse(f"dynamic:percentile={percentile}")(x)
    for image, cut in zip(x.numpy(), found.numpy()):
        s = max(1, np.quantile(np.abs(image), percentile / 100, method="inverted_cdf"))
        np.testing.assert_allclose(cut, np.clip(image, -s, s) / s, rtol=1e-12)


def test_dynamic_of_the_largest_value_only_scales():
    x = estimate(4.0)
    found = CLIPS.parse("dynamic:percentile=100")(x)
    np.testing.assert_allclose(found, x / x.abs().amax((1, 2, 3), keepdim=True), rtol=1e-12)


@pytest.mark.parametrize(
    "text", ["dynamic:percentile=0", "dynamic:percentile=101", "static:percentile=1", "hard", "none:1"]
)
def test_nonsense_is_refused(text):
    with pytest.raises(UsageError):
        CLIPS.parse(text)


def test_a_spec_says_everything():
    assert CLIPS.parse("dynamic").spec == "dynamic:percentile=99.5"
    assert CLIPS.parse("none").spec == "none"
