"""Legends: a spec without what is default."""

import pytest

from elbocli.cli.figure import brief
from elbocli.core.weighting import parse_weighting
from elbocli.core.weighting_curves import WEIGHTINGS


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("sigmoid", "sigmoid"),
        ("sigmoid:bias=2", "sigmoid"),
        ("sigmoid:bias=0", "sigmoid:bias=0"),
        ("edm:mean=-1.2,std=1.2,sigma_data=0.5,monotone", "edm:monotone"),
        ("edm:mean=-0.4,std=1,sigma_data=0.5,shift=-1.5", "edm:mean=-0.4,std=1,sigma_data=0.5,shift=-1.5"),
        ("v-mse@cosine", "v-mse@cosine"),
        ("v-mse@cosine:shift=2", "v-mse@cosine:shift=2"),
        ("eps-mse:min-snr:gamma=5@linear-beta:beta_min=0.1,beta_max=20", "eps-mse:min-snr@linear-beta"),
        ("edm-mse:sigma_data=0.5@edm:mean=-1.2,std=1.2", "edm-mse:sigma_data=0.5@edm"),
        ("edm-mse:sigma_data=1@edm:mean=-1.2,std=1.2", "edm-mse:sigma_data=1@edm"),
        ("schedule:cosine", "schedule:cosine"),
        ("v-mse@runs/a/scheduler_config.json", "v-mse@runs/a/scheduler_config.json"),
    ],
)
def test_a_legend_says_what_is_not_default(spec, wanted):
    assert brief(spec) == wanted


@pytest.mark.parametrize("name", sorted(WEIGHTINGS))
def test_a_weighting_at_its_defaults_is_called_by_its_name(name):
    assert brief(parse_weighting(name).spec) == name
