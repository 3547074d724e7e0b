"""Sample arguments for ``alignax.surrogates``."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp

from alignax import divergences, surrogates
from tests.row import Row

KEYS = jax.random.split(jax.random.key(1), 6)
LOGP, OLD, ADVANTAGES = (jax.random.normal(key, (8, 5)) for key in KEYS[:3])
RATIOS = 0.4 * LOGP
MASK = jnp.arange(5)[None] < jnp.array([5, 4, 3, 2, 1, 1, 2, 5])[:, None]
LOGITS, LOGITS_OLD = (jax.random.normal(key, (8, 7)) for key in KEYS[3:5])
LABELS = jax.random.randint(KEYS[5], (8,), 0, 7)


def row(name, *args, bound=None, **kwargs):
    fn = partial(getattr(surrogates, name), **(bound or {}))
    return Row(name=f"surrogates.{name}", fn=fn, args=args, **kwargs)


def masked(name, *args, order=None, **kwargs):
    """The mask comes last, or in the place that ``order`` gives the arguments."""
    numbers = tuple(i for i, x in enumerate(args) if x.shape == MASK.shape)
    made = row(name, *args, MASK, mask=len(args), masked=numbers, **kwargs)
    if order is None:
        return made
    return dataclasses.replace(made, fn=lambda *xs: made.fn(*(xs[i] for i in order)))


def with_div(name, *args, **kwargs):
    """A row of a function whose first argument is a divergence."""
    made = masked(name, *args, **kwargs)
    fn = partial(getattr(surrogates, name), divergences.jensen_shannon())
    return dataclasses.replace(made, fn=fn)


def decision(name, *args, **kwargs):
    """A row of a boolean function, as the table knows floats."""
    made = masked(name, *args, grad=(), **kwargs)
    return dataclasses.replace(made, fn=lambda *xs: made.fn(*xs).astype(jnp.float32))


def rule(name, **bound):
    return masked(name, RATIOS, ADVANTAGES, bound=bound)


ROWS = [
    masked("sequence_log_ratio", RATIOS),
    masked("geometric_log_ratio", RATIOS),
    masked("geometric_token_log_ratio", RATIOS),
    row("token_gradient", RATIOS, LOGP, grad=(1,)),
    masked("clipped_log_ratio", RATIOS, ADVANTAGES),
    masked("blind_mixture_logp", -(OLD**2), grad=()),
    Row(
        name="surrogates.continuous_log_ratio",
        fn=lambda a, b, m: surrogates.continuous_log_ratio(
            jnp.stack([a, b], -1), jnp.stack([b, b], -1), m, root=True
        ),
        args=(LOGP, OLD, MASK),
        mask=2,
        masked=(0, 1),
    ),
    rule("policy_gradient_surrogate"),
    rule("ratio_surrogate"),
    rule("ppo_surrogate"),
    rule("dual_clip_surrogate"),
    rule("cispo_surrogate", clip_high=0.28),
    rule("topr_surrogate"),
    rule("sapo_surrogate"),
    rule("vespo_surrogate"),
    with_div("binary_divergence", -(LOGP**2) - 0.1, -(OLD**2) - 0.1),
    Row(
        name="surrogates.top_k_divergence",
        fn=lambda x, y, m: surrogates.top_k_divergence(
            divergences.chi2_kl(1.0), jnp.stack([x, y], -1), jnp.stack([y, x], -1), m
        ),
        args=(-(LOGP**2) - 1, -(OLD**2) - 1, MASK),
        mask=2,
        masked=(0, 1),
    ),
    with_div("completion_divergence", RATIOS, grad=(), estimator=True),
    decision("diverging", RATIOS, ADVANTAGES),
    masked(
        "divergence_masked_surrogate",
        RATIOS,
        ADVANTAGES,
        LOGP**2,
        order=(0, 1, 3, 2),
        bound={"low": 0.1, "high": 0.2, "cap": 2.0},
    ),
    masked(
        "penalised_ratio_surrogate",
        RATIOS,
        ADVANTAGES,
        OLD**2,
        order=(0, 1, 3, 2),
        bound={"div": divergences.pearson(), "bound": 0.5},
    ),
    decision("budget_keep", LOGP**2, bound={"budget": 0.3}, rowwise=False),
    masked(
        "second_moment_bounds",
        RATIOS,
        ADVANTAGES,
        grad=(),
        rowwise=False,
    ),
    masked("prefix_budget", LOGP**2, grad=(), bound={"bound": 0.2, "budget": 0.1}),
    masked("effective_share", RATIOS, grad=(), rowwise=False),
    Row(
        name="surrogates.p3o_surrogate",
        fn=lambda x, a, m, s: surrogates.p3o_surrogate(x, a, m, x, s[..., None]),
        args=(RATIOS, ADVANTAGES, MASK, jax.nn.sigmoid(LOGP[:, 0])),
        mask=2,
        masked=(0, 1),
    ),
    rule("regression_surrogate", div=divergences.jensen_shannon(), beta=0.5),
    row(
        "rebel_surrogate",
        RATIOS,
        ADVANTAGES,
        bound={"div": divergences.reverse_kl(), "beta": 0.5},
    ),
    decision("off_policy_sequences", LOGP, OLD, ADVANTAGES, bound={"threshold": 0.1}),
    masked("mismatch", LOGP, OLD, grad=(), rowwise=False),
    masked("ratio_tail", LOGP, OLD, grad=(), rowwise=False),
    Row(
        name="surrogates.entropy_target_surrogate",
        fn=lambda h, m: surrogates.entropy_target_surrogate(
            h, jnp.float32(0.7), m, target=0.5
        ),
        args=(LOGP**2, MASK),
        mask=1,
        masked=(0,),
    ),
    masked("covariances", LOGP, ADVANTAGES, grad=(), rowwise=False),
    Row(
        name="surrogates.clip_cov_dropped",
        fn=lambda c, m: surrogates.clip_cov_dropped(
            jax.random.uniform(jax.random.key(0), m.shape), c, m, low=0.0, fraction=0.2
        ).astype(jnp.float32),
        args=(ADVANTAGES, MASK),
        rowwise=False,
        grad=(),
        mask=1,
        masked=(0,),
    ),
    row("adaptive_clip", jnp.tanh(LOGP), grad=()),
    # Masked logits are −inf; their law is what has a finite gradient.
    Row(
        name="surrogates.masked_policy_logits",
        fn=lambda x, y: jax.nn.softmax(surrogates.masked_policy_logits(x, y, p=0.8)),
        args=(LOGITS, LOGITS_OLD),
    ),
    Row(
        name="surrogates.one_token_rollout_surrogate",
        fn=lambda x, y: surrogates.one_token_rollout_surrogate(
            jax.random.key(0), x, y, samples=4
        ),
        args=(LOGITS, LABELS),
        rowwise=False,
    ),
    Row(
        name="surrogates.forward_exploration_surrogate",
        fn=lambda a, b, m: surrogates.forward_exploration_surrogate(
            a, b, jnp.full(a.shape[:-1], 0.5), m
        ),
        args=(-(LOGP**2), -(OLD**2), MASK),
        mask=2,
        masked=(0, 1),
        estimator=True,
    ),
    Row(
        name="surrogates.product_of_experts_logits",
        fn=lambda x, y: surrogates.product_of_experts_logits(
            x, y[None], jnp.array([0.5])
        ),
        args=(LOGITS, LOGITS_OLD),
        grad=(0, 1),
    ),
    masked("clipped_value_loss", LOGP, OLD, ADVANTAGES),
    masked("huber_value_loss", LOGP, OLD, ADVANTAGES),
    row("soft_minimum", LOGP, OLD, grad=(0, 1)),
    row("dueling_values", LOGITS, LOGP[:, 0], bound={"temperature": 0.5}, grad=(0, 1)),
    row("conservative_targets", LOGP[:, 0], LOGITS, LOGITS_OLD, LABELS > 3, grad=()),
]
