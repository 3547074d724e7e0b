"""Sample arguments for ``alignax.adjacent``."""

from functools import partial

import jax
import jax.numpy as jnp

from alignax import adjacent as ad
from alignax import divergences as dv
from alignax.numerics import as_float
from tests.row import Row

KEYS = jax.random.split(jax.random.key(5), 6)
A, B, C, D = (jax.random.normal(key, (8, 3)) for key in KEYS[:4])
SPREAD = 0.5 + jax.random.uniform(KEYS[4], (8, 3))
TIMES = jax.random.uniform(KEYS[5], (8,))
MIXTURE = (A, B, SPREAD)


def of(fn, **options):
    """A function of a mixture and points, by arrays."""
    return lambda *args: fn(ad.Mixture(*args[:3]), *args[3:], **options)


def of_two(fn, **options):
    """A function of two mixtures, which differ in their means."""

    def call(log_weights, means, variances, means_ref, *args):
        p, q = (ad.Mixture(log_weights, m, variances) for m in (means, means_ref))
        return fn(p, q, *args, **options)

    return call


def law(x):
    return jax.nn.log_softmax(as_float(x))


def square(x):
    """Laws of three states from each, for a world of three steps."""
    return law(as_float(x[:3, None]) + as_float(x[None, 3:6]))


def pairs(x, y):
    """Shares of wins of three completions."""
    return jnp.exp(law(x))[..., None] * jnp.exp(law(y))[..., None, :]


def outer_product(x):
    """A covariance."""
    return as_float(x)[..., None] * as_float(x)[..., None, :]


def inner(x, y):
    """Least at ``y = x / 2``."""
    return jnp.sum(jnp.square(2 * y - x))


def outer(x, y):
    return jnp.sum(jnp.sin(y) + jnp.square(x))


def inner_minimum(x):
    return as_float(x[0]) / 2


ROWS = [
    Row(name="adjacent.diffused", fn=of(ad.diffused), args=(*MIXTURE, TIMES)),
    Row(
        name="adjacent.log_density",
        fn=of(ad.log_density),
        args=(*MIXTURE, C),
        grad=(0, 1, 2, 3),
    ),
    Row(name="adjacent.score", fn=of(ad.score), args=(*MIXTURE, C), grad=(0, 1, 2, 3)),
    Row(
        name="adjacent.quadrature",
        fn=of(ad.quadrature, order=4),
        args=MIXTURE,
        grad=(0, 1, 2),
    ),
    Row(
        name="adjacent.mixture_divergence",
        fn=of_two(partial(ad.mixture_divergence, dv.jensen_shannon()), order=4),
        args=(*MIXTURE, C),
        grad=(0, 1, 2, 3),
    ),
    Row(
        name="adjacent.score_divergence",
        fn=lambda *args: of_two(ad.score_divergence, order=4)(
            *args, jnp.array([0.1, 0.5]), jnp.ones(2)
        ),
        args=(*MIXTURE, C),
        grad=(0, 1, 2, 3),
    ),
    Row(
        name="adjacent.entropic_objective",
        fn=of_two(ad.entropic_objective, entropy_weight=0.4, order=4),
        args=(*MIXTURE, C),
        grad=(0, 1, 2, 3),
    ),
    Row(
        name="adjacent.pseudo_huber", fn=partial(ad.pseudo_huber, width=0.7), args=(A,)
    ),
    Row(name="adjacent.half_square", fn=ad.half_square, args=(A,)),
    Row(
        name="adjacent.distribution_matching",
        fn=partial(ad.distribution_matching, dv.jensen_shannon()),
        args=(A, B, C),
        grad=(),
        estimator=True,
    ),
    Row(
        name="adjacent.entropic_score",
        fn=partial(ad.entropic_score, entropy_weight=0.4),
        args=(A, B, C),
        grad=(),
        estimator=True,
    ),
    Row(
        name="adjacent.soft_optimal_chain",
        fn=lambda a, b, c: ad.soft_optimal_chain(law(a[0]), square(b), c[0], beta=0.5),
        args=(A, B, C),
        rowwise=False,
        grad=(0, 1, 2),
    ),
    Row(
        name="adjacent.last_state",
        fn=lambda a, b: ad.last_state(law(a[0]), square(b)),
        args=(A, B),
        rowwise=False,
        grad=(0, 1),
    ),
    Row(
        name="adjacent.occupancy",
        fn=lambda a, b, c: ad.occupancy(law(a[0]), square(b), law(c[:3]), discount=0.9),
        args=(A, B, C),
        rowwise=False,
        grad=(0, 1, 2),
    ),
    Row(
        name="adjacent.correlation",
        fn=lambda a, b, c: ad.correlation(a, b, jnp.exp(law(c))),
        args=(A, B, C),
        grad=(0, 1, 2),
    ),
    Row(
        name="adjacent.proxy_bound",
        fn=lambda a, b, c: ad.proxy_bound(
            a, jnp.exp(law(b)), jnp.exp(law(c)), correlation=0.6
        ),
        args=(A, B, C),
        grad=(0, 1, 2),
    ),
    Row(
        name="adjacent.step_penalties",
        fn=partial(ad.step_penalties, dv.pearson()),
        args=(A,),
        grad=(),
        estimator=True,
    ),
    Row(
        name="adjacent.root_step_penalties",
        fn=partial(ad.root_step_penalties, dv.pearson(), least=1e-4),
        args=(A, SPREAD),
        grad=(),
        estimator=True,
    ),
    Row(
        name="adjacent.discriminator_losses",
        fn=ad.discriminator_losses,
        args=(A, B > 0),
    ),
    Row(
        name="adjacent.adversarial_payoff",
        fn=lambda a, b, c, d: ad.adversarial_payoff(
            law(a), b, law(c), law(d), pairs(a, b), beta=0.7, eta=0.3
        ),
        args=(A, B, C, D),
        grad=(0, 1, 2, 3),
    ),
    Row(
        name="adjacent.adversarial_reward_loss",
        fn=lambda a, b, c: ad.adversarial_reward_loss(
            a, law(b), law(c), pairs(b, c), beta=0.7, eta=0.3
        ),
        args=(A, B, C),
        grad=(0, 1, 2),
    ),
    Row(
        name="adjacent.hypergradient",
        fn=lambda x: ad.hypergradient(outer, inner, as_float(x[0]), inner_minimum(x)),
        args=(A,),
        rowwise=False,
        grad=(0,),
    ),
    Row(
        name="adjacent.penalised_value",
        fn=lambda x, y: ad.penalised_value(
            outer, inner, as_float(x[0]), y[0], inner_minimum(x), sigma=0.1
        ),
        args=(A, B),
        rowwise=False,
        estimator=True,
    ),
    Row(
        name="adjacent.linear_vae",
        fn=partial(ad.linear_vae, latents=2, noise=0.6, beta=1.2),
        args=(SPREAD,),
    ),
    Row(
        name="adjacent.linear_vae_loss",
        fn=lambda a, b, c: ad.linear_vae_loss(
            a[..., None], b[..., None, :], c[..., :1], outer_product(c), noise=0.6
        ),
        args=(A, B, C),
        grad=(0, 1, 2),
    ),
    Row(
        name="adjacent.nearest_actions",
        fn=partial(ad.nearest_actions, data_states=C, data_actions=D, state_weight=2.0),
        args=(A, B),
        grad=(0, 1),
    ),
    Row(
        name="adjacent.advantage_guided_targets",
        fn=ad.advantage_guided_targets,
        args=(A, B, C[:, 0], D[:, 0], C[:, 1]),
        grad=(),
    ),
    Row(
        name="adjacent.constrained_actor_losses",
        fn=lambda q, a, b, c: ad.constrained_actor_losses(q, a, b, c > 0, alpha=2.5),
        args=(A[:, 0], B, C, D[:, 0]),
        rowwise=False,
        grad=(0, 1),
    ),
    Row(
        name="adjacent.subset_minimum",
        fn=lambda x: ad.subset_minimum(jax.random.key(0), x, size=2),
        args=(A,),
        rowwise=False,
    ),
    Row(
        name="adjacent.policy_backup",
        fn=lambda a, b, c, d: ad.policy_backup(
            a[:3], b[:3], square(c), law(d[:3]), discount=0.9
        ),
        args=(A, B, C, D),
        rowwise=False,
        grad=(0, 1, 2, 3),
    ),
    Row(
        name="adjacent.age_weights",
        fn=partial(ad.age_weights, alpha=0.3),
        args=(jnp.arange(8),),
        grad=(),
    ),
    Row(
        name="adjacent.variational_bound",
        fn=lambda a, b, c: ad.variational_bound(
            dv.jensen_shannon(),
            jnp.tanh(as_float(a)) / 4,
            jnp.exp(law(b)),
            jnp.exp(law(c)),
        ),
        args=(A, B, C),
        grad=(0, 1, 2),
    ),
]
