"""Token-level scores: TDPO, SparsePO, LD-DPO, WPO, RTO, on a tree of two tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import preference as pf
from alignax.logprobs import log_softmax
from alignax.types import InputError

RNG = np.random.default_rng(8)
MASK_W = jnp.array([[True, True, True, False], [True, True, False, False]])
MASK_L = jnp.array([[True, True, False, False], [True, True, True, True]])


def logits():
    return jnp.asarray(RNG.normal(size=(2, 4, 5)), jnp.float32)


LOGITS_W, LOGITS_L, REF_W, REF_L = (logits() for _ in range(4))
TOKENS_W, TOKENS_L = (jnp.asarray(RNG.integers(0, 5, (2, 4))) for _ in range(2))


def taken(logits, tokens):
    return jnp.take_along_axis(log_softmax(logits), tokens[..., None], -1)[..., 0]


def everything(logits_w, logits_l):
    """The pair and the sequence KLs of both sides."""
    pair = pf.pair_from_tokens(
        taken(logits_w, TOKENS_W),
        taken(logits_l, TOKENS_L),
        taken(REF_W, TOKENS_W),
        taken(REF_L, TOKENS_L),
        MASK_W,
        MASK_L,
    )
    return (
        pair,
        forward_kl(logits_w, REF_W, MASK_W),
        forward_kl(logits_l, REF_L, MASK_L),
    )


def forward_kl(logits, ref, mask):
    """TDPO, arXiv 2404.11999, eq. 13: ``Σ_t KL(ρ ‖ π)``, the reference's law first."""
    logp, logq = log_softmax(logits), log_softmax(ref)
    return jnp.sum(jnp.where(mask, jnp.sum(jnp.exp(logq) * (logq - logp), -1), 0), -1)


def test_tdpo_is_dpo_when_the_forward_kls_vanish():
    """arXiv 2404.11999: both margins are DPO's where D(w) = D(l) = 0."""
    pair, _, _ = everything(LOGITS_W, LOGITS_L)
    zero = jnp.zeros(2)
    h = pf.log_ratio_margin(pair)
    np.testing.assert_array_equal(pf.tdpo1_margin(pair, zero, zero), h)
    np.testing.assert_array_equal(pf.tdpo2_margin(pair, zero, zero), h)


def test_tdpo_margins_share_value_and_the_losers_gradient():
    """At α = 1: one value, one gradient by the loser's logits; the winner's gradient of
    TDPO2 is DPO's, scaled by one number a pair, as D(w) is stopped."""

    def total(margin):
        def of_logits(w, l):
            pair, kl_w, kl_l = everything(w, l)
            return jnp.sum(pf.logistic_link(0.3 * margin(pair, kl_w, kl_l)))

        return jax.value_and_grad(of_logits, argnums=(0, 1))(LOGITS_W, LOGITS_L)

    first, (first_w, first_l) = total(pf.tdpo1_margin)
    second, (second_w, second_l) = total(
        lambda *args: pf.tdpo2_margin(*args, alpha=1.0)
    )
    _, (dpo_w, _) = total(lambda pair, *_: pf.log_ratio_margin(pair))
    np.testing.assert_allclose(first, second, rtol=1e-6)
    np.testing.assert_allclose(first_l, second_l, rtol=1e-5, atol=1e-7)
    assert np.abs(first_w - second_w).max() > 1e-3
    for row in range(2):
        ratio = (
            np.asarray(second_w[row])[MASK_W[row]] / np.asarray(dpo_w[row])[MASK_W[row]]
        )
        np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-3)


def shown():
    """All that a loss may ask for, of both sides."""
    logits = ((LOGITS_W, REF_W, TOKENS_W), (LOGITS_L, REF_L, TOKENS_L))
    laws = [(log_softmax(p), log_softmax(q)) for p, q, _ in logits]
    return pf.PairTokens(
        *(taken(p, y) for p, _, y in logits),
        *(taken(q, y) for _, q, y in logits),
        MASK_W,
        MASK_L,
        *(jnp.sum(jnp.exp(q) * (q - p), axis=-1) for p, q in laws),
        *(jnp.log(jnp.sum(jnp.exp(2 * p), axis=-1)) for p, _ in laws),
        *[jnp.ones((2, 4))] * 2,
    )


def test_token_losses_of_the_table():
    """TDPO and SparsePO by their margins; LD-DPO and WPO by hand, in numpy."""
    tokens = shown()
    loss = {
        name: pf.LOSSES[name](tokens, beta=0.3)
        for name in pf.LOSSES
        if name in ("tdpo1", "tdpo2", "sparse_po", "ld_dpo", "wpo")
    }
    close = {"rtol": 1e-5}
    margins = everything(LOGITS_W, LOGITS_L)
    first = pf.logistic_link(0.3 * pf.tdpo1_margin(*margins))
    np.testing.assert_allclose(loss["tdpo1"], first, **close)
    np.testing.assert_allclose(loss["sparse_po"], first, **close)
    second = pf.logistic_link(0.3 * pf.tdpo2_margin(*margins))
    np.testing.assert_allclose(loss["tdpo2"], second, **close)
    u = np.asarray(tokens.logp_w - tokens.ref_w)
    v = np.asarray(tokens.logp_l - tokens.ref_l)
    for row, (w, l) in enumerate(((3, 2), (2, 4))):
        shared = min(w, l)
        ratios = [
            x[row, :shared].sum() + x[row, shared:n].sum() / 2
            for x, n in ((u, w), (v, l))
        ]
        expected = np.logaddexp(0, -0.3 * (ratios[0] - ratios[1]))
        np.testing.assert_allclose(loss["ld_dpo"][row], expected, **close)
        h = u[row, :w].sum() - v[row, :l].sum()
        weight = 1.0
        for logits, ids, n in ((LOGITS_W, TOKENS_W, w), (LOGITS_L, TOKENS_L, l)):
            law = np.asarray(jax.nn.softmax(logits[row, :n]))
            chosen = law[np.arange(n), np.asarray(ids[row, :n])]
            weight *= np.exp(np.mean(np.log(chosen / (law**2).sum(-1))))
        np.testing.assert_allclose(
            loss["wpo"][row], weight * np.logaddexp(0, -0.3 * h), **close
        )


def test_sparse_po_special_cases():
    """SparsePO, arXiv 2410.05102: all weights 1 give TDPO1, no KL weights DPO, none at
    all ``log 2`` with no gradient."""
    pair, kl_w, kl_l = everything(LOGITS_W, LOGITS_L)

    def margin(up, down, logits_w=LOGITS_W):
        def score(logits, ref, tokens, mask):
            p, q = log_softmax(logits), log_softmax(ref)
            kl = jnp.sum(jnp.exp(q) * (q - p), axis=-1)
            ones = jnp.ones((2, 4))
            return pf.sparse_score(
                taken(logits, tokens),
                taken(ref, tokens),
                kl,
                up * ones,
                down * ones,
                mask,
            )

        return score(logits_w, REF_W, TOKENS_W, MASK_W) - score(
            LOGITS_L, REF_L, TOKENS_L, MASK_L
        )

    close = {"rtol": 1e-5, "atol": 1e-5}
    np.testing.assert_allclose(
        margin(1.0, 1.0), pf.tdpo1_margin(pair, kl_w, kl_l), **close
    )
    np.testing.assert_allclose(margin(1.0, 0.0), pf.log_ratio_margin(pair), **close)
    np.testing.assert_allclose(pf.logistic_link(margin(0.0, 0.0)), np.log(2), rtol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(margin(0.0, 0.0, x)))(LOGITS_W)
    np.testing.assert_array_equal(gradient, 0)


def test_activation_weights_are_in_the_unit_interval():
    """MaPO: each layer stretched over the completion's tokens, no gradient."""
    hidden = jnp.asarray(RNG.normal(size=(2, 3, 4, 5)), jnp.float32)
    weights = np.asarray(pf.activation_weights(hidden, MASK_W))
    assert ((weights >= 0) & (weights <= 1)).all()
    np.testing.assert_array_equal(weights[~MASK_W], 0)
    means = np.asarray(hidden).mean(-1)[0][:, :3]
    low, high = means.min(-1, keepdims=True), means.max(-1, keepdims=True)
    by_hand = ((means - low) / (high - low)).mean(0)
    np.testing.assert_allclose(weights[0, :3], by_hand, rtol=1e-4, atol=1e-6)
    slope = jax.grad(lambda h: jnp.sum(pf.activation_weights(h, MASK_W)))(hidden)
    np.testing.assert_array_equal(slope, 0)
    # Tokens that are all alike have no order to stretch.
    flat = pf.activation_weights(jnp.ones((2, 3, 4, 5)), MASK_W)
    np.testing.assert_array_equal(flat, 0)


def test_ld_dpo_discounts_the_tail():
    """arXiv 2409.06411: α = 1 is the plain sum, α = 0 the first min(len) tokens."""
    logp = -jnp.arange(1.0, 5)[None]
    mask = jnp.ones((1, 4), bool)
    other = jnp.array([2.0])
    for alpha, expected in ((1.0, -10), (0.0, -3), (0.5, -6.5)):
        found = pf.tail_discounted_logp(logp, mask, other, alpha=alpha)
        np.testing.assert_allclose(found, [expected])
    with pytest.raises(InputError, match="alpha must be in"):
        pf.tail_discounted_logp(logp, mask, other, alpha=2.0)


def test_wpo_weight_averages_one_on_policy():
    """arXiv 2406.11827: over a token from the policy, ``E[π(y) / Σ π²] = 1``."""
    law = np.asarray(jax.nn.softmax(LOGITS_W[0, 0]))
    logp, one = jnp.log(law)[:, None], jnp.ones((5, 1), bool)
    weights = pf.on_policy_weight(logp, jnp.log(jnp.full((5, 1), law @ law)), one)
    np.testing.assert_allclose(law @ weights, 1, rtol=1e-5)


def test_rto_rewards_telescope():
    """RTO, arXiv 2404.18922: for ``π* ∝ ρ e^{r/β}`` on a tree of two binary tokens the
    dense rewards of each path sum to ``r − V*(x)``."""
    beta, rewards = 0.5, jnp.asarray(RNG.normal(size=(2, 2)), jnp.float32)
    first_ref = jnp.log(jnp.array([0.3, 0.7]))
    second_ref = jnp.log(jnp.array([[0.4, 0.6], [0.9, 0.1]]))
    value = beta * jax.nn.logsumexp(second_ref + rewards / beta, axis=-1)
    root = beta * jax.nn.logsumexp(first_ref + value / beta)
    first = first_ref + (value - root) / beta
    second = second_ref + (rewards - value[:, None]) / beta
    mask, zero = jnp.ones(2, bool), jnp.zeros(())
    for i in range(2):
        for j in range(2):
            dpo = jnp.array([first[i], second[i, j]])
            ref = jnp.array([first_ref[i], second_ref[i, j]])
            dense = pf.token_rewards(
                dpo, ref, ref, zero, mask, beta_dpo=beta, clip=float("inf")
            )
            np.testing.assert_allclose(
                dense, [value[i] - root, rewards[i, j] - value[i]], atol=1e-5
            )


def test_rto_clips_penalises_and_ends():
    """The clip after scaling, the KL to the reference, the reward on the last token."""
    mask = jnp.array([True, True, False])
    zero = jnp.zeros(3)
    rewards = pf.token_rewards(
        zero + 9, zero, zero + 1, jnp.array(2.0), mask, beta_dpo=0.5
    )
    np.testing.assert_allclose(rewards, [0.05 - 0.01, 0.05 - 0.01 + 2, 0], rtol=1e-6)
