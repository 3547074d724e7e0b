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

ROWS = [
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
