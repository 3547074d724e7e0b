"""What does an estimator estimate, and what does its gradient descend?

In a world small enough to list every completion, bias and variance of a value and of
a gradient are finite sums. ``estimator_report`` computes them for any estimator, one
of ours or yours, and by simulation at the batch sizes that you ask for:

    world = random_world(jax.random.key(0), vocab_size=3, horizon=2)
    print(estimator_report(my_penalty, [world]))
    assert_unbiased(estimator_report(my_penalty, [world]))

``check_divergence`` tells what is wrong with a divergence of your own.
"""

from alignax.testing.divergences import DivergenceReport, check_divergence
from alignax.testing.findings import Report, Row, assert_unbiased, series, table
from alignax.testing.report import estimator_report
from alignax.testing.worlds import World, random_world

__all__ = [
    "DivergenceReport",
    "Report",
    "Row",
    "World",
    "assert_unbiased",
    "check_divergence",
    "estimator_report",
    "random_world",
    "series",
    "table",
]
