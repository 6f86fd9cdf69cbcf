"""Decorators for plug-ins: Python files that add weightings, schedules, networks and more.

    import elbocli.plugin as elbo

    @elbo.weighting("mine", formula="...", monotone=False, source="...")
    def mine(logsnr): ...

Load a plug-in with `--plugin FILE.py`, or install an entry point of the group `elbo.plugins`. docs/extending.md has examples.
"""

from elbocli.commands.shared.commands import add_command as command
from elbocli.commands.shared.commands import option
from elbocli.core.estimate import Estimate
from elbocli.core.registry import Bounds, Positive
from elbocli.core.schedule_curves import schedule
from elbocli.core.weighting_curves import ErrorProfile, learned_weighting, weighting
from elbocli.data.registry import ArrayRow, Span, source
from elbocli.networks import Network, NetworkConfig, network
from elbocli.sampling.samplers import Move, sampler
from elbocli.scoring.extractors import Extractor, extractor
from elbocli.scoring.metrics import Features, Metric, Need, metric

__all__ = [
    "ArrayRow",
    "Bounds",
    "ErrorProfile",
    "Estimate",
    "Extractor",
    "Features",
    "Metric",
    "Move",
    "Need",
    "Network",
    "NetworkConfig",
    "Positive",
    "Span",
    "command",
    "extractor",
    "learned_weighting",
    "metric",
    "network",
    "option",
    "sampler",
    "schedule",
    "source",
    "weighting",
]
