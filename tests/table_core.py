"""Rows of the small modules: numerics, reduce, sampling, controllers, references."""

from functools import partial

import jax
import jax.numpy as jnp

from alignax import controllers, numerics, reduce, references, sampling
from tests.row import Row

keys = jax.random.split(jax.random.key(0), 4)
values = jax.random.normal(keys[0], (8, 5))
others = jax.random.normal(keys[1], (8, 5))
mask = jnp.arange(5)[None] < jnp.array([5, 4, 3, 2, 1, 1, 2, 5])[:, None]
logits = 2 * jax.random.normal(keys[3], (8, 11))
support = sampling.support_bits(sampling.top_k(logits[::-1], k=4)).at[2].set(0)

BATCH_REDUCTIONS = [
    (reduce.token_mean, {}),
    (reduce.sequence_mean_token_mean, {}),
    (reduce.sequence_mean_token_sum, {}),
    (reduce.constant_length_mean, {"length": 7}),
]

CONTROLLERS = {
    "adaptive_kl": controllers.adaptive_kl(beta=0.2, target=1.0, horizon=100.0),
    "pid_kl": controllers.pid_kl(beta=0.2, target=1.0, derivative=0.1),
    "dual_ascent_kl": controllers.dual_ascent_kl(beta=0.2, target=1.0),
}
SAFE = controllers.safe()


def _controlled(controller, kl):
    return controller.update(controller.init(), kl, 8).beta + 0 * kl


REFERENCES = {
    "fixed": references.fixed(),
    "moving_average": references.moving_average(decay=0.9),
    "soup": references.soup(weight=0.3),
    "convex": references.convex(weight=0.3, reset=3),
    "periodic_reset": references.periodic_reset(every=2),
    "snapshots": references.snapshots(size=2, every=1),
}


def _referred(name, params, others):
    """In float32: a reference has its parameters' dtype, the table wants that one."""
    params, others = (x.astype(jnp.float32) for x in (params, others))
    rule = REFERENCES[name]
    state = rule.init(params, *([others] if name == "soup" else []))
    return rule.params(rule.update(state, others, 2))


ROWS = [
    Row(name="numerics.as_float", fn=numerics.as_float, args=(values,)),
    Row(
        name="numerics.exponent_limit",
        fn=lambda x: jnp.full_like(x, numerics.exponent_limit(x), jnp.float32),
        args=(values,),
        grad=(),
    ),
    Row(
        name="numerics.varying_as",
        fn=lambda x: (
            numerics.as_float(x)
            + numerics.varying_as(jnp.ones_like(numerics.as_float(x)), x)
        ),
        args=(values,),
    ),
    Row(name="numerics.exp", fn=numerics.exp, args=(60 * values,)),
    Row(name="numerics.expm1", fn=numerics.expm1, args=(60 * values,)),
    Row(
        name="reduce.masked",
        fn=reduce.masked,
        args=(values, mask),
        mask=1,
        masked=(0,),
    ),
    Row(
        name="reduce.log_ratio",
        fn=reduce.log_ratio,
        args=(values, others, mask),
        grad=(0, 1),
        mask=2,
        masked=(0, 1),
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
        name="sampling.support_bits",
        fn=lambda x: sampling.support_bits(sampling.top_k(x, k=3)),
        args=(logits,),
        grad=(),
    ),
    Row(
        name="sampling.checked_support",
        fn=partial(sampling.checked_support, size=logits.shape[-1]),
        args=(support,),
        grad=(),
    ),
    Row(
        name="sampling.restricted",
        fn=lambda x, bits: jnp.exp(jax.nn.log_softmax(sampling.restricted(x, bits))),
        args=(logits, support),
    ),
    Row(
        name="sampling.inverse_cdf",
        fn=lambda x: sampling.inverse_cdf(jax.nn.sigmoid(x[..., :2]), x),
        args=(logits,),
    ),
    Row(
        name="reduce.group_tokens",
        fn=partial(reduce.group_tokens, completions=2),
        args=(mask,),
        rowwise=False,
        grad=(),
    ),
    Row(
        name="reduce.group_token_mean",
        fn=lambda v, m: reduce.group_token_mean(
            v, m, reduce.group_tokens(m, completions=2)
        ),
        args=(values, mask),
        rowwise=False,
        mask=1,
        masked=(0,),
    ),
    Row(
        name="controllers.fixed",
        fn=lambda x: controllers.fixed(beta=0.1).init().beta + x,
        args=(values,),
    ),
    *(
        Row(
            name=f"controllers.{name}",
            fn=partial(_controlled, controller),
            args=(values[:, 0],),
            grad=(),
        )
        for name, controller in CONTROLLERS.items()
    ),
    Row(
        name="controllers.safe",
        fn=lambda kl, entropy: SAFE.update(SAFE.init(), kl, entropy, kl)[:5],
        args=(values[:, 0], others[:, 0] ** 2),
        rowwise=False,
        grad=(),
    ),
    Row(
        name="controllers.entropy_gate", fn=controllers.entropy_gate, args=(values**2,)
    ),
    Row(
        name="controllers.lagrange_multipliers",
        fn=lambda costs, limits, state: controllers.lagrange_multipliers(
            limits, rate=0.5
        ).update(state.astype(jnp.float32), costs),
        args=(values[:, 0] ** 2, others[:, 0], others[:, 1]),
        rowwise=False,
        grad=(),
    ),
    Row(
        name="controllers.lagrangian_rewards",
        fn=lambda r, c: controllers.lagrangian_rewards(r, c, jnp.ones(5)),
        args=(values[:, 0], others),
        grad=(),
    ),
    Row(
        name="controllers.difficulty_weights",
        fn=controllers.difficulty_weights,
        args=(jax.nn.sigmoid(values),),
        grad=(),
    ),
    *(
        Row(
            name=f"references.{name}",
            fn=partial(_referred, name),
            args=(values, others),
            rowwise=name != "snapshots",
            grad=(0, 1),
        )
        for name in REFERENCES
    ),
]
