"""Tabular autoregressive policies, small enough to sum over every sequence.

Nothing here uses ``alignax.estimators``: the targets are written from their
definitions, and differentiated as finite sums.
"""

import functools
import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from alignax import estimators as e

# Each function here runs a few times: compile it quickly rather than well.
jit = functools.partial(
    jax.jit,
    compiler_options={
        "xla_backend_optimization_level": 0,
        "xla_llvm_disable_expensive_passes": True,
    },
)


@dataclass(frozen=True)
class World:
    """All sequences of T tokens below V; token 0 ends one where ``eos``."""

    V: int
    T: int
    eos: bool = False

    def __post_init__(self):
        tokens = np.array(list(itertools.product(range(self.V), repeat=self.T)))
        ended = np.cumsum(tokens == 0, axis=1) - (tokens == 0) > 0
        mask = ~ended if self.eos else np.ones_like(ended)
        # One representative of those that differ after their end.
        kept = np.all(mask | (tokens == 0), axis=1)
        tokens, mask = tokens[kept], mask[kept]
        # Number the prefixes, level by level: prefix y_<t is node `offset + code`.
        nodes, offset, code = [], 0, np.zeros(len(tokens), int)
        for t in range(self.T):
            nodes.append(offset + code)
            code, offset = code * self.V + tokens[:, t], offset + self.V**t
        for name, value in dict(
            tokens=tokens, mask=mask, nodes=np.stack(nodes, axis=1), n_nodes=offset
        ).items():
            object.__setattr__(self, name, value)

    def theta(self, seed, scale=1.0):
        """Logits of every prefix, ``[nodes, V]``."""
        rng = np.random.default_rng(seed)
        return jnp.asarray(scale * rng.normal(size=(self.n_nodes, self.V)))

    def logps(self, theta):
        """Log-probabilities of the taken tokens, ``[N, T]``; 0 where masked."""
        law = jax.nn.log_softmax(theta)[self.nodes]
        taken = jnp.take_along_axis(law, self.tokens[..., None], axis=-1)[..., 0]
        return jnp.where(self.mask, taken, 0)

    def law(self, theta):
        """The probability of every sequence, ``[N]``."""
        return jnp.exp(self.logps(theta).sum(axis=-1))

    def expectation(self, law_theta, terms):
        return jnp.sum(self.law(law_theta) * terms)

    def over_prefixes(self, law_theta, per_node):
        """``E_{y ~ law} Σ_t per_node[y_<t]``."""
        terms = jnp.where(self.mask, per_node[self.nodes], 0).sum(axis=-1)
        return self.expectation(law_theta, terms)

    def samples(self, theta, ref, behaviour):
        return e.Samples(
            logp=self.logps(theta),
            logp_ref=self.logps(ref),
            logp_behaviour=self.logps(behaviour),
            mask=jnp.asarray(self.mask),
            tokens=jnp.asarray(self.tokens),
            logits=theta[self.nodes],
            logits_ref=ref[self.nodes],
        )


def node_kl(theta, ref):
    p, q = jax.nn.log_softmax(theta), jax.nn.log_softmax(ref)
    return jnp.sum(jnp.exp(p) * (p - q), axis=-1)


def node_chi2(theta, ref):
    p, q = jax.nn.softmax(theta), jax.nn.softmax(ref)
    return jnp.sum((p - q) ** 2 / q, axis=-1)


def node_l1(theta, ref):
    return jnp.sum(jnp.abs(jax.nn.softmax(theta) - jax.nn.softmax(ref)), axis=-1)


def node_bucket_kl(theta, ref, k=2):
    p, q = jax.nn.softmax(theta), jax.nn.softmax(ref)
    order = jnp.argsort(-jax.lax.stop_gradient(p), axis=-1)
    p, q = (jnp.take_along_axis(x, order, axis=-1) for x in (p, q))
    p, q = (jnp.append(x[:, :k], x[:, k:].sum(-1, keepdims=True), -1) for x in (p, q))
    return jnp.sum(p * jnp.log(p / q), axis=-1)


def targets(world, theta, ref, behaviour):
    """Every objective that ``TABLE`` names, as a function of the policy's logits."""
    t = e.table

    def sequence_kl(x):
        ratio = (world.logps(x) - world.logps(ref)).sum(axis=-1)
        return world.expectation(x, ratio)

    def sequence_forward_kl(x):
        ratio = (world.logps(ref) - world.logps(x)).sum(axis=-1)
        return world.expectation(ref, ratio)

    def sequence_chi2(x):
        p, q = world.law(x), world.law(ref)
        return jnp.sum((p - q) ** 2 / q)

    def prefixes(law_theta, node):
        return lambda x: world.over_prefixes(law_theta, node(x, ref))

    return {
        t.SEQUENCE_KL: sequence_kl,
        t.SEQUENCE_FORWARD_KL: sequence_forward_kl,
        t.SEQUENCE_F: sequence_chi2,
        t.MYOPIC_KL: prefixes(theta, node_kl),
        t.BEHAVIOUR_MYOPIC_KL: prefixes(behaviour, node_kl),
        t.MYOPIC_FORWARD_KL: prefixes(theta, lambda x, r: node_kl(r, x)),
        t.MYOPIC_F: prefixes(theta, node_chi2),
        t.REFERENCE_F: prefixes(ref, node_chi2),
        t.MYOPIC_L1: prefixes(theta, node_l1),
        t.MYOPIC_BUCKET_KL: prefixes(theta, node_bucket_kl),
        t.BUCKET_KL: lambda x: world.over_prefixes(x, node_bucket_kl(x, ref)),
        t.ZERO: lambda x: 0 * jnp.sum(x),
    }


def truths(world, theta, ref, behaviour):
    """Value and gradient of every objective, ``{name: (value, gradient)}``."""

    def everything(x, at, ref, behaviour):
        return {name: f(x) for name, f in targets(world, at, ref, behaviour).items()}

    arguments = theta, theta, ref, behaviour
    values, gradients = jit(lambda *x: (everything(*x), jax.jacrev(everything)(*x)))(
        *arguments
    )
    return {name: (values[name], gradients[name]) for name in values}


def moments(world, estimator, theta, ref, behaviour):
    """Exact expectation and variance of value and gradient, from the tokens' law.

    ``estimator`` is a name in ``TABLE`` (compiled once) or a record. Returns
    ``(value, gradient, value variance, gradient variance)``.
    """
    if isinstance(estimator, str):
        return _compiled(world, estimator)(theta, ref, behaviour)
    return jit(functools.partial(_moments, world, estimator))(theta, ref, behaviour)


@functools.cache
def _compiled(world, name):
    return jit(functools.partial(_moments, world, e.TABLE[name]))


def _moments(world, estimator, theta, ref, behaviour):
    origin = {e.table.POLICY: theta, e.table.BEHAVIOUR: behaviour}
    law = world.law(origin.get(estimator.sampled_from, ref))

    def loss(x):
        return estimator(world.samples(x, ref, behaviour)).sum(axis=-1)

    values, rows = loss(theta), jax.jacrev(loss)(theta)
    rows = rows.reshape(len(values), -1)
    value, gradient = law @ values, law @ rows
    noise = jnp.sum((rows - gradient[None]) ** 2, axis=-1)
    spread = law @ (values - value) ** 2, law @ noise
    return value, gradient.reshape(theta.shape), *spread


def miss(estimate, truth):
    """The relative error of a gradient."""
    return float(jnp.linalg.norm(estimate - truth) / jnp.linalg.norm(truth))
