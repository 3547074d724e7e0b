"""Sample arguments for ``alignax.evaluation`` and ``alignax.diagnostics``."""

from functools import partial

import jax
import jax.numpy as jnp

from alignax import diagnostics, evaluation
from tests.row import Row

KEYS = jax.random.split(jax.random.key(3), 2)
SHAPE = (8, 5)
CORRECT = jax.random.bernoulli(KEYS[0], 0.5, SHAPE)
# Off every edge between bins, also once rounded to bfloat16.
CONFIDENCE = jax.random.permutation(KEYS[1], jnp.arange(40)).reshape(SHAPE) / 41 + 0.007
MASK = jnp.arange(5)[None] < jnp.array([5, 4, 3, 2, 1, 1, 2, 5])[:, None]
NORMAL = jax.random.normal(KEYS[0], (8, 2, 5))
FEATURES = jax.random.normal(KEYS[1], (8, 5, 2))

ROWS = [
    Row(
        name="evaluation.pass_at_k",
        fn=partial(evaluation.pass_at_k, samples=16, k=4),
        args=(jnp.arange(8) * 2,),
        grad=(),
        estimator=True,
    ),
    Row(
        name="evaluation.pass_at_k",
        fn=partial(evaluation.pass_at_k, k=4),
        args=(jnp.arange(8), jnp.arange(8) + 7),
        grad=(),
        estimator=True,
    ),
    Row(
        name="diagnostics.calibration_error_equal_mass",
        fn=partial(diagnostics.calibration_error_equal_mass, bins=3),
        args=(CONFIDENCE, CORRECT, MASK),
        mask=2,
        masked=(0,),
        estimator=True,
    ),
    Row(
        name="diagnostics.calibration_error_equal_width",
        fn=partial(diagnostics.calibration_error_equal_width, bins=3),
        args=(CONFIDENCE, CORRECT, MASK),
        mask=2,
        masked=(0,),
        estimator=True,
    ),
    Row(
        name="diagnostics.brier_score",
        fn=diagnostics.brier_score,
        args=(CONFIDENCE, CORRECT, MASK),
        mask=2,
        masked=(0,),
        estimator=True,
    ),
    Row(
        name="diagnostics.embedding_diversity",
        fn=diagnostics.embedding_diversity,
        args=(jax.random.normal(KEYS[0], (8, 4, 3)),),
    ),
    Row(
        name="diagnostics.entropy_similarity",
        fn=diagnostics.entropy_similarity,
        args=(jnp.abs(NORMAL[:, 0]), MASK, jnp.abs(NORMAL[:, 1, :3]), MASK[:, :3]),
        grad=(0, 2),
        mask=1,
        masked=(0,),
    ),
    Row(
        name="diagnostics.margin",
        fn=diagnostics.margin,
        args=(NORMAL[:, 0], jnp.arange(8) % 5),
    ),
    Row(
        name="diagnostics.klom",
        fn=partial(diagnostics.klom, bins=3),
        args=(NORMAL[:, 0], 0.6 * NORMAL[:, 1]),
        grad=(),
        estimator=True,
    ),
    Row(
        name="diagnostics.ridge",
        fn=partial(diagnostics.ridge, penalty=0.5),
        args=(FEATURES, NORMAL[:, 0], MASK),
        grad=(0, 1),
        mask=2,
        masked=(1,),
    ),
    Row(
        name="diagnostics.left_out_outputs",
        fn=partial(diagnostics.left_out_outputs, penalty=0.5),
        args=(FEATURES, NORMAL[:, 0], MASK, CORRECT, FEATURES[:, :3]),
        grad=(0, 1, 4),
        mask=2,
        masked=(1,),
    ),
    Row(
        name="diagnostics.datamodel",
        fn=partial(diagnostics.datamodel, penalty=0.5),
        args=(FEATURES, NORMAL[:, 0], MASK, FEATURES[:, :3]),
        grad=(0, 1, 3),
        mask=2,
        masked=(1,),
    ),
    Row(
        name="diagnostics.matched",
        fn=diagnostics.matched,
        args=(NORMAL[:, 1, :2], FEATURES, NORMAL[:, 0]),
    ),
]
