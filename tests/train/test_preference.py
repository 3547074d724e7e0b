"""The step for pairs: exact gradients, exact optima, KTO's anchor, refusals."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from alignax import controllers, exact, references
from alignax import divergences as dv
from alignax import preference as pf
from alignax.pipeline import data
from alignax.train import pairs, preference, supervised
from alignax.types import HiddenOutput, InputError, ModelOutput, Supervised
from tests.close import EPS

VOCAB, HORIZON, BETA = 3, 3, 0.4
APPLY = exact.make_tabular_apply(vocab_size=VOCAB, horizon=HORIZON)
SCORE = supervised.score_by_logits(APPLY)
LAWS = pairs.laws_by_logits(APPLY)
WORLD = exact.enumerate_completions(VOCAB, HORIZON, eos_id=1)


def table(seed, prompts=2):
    return exact.tabular_init(
        jax.random.key(seed), prompts=prompts, vocab_size=VOCAB, horizon=HORIZON
    )


POLICY, REFERENCE = table(1), table(0)


def rows_of(prompts, numbers, world=WORLD):
    """The numbered completions of the world as answers to prompts of one token."""
    tokens, mask = (np.asarray(x)[np.asarray(numbers)] for x in world)
    head = np.asarray(prompts, np.int32)[:, None]
    answered = np.concatenate([np.zeros(head.shape, bool), mask], axis=1)
    return Supervised(
        tokens=jnp.asarray(np.concatenate([head, tokens], axis=1), jnp.int32),
        mask=jnp.asarray(answered | (np.arange(answered.shape[1]) == 0)),
        loss_mask=jnp.asarray(answered),
        index=jnp.arange(len(head)),
    )


PROMPTS, CHOSEN, REJECTED = [0, 1, 0, 1], [3, 0, 7, 12], [5, 9, 0, 2]
PAIRS = data.PairRows(rows_of(PROMPTS, CHOSEN), rows_of(PROMPTS, REJECTED))


def state_of(tx, params=POLICY, *, beta=BETA, reference=REFERENCE, **more):
    key = jax.random.key(0)
    return preference.init_state(
        params, tx, key, beta=beta, reference=reference, **more
    )


def descend(loss, batch=PAIRS, *, reference=REFERENCE, **more):
    """The gradient that one step of plain descent takes, and its metrics."""
    step = preference.make_step(loss, SCORE, optax.sgd(1.0), **more)
    new, metrics = step(state_of(optax.sgd(1.0), reference=reference), batch)
    gradient = np.asarray(POLICY["logits"] - new.params["logits"])
    return gradient, {name: float(x) for name, x in metrics.items()}


def log_probability(logits, prompt, number):
    """Of one completion under the table, in numpy: prefixes by length, then order."""
    total, code = 0.0, 0
    tokens, mask = (np.asarray(x)[number] for x in WORLD)
    for place, token in enumerate(tokens[mask]):
        row = logits[prompt, sum(VOCAB**i for i in range(place)) + code]
        total += row[token] - np.log(np.exp(row).sum())
        code = code * VOCAB + token
    return total


def log_ratios(logits, numbers):
    reference = np.float64(REFERENCE["logits"])
    return np.array(
        [
            log_probability(logits, p, y) - log_probability(reference, p, y)
            for p, y in zip(PROMPTS, numbers, strict=True)
        ]
    )


def finite_differences(value):
    start = np.float64(POLICY["logits"])
    out = np.zeros(start.shape)
    for place in np.ndindex(start.shape):
        moved = [start.copy() for _ in range(2)]
        moved[0][place] += 1e-5
        moved[1][place] -= 1e-5
        out[place] = (value(moved[0]) - value(moved[1])) / 2e-5
    return out


def close(found, expected):
    assert np.linalg.norm(found - expected) < 2e-5 * np.linalg.norm(expected)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def dpo_by_hand(logits):
    margin = log_ratios(logits, CHOSEN) - log_ratios(logits, REJECTED)
    return np.logaddexp(0, -BETA * margin).mean()


@pytest.mark.parametrize("microbatches", [1, 2])
def test_dpo_is_the_gradient_of_the_formula(microbatches):
    """By finite differences of numpy's own log-probabilities; and the reports."""
    gradient, metrics = descend(pf.dpo, microbatches=microbatches)
    close(gradient, finite_differences(dpo_by_hand))
    logits = np.float64(POLICY["logits"])
    u, v = log_ratios(logits, CHOSEN), log_ratios(logits, REJECTED)
    chosen = [log_probability(logits, *x) for x in zip(PROMPTS, CHOSEN, strict=True)]
    expected = {
        "loss": dpo_by_hand(logits),
        "beta": BETA,
        "margin": (u - v).mean(),
        "accuracy": (u > v).mean(),
        "forward_kl": -(u + v).mean() / 2,
        "logp_chosen": np.mean(chosen),
        "grad_norm": np.linalg.norm(gradient),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)


def test_stored_reference():
    """Log-probabilities that come with the pairs take the parameters' place."""
    stored = pairs.with_reference(SCORE, REFERENCE)(PAIRS)
    found, metrics = descend(pf.dpo, stored, reference=None)
    expected, others = descend(pf.dpo)
    np.testing.assert_array_equal(found, expected)
    assert metrics == others


def test_losses_without_a_reference_read_none():
    """SimPO: no reference in the state, none in the pairs; the margin is the policy's
    own, and no KL is claimed."""
    _, metrics = descend(pf.LOSSES["simpo"], reference=None)
    gap = metrics["logp_chosen"] - metrics["logp_rejected"]
    np.testing.assert_allclose(metrics["margin"], gap, rtol=1e-5)
    assert "forward_kl" not in metrics


def test_mismatched_rows_have_the_answers_of_others():
    """Against texts paired anew and encoded; what does not fit is cut."""
    tokenizer = data.byte_tokenizer()
    prompts, answers = ["1+1=", "10+10=", "7="], ["2", "20", "seven"]
    rows = data.encode_supervised(prompts, answers, tokenizer, length=12)
    expected = data.encode_supervised(
        prompts, [answers[-1], *answers[:-1]], tokenizer, length=12
    )
    found = jax.jit(pairs.mismatched)(rows)
    for name in ("mask", "loss_mask", "index"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    np.testing.assert_array_equal(
        found.tokens[found.mask], expected.tokens[expected.mask]
    )
    narrow = data.encode_supervised(
        ["1", "123456"], ["1234567", "1"], tokenizer, length=10
    )
    cut = pairs.mismatched(narrow)
    assert cut.tokens[1].tolist() == [257, *b"123456", *b"123"]


@pytest.mark.parametrize("microbatches", [1, 2])
def test_kto_measures_its_anchor_on_mismatched_completions(microbatches):
    """z₀ from the answers of the rows before, over the whole batch; the gradient is
    that of the formula at that anchor, and no APO-zero."""
    gradient, metrics = descend(pf.LOSSES["kto"], microbatches=microbatches)
    prompts, numbers = PROMPTS * 2, [*CHOSEN, *REJECTED]
    others = [numbers[-1], *numbers[:-1]]
    logits, reference = (np.float64(x["logits"]) for x in (POLICY, REFERENCE))
    ratios = [
        log_probability(logits, p, y) - log_probability(reference, p, y)
        for p, y in zip(prompts, others, strict=True)
    ]
    anchor = max(0.0, np.mean(ratios))
    np.testing.assert_allclose(metrics["anchor"], anchor, rtol=1e-5)

    def by_hand(logits, z):
        u, v = log_ratios(logits, CHOSEN), log_ratios(logits, REJECTED)
        return (sigmoid(-BETA * (u - z)) + sigmoid(BETA * (v - z))).mean()

    close(gradient, finite_differences(partial(by_hand, z=anchor)))
    assert anchor > 0.01
    zero = finite_differences(partial(by_hand, z=0.0))
    assert np.linalg.norm(gradient - zero) > 1e-3 * np.linalg.norm(zero)


GOOD = np.array([True, False, False, True])
LABELLED = data.UnpairedRows(rows_of(PROMPTS, CHOSEN), jnp.asarray(GOOD))


def descend_labels(name, batch=LABELLED, *, reference=REFERENCE, **more):
    tx = optax.sgd(1.0)
    step = preference.make_label_step(pf.LABEL_LOSSES[name], SCORE, tx, **more)
    new, metrics = step(state_of(tx, reference=reference), batch)
    return np.asarray(POLICY["logits"] - new.params["logits"]), metrics


def kto_by_hand(logits, z):
    value = BETA * (log_ratios(logits, CHOSEN) - z)
    return sigmoid(np.where(GOOD, -value, value)).mean()


def test_kto_of_labels():
    """The anchor from the rows before, in microbatches too; the reports by hand."""
    others = [CHOSEN[-1], *CHOSEN[:-1]]
    logits = np.float64(POLICY["logits"])
    anchor = max(0.0, log_ratios(logits, others).mean())
    gradient, metrics = descend_labels("kto", microbatches=2)
    close(gradient, finite_differences(partial(kto_by_hand, z=anchor)))
    np.testing.assert_allclose(metrics["anchor"], anchor, rtol=1e-5)
    ratios = log_ratios(logits, CHOSEN)
    margin = ratios[GOOD].mean() - ratios[~GOOD].mean()
    np.testing.assert_allclose(metrics["margin"], margin, rtol=1e-5)
    right = np.where(GOOD, ratios > anchor, ratios < anchor).mean()
    np.testing.assert_allclose(metrics["accuracy"], right, rtol=4 * EPS)
    np.testing.assert_allclose(metrics["forward_kl"], -ratios.mean(), rtol=1e-5)


def test_apo_and_bco_of_labels():
    """APO-zero is KTO at anchor 0, and takes a stored reference; BCO's shift is the
    batch's mean reward, held fixed."""
    stored = LABELLED._replace(logp_ref=SCORE(REFERENCE, LABELLED.rows))
    gradient, _ = descend_labels("apo_zero", stored, reference=None)
    close(gradient, finite_differences(partial(kto_by_hand, z=0.0)))
    shift = BETA * log_ratios(np.float64(POLICY["logits"]), CHOSEN).mean()

    def bco(logits):
        logit = BETA * log_ratios(logits, CHOSEN) - shift
        return np.logaddexp(0, np.where(GOOD, -logit, logit)).mean()

    gradient, _ = descend_labels("bco")
    close(gradient, finite_differences(bco))
    with pytest.raises(InputError, match="microbatches: 2 were given"):
        descend_labels("bco", microbatches=2)


def test_tdpo_and_wpo_see_the_tokens_laws():
    """TDPO2's formula by finite differences; WPO's weight at the policy itself."""

    def forward_kls(logits, numbers):
        """Σ_t KL(ρ‖π) along each completion."""
        reference, out = np.float64(REFERENCE["logits"]), []
        for prompt, number in zip(PROMPTS, numbers, strict=True):
            total, code = 0.0, 0
            tokens, mask = (np.asarray(x)[number] for x in WORLD)
            for place, token in enumerate(tokens[mask]):
                row = sum(VOCAB**i for i in range(place)) + code
                p, q = logits[prompt, row], reference[prompt, row]
                p, q = (x - np.log(np.exp(x).sum()) for x in (p, q))
                total += (np.exp(q) * (q - p)).sum()
                code = code * VOCAB + token
            out.append(total)
        return np.array(out)

    fixed = forward_kls(np.float64(POLICY["logits"]), CHOSEN)

    def tdpo2(logits):
        h = log_ratios(logits, CHOSEN) - log_ratios(logits, REJECTED)
        margin = h - 0.5 * (forward_kls(logits, REJECTED) - fixed)
        return np.logaddexp(0, -BETA * margin).mean()

    gradient, metrics = descend(pf.LOSSES["tdpo2"], laws=LAWS)
    close(gradient, finite_differences(tdpo2))
    kls = fixed + forward_kls(np.float64(POLICY["logits"]), REJECTED)
    np.testing.assert_allclose(metrics["token_kl"], kls.mean() / 2, rtol=1e-5)
    _, metrics = descend(pf.LOSSES["wpo"], laws=LAWS)
    assert 0 < metrics["loss"] < dpo_by_hand(np.float64(POLICY["logits"]))


def bigram_hidden(params, tokens, *, mask=None):
    """The smallest model with hidden states: a token knows only itself."""
    return HiddenOutput(params["body"][tokens], params["head"], 3.0, None)


def bigram(params, tokens, *, mask=None):
    out = bigram_hidden(params, tokens)
    logits = jnp.einsum("btd,vd->btv", out.hidden, out.head)
    return ModelOutput(out.soft_cap * jnp.tanh(logits / out.soft_cap), None)


@pytest.mark.slow
def test_laws_by_hidden_states_are_those_of_the_logits():
    """Values, and the gradient of what has one; none through the collisions."""
    keys = jax.random.split(jax.random.key(0), 4)
    policy, reference = (
        {"body": jax.random.normal(a, (9, 4)), "head": jax.random.normal(b, (9, 4))}
        for a, b in (keys[:2], keys[2:])
    )
    rows = rows_of(PROMPTS, CHOSEN)
    ways = pairs.laws_by_hidden(bigram_hidden), pairs.laws_by_logits(bigram)
    values = [laws(policy, reference, rows) for laws in ways]
    for ours, theirs in zip(*values, strict=True):
        close(np.asarray(ours), np.asarray(theirs))

    def total(params, laws):
        found = laws(params, reference, rows)
        return jnp.sum(jnp.sin(found.logp) + found.kl * found.logp_ref)

    slopes = [jax.grad(total)(policy, laws) for laws in ways]
    for name in policy:
        close(np.asarray(slopes[0][name]), np.asarray(slopes[1][name]))


# Three completions, whose scores 1, 2, 4 make Bradley-Terry a matter of whole counts.
SMALL = exact.enumerate_completions(2, 2, eos_id=1)
COUNTS = {(1, 0): 10, (0, 1): 5, (2, 0): 12, (0, 2): 3, (2, 1): 10, (1, 2): 5}
LAW = np.log([0.5, 0.3, 0.2])


def small_policy(law):
    """The table over ``[1]``, ``[0, 1]``, ``[0, 0]`` with a law's probabilities."""
    first, second, third = np.exp(law)
    logits = [[second + third, first], [third, second], [0.5, 0.5]]
    return {"logits": jnp.log(jnp.array(logits))[None]}


@pytest.mark.parametrize(
    "div",
    [dv.reverse_kl(), dv.forward_kl(), dv.jensen_shannon(), dv.jeffreys()],
    ids=lambda div: div.name,
)
def test_f_dpo_steps_to_the_regularised_optimum(div):
    """From the reference to ``argmax E r − β D_f(π‖ρ)``, which is solved for apart."""
    apply_fn = exact.make_tabular_apply(vocab_size=2, horizon=2)
    numbers = np.repeat(list(COUNTS), list(COUNTS.values()), axis=0)
    batch = data.PairRows(
        *(rows_of([0] * len(numbers), side, SMALL) for side in numbers.T)
    )
    reference = small_policy(LAW)
    tx = optax.adam(optax.cosine_decay_schedule(0.1, 400))
    step = preference.make_step(
        partial(pf.f_dpo, div), supervised.score_by_logits(apply_fn), tx
    )
    state = state_of(tx, reference, reference=reference)
    for _ in range(400):
        state, _ = step(state, batch)
    assert step._cache_size() <= 1
    found = exact.completion_logp(
        apply_fn, state.params, jnp.zeros(1, jnp.int32), *SMALL
    )
    rewards = jnp.log(jnp.array([1.0, 2.0, 4.0]))
    optimum, _, _ = dv.regularised_optimum(div, rewards, jnp.asarray(LAW), beta=BETA)
    assert exact.total_variation(found, optimum) < 1e-3
    assert exact.total_variation(jnp.asarray(LAW), optimum) > 0.1


def test_beta_is_traced_and_the_controller_and_the_reference_move():
    """One compilation for all strengths; β by the measured KL, the reference by its
    rule."""
    tx = optax.sgd(0.5)
    controller = controllers.adaptive_kl(beta=0.2, target=0.1, horizon=8.0)
    rule = references.moving_average(decay=0.75)
    step = preference.make_step(pf.ipo, SCORE, tx, controller=controller, rule=rule)
    start = state_of(tx, beta=controller, rule=rule)
    state, first = step(start, PAIRS)
    expected = controller.update(controller.init(), first["forward_kl"], 8).beta
    np.testing.assert_allclose(state.controller.beta, expected, rtol=1e-6)
    moved = 0.75 * REFERENCE["logits"] + 0.25 * state.params["logits"]
    close(state.reference["logits"], moved)
    state, second = step(state, PAIRS)
    np.testing.assert_allclose(second["beta"], expected, rtol=1e-6)
    assert abs(second["beta"] / first["beta"] - 1) > 0.1
    assert step._cache_size() <= 1


@pytest.mark.parametrize("name", ["kto", "aot"])
def test_pairs_over_devices(name):
    """The rows shared out: KTO's anchor and AOT's ranks are still the whole batch's."""
    mesh = jax.make_mesh((4,), ("data",), axis_types=(AxisType.Auto,))
    spread = jax.device_put(PAIRS, NamedSharding(mesh, PartitionSpec("data")))
    expected, metrics = descend(pf.LOSSES[name])
    found, others = descend(pf.LOSSES[name], spread)
    close(found, expected)
    np.testing.assert_allclose(
        [others[key] for key in metrics], list(metrics.values()), rtol=1e-5
    )


def test_what_a_step_refuses():
    """Each message names what is missing and what would do."""
    with pytest.raises(InputError, match="laws: none were given"):
        preference.make_step(pf.LOSSES["tdpo1"], SCORE, optax.sgd(1.0))
    with pytest.raises(InputError, match="microbatches: 2 were given"):
        preference.make_step(pf.LOSSES["aot"], SCORE, optax.sgd(1.0), microbatches=2)
    with pytest.raises(InputError, match=r"no reference.*or rows with stored"):
        descend(pf.dpo, reference=None)
    stored = pairs.with_reference(SCORE, REFERENCE)(PAIRS)
    with pytest.raises(InputError, match=r"no reference.*reference= would do\.\n"):
        descend(pf.LOSSES["kto"], stored, reference=None)
    with pytest.raises(InputError, match="pairs: they bring no rewards"):
        descend(pf.LOSSES["copg"])
    one = jax.tree.map(lambda x: x[:1], PAIRS)
    with pytest.raises(InputError, match="batch: it is of one"):
        descend(pf.LOSSES["kto"], one)


@pytest.mark.slow
@pytest.mark.parametrize("name", pf.LOSSES)
def test_every_loss_of_the_table_takes_a_step(name):
    """With all that a batch can bring: finite, and parameters that move."""
    full = PAIRS._replace(
        rewards=(jnp.ones(4), jnp.zeros(4)),
        weights=tuple(jnp.ones((4, HORIZON)) for _ in range(2)),
    )
    gradient, metrics = descend(pf.LOSSES[name], full, laws=LAWS)
    assert np.isfinite(list(metrics.values())).all()
    assert np.linalg.norm(gradient) > 1e-4
