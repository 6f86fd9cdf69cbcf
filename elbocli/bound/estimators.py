"""Estimators of −log p(x), each declared once: the option, the help, the results and the tests over all of them follow.

All three are ½ ∫ E‖ε−ε̂‖² dλ over all noise levels, for some denoiser at each. They differ in what denoises where the
network doesn't, and in how the integral is found. Each gives two independent numbers for every image, whose difference
tells the error. Nothing heavy is imported before one is asked.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, NamedTuple

from elbocli.core.registry import Registry

if TYPE_CHECKING:
    from elbocli.bound.methods import Parts, Question
    from elbocli.runtime.progress import Progress

    Answer = Generator[Progress, None, Parts]


class EstimatorTraits(NamedTuple):
    """drawn: whether it takes the draws of the variational bound; gaussian: and the Gaussian's errors with them. bounds: what it
    is an upper bound of.
    """

    drawn: bool
    bounds: str
    gaussian: bool = False


ESTIMATORS: Registry[EstimatorTraits] = Registry("estimator")
"""(Question, parameters) → a generator of Progress that returns Parts."""


@ESTIMATORS.declare(
    "variational",
    formula="KL(q(z1|x)||N(0,I)) + E[-log p(x|z0)] + 1/2 int |eps-eps_hat|^2",
    source="Kingma et al. 2021; Kingma & Gao 2023",
    traits=EstimatorTraits(True, "-log p of the model that draws in many small random steps"),
    known_as=["elbo", "vlb"],
)
def variational(asked: Question) -> Answer:
    """The bound as `elbo bound` always has it."""
    from elbocli.bound.methods import variational

    yield from ()
    return variational(asked)


@ESTIMATORS.declare(
    "information",
    formula="1/2 int min(e, e of x_hat rounded) with the data's Gaussian as a control variate, closed tails",
    source="Kong et al. 2023 (arXiv:2302.03792)",
    traits=EstimatorTraits(True, "-log p of that model with the better denoiser at each noise level", True),
    known_as=["i-mmse"],
)
def information(asked: Question) -> Answer:
    """See elbocli.bound.methods."""
    from elbocli.bound.methods import information

    yield from ()
    return information(asked)


@ESTIMATORS.declare(
    "ode",
    formula="E[-log p(x|z0) + log q(z0|x) - log p(z0)], p(z0) by the probability-flow equation",
    source="Song et al. 2021; Grathwohl et al. 2019 for the trace",
    traits=EstimatorTraits(False, "-log p of the model that draws by the probability-flow equation"),
    known_as=["flow", "pf-ode"],
    within={"steps": (4, 100000), "draws": (2, 1000), "probes": (1, 1000), "exact": (0, 4096)},
)
def ode(asked: Question, steps: float = 64.0, draws: float = 2.0, probes: float = 1.0, exact: float = 16.0) -> Answer:
    """See elbocli.bound.methods."""
    from elbocli.bound.methods import ode

    return (yield from ode(asked, steps, draws, probes, exact))
