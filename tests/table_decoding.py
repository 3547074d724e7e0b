"""Rows of ``decoding``."""

from functools import partial

import jax
import jax.numpy as jnp

from alignax import decoding, exact
from tests.row import Row

keys = jax.random.split(jax.random.key(11), 3)
large, base, tuned = (2 * jax.random.normal(k, (8, 7)) for k in keys)
bits = jnp.abs(jax.random.normal(keys[0], (8, 5)))
others = jnp.abs(jax.random.normal(keys[1], (8, 5)))
mask = jnp.arange(5)[None] >= jnp.arange(8)[:, None] % 4
APPLY = exact.make_tabular_apply(vocab_size=7, horizon=1)


def _asked(build, x, y):
    """A model of two, each row its own prompt of tables of one row of logits."""
    rows = jnp.arange(len(x))[:, None]
    return build((*({"logits": z[:, None]} for z in (x, y)),), rows).logits


SWITCHING = {"threshold": 1.0, "window": 2, "least": 2}
ROWS = [
    Row(
        name="decoding.combine",
        fn=partial(_asked, decoding.combine(lambda a, b: a - b / 2, APPLY, APPLY)),
        args=(large, base),
        rowwise=False,
        grad=(0, 1),
    ),
    Row(
        name="decoding.switching",
        fn=partial(_asked, decoding.switching(APPLY, APPLY, **SWITCHING)),
        args=(large, base),
        rowwise=False,
    ),
    Row(
        name="decoding.switch",
        fn=lambda a, b, m: decoding.switch(a, b, m, **SWITCHING),
        args=(bits, others, mask),
        rowwise=False,
        grad=(),
    ),
    Row(
        name="decoding.product",
        fn=partial(decoding.product, weights=(0.5, -0.3)),
        args=(large, base, tuned),
        grad=(0, 1, 2),
    ),
    *(
        Row(
            name="decoding.contrastive",
            fn=lambda x, y, gate=gate, deviation=deviation: jax.nn.softmax(
                decoding.contrastive(x, y, strength=0.5, gate=gate, deviation=deviation)
            ),
            args=(large, base),
            grad=(0, 1),
        )
        for gate, deviation in ((0.0, None), (0.3, None), (0.1, 0.2))
    ),
    Row(
        name="decoding.fusion_weight",
        fn=decoding.fusion_weight,
        args=(large, base, tuned),
        grad=(),
    ),
    *(
        Row(
            name="decoding.entropic_steering",
            fn=partial(decoding.entropic_steering, centred=centred),
            args=(large, bits[:, 0]),
            rowwise=False,
            grad=(0, 1),
        )
        for centred in (True, False)
    ),
    Row(name="decoding.fused", fn=decoding.fused, args=(large, base, tuned)),
]
