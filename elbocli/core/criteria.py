"""Criteria of adaptive schedules: functions of the errors in a bin of λ."""

from elbocli.core.registry import Registry
from elbocli.errors import UsageError

# Functions (mean ε error, mean squared ε error, least possible error or None), [bins] each → score, [bins].
# The density p(λ) of an adaptive schedule is proportional to w(λ) × score.
CRITERIA = Registry("criterion")


@CRITERIA.declare("loss", formula="w E|e|^2", source="arXiv:2303.00848 sec. 4: every t contributes equally to the loss")
def loss(mean, second, least):
    return mean


@CRITERIA.declare("second-moment", formula="w sqrt(E|e|^4)", source="least variance of the loss with independent t")
def second_moment(mean, second, least):
    return second.sqrt()


@CRITERIA.declare("std", formula="w sd(|e|^2)", source="least variance of the loss with low-discrepancy t")
def std(mean, second, least):
    return (second - mean.square()).clamp(min=0).sqrt()


@CRITERIA.declare(
    "excess",
    formula="w (E|e|^2 - least)",
    source="arXiv:2506.13763: what training can still gain; needs the least possible errors",
)
def excess(mean, second, least):
    if least is None:
        raise UsageError(
            "criterion 'excess' needs the least possible error; write the error to FILE by 'elbo optimum', and add `optimum` FILE"
        )
    return (mean - least).clamp(min=0)


OF_ERRORS = tuple(name for name in CRITERIA if name != "excess")  # criteria that need only the loss log
