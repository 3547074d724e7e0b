"""What else than likelihood is learned of an answer's tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from alignax import divergences, logprobs, preference, reduce, surrogates
from alignax.divergences import Divergence
from alignax.train.supervised import Loss, ScoreFn, answer_logits
from alignax.types import ApplyFn, HiddenFn


def one_token_rollouts(
    apply_fn: ApplyFn,
    *,
    samples: int = 256,
    temperature: float = 1.3,
    other: float = -0.1,
) -> Loss:
    """Each answer's token as a one-step rollout (OTR, Ming et al., arXiv 2509.26313).

    Args:
      apply_fn: the model; the logits of all positions are held.
      samples: drawn at each token.
      temperature: of the draws.
      other: the reward of a token that is not the answer's.

    Returns:
      the loss, a mean over tokens.
    """

    def loss(params, reference, rows, key, step):
        del reference, step
        logits, labels = answer_logits(apply_fn, params, rows), rows.tokens[:, 1:]
        # Every part of a batch draws by its own records.
        key = jax.random.fold_in(key, rows.index[0])
        losses = surrogates.one_token_rollout_surrogate(
            key, logits, labels, samples=samples, temperature=temperature, other=other
        )
        return reduce.token_mean(losses, rows.loss_mask[:, 1:])

    return loss


def implicit_reward(score: ScoreFn, div: Divergence, *, beta: float) -> Loss:
    """Answers as demonstrations of an implicit reward (f-SFT, arXiv 2507.00018).

    ``preference.divergence_sft`` of whole answers: what the policy has taken up since
    the reference weighs less; total variation is plain likelihood.

    Args:
      score: of answers' tokens.
      div: how demonstrations are matched.
      beta: strength of the regularisation.

    Returns:
      the loss, a mean over answers, divided by beta: at the reference its gradient is
      likelihood's.
    """

    def loss(params, reference, rows, key, step):
        del key, step
        logp, ref = (jnp.sum(score(p, rows), axis=-1) for p in (params, reference))
        losses = preference.divergence_sft(div, logp, ref, beta=beta) / beta
        return jnp.sum(losses), jnp.float32(len(losses))

    return loss


def past_weight(
    step: int | Int[Array, ""], *, most: float, every: int, steps: int
) -> Float[Array, ""]:
    """``α_t = α_T (t + 1) / T`` in pass t of T; none in the first, which has no past.

    Args:
      step: how many updates there were.
      most: ``α_T``, of the last pass.
      every: steps of a pass.
      steps: of the run.

    Returns:
      the weight of the past in the targets.

    Example:
      >>> weights = [past_weight(t, most=0.8, every=2, steps=8) for t in range(0, 8, 2)]
      >>> print(*(f"{x:.1f}" for x in weights))
      0.0 0.4 0.6 0.8
    """
    now, passes = jnp.asarray(step) // every, -(-steps // every)
    return jnp.where(now > 0, most * (now + 1) / passes, 0.0).astype(jnp.float32)


def progressive(hidden_fn: HiddenFn, *, most: float, every: int, steps: int) -> Loss:
    """Answers softened by what the policy said in its last pass (PS-KD).

    Cross-entropy to the targets ``(1 − α_t) y + α_t p_past``, over all of the
    vocabulary: on the logit of the answer's token it pulls as likelihood does, times
    ``1 − α_t (1 − p_past(y)) / (1 − p(y))``. The past is the policy at the end of its
    last pass; the paper's code keeps what it said of each row when that was seen.

    Args:
      hidden_fn: the model up to its head.
      most: ``α_T``, the past's weight in the last pass.
      every: steps of a pass; the reference is renewed as often
        (``references.periodic_reset``).
      steps: of the run.

    Returns:
      the loss, a mean over tokens.

    Reference:
      Kim et al., "Self-Knowledge Distillation with Progressive Refinement of Targets",
      arXiv 2006.12000, and its code.
    """

    def loss(params, past, rows, key, step):
        del key
        mine, apart, entropy = _beside(
            hidden_fn, divergences.forward_kl(), params, past, rows
        )
        # The cross-entropy to the past is their divergence and the past's entropy.
        weight = past_weight(step, most=most, every=every, steps=steps)
        losses = (weight - 1) * mine.logp + weight * (apart + entropy)
        return _token_mean(losses, rows)

    return loss


def regularised(hidden_fn: HiddenFn, *, beta: float, entropy_bonus: float) -> Loss:
    """Likelihood under a KL to the first policy, each token's over the vocabulary.

    ``−log π(y_t) + β KL(π‖ρ) − η H(π)`` at each prefix of the answers (STEER, after
    Quark), where prompts say in which bin of rewards their answer is. The reference
    reads the same prompt, the bin among it.

    Args:
      hidden_fn: the model up to its head.
      beta: strength of the reverse KL to the reference.
      entropy_bonus: η.

    Returns:
      the loss, a mean over tokens.

    Reference:
      Hallinan et al., "STEER: Unified Style Transfer with Expert Reinforcement", arXiv
      2311.07167, and its code; Lu et al., "Quark: Controllable Text Generation with
      Reinforced Unlearning", arXiv 2205.13636.
    """

    def loss(params, reference, rows, key, step):
        del key, step
        mine, apart, _ = _beside(
            hidden_fn, divergences.reverse_kl(), params, reference, rows
        )
        losses = beta * apart - mine.logp - entropy_bonus * mine.entropy
        return _token_mean(losses, rows)

    return loss


def _beside(hidden_fn, div, params, other, rows):
    """Each token's stats, the divergence from another policy, and its entropy."""
    targets = rows.tokens[:, 1:].reshape(-1)

    def read(params):
        out = hidden_fn(params, rows.tokens[:, :-1], mask=rows.mask[:, :-1])
        hidden = out.hidden.reshape(-1, out.hidden.shape[-1])
        stats = logprobs.from_hidden(hidden, out.head, targets, soft_cap=out.soft_cap)
        return hidden, out, stats

    (hidden, out, mine), (hidden_other, out_other, theirs) = read(params), read(other)
    apart = logprobs.divergence_from_hidden(
        div,
        hidden,
        out.head,
        hidden_other,
        out_other.head,
        soft_cap=out.soft_cap,
        soft_cap_ref=out_other.soft_cap,
    )
    return mine, apart, jax.lax.stop_gradient(theirs.entropy)


def _token_mean(losses, rows):
    mask = rows.loss_mask[:, 1:]
    return reduce.token_mean(losses.reshape(mask.shape), mask)
