"""Learning from given data: targets near it, a warm start, imitation by boosting."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from alignax._checks import Strength, not_negative
from alignax.divergences import Divergence
from alignax.numerics import as_float
from alignax.types import InputError


def nearest_actions(
    states: Float[Array, "*batch S"],
    actions: Float[Array, "*batch A"],
    data_states: Float[Array, "N S"],
    data_actions: Float[Array, "N A"],
    *,
    state_weight: float,
) -> tuple[Float[Array, "*batch A"], Float[Array, "*batch"]]:
    """PRDC: the action of the data's point nearest to ``(w s, π(s))``.

    A large weight compares states alone (behaviour cloning), none takes the nearest
    action of any state.

    Args:
      states: ``[..., S]``.
      actions: ``[..., A]``, the policy's there.
      data_states: ``[N, S]``.
      data_actions: ``[N, A]``.
      state_weight: w, not negative; the paper's β, 2 there.

    Returns:
      the actions ``[..., A]`` and the distances ``[...]``; of equal ones the first.

    Raises:
      InputError: ``state_weight`` is negative.

    Reference:
      Ran et al., "Policy regularization with dataset constraint for offline
      reinforcement learning", arXiv 2306.06569 and its code (one neighbour).

    Example:
      >>> data = jnp.array([[0.0], [1.0]]), jnp.array([[0.1], [0.9]])
      >>> here = jnp.array([0.04]), jnp.array([0.0])
      >>> target, distance = nearest_actions(*here, *data, state_weight=2.0)
      >>> print(target, distance.round(4))
      [0.1] 0.1281
    """
    not_negative(state_weight=state_weight)
    query = jnp.concatenate([state_weight * as_float(states), as_float(actions)], -1)
    data_actions = as_float(data_actions)
    keys = jnp.concatenate([state_weight * as_float(data_states), data_actions], -1)
    flat = query.reshape(-1, 1, query.shape[-1])
    squares = jnp.sum(jnp.square(flat - keys[None]), axis=-1)
    nearest = jnp.argmin(squares, axis=-1).reshape(query.shape[:-1])
    least = jnp.min(squares, axis=-1).reshape(query.shape[:-1])
    # On a point of the data a root has no slope.
    apart = least > 0
    distance = jnp.where(apart, jnp.sqrt(jnp.where(apart, least, 1)), 0)
    return data_actions[nearest], distance


def advantage_guided_targets(
    actions: Float[Array, "*batch A"],
    made: Float[Array, "*batch A"],
    values: Float[Array, "*batch"],
    values_made: Float[Array, "*batch"],
    baseline: Float[Array, "*batch"],
) -> tuple[Float[Array, "*batch A"], Bool[Array, "*batch"]]:
    """A2PR: the data's action or a generated one, whichever is worth more.

    Args:
      actions: ``[..., A]`` of the data.
      made: ``[..., A]``, of a model of the data's good actions.
      values: Q of the first, ``[...]``.
      values_made: Q of the second, ``[...]``.
      baseline: V of the state, ``[...]``.

    Returns:
      the targets ``[..., A]``, without a gradient, and ``[...]`` True where one of the
      two is better than the baseline: elsewhere nothing holds the policy.

    Reference:
      Liu et al., "Adaptive advantage-guided policy regularization for offline
      reinforcement learning", arXiv 2405.19909 and its code, which lets a
      gradient through.

    Example:
      >>> two = jnp.array([[0.1], [0.4]]), jnp.array([[0.2], [0.3]])
      >>> q, q_made, v = jnp.array([[1.0, 0.0], [2.0, 0.5], [1.5, 1.0]])
      >>> targets, kept = advantage_guided_targets(*two, q, q_made, v)
      >>> print(targets[:, 0], kept)
      [0.2 0.3] [ True False]
    """
    values, values_made = as_float(values), as_float(values_made)
    better = values_made >= values
    targets = jnp.where(better[..., None], as_float(made), as_float(actions))
    kept = jnp.maximum(values, values_made) > as_float(baseline)
    return jax.lax.stop_gradient(targets), kept


def constrained_actor_losses(
    values: Float[Array, " B"],
    actions: Float[Array, "B A"],
    targets: Float[Array, "B A"],
    kept: Bool[Array, " B"],
    *,
    alpha: Strength,
) -> Float[Array, " B"]:
    """``−λ Q(s, π(s)) + |π(s) − ā|²``, ``λ = α / mean |Q|``: TD3+BC, PRDC and A2PR.

    The scale of Q cancels in value and gradient; the mean is held fixed.

    Args:
      values: ``[B]``, Q of the policy's actions, with their gradient.
      actions: ``[B, A]``, the policy's.
      targets: ``[B, A]``, held fixed: the data's (TD3+BC), ``nearest_actions``,
        ``advantage_guided_targets``.
      kept: ``[B]``, True where the target counts; the others keep their Q.
      alpha: weight of Q, not negative; 2.5 in the papers.

    Returns:
      ``[B]``, squares in the mean over A.

    Raises:
      InputError: ``alpha`` is negative.

    Reference:
      Fujimoto and Gu, "A minimalist approach to offline reinforcement learning",
      arXiv 2106.06860; arXiv 2306.06569; arXiv 2405.19909.

    Example:
      >>> q, act = jnp.array([2.0, -2.0]), jnp.array([[0.0], [1.0]])
      >>> all_of, target = jnp.ones(2, bool), jnp.full((2, 1), 0.1)
      >>> print(constrained_actor_losses(q, act, target, all_of, alpha=2.5).round(4))
      [-2.49  3.31]
    """
    not_negative(alpha=alpha)
    values, actions = as_float(values), as_float(actions)
    scale = jax.lax.stop_gradient(jnp.mean(jnp.abs(values)))
    scale = jnp.where(scale > 0, scale, 1)
    gap = actions - jax.lax.stop_gradient(as_float(targets))
    squares = jnp.mean(jnp.square(gap), axis=-1)
    return jnp.where(kept, squares, 0) - alpha * values / scale


def subset_minimum(
    key: PRNGKeyArray, values: Float[Array, " E *batch"], *, size: int
) -> Float[Array, "*batch"]:
    """The least of a few critics, drawn anew for each step: the ensemble of WSRL.

    Args:
      key: of the draw; the same critics for all of the batch.
      values: ``[E, ...]``, one critic a row.
      size: critics drawn, in 1 to E; 2 of 10 in the paper.

    Returns:
      ``[...]``.

    Raises:
      InputError: ``size`` is not in 1 to E.

    Reference:
      Chen et al., "Randomized ensembled double Q-learning", arXiv 2101.05982;
      Zhou et al., "Efficient online reinforcement learning fine-tuning need not retain
      offline data", arXiv 2412.07762.

    Example:
      >>> values = jnp.array([[1.0], [2.0], [3.0]])
      >>> print(subset_minimum(jax.random.key(0), values, size=3))
      [1.]
    """
    values = as_float(values)
    if not 1 <= size <= len(values):
        raise InputError(f"size must be in 1 to the {len(values)} critics, got {size}")
    chosen = jax.random.permutation(key, len(values))[:size]
    return jnp.min(values[chosen], axis=0)


def policy_backup(
    values: Float[Array, "S A"],
    rewards: Float[Array, "S A"],
    log_steps: Float[Array, "S A S"],
    logp: Float[Array, "S A"],
    *,
    discount: float,
) -> Float[Array, "S A"]:
    """``r + γ E Q(s', a')`` under a policy: a sweep of a critic's warm-up.

    WSRL's warm-up plays the pretrained policy, frozen, before the first update online:
    the critic's error shrinks by γ a sweep, and the policy does not follow the error.

    Args:
      values: ``[S, A]``, the critic.
      rewards: ``[S, A]``.
      log_steps: ``[S, A, S]``, the law of the next state.
      logp: ``[S, A]`` of the frozen policy.
      discount: γ in [0, 1].

    Returns:
      ``[S, A]``; its fixed point is the policy's own Q.

    Raises:
      InputError: ``discount`` is not in [0, 1].

    Reference:
      arXiv 2412.07762, there by temporal differences on 5000 steps.

    Example:
      >>> stay, law = jnp.zeros((1, 2, 1)), jnp.log(jnp.array([[0.5, 0.5]]))
      >>> q, r = jnp.array([[4.0, 0.0]]), jnp.array([[1.0, 0.0]])
      >>> print(policy_backup(q, r, stay, law, discount=0.5))
      [[2. 1.]]
    """
    if not 0 <= discount <= 1:
        raise InputError(f"discount must be in [0, 1], got {discount}")
    states = jnp.sum(jnp.exp(as_float(logp)) * as_float(values), axis=-1)
    later = jnp.einsum("san,n->sa", jnp.exp(as_float(log_steps)), states)
    return as_float(rewards) + discount * later


def age_weights(
    ages: Int[Array, "*batch"], *, alpha: Strength
) -> Float[Array, "*batch"]:
    """``α (1 − α)^age``: what each policy of a boosted mixture weighs.

    After each round the old mixture is shrunk by ``1 − α`` and the new policy added;
    what the sum lacks of 1, ``(1 − α)^T``, is the start's.

    Args:
      ages: ``[...]``, rounds since the policy came, 0 for the newest.
      alpha: step of the boosting, in (0, 1].

    Returns:
      ``[...]``.

    Raises:
      InputError: ``alpha`` is a number outside of (0, 1].

    Reference:
      Chang et al., "Adversarial imitation learning via boosting" (AILBoost),
      arXiv 2404.08513.

    Example:
      >>> print(age_weights(jnp.array([2, 1, 0]), alpha=0.5))
      [0.125 0.25  0.5  ]
    """
    if isinstance(alpha, (int, float)) and not 0 < alpha <= 1:
        raise InputError(f"alpha must be in (0, 1], got {alpha}")
    alpha = as_float(alpha)
    return alpha * (1 - alpha) ** as_float(ages)


def variational_bound(
    div: Divergence,
    critic: Float[Array, "*batch N"],
    law: Float[Array, "*batch N"],
    law_ref: Float[Array, "*batch N"],
) -> Float[Array, "*batch"]:
    """``E_μ g − E_ref f*(g) ≤ D_f(μ‖ref)``, with equality at ``g = f'(μ/ref)``.

    What a discriminator of imitation learning raises and the policy, with the reward
    −g, lowers. AILBoost's is the reverse KL's, ``E_μ g − E_expert e^g + 1``.

    Args:
      div: the divergence.
      critic: g, ``[..., N]``, in the range of f'.
      law: ``[..., N]`` probabilities of the policy (of the boosted mixture).
      law_ref: ``[..., N]`` of the expert.

    Returns:
      ``[...]`` nats.

    Reference:
      Nowozin et al., "f-GAN", arXiv 1606.00709; arXiv 2404.08513.

    Example:
      >>> from alignax import divergences as dv
      >>> p, q = jnp.array([0.75, 0.25]), jnp.array([0.5, 0.5])
      >>> bound = variational_bound(dv.reverse_kl(), jnp.log(p / q), p, q)
      >>> print(bound.round(4))
      0.1308
    """
    critic, law, law_ref = (as_float(x) for x in (critic, law, law_ref))
    return jnp.sum(law * critic - law_ref * div.conjugate(critic), axis=-1)
