"""Divergence-regularised policy optimisation of language models in JAX.

    import alignax as ax
    ax.estimators.k3(logp, logp_ref, mask)

The maths comes with the import; ``alignax.pipeline``, ``alignax.models`` and
``alignax.train`` load heavier packages and are imported by their names.
"""

from alignax import (
    advantages,
    algorithms,
    controllers,
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

__version__ = "0.1.0"

__all__ = [
    "advantages",
    "algorithms",
    "controllers",
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
