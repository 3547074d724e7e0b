"""Sample arguments for ``alignax.estimators``."""

from functools import partial

import jax
import jax.numpy as jnp

from alignax import divergences, estimators
from tests.row import Row

KEYS = jax.random.split(jax.random.key(0), 8)
SHAPE, V = (8, 4), 5


def logps(key):
    return -jax.random.exponential(key, SHAPE)


LOGP, REF, BEHAVIOUR = (logps(key) for key in KEYS[:3])
LOGITS, LOGITS_REF = (jax.random.normal(key, (*SHAPE, V)) for key in KEYS[3:5])
TOKENS = jax.random.randint(KEYS[5], SHAPE, 0, V)
BASELINE = jax.random.normal(KEYS[6], SHAPE)
WEIGHTS = jax.random.exponential(KEYS[7], SHAPE)
LENGTHS = jnp.array([4, 3, 2, 1, 4, 2, 3, 1])
MASK = jnp.arange(4)[None] < LENGTHS[:, None]


def row(name, *, args, **kwargs):
    fn, bound = getattr(estimators, name), kwargs.pop("bound", {})
    if "divergence" in bound:
        fn = partial(fn, bound.pop("divergence"))
    fn = partial(fn, **bound) if bound else fn
    return Row(name=f"estimators.{name}", fn=fn, args=args, **kwargs)


TOKEN = dict(args=(LOGP, REF, MASK), mask=2, masked=(0, 1))
OFF_POLICY = dict(args=(LOGP, REF, BEHAVIOUR, MASK), mask=3, masked=(0, 1, 2))
# The mask covers [..., T], the logits are [..., T, V].
LAWS = dict(args=(LOGITS, LOGITS_REF, MASK), mask=2)
LAWS_TOKENS = dict(args=(LOGITS, LOGITS_REF, TOKENS, MASK), mask=3)
CHI2 = dict(divergence=divergences.pearson())


def with_baseline(name, **bound):
    fn = partial(getattr(estimators, name), **bound)
    return lambda *args: fn(*args[:-1], baseline=args[-1])


ROWS = [
    row("k1", estimator=True, **TOKEN),
    row("k1", estimator=True, args=(LOGP, REF)),
    row("k2", estimator=True, **TOKEN),
    row("k3", estimator=True, **TOKEN),
    row("absolute_log_ratio", estimator=True, **TOKEN),
    row("forward_k1", estimator=True, **TOKEN),
    row("f_from_policy", estimator=True, bound=dict(CHI2), **TOKEN),
    row("f_from_reference", estimator=True, bound=dict(CHI2), **TOKEN),
    row("control_variate", estimator=True, bound={"coefficient": 0.5}, **TOKEN),
    row("optimal_coefficient", rowwise=False, **TOKEN),
    row("estimated_control_variate", estimator=True, rowwise=False, **TOKEN),
    row("myopic_kl_surrogate", estimator=True, **TOKEN),
    row("myopic_k2_surrogate", estimator=True, **TOKEN),
    row("myopic_straight_through_surrogate", estimator=True, **TOKEN),
    row("myopic_forward_k3_surrogate", estimator=True, **TOKEN),
    row("myopic_f_surrogate", estimator=True, bound=dict(CHI2), **TOKEN),
    row("myopic_f_reference_surrogate", estimator=True, bound=dict(CHI2), **TOKEN),
    row("myopic_weighted_k3_surrogate", estimator=True, **OFF_POLICY),
    row(
        "myopic_weighted_k3_surrogate", estimator=True, bound={"cap": 2.0}, **OFF_POLICY
    ),
    row("off_policy_myopic_kl_surrogate", estimator=True, **OFF_POLICY),
    row("sequence_kl_surrogate", estimator=True, **TOKEN),
    Row(
        name="estimators.sequence_kl_surrogate",
        fn=with_baseline("sequence_kl_surrogate"),
        args=(LOGP, REF, MASK, BASELINE),
        mask=2,
        masked=(0, 1, 3),
    ),
    Row(
        name="estimators.sequence_surrogate",
        fn=estimators.sequence_surrogate,
        args=(BASELINE, LOGP, MASK),
        grad=(0, 1),
        mask=2,
        masked=(0, 1),
        estimator=True,
    ),
    row("sequence_control_variate_surrogate", estimator=True, **TOKEN),
    row("sequence_k2_surrogate", estimator=True, **TOKEN),
    row("sequence_ratio_kl_surrogate", estimator=True, **OFF_POLICY),
    row("sequence_weighted_k3_surrogate", estimator=True, **OFF_POLICY),
    Row(
        name="estimators.sequence_weighted_k3_surrogate",
        fn=with_baseline("sequence_weighted_k3_surrogate", cap=2.0),
        args=(LOGP, REF, BEHAVIOUR, MASK, BASELINE),
        mask=3,
        masked=(0, 1, 2, 4),
    ),
    row("off_policy_sequence_kl_surrogate", estimator=True, **OFF_POLICY),
    Row(
        name="estimators.off_policy_sequence_kl_surrogate",
        fn=with_baseline("off_policy_sequence_kl_surrogate", cap=2.0),
        args=(LOGP, REF, BEHAVIOUR, MASK, BASELINE),
        mask=3,
        masked=(0, 1, 2, 4),
    ),
    row("sequence_f_surrogate", estimator=True, bound=dict(CHI2), **TOKEN),
    row("sequence_f_reference_surrogate", estimator=True, bound=dict(CHI2), **TOKEN),
    row("forward_kl_surrogate", estimator=True, **TOKEN),
    row("rao_blackwell", estimator=True, **LAWS),
    row("myopic_rao_blackwell_surrogate", estimator=True, **LAWS),
    row("top_k_partial", estimator=True, bound={"k": 2}, **LAWS),
    row("top_k_bucket", estimator=True, bound={"k": 2}, **LAWS),
    row("top_k_sampled_tail", estimator=True, bound={"k": 2}, **LAWS_TOKENS),
    row(
        "myopic_top_k_f_surrogate",
        estimator=True,
        bound={"k": 2, **CHI2},
        **LAWS_TOKENS,
    ),
    row("rao_blackwell_surrogate", estimator=True, **LAWS_TOKENS),
    row("top_k_bucket_surrogate", estimator=True, bound={"k": 2}, **LAWS_TOKENS),
    row("top_k_sampled_tail_surrogate", estimator=True, bound={"k": 2}, **LAWS_TOKENS),
    row("token_weights", args=(LOGP, BEHAVIOUR, MASK), mask=2, masked=(0, 1)),
    row("prefix_weights", args=(LOGP, BEHAVIOUR, MASK), mask=2, masked=(0, 1)),
    row("context_weights", args=(LOGP, BEHAVIOUR, MASK), mask=2, masked=(0, 1)),
    row("sequence_weights", args=(LOGP, BEHAVIOUR, MASK), mask=2, masked=(0, 1)),
    row("truncated_weights", args=(WEIGHTS,), bound={"cap": 2.0}),
    row("masked_weights", args=(WEIGHTS,), bound={"low": 0.5, "high": 2.0}),
    row("effective_sample_size", args=(WEIGHTS,)),
]
