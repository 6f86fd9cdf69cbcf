"""Criteria of adaptive schedules: functions of the errors in a bin of λ."""

from elbocli.core.registry import Registry

# Each function takes the mean ε error and the mean of its square, [bins] each, and returns a score, [bins].
# The density p(λ) of an adaptive schedule is proportional to w(λ) × score.
CRITERIA = Registry("criterion")


@CRITERIA.declare("loss", formula="w E|e|^2", source="arXiv:2303.00848 sec. 4: every t contributes equally to the loss")
def loss(mean, second):
    return mean


@CRITERIA.declare("second-moment", formula="w sqrt(E|e|^4)", source="least variance of the loss with independent t")
def second_moment(mean, second):
    return second.sqrt()


@CRITERIA.declare("std", formula="w sd(|e|^2)", source="least variance of the loss with low-discrepancy t")
def std(mean, second):
    return (second - mean.square()).clamp(min=0).sqrt()
