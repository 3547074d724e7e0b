"""Sample arguments for ``alignax.advantages``."""

from functools import partial

import jax
import jax.numpy as jnp

from alignax import advantages, divergences
from tests.row import Row

KEYS = jax.random.split(jax.random.key(0), 6)
# Eight groups of five completions, or eight completions of five tokens.
VALUES, OTHERS, THIRD = (jax.random.normal(key, (8, 5)) for key in KEYS[:3])
LOGP = -jax.random.exponential(KEYS[3], (8, 5))
MASK = jnp.arange(5)[None] < jnp.array([5, 4, 3, 2, 1, 1, 2, 5])[:, None]
CORRECT = VALUES > 0
COUNTS = jax.random.randint(KEYS[4], (8, 5), 1, 9)
TOKENS = jax.random.randint(KEYS[5], (8, 3, 5), 0, 2)
VECTORS = jax.random.normal(KEYS[5], (8, 5, 4))
PER_ROW = VALUES[:, 0]


def row(name, *args, bound=None, grad=(), **kwargs):
    """Advantages have no gradient, which ``tests/advantages`` checks of them all."""
    fn = partial(getattr(advantages, name), **(bound or {}))
    return Row(name=f"advantages.{name}", fn=fn, args=args, grad=grad, **kwargs)


def masked(name, *args, **kwargs):
    numbers = tuple(i for i, x in enumerate(args) if x.shape == MASK.shape)
    return row(name, *args, MASK, mask=len(args), masked=numbers, **kwargs)


RUNNING = advantages.running_moments()
MOMENTS = RUNNING.update(RUNNING.init(), VALUES)

ROWS = [
    row("group_centred", VALUES),
    row("group_centred", VALUES, MASK),
    row("group_standardised", VALUES),
    row("group_standardised", VALUES, MASK),
    row("leave_one_out", VALUES),
    row("greedy_centred", VALUES, PER_ROW),
    row("batch_standardised", VALUES, rowwise=False),
    Row(
        name="advantages.decoupled_standardised",
        fn=lambda x: advantages.decoupled_standardised(x, jnp.arange(1.0, 5)),
        args=(VECTORS,),
        rowwise=False,
        grad=(),
    ),
    row("hardness_scaled", jnp.sign(VALUES)),
    row("best_less_second", VALUES),
    row("mean_normalised", CORRECT.astype(jnp.float32)),
    row("mean_normalised", VALUES, bound={"lowest": -1.0, "failed": -1.0}),
    Row(
        name="advantages.optimal_value",
        fn=lambda x, m: advantages.optimal_value(
            divergences.jensen_shannon(), x, m, beta=0.5
        ),
        args=(VALUES, MASK),
        grad=(),
        mask=1,
        masked=(0,),
    ),
    row("optimal_centred", VALUES, bound={"div": divergences.pearson(), "beta": 0.5}),
    row("length_weighted_centred", VALUES, COUNTS),
    row("token_group_standardised", VALUES, COUNTS),
    row("beta_normalised", CORRECT.astype(jnp.float32), rowwise=False),
    row("pass_at_k_weights", CORRECT, bound={"k": 2}),
    row("pass_at_k_standardised", CORRECT, bound={"k": 2}),
    row("semantic_entropy", COUNTS, LOGP),
    row("linear_decay", VALUES, grad=(0,)),
    row("semantic_entropy_scaled", VALUES, PER_ROW**2, bound={"most": 2.0}),
    masked("at_last_token", PER_ROW),
    masked("reward_to_go", VALUES),
    masked("reward_to_go", VALUES, bound={"discount": 0.9}),
    masked("last_value", VALUES),
    masked("gae", VALUES, OTHERS),
    masked("whitened", VALUES, rowwise=False),
    masked("preference_token_rewards", VALUES, LOGP, OTHERS),
    masked("smoothed_rewards", VALUES, bound={"width": 3}),
    masked("exploration_advantages", VALUES, LOGP),
    masked("entropy_shaped", VALUES, OTHERS**2),
    masked("relative_entropy_level", OTHERS**2, bound={"pivot": 0.5}, rowwise=False),
    masked("redistributed_advantages", VALUES, jnp.tanh(OTHERS), THIRD),
    Row(
        name="advantages.conflict_weights",
        fn=lambda tokens, values: advantages.conflict_weights(
            tokens, values, jnp.ones(tokens.shape, bool)
        ),
        args=(TOKENS, VALUES[:, :3]),
        grad=(),
    ),
    row("overlong_penalty", COUNTS, bound={"max_length": 6, "buffer": 4}),
    row("history_length_reward", COUNTS, CORRECT, 1 + OTHERS**2),
    row(
        "history_update",
        PER_ROW**2,
        jnp.arange(8) % 3,
        COUNTS[:, 0],
        CORRECT[:, 0],
        rowwise=False,
    ),
    row("long_failure_multiplier", COUNTS, CORRECT),
    row("multiplied_rewards", PER_ROW, OTHERS),
    Row(
        name="advantages.weighted_sum",
        fn=lambda x: advantages.weighted_sum(x, jnp.arange(1.0, 6)),
        args=(VALUES,),
        grad=(),
    ),
    row("consistency_bonus", CORRECT.astype(jnp.float32), jnp.exp(LOGP)),
    row("contrastive_rewards", VECTORS[:, 0], VECTORS, VECTORS[:, 1], rowwise=False),
    Row(
        name="advantages.running_moments",
        fn=lambda x: RUNNING.update(MOMENTS, x).variance,
        args=(PER_ROW,),
        rowwise=False,
        grad=(),
    ),
    Row(
        name="advantages.running_standardised",
        fn=lambda x: advantages.running_standardised(x, MOMENTS),
        args=(VALUES,),
        grad=(),
    ),
]
