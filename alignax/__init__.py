"""Divergence-regularised policy optimisation of language models in JAX.

    import alignax as ax
    ax.estimators.k3(logp, logp_ref, mask)

The maths comes with the import; ``ax.models``, ``ax.pipeline`` and ``ax.train``, which
need heavier packages, when they are first read.
"""

from alignax import (
    adjacent,
    advantages,
    algorithms,
    controllers,
    decoding,
    diagnostics,
    distillation,
    divergences,
    estimators,
    evaluation,
    exact,
    games,
    logprobs,
    numerics,
    preference,
    reduce,
    references,
    regularisers,
    sampling,
    selection,
    surrogates,
    targets,
    testing,
    types,
)
from alignax._lazy import lazy

__version__ = "0.1.0"

__all__ = [
    "adjacent",
    "advantages",
    "algorithms",
    "controllers",
    "decoding",
    "diagnostics",
    "distillation",
    "divergences",
    "estimators",
    "evaluation",
    "exact",
    "games",
    "logprobs",
    "numerics",
    "preference",
    "reduce",
    "references",
    "regularisers",
    "sampling",
    "selection",
    "surrogates",
    "targets",
    "testing",
    "types",
]

__getattr__, _later = lazy(__name__, ("models", "pipeline", "train"))


def __dir__():
    return [*__all__, *_later()]
