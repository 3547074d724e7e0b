"""A batch with all that a method may need, and every method compiled on it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest

from alignax import advantages, algorithms, reduce
from alignax.types import Rollout, Scored

G, K, T = 4, 4, 5
B = G * K
KEYS = jax.random.split(jax.random.key(0), 12)
OLD, REF, BEHAVIOUR = (-0.1 - jax.random.exponential(key, (B, T)) for key in KEYS[:3])
LOGP = OLD + 0.3 * jax.random.normal(KEYS[3], (B, T))
ENTROPY = jax.random.exponential(KEYS[4], (B, T))
MASK = jnp.arange(T)[None] < jax.random.randint(KEYS[5], (B, 1), 1, T + 1)
# A group of each kind: mixed, mixed, all wrong, all right.
REWARDS = jnp.array([[1.0, 0, 0, 1], [0, 0, 1, 0], [0] * 4, [1] * 4])
ALGORITHMS = {
    f"{key}{f' ({name})' if name else ''}": algorithm
    for key, method in algorithms.METHODS.items()
    if method.algorithm
    for name, algorithm in {"": method.algorithm, **method.variants}.items()
}


def scored(rewards=REWARDS, mask=MASK, **changes):
    rollout = Rollout(
        tokens=jax.random.randint(KEYS[6], (B, T), 0, 3),
        attended=mask,
        trained=mask,
        logp_behaviour=changes.pop("logp_behaviour", BEHAVIOUR),
        finished=jnp.arange(B) % 3 > 0,
    )
    leaves = {
        "rollout": rollout,
        "rewards": rewards,
        "right": rewards > 0,
        "logp_old": OLD,
        "logp_ref": REF,
        "entropy": ENTROPY,
        "greedy": jnp.array([1.0, 0, 0, 1]),
        "reference_rewards": jnp.array([[1.0, 0], [0, 0], [0, 1], [1, 1]]),
        "values": jax.random.normal(KEYS[7], (B, T)),
        "history": jnp.array([2.0, jnp.inf, 3.0, 4.0]),
        "confidence": jax.random.uniform(KEYS[8], (G, K)),
        "clusters": jax.random.randint(KEYS[9], (G, K), 0, 3),
        "demonstrated": jnp.arange(B) % K == K - 1,
        "key": KEYS[10],
        "moments": advantages.Moments(*map(jnp.float32, (0.4, 0.3, 64.0))),
        "initial_entropy": jnp.float32(0.5),
        "objectives": jax.random.uniform(KEYS[11], (G, K, 2)),
        "objective_weights": jnp.array([0.5, 1.5]),
        "reward_version": jnp.full((G, K), 3).at[0, 0].set(2),
        "token_rewards": jax.random.normal(KEYS[8], (B, T)),
        "logp_teacher": 1.1 * REF,
        "log_z": jnp.zeros((G, K)),
        "baseline": jnp.float32(0.2),
    }
    return Scored(**{**leaves, **changes})


def several(algorithm, values):
    """Values of as many heads as the critic has."""
    heads = 1 if algorithm.critic is None else algorithm.critic.heads
    if heads == 1:
        return values
    return jnp.stack([values + 0.3 * head for head in range(heads)], axis=-1)


def fraction(algorithm, logp, entropy, rows):
    values = several(algorithm, rows.values_old)
    regulariser, over = algorithm.regulariser, None
    if regulariser is not None and regulariser.over_vocabulary:
        # No model is there to sum over: what a token's divergence might be.
        over = jnp.square(reduce.log_ratio(logp, rows.logp_ref, rows.mask))
    parts = algorithms.losses(
        algorithm, logp, entropy, rows, values=values, over_vocabulary=over
    )
    values = sum(parts.values())
    return algorithms.reduced(algorithm, values, rows)


def loss(algorithm, logp, entropy, rows):
    return reduce.divide(*fraction(algorithm, logp, entropy, rows))


@functools.cache
def compiled(name):
    """Value and gradient of a batch, and the gradient of it in four parts."""
    algorithm = ALGORITHMS[name]

    @jax.jit
    def run(logp, entropy, data):
        values = several(algorithm, data.values)
        data = dataclasses.replace(data, values=values)
        rows = algorithms.prepare(algorithm, data)
        whole = jax.value_and_grad(functools.partial(loss, algorithm))(
            logp, entropy, rows
        )

        # Strided, as ``pipeline.update`` splits: groups are torn apart.
        def parts(x):
            return x.reshape(B // 4, 4, *x.shape[1:]).swapaxes(0, 1)

        def split(logp):
            leaves = jax.tree.map(parts, (logp, entropy, rows))
            pairs = jax.vmap(functools.partial(fraction, algorithm))(*leaves)
            return reduce.divide(*map(jnp.sum, pairs))

        return whole, jax.grad(split)(logp), rows

    return run


# One of each kind of stage; the others, which combine the same, are slow tests.
ALWAYS = (
    *("grpo", "dapo", "rloo", "gpg", "remax", "tis", "rl_plus", "gspo", "gmpo"),
    *("topr", "bnpo", "hapo", "kl_cov", "gtpo", "confucius3", "dph_rl", "trimpi"),
)


def each(names):
    """Every name, those that need a compilation of their own as slow tests."""
    return pytest.mark.parametrize(
        "name",
        [
            pytest.param(name, marks=[] if name in ALWAYS else [pytest.mark.slow])
            for name in names
        ],
    )
