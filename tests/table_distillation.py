"""Rows of the distillation losses."""

from functools import partial

import jax
import jax.numpy as jnp

from alignax import distillation as ds
from alignax import divergences as dv
from tests.row import Row

keys = jax.random.split(jax.random.key(9), 4)
logits = 2 * jax.random.normal(keys[0], (8, 5))
logits_ref = 2 * jax.random.normal(keys[1], (8, 5))
targets = jax.random.randint(keys[2], (8,), 0, 5)
mask = jnp.arange(5)[None] < jnp.array([5, 4, 3, 2, 1, 1, 2, 5])[:, None]
ends = jnp.cumsum(jax.random.randint(keys[3], (8, 5), 0, 3), axis=1)
ends_ref = jnp.cumsum(jnp.ones((8, 6), jnp.int32), axis=1)
known = ends_ref < 6
ids = ds.chunk_ids(ends, mask, ends_ref, known)
ids_ref = ds.chunk_ids(ends_ref, known, ends, mask)
logp_ref = -jnp.abs(jnp.concatenate([logits_ref, logits[:, :1]], axis=1))

ROWS = [
    Row(
        name="distillation.chunk_ids",
        fn=ds.chunk_ids,
        args=(ends, mask, ends_ref, known),
        grad=(),
    ),
    Row(
        name="distillation.chunk_sums",
        fn=partial(ds.chunk_sums, chunks=4),
        args=(logits, ids),
    ),
    Row(
        name="distillation.chunk_logp",
        fn=ds.chunk_logp,
        args=(-jnp.abs(logits), ids, logp_ref, ids_ref),
        grad=(),
        estimator=True,
    ),
    *(
        Row(
            name="distillation.coarse",
            fn=partial(ds.coarse, div, k=2, support=support),
            args=(logits, logits_ref),
            estimator=True,
        )
        for div, support in (
            (dv.reverse_kl(), "student"),
            (dv.jensen_shannon(0.3), "teacher"),
        )
    ),
    Row(
        name="distillation.balanced",
        fn=partial(ds.balanced, weigh=ds.surer),
        args=(logits, logits_ref),
        estimator=True,
    ),
    Row(name="distillation.surer", fn=ds.surer, args=(logits,), grad=()),
    Row(
        name="distillation.pld",
        fn=partial(ds.pld, temperature=2.0),
        args=(logits, logits_ref, targets),
    ),
    Row(
        name="distillation.tvd_surrogate",
        fn=ds.tvd_surrogate,
        args=(-jnp.abs(logits), -jnp.abs(logits_ref), mask),
        rowwise=False,
        mask=2,
        masked=(0, 1),
        estimator=True,
    ),
]
