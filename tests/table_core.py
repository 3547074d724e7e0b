"""Rows of the small modules: numerics, reduce, sampling, controllers."""

from functools import partial

import jax
import jax.numpy as jnp

from alignax import controllers, numerics, reduce, sampling
from tests.row import Row

keys = jax.random.split(jax.random.key(0), 4)
values = jax.random.normal(keys[0], (8, 5))
others = jax.random.normal(keys[1], (8, 5))
mask = jnp.arange(5)[None] < jnp.array([5, 4, 3, 2, 1, 1, 2, 5])[:, None]
logits = 2 * jax.random.normal(keys[3], (8, 11))

BATCH_REDUCTIONS = [
    (reduce.token_mean, {}),
    (reduce.sequence_mean_token_mean, {}),
    (reduce.sequence_mean_token_sum, {}),
    (reduce.constant_length_mean, {"length": 7}),
]

ROWS = [
    Row(
        name="numerics.exp_linear",
        fn=partial(numerics.exp_linear, limit=0.5),
        args=(values,),
    ),
    Row(
        name="reduce.masked",
        fn=reduce.masked,
        args=(values, mask),
        mask=1,
        masked=(0,),
    ),
    Row(name="reduce.divide", fn=reduce.divide, args=(values, others**2)),
    *(
        Row(
            name=f"reduce.{function.__name__}",
            fn=partial(function, **options),
            args=(values, mask),
            rowwise=False,
            mask=1,
            masked=(0,),
        )
        for function, options in BATCH_REDUCTIONS
    ),
    Row(
        name="sampling.tempered",
        fn=partial(sampling.tempered, temperature=0.7),
        args=(logits,),
    ),
    # Truncated logits are -inf; their law is what has a finite gradient.
    Row(
        name="sampling.top_k",
        fn=lambda x: jnp.exp(jax.nn.log_softmax(sampling.top_k(x, k=3))),
        args=(logits,),
    ),
    Row(
        name="sampling.top_p",
        fn=lambda x: jnp.exp(jax.nn.log_softmax(sampling.top_p(x, p=0.8))),
        args=(logits,),
    ),
    Row(
        name="controllers.fixed",
        fn=lambda x: controllers.fixed(beta=0.1).init().beta + x,
        args=(values,),
    ),
    Row(
        name="controllers.adaptive_kl",
        fn=lambda x: _controlled(x),
        args=(values[:, 0],),
    ),
]


def _controlled(kl):
    controller = controllers.adaptive_kl(beta=0.2, target=1.0, horizon=100.0)
    return controller.update(controller.init(), kl, 8).beta
