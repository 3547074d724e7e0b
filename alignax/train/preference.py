"""Learning from pairs: any loss of ``alignax.preference``, any divergence, one step.

>>> from functools import partial
>>> from alignax import divergences as dv
>>> from alignax import preference as pf
>>> from alignax.train import preference, supervised
>>> def make(apply_fn, tx):
...     loss = partial(pf.f_dpo, dv.jensen_shannon())  # the regulariser is the loss'
...     return preference.make_step(loss, supervised.score_by_logits(apply_fn), tx)

``beta`` is the controller's, traced. The reference is ``state.reference``, or its
log-probabilities come with the pairs, from ``pairs.with_reference``.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Key

from alignax import controllers, references
from alignax import preference as pf
from alignax.pipeline import update
from alignax.pipeline.data import PairRows, UnpairedRows
from alignax.train.pairs import LawsFn, both_sides, mismatched, pair_logp
from alignax.train.supervised import ScoreFn
from alignax.types import (
    InputError,
    Params,
    Stateful,
    TrainState,
)

Step = Callable[[TrainState, PairRows], tuple[TrainState, dict[str, jax.Array]]]


def init_state(
    params: Params,
    tx: optax.GradientTransformation,
    key: Key[Array, ""],
    *,
    beta: float | Stateful,
    reference: Params | None = None,
    rule: references.Reference | None = None,
) -> TrainState:
    """A train state at step 0.

    Args:
      params: the policy's parameters, copied.
      tx: the optimiser.
      key: the run's.
      beta: strength of the regularisation, or the controller that sets it.
      reference: its parameters; None where the pairs bring its log-probabilities, or
        the loss has none.
      rule: how the reference moves; fixed by default.

    Returns:
      the state.
    """
    controller = beta if isinstance(beta, Stateful) else controllers.fixed(beta=beta)
    if reference is not None:
        reference = (rule or references.fixed()).init(reference)
    return update.init_state(params, tx, controller, key, reference=reference)


def _anchor(score, params, reference, rows, microbatches) -> Array:
    """KTO's z₀ over the whole batch, a part at a time."""
    rows = mismatched(rows)

    def ratios(part):
        logp, logp_ref = score(params, part), score(reference, part)
        return jnp.sum(logp - logp_ref, axis=-1)

    parts = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), rows)
    return pf.kto_anchor(jax.lax.map(ratios, parts).reshape(-1))


def _shown(loss, score, laws, params, reference, pairs, anchor) -> pf.PairTokens:
    """What the loss is shown: of both sides, policy and reference."""
    masks = [side.loss_mask[:, 1:] for side in pairs[:2]]
    over_vocabulary = {}
    if _needs_laws(loss):
        both = laws(params, reference, both_sides(pairs))
        logp, logp_ref, kl, collision = (jnp.split(x, 2) for x in both)
        names = ("kl_w", "kl_l", "collision_w", "collision_l")
        over_vocabulary = dict(zip(names, (*kl, *collision), strict=True))
    else:
        logp, logp_ref = pair_logp(score, params, pairs), pairs.logp_ref
        if logp_ref is None and loss.reference:
            logp_ref = pair_logp(score, reference, pairs)
        if logp_ref is None:  # not read
            logp_ref = jax.tree.map(jnp.zeros_like, logp)
    weights, rewards = (x or (None, None) for x in (pairs.weights, pairs.rewards))
    return pf.PairTokens(
        *logp,
        *jax.lax.stop_gradient(logp_ref),
        *masks,
        weights_w=weights[0],
        weights_l=weights[1],
        rewards_w=rewards[0],
        rewards_l=rewards[1],
        anchor=anchor,
        **over_vocabulary,
    )


def _needs_laws(loss: pf.PairLoss) -> bool:
    return bool({"kl", "collision"} & set(loss.needs))


def _check(loss: pf.PairLoss, laws, microbatches: int) -> None:
    if _needs_laws(loss) and laws is None:
        raise InputError(
            f"laws: none were given, and the loss needs {', '.join(loss.needs)} of the "
            "tokens' laws; pairs.laws_by_hidden(hidden_fn) would do."
        )
    if loss.whole_batch and microbatches > 1:
        raise InputError(
            f"microbatches: {microbatches} were given, and the loss compares the pairs "
            "of a batch with each other; 1 would do."
        )


def _check_reference(loss: pf.PairLoss, reference, held: bool) -> None:
    """By names alone, so once a compilation."""
    params = _needs_laws(loss) or "anchor" in loss.needs
    if reference is None and (params or (loss.reference and not held)):
        more = "" if params else ", or rows with stored log-probabilities"
        raise InputError(
            "state: it holds no reference, which this loss needs; init_state with "
            f"reference= would do{more}."
        )


def _check_others(loss: pf.PairLoss, tokens) -> None:
    if "anchor" in loss.needs and len(tokens) < 2:
        raise InputError(
            "batch: it is of one, and the loss' anchor is measured on the answers of "
            "other prompts; 2 or more would do."
        )


def _check_pairs(loss: pf.PairLoss, reference, pairs: PairRows) -> None:
    """What this batch must bring."""
    _check_reference(loss, reference, pairs.logp_ref is not None)
    _check_others(loss, pairs.chosen.tokens)
    for need in ("rewards", "weights"):
        if need in loss.needs and getattr(pairs, need) is None:
            raise InputError(
                f"pairs: they bring no {need}, which this loss needs; "
                f"pairs._replace({need}=(of_chosen, of_rejected)) would do."
            )


def _reports(tokens: pf.PairTokens, has_reference: bool):
    pair = pf.whole(tokens)
    count = jnp.float32(len(pair.logp_w))
    u, v = pf.log_ratios(pair)
    reports = {
        "margin": u - v,
        "accuracy": u > v,
        "logp_chosen": pair.logp_w,
        "logp_rejected": pair.logp_l,
    }
    if has_reference:
        reports["forward_kl"] = -(u + v) / 2
    if tokens.kl_w is not None:
        reports["token_kl"] = (
            jnp.sum(tokens.kl_w, axis=-1) + jnp.sum(tokens.kl_l, axis=-1)
        ) / 2
    return {name: (jnp.sum(x, dtype=jnp.float32), count) for name, x in reports.items()}


def make_step(
    loss: pf.PairLoss | Callable[..., Array],
    score: ScoreFn,
    tx: optax.GradientTransformation,
    *,
    laws: LawsFn | None = None,
    microbatches: int = 1,
    controller: Stateful | None = None,
    rule: references.Reference | None = None,
) -> Step:
    """``(state, pairs) -> (state, metrics)``: jitted, the state donated.

    The loss is the mean over the batch's pairs. KTO's anchor is measured on the whole
    batch before it is split into microbatches.

    Args:
      loss: of ``preference.LOSSES``, or a function ``(pair, beta=...)`` of a
        ``preference.Pair``, such as ``partial(preference.f_dpo, div)``.
      score: of answers' tokens.
      tx: the optimiser.
      laws: for losses that need the tokens' laws.
      microbatches: how many parts the pairs are scanned in.
      controller: moves ``beta``, by ``forward_kl``; the state keeps it otherwise.
      rule: moves the reference; fixed by default. Another one wants pairs without
        stored log-probabilities.

    Returns:
      the step. Metrics beside ``make_update``'s, means over pairs, in nats a
      completion: ``beta``; ``logp_chosen`` and ``logp_rejected``; ``margin``, of the
      log-ratios to the reference, of the log-probabilities where the loss has none;
      ``accuracy``, how often it is positive; ``forward_kl``, the mean of −log π/ρ,
      which estimates KL(ρ‖π) where the completions are the reference's own;
      ``token_kl``, the tokens' KL(ρ‖π) along the completions, with ``laws``;
      ``anchor``, KTO's.

    Raises:
      InputError: the loss needs what is not given; from the step, what neither the
        state nor the pairs bring.
    """
    loss = loss if isinstance(loss, pf.PairLoss) else pf.PairLoss(loss)
    rule = rule or references.fixed()
    _check(loss, laws, microbatches)

    def step(state, pairs):
        _check_pairs(loss, state.reference, pairs)
        beta = state.controller.beta
        reference, anchor = None, None
        if state.reference is not None:
            reference = rule.params(state.reference)
        if "anchor" in loss.needs:
            rows = both_sides(pairs)
            anchor = _anchor(score, state.params, reference, rows, microbatches)
            anchor = jnp.full(len(pairs.chosen.tokens), anchor)
        has_reference = loss.reference or pairs.logp_ref is not None

        def loss_fn(params, batch):
            tokens = _shown(loss, score, laws, params, reference, *batch)
            losses = loss(tokens, beta=beta)
            count = jnp.float32(len(losses))
            return jnp.sum(losses), count, _reports(tokens, has_reference)

        move = update.make_update(loss_fn, tx, microbatches=microbatches)
        new, metrics = move(state, (pairs, anchor))
        count = 2 * len(pairs.chosen.tokens)
        return _moved(state, new, metrics, anchor, count, controller, rule)

    return jax.jit(step, donate_argnums=0)


def _moved(state, new, metrics, anchor, count, controller, rule):
    """What else a step moves: the reference by its rule, β by the measured KL."""
    metrics["beta"] = state.controller.beta
    if anchor is not None:
        metrics["anchor"] = anchor[0]
    if state.reference is not None:
        moved = rule.update(state.reference, new.params, new.step)
        new = dataclasses.replace(new, reference=moved)
    if controller is not None:
        held = controller.update(state.controller, metrics["forward_kl"], count)
        new = dataclasses.replace(new, controller=held)
    return new, metrics


def make_label_step(
    loss: pf.PairLoss | Callable[..., Array],
    score: ScoreFn,
    tx: optax.GradientTransformation,
    *,
    microbatches: int = 1,
    controller: Stateful | None = None,
    rule: references.Reference | None = None,
) -> Callable[[TrainState, UnpairedRows], tuple[TrainState, dict[str, jax.Array]]]:
    """``(state, labelled rows) -> (state, metrics)``: jitted, the state donated.

    The loss is the mean over the batch's completions.

    Args:
      loss: of ``preference.LABEL_LOSSES``, or a function
        ``(log_ratio, desirable, beta=...)``.
      score: of answers' tokens.
      tx: the optimiser.
      microbatches: how many parts the rows are scanned in.
      controller: moves ``beta``, by ``forward_kl``.
      rule: moves the reference; fixed by default.

    Returns:
      the step. Metrics as ``make_step``'s: ``margin`` is the mean log-ratio of good
      completions less that of bad ones; ``accuracy``, how often a log-ratio, less the
      ``anchor``, has the sign of its label.

    Raises:
      InputError: the loss needs what is not given; from the step, what neither the
        state nor the rows bring.
    """
    loss = loss if isinstance(loss, pf.PairLoss) else pf.PairLoss(loss)
    rule = rule or references.fixed()
    _check(loss, None, microbatches)

    def step(state, batch):
        held = batch.logp_ref is not None
        _check_reference(loss, state.reference, held)
        _check_others(loss, batch.rows.tokens)
        beta = state.controller.beta
        reference, anchor = None, None
        if state.reference is not None:
            reference = rule.params(state.reference)
        if "anchor" in loss.needs:
            rows = batch.rows
            anchor = _anchor(score, state.params, reference, rows, microbatches)
            anchor = jnp.full(len(batch.desirable), anchor)

        def loss_fn(params, part):
            (rows, good, logp_ref), z = part
            logp = score(params, rows)
            if logp_ref is None:
                logp_ref = score(reference, rows)
            ratio = jnp.sum(logp - jax.lax.stop_gradient(logp_ref), axis=-1)
            needed = () if z is None else (z,)
            losses = loss.function(ratio, good, *needed, beta=beta)
            count = jnp.float32(len(losses))
            return jnp.sum(losses), count, _label_reports(ratio, good, needed)

        move = update.make_update(loss_fn, tx, microbatches=microbatches)
        new, metrics = move(state, (batch, anchor))
        metrics["margin"] = metrics.pop("good") - metrics.pop("bad")
        count = len(batch.desirable)
        return _moved(state, new, metrics, anchor, count, controller, rule)

    return jax.jit(step, donate_argnums=0)


def _label_reports(ratio, good, anchor):
    count = jnp.float32(len(ratio))
    gain = ratio - sum(anchor)
    right = jnp.where(good, gain > 0, gain < 0)
    return {
        "good": _mean_where(ratio, good),
        "bad": _mean_where(ratio, ~good),
        "accuracy": (jnp.sum(right, dtype=jnp.float32), count),
        "forward_kl": (-jnp.sum(ratio), count),
    }


def _mean_where(values, where):
    return jnp.sum(jnp.where(where, values, 0)), jnp.sum(where, dtype=jnp.float32)
