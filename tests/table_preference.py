"""Rows of preferences."""

from functools import partial

import jax
import jax.numpy as jnp

from alignax import divergences as dv
from alignax import preference as pf
from tests.row import Row

keys = jax.random.split(jax.random.key(17), 12)
LOGP, LOGQ, LOGR = (-3 * jax.random.uniform(k, (8, 4)) - 0.1 for k in keys[:3])
MASK = jnp.arange(4)[None] < jnp.array([4, 3, 2, 1, 1, 2, 3, 4])[:, None]
LAW, REFERENCE = (jax.nn.log_softmax(jax.random.normal(k, (8, 4))) for k in keys[3:5])
REWARDS = jax.random.normal(keys[5], (8, 4))
LENGTHS = jnp.sum(MASK, axis=-1, dtype=jnp.float32)
ONE = REWARDS[:, 0]
WINS = jax.random.uniform(keys[6], (8,))
LABELS = jnp.arange(8) % 2 == 0
SIDES = (LOGP[:, 0], LOGP[:, 1], LOGQ[:, 0], LOGQ[:, 1], LENGTHS, LENGTHS + 1)
LOGITS, LOGITS_REF = (jax.random.normal(k, (8, 4, 3)) for k in keys[7:9])
HIDDEN = jax.random.normal(keys[9], (8, 2, 4, 3))


def wide(x):
    return jax.tree.map(lambda leaf: leaf.astype(jnp.float32), x)


def of_pair(name, rowwise=True, **bound):
    function = getattr(pf, name)
    return Row(
        name=f"preference.{name}",
        fn=lambda *sides: function(pf.Pair(*sides), **bound),
        args=SIDES,
        grad=(0, 1, 2, 3),
        rowwise=rowwise,
    )


def of_tokens(name, **bound):
    function = partial(getattr(pf, name), **bound)

    def fn(mask, *values):
        """Logs of both sides and models, the KLs, collisions and weights of tokens."""
        tokens = pf.PairTokens(*values[:4], mask, mask, *values[4:6] * 3)
        return function(tokens)

    return Row(
        name=f"preference.{name}",
        fn=fn,
        args=(MASK, LOGP, LOGQ, LOGR, LAW, jnp.abs(LOGR), LOGQ),
        grad=(1, 2, 3, 4, 5),
        mask=0,
        masked=(1, 2, 3, 4, 5, 6),
    )


def of_margin(name, **bound):
    function = partial(getattr(pf, name), **bound)
    return Row(name=f"preference.{name}", fn=function, args=(ONE,))


def row(name, fn, *args, grad=(0,), **more):
    return Row(name=f"preference.{name}", fn=fn, args=args, grad=grad, **more)


def of_samples(function):
    """A function of one prompt's samples, over the rows."""
    return jax.vmap(function)


DIV = dv.jensen_shannon()
WINNING = jax.nn.sigmoid(REWARDS[0][:, None] - REWARDS[0][None, :])
SPARSE = (LOGP, LOGQ, jnp.abs(LOGR), WINS[:, None] * jnp.ones((1, 4)), jnp.abs(LOGQ))

ROWS = [
    row(
        "pair_from_tokens",
        lambda *args: pf.pair_from_tokens(*args, args[4])[:4],
        LOGP,
        LOGQ,
        LOGR,
        LAW,
        MASK,
        grad=(0, 1, 2, 3),
        mask=4,
        masked=(0, 1, 2, 3),
    ),
    *(
        of_pair(name)
        for name in (
            "log_ratios",
            "average_logps",
            "log_ratio_margin",
            "normalised_margin",
            "policy_margin",
            "average_margin",
            "odds_margin",
            "sft",
        )
    ),
    of_pair("power_margin", alpha=0.25),
    *(
        of_pair(name, beta=0.5)
        for name in (
            "dpo",
            "ipo",
            "ipo_averaged",
            "hinge_dpo",
            "slic",
            "ln_dpo",
            "cpo",
            "orpo",
            "exo",
            "discopop",
            "nca",
            "bco_pair",
            "sppo_hard",
            "apo_zero_pair",
            "apo_down",
        )
    ),
    of_pair("kto_pair", anchor=0.25, beta=0.5),
    row(
        "bco_batch_labels",
        partial(pf.bco_batch_labels, beta=0.5),
        ONE,
        LABELS,
        rowwise=False,
    ),
    of_pair("bco_batch", rowwise=False, beta=0.5),
    of_pair("aot", rowwise=False, beta=0.5),
    of_pair("aot_unpaired", rowwise=False, beta=0.5),
    of_pair("chi_po", beta=0.5, reward_range=1.0),
    of_pair("cdpo", beta=0.5, noise=0.1),
    of_pair("rdpo", beta=0.5, noise=0.1),
    of_pair("simpo", beta=2.0, gamma=0.5),
    of_pair("alpha_po", beta=2.0, alpha=0.25, gamma=0.5),
    of_pair("rpo", beta=0.5, eta=0.1),
    row(
        "implicit_reward",
        partial(pf.implicit_reward, DIV, beta=0.5),
        *SIDES[:2],
        grad=(0, 1),
    ),
    row(
        "divergence_margin",
        lambda *sides: pf.divergence_margin(DIV, pf.Pair(*sides), beta=0.5),
        *SIDES,
        grad=(0, 1, 2, 3),
    ),
    row(
        "f_dpo",
        lambda *sides: pf.f_dpo(DIV, pf.Pair(*sides), beta=0.5),
        *SIDES,
        grad=(0, 1, 2, 3),
    ),
    of_margin("logistic_link"),
    of_margin("squared_link", target=0.5),
    of_margin("hinge_link"),
    of_margin("exponential_link"),
    of_margin("blended_link"),
    of_margin("reverse_cross_entropy_link"),
    row("label_smoothed", partial(pf.label_smoothed, pf.hinge_link, noise=0.2), ONE),
    row(
        "debiased",
        partial(pf.debiased, pf.logistic_link, noise=0.2),
        ONE,
        estimator=True,
    ),
    row("soft_labelled", partial(pf.soft_labelled, pf.logistic_link), ONE, WINS),
    row("reward_relabelled", pf.reward_relabelled, ONE, SIDES[0]),
    row(
        "tdpo1_margin",
        lambda a, b, *sides: pf.tdpo1_margin(pf.Pair(*sides), a, b),
        WINS,
        ONE,
        *SIDES,
        grad=(0, 1, 2, 3),
    ),
    row(
        "tdpo2_margin",
        lambda a, b, *sides: pf.tdpo2_margin(pf.Pair(*sides), a, b),
        WINS,
        ONE,
        *SIDES,
        grad=(0, 1, 2, 3),
    ),
    row(
        "sparse_score",
        pf.sparse_score,
        *SPARSE,
        MASK,
        grad=(0, 1, 2, 3, 4),
        mask=5,
        masked=(0, 1, 2, 3, 4),
    ),
    row("activation_weights", pf.activation_weights, HIDDEN, MASK, mask=1),
    row(
        "tail_discounted_logp",
        partial(pf.tail_discounted_logp, alpha=0.4),
        LOGP,
        MASK,
        LENGTHS - 1,
        mask=1,
        masked=(0,),
    ),
    row(
        "on_policy_weight",
        pf.on_policy_weight,
        LOGP,
        LOGQ,
        MASK,
        mask=2,
        masked=(0, 1),
        estimator=True,
    ),
    *(
        of_tokens(name, beta=0.5)
        for name in ("tdpo1", "tdpo2", "sparse_po", "ld_dpo", "wpo")
    ),
    of_tokens("whole"),
    row(
        "token_rewards",
        pf.token_rewards,
        LOGP,
        LOGQ,
        LOGR,
        ONE,
        MASK,
        mask=4,
        masked=(0, 1, 2),
        estimator=True,
    ),
    row("kto_anchor", pf.kto_anchor, REWARDS, estimator=True),
    row("kto", partial(pf.kto, beta=0.5), ONE, LABELS, WINS),
    row("bco", partial(pf.bco, beta=0.5), ONE, LABELS, WINS),
    row("apo_zero", partial(pf.apo_zero, beta=0.5), ONE, LABELS),
    row("seppo", partial(pf.seppo, beta=0.5), ONE, WINS, grad=(0, 1)),
    row("plackett_luce", pf.plackett_luce, REWARDS, MASK, mask=1, masked=(0,)),
    row(
        "tpo",
        lambda gold, length, *sides: pf.tpo(pf.Pair(*sides), gold, length, beta=0.5),
        LOGR[:, 0],
        LENGTHS,
        *SIDES,
        grad=(0, 2, 3),
    ),
    row(
        "copg",
        lambda a, b, *sides: pf.copg(pf.Pair(*sides), a, b, beta=0.5),
        ONE,
        WINS,
        *SIDES,
        grad=(0, 1, 2, 3),
        estimator=True,
    ),
    row(
        "rebel",
        lambda a, b, *sides: pf.rebel(pf.Pair(*sides), a, b, beta=0.5),
        ONE,
        WINS,
        *SIDES,
        grad=(0, 1, 2, 3),
    ),
    row("best_and_worst", pf.best_and_worst, REWARDS, MASK, grad=()),
    row(
        "best_of_n_estimate",
        partial(pf.best_of_n_estimate, n=2),
        REWARDS,
        LOGP,
        grad=(0, 1),
        estimator=True,
    ),
    row(
        "rejection_law",
        partial(pf.rejection_law, beta=0.5),
        REFERENCE,
        REWARDS,
        grad=(0, 1),
    ),
    row(
        "rejection_sample",
        of_samples(partial(pf.rejection_sample, keys[10], count=2, beta=0.5)),
        REWARDS,
        grad=(),
        estimator=True,
        rowwise=False,
    ),
    row(
        "divergence_sft",
        partial(pf.divergence_sft, dv.squared_hellinger(), beta=0.3),
        *SIDES[:2],
    ),
    row("bradley_terry_loss", pf.bradley_terry_loss, ONE, WINS, SIDES[0], grad=(0, 1)),
    row(
        "ties_loss",
        partial(pf.ties_loss, threshold=0.5),
        ONE,
        WINS,
        (jnp.arange(8) % 3) / 2,
        grad=(0, 1),
    ),
    row("binary_feedback_loss", pf.binary_feedback_loss, ONE, WINS),
    row("standardise", pf.standardise, REWARDS, LOGP, rowwise=False, grad=(0, 1)),
    row("ensemble_mean", pf.ensemble_mean, REWARDS),
    row("ensemble_worst", pf.ensemble_worst, REWARDS),
    row("ensemble_uncertain", partial(pf.ensemble_uncertain, weight=0.5), REWARDS),
    row("agreement", partial(pf.agreement, bins=2), REWARDS, MASK, mask=1, masked=(0,)),
    row(
        "pairwise_agreement",
        pf.pairwise_agreement,
        REWARDS,
        LOGP + 1.5,
        MASK,
        mask=2,
        masked=(0, 1),
    ),
]
