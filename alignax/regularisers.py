"""What holds a policy near its reference: a divergence, and how it enters a step.

The objective is ``E_π r − β D``. Four choices make a ``Regulariser``:

- ``divergence``: any of ``alignax.divergences``;
- ``level``: ``sequence``, D of the distributions of whole completions, or ``myopic``,
  the sum of the tokens' divergences at the policy's own prefixes, whose distribution
  is held fixed: a token does not answer for where it leads;
- ``form``: how it is estimated: ``sampled`` from the taken tokens; ``exact``, summed
  over the vocabulary; ``top_k``, summed over the policy's k likeliest tokens and
  sampled beyond;
- ``place``: in the ``reward``, where the method's baseline and clip act on it, or in
  the ``loss``, beside the policy term;
- ``samples``: whose completions it is estimated on: the ``policy``'s, or stored ones
  of the ``reference``.

Every combination that is not refused has the gradient of ``D`` in expectation, where
token losses are summed: the tests enumerate it. In the loss that holds from the second
update on a rollout, too, by importance weights up to ``weight_cap``.
"""

import dataclasses
import math
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from alignax import divergences, estimators, reduce
from alignax.divergences import Divergence
from alignax.types import InputError

__all__ = [
    "Regulariser",
    "k1_in_reward",
    "k2_in_loss",
    "k3_in_loss",
    "losses",
    "pull",
    "token_penalties",
]

Level = Literal["sequence", "myopic"]
Form = Literal["sampled", "exact", "top_k"]
Place = Literal["reward", "loss"]
Samples = Literal["policy", "reference"]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, kw_only=True)
class Regulariser:
    """A divergence from the reference and the way it enters a step.

    Raises:
      InputError: the combination has no gradient, or none that is D's; the message
        says which would do.
    """

    divergence: Divergence = divergences.reverse_kl()
    level: Level = "sequence"
    form: Form = "sampled"
    place: Place = "reward"
    samples: Samples = "policy"
    k: int = 64
    """Tokens of the form ``top_k``."""
    weight_cap: float | None = 2.0
    """Largest importance weight of a term in the loss on completions of the policy as
    it was, 1 at the first update on a rollout; ``math.inf`` leaves them as they are,
    unbiased, and None does without, as published penalties in the loss do."""

    def __post_init__(self):
        names = {"level": Level, "form": Form, "place": Place, "samples": Samples}
        for name, allowed in names.items():
            choices = get_args(allowed)
            if getattr(self, name) not in choices:
                raise InputError(
                    f"{name} must be one of {', '.join(choices)}, got "
                    f"{getattr(self, name)!r}"
                )
        if self.k < 1:
            raise InputError(f"k must be at least 1 token, got {self.k}")
        if self.weight_cap is not None and not self.weight_cap > 0:
            raise InputError(
                "weight_cap must be positive, or None for no weights, got "
                f"{self.weight_cap}"
            )
        if self.form != "sampled" and self.place == "reward":
            raise InputError(
                f"form {self.form} sums over the vocabulary, and its gradient is no "
                "multiple of the taken token's score, so it cannot stand in the "
                "reward; take place='loss', or form='sampled'"
            )
        if self.samples == "reference" and self.place == "reward":
            raise InputError(
                "samples of the reference have no reward to place the divergence in; "
                "take place='loss'"
            )
        if self.samples == "reference" and self.form != "sampled":
            raise InputError(
                f"form {self.form} is for the policy's prefixes; with samples of the "
                "reference take form='sampled'"
            )
        if self.form != "sampled" and self.level == "sequence" and not self._chains:
            raise InputError(
                f"form {self.form} sums the tokens' divergences, which is the "
                "divergence of whole completions for reverse_kl alone (the chain "
                f"rule), got {self.divergence.name}; take level='myopic', or "
                "form='sampled'"
            )

    @property
    def _chains(self) -> bool:
        return self.divergence == divergences.reverse_kl()

    @property
    def top(self) -> int | None:
        """Tokens that are summed over; None for all."""
        return self.k if self.form == "top_k" else None

    @property
    def over_vocabulary(self) -> bool:
        """Whether ``losses`` needs the tokens' divergences over the vocabulary."""
        return self.form != "sampled"

    @property
    def weighted(self) -> bool:
        """Whether ``losses`` weighs tokens for how far the policy has moved."""
        own = self.place == "loss" and self.samples == "policy"
        return own and self.weight_cap is not None


def k1_in_reward() -> Regulariser:
    """PPO's and RLOO's penalty: the reverse KL of whole completions, unbiased."""
    return Regulariser()


def k2_in_loss() -> Regulariser:
    """What ``½ (log π/ρ)²`` in the loss descends: the myopic reverse KL. The gradient
    is that of k2; the value is the divergence's own estimate. Without importance
    weights, as published."""
    return Regulariser(level="myopic", place="loss", weight_cap=None)


def k3_in_loss() -> Regulariser:
    """GRPO's penalty: ``e^{−l} − 1 + l`` in the loss, whose gradient is that of the
    myopic *forward* KL (Tang and Munos, arXiv 2506.09477). Without importance weights,
    as published."""
    return Regulariser(
        divergence=divergences.forward_kl(),
        level="myopic",
        place="loss",
        weight_cap=None,
    )


def token_penalties(
    regulariser: Regulariser,
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> Float[Array, "*B T"]:
    """What the reward loses at each token, before ``beta``.

    At level ``sequence`` the sum from a token on is what its score is weighted by:
    ``Σ_{n ≥ t} l_n`` for the reverse KL; for another divergence ``f'(U)`` with
    ``U = π(y)/ρ(y)``, due at the last token. At level ``myopic`` it is the token's
    own weight, ``f'(u_t)``, and later ones do not count.

    Args:
      regulariser: with place ``reward``.
      logp: ``[..., T]`` of the taken tokens when the update begins.
      logp_ref: ``[..., T]``.
      mask: ``[..., T]``, True on the policy's tokens.

    Returns:
      ``[..., T]`` float32, without gradient, zero where masked.

    Reference:
      Go et al., "Aligning Language Models with Preferences through f-divergence
      Minimization", arXiv 2302.08215, theorem 1.

    Example:
      >>> mask, logp = jnp.array([True, True]), jnp.array([-1.0, -1.0])
      >>> print(token_penalties(k1_in_reward(), logp, 2 * logp, mask))
      [1. 1.]
    """
    ratio = jax.lax.stop_gradient(reduce.log_ratio(logp, logp_ref, mask))
    if regulariser.level == "myopic":
        return jnp.where(mask, regulariser.divergence.f_prime(ratio), 0)
    if regulariser._chains:
        return ratio
    whole = regulariser.divergence.f_prime(jnp.sum(ratio, axis=-1))
    left = jax.lax.cumsum(mask.astype(jnp.int32), axis=mask.ndim - 1, reverse=True)
    return jnp.where(mask & (left == 1), whole[..., None], 0)


def losses(
    regulariser: Regulariser,
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
    *,
    over_vocabulary: Float[Array, "*B T"] | None = None,
    logp_behaviour: Float[Array, "*B T"] | None = None,
) -> Float[Array, "*B T"]:
    """Token losses whose sum has the divergence's gradient, before ``beta``.

    Tokens of a policy b that has moved since are weighted by what each term depends
    on: a token's by the tokens up to it, ``Π_{n ≤ t} π_n/b_n``, a sum over the
    vocabulary by those before it, a whole completion's divergence by the whole.

    Args:
      regulariser: with place ``loss``.
      logp: ``[..., T]`` of the taken tokens, differentiated.
      logp_ref: ``[..., T]``; no gradient.
      mask: ``[..., T]``, True on the policy's tokens.
      over_vocabulary: ``[..., T]``, each token's divergence by its form ``exact`` or
        ``top_k``, differentiated; needed by these forms.
      logp_behaviour: ``[..., T]`` under the policy b that sampled the tokens, for the
        weights up to ``weight_cap``; None where that is the policy itself. No
        gradient. Not used on samples of the reference, which do not move.

    Returns:
      ``[..., T]`` float32, zero where masked.

    Value: an estimate of the divergence, unbiased where tokens are the policy's, or
      b's with weights that no cap cuts.
    Gradient: of the divergence, unbiased where the value is.

    Reference:
      Precup, Sutton and Singh, "Eligibility traces for off-policy policy evaluation",
      2000 (the weights); Ionides, "Truncated importance sampling", 2008 (the cap).

    Raises:
      InputError: a form over the vocabulary without ``over_vocabulary``.

    Example:
      >>> mask, logp = jnp.array([True, True]), jnp.array([-1.0, -1.0])
      >>> loss = lambda logp: losses(k2_in_loss(), logp, 3 * logp, mask).sum()
      >>> print(jax.grad(loss)(logp))
      [2. 2.]
    """
    div, myopic = regulariser.divergence, regulariser.level == "myopic"
    if regulariser.samples == "reference":
        surrogate = (
            estimators.myopic_f_reference_surrogate
            if myopic
            else estimators.sequence_f_reference_surrogate
        )
        return surrogate(div, logp, logp_ref, mask)
    cap = regulariser.weight_cap
    weighted = logp_behaviour is not None and cap is not None

    def weigh(token, weights_of):
        if not weighted:
            return token
        weights = weights_of(logp, logp_behaviour, mask)
        return token * estimators.truncated_weights(weights, cap=cap)

    if regulariser.over_vocabulary:
        if over_vocabulary is None:
            raise InputError(
                f"over_vocabulary must be given for the form {regulariser.form}: each "
                "token's divergence, such as rollout.divergence_by_hidden makes it"
            )
        # The tail of top_k depends on the taken token, the whole sum does not.
        exact = regulariser.form == "exact"
        token = weigh(
            reduce.masked(over_vocabulary, mask),
            estimators.context_weights if exact else estimators.prefix_weights,
        )
        return token if myopic else estimators.sequence_surrogate(token, logp, mask)
    if myopic:
        token = estimators.myopic_f_surrogate(div, logp, logp_ref, mask)
        return weigh(token, estimators.prefix_weights)
    if not regulariser._chains:
        token = estimators.sequence_f_surrogate(div, logp, logp_ref, mask)
        return weigh(token, estimators.sequence_weights)
    if weighted:
        return estimators.off_policy_sequence_kl_surrogate(
            logp, logp_ref, logp_behaviour, mask, cap=cap
        )
    return estimators.sequence_kl_surrogate(logp, logp_ref, mask)


def pull(
    regulariser: Regulariser,
    logp: Float[Array, "*B T"],
    logp_ref: Float[Array, "*B T"],
    mask: Bool[Array, "*B T"],
) -> dict[str, reduce.Fraction]:
    """Where the divergence no longer pulls back, or pulls too hard, at these samples.

    Counted at the regulariser's level, over completions or tokens further than one nat
    from the reference: ``flat``, where ``u f''(u)``, the change of the pull with the
    log-ratio, is below a hundredth of its value at 1; ``steep``, where ``|f'|`` is
    above a thousand.

    Args:
      regulariser: any.
      logp: ``[..., T]`` of the taken tokens.
      logp_ref: ``[..., T]``.
      mask: ``[..., T]``, True on the policy's tokens.

    Returns:
      two fractions, of all completions or tokens.

    Example:
      >>> far = Regulariser(divergence=divergences.jensen_shannon(), place="loss")
      >>> ones, mask = jnp.ones((1, 1)), jnp.array([[True]])
      >>> shares = pull(far, 20 * ones, 0 * ones, mask)
      >>> print(*map(float, shares["flat"]), *map(float, shares["steep"]))
      1.0 1.0 0.0 1.0
    """
    ratio = jax.lax.stop_gradient(reduce.log_ratio(logp, logp_ref, mask))
    counts = mask
    if regulariser.level == "sequence":
        ratio, counts = jnp.sum(ratio, axis=-1), jnp.any(mask, axis=-1)
    div = regulariser.divergence
    # A divergence with a kink at 1 has no curvature to compare with: all of it is flat.
    curvature = div.curvature if math.isfinite(div.curvature) else 1.0
    flat = (jnp.abs(ratio) > 1) & (div.uf2(ratio) < 0.01 * curvature)
    steep = jnp.abs(div.f_prime(ratio)) > 1e3
    total = jnp.sum(counts, dtype=jnp.float32)
    return {
        "flat": (jnp.sum(flat & counts, dtype=jnp.float32), total),
        "steep": (jnp.sum(steep & counts, dtype=jnp.float32), total),
    }
