"""On-policy distillation: advantages by hand, optima, and models of other widths."""

import dataclasses
import functools
import json
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from alignax import algorithms, exact
from alignax.algorithms import METHODS
from alignax.models import functional, hf
from alignax.pipeline import data, decoding, metrics
from alignax.pipeline import rollout as rollouts
from alignax.train import assembly, folders, policy_gradient, tasks, teachers
from alignax.train.options import RL
from alignax.train.policy import Policy
from alignax.train.runs import siblings, teaching
from alignax.types import (
    Counters,
    HiddenOutput,
    InputError,
    Rollout,
    Scored,
    TrainState,
)
from tests.algorithm_batch import MASK, OLD, REF, scored
from tests.close import assert_close
from tests.pipeline.test_data_tokenizers import build_folder
from tests.train.test_every_method import EOS, MODEL, PARAMS, PROMPTS, K, N, T, guide
from tests.train.test_runs import SUMS, arguments, home, main, refused

__all__ = ["home"]
TAUGHT = 1.1 * REF
WIDER = dataclasses.replace(MODEL, hidden_size=24, num_layers=2, mlp_size=16)
TEACHER = functional.init(WIDER, jax.random.key(5))
OPD, G_OPD = METHODS["opd"].algorithm, METHODS["g_opd"].algorithm


def advantages(algorithm, batch):
    return algorithms.prepare(algorithm, batch).advantages


def test_generalised_is_plain_distillation_at_one():
    """k1 to the teacher, whatever the reference; ExOPD by hand."""
    by_hand = jnp.where(MASK, TAUGHT - OLD, 0)
    plain = advantages(OPD, dataclasses.replace(scored(), logp_ref=TAUGHT))
    assert_close(plain, by_hand, rel=1e-6)
    for reference in (REF, 0.3 * REF):
        batch = scored(logp_ref=reference, logp_teacher=TAUGHT)
        assert_close(advantages(G_OPD, batch), by_hand, rel=1e-6)
        beyond = METHODS["g_opd"].variants["exopd"]
        expected = jnp.where(MASK, 1.25 * (TAUGHT - reference) - (OLD - reference), 0)
        assert_close(advantages(beyond, batch), expected, rel=1e-6)


def test_rewards_are_not_read():
    batch = dataclasses.replace(scored(), logp_ref=TAUGHT)
    other = dataclasses.replace(batch, rewards=batch.rewards + 7.0)
    np.testing.assert_array_equal(advantages(OPD, batch), advantages(OPD, other))


def test_the_optimum_of_the_generalised_form():
    """At ρ^{1−λ} π_T^λ / Z every token's advantage is log Z: nothing pulls."""
    reference = jnp.log(jnp.array([0.1, 0.2, 0.3, 0.4]))
    teacher = jnp.log(jnp.array([0.4, 0.3, 0.2, 0.1]))
    best = jax.nn.log_softmax(-0.25 * reference + 1.25 * teacher)
    expected = [0.492276606, 0.2889204469, 0.1572683714, 0.0615345757]
    np.testing.assert_allclose(jnp.exp(best), expected, rtol=1e-6)
    mask = jnp.ones((4, 1), bool)
    batch = Scored(
        rollout=Rollout(tokens=jnp.arange(4)[:, None], attended=mask, trained=mask),
        rewards=jnp.zeros((1, 4)),
        logp_old=best[:, None],
        logp_ref=reference[:, None],
        logp_teacher=teacher[:, None],
    )
    found = advantages(METHODS["g_opd"].variants["exopd"], batch)
    np.testing.assert_allclose(found, np.full((4, 1), 0.138997371), rtol=1e-5)


def test_the_measured_kl_is_of_own_rows():
    """A teacher's rows are no samples of the policy, whatever k3 makes of them."""
    others = jnp.arange(len(MASK)) % 3 == 0
    reference = jnp.where(others[:, None], OLD + 20, REF)
    batch = scored(logp_ref=reference, demonstrated=others, beta=jnp.float32(1))
    found = jax.jit(functools.partial(policy_gradient.describe, OPD))(batch)
    k3 = jnp.sum(jnp.where(MASK, jnp.expm1(REF - OLD) - (REF - OLD), 0), axis=-1)
    np.testing.assert_allclose(found["kl"], jnp.mean(k3[~others]), rtol=1e-5)


V, TELLING = 3, exact.make_tabular_apply(vocab_size=3, horizon=2)
"""A world of two prompts: the second is the first with what the teacher is told."""


def told(scale=0.7):
    """The policy, its older self, and all completions of the first prompt."""
    policy, older = (
        exact.tabular_init(
            jax.random.key(seed), prompts=2, vocab_size=V, horizon=2, scale=scale
        )
        for seed in (1, 2)
    )
    tokens, mask = exact.enumerate_completions(V, 2, eos_id=2)
    first = jnp.zeros((len(tokens), 1), jnp.int32)
    rollout = Rollout(
        tokens=tokens,
        attended=mask,
        trained=mask,
        prompt_tokens=first,
        prompt_mask=first == 0,
        shown_tokens=first + 1,
        shown_mask=first == 0,
    )
    return policy, older, rollout


def token_laws(params, prompt, rollout):
    whole = jnp.concatenate([rollout.prompt_tokens + prompt, rollout.tokens], axis=1)
    return jax.nn.log_softmax(TELLING(params, whole[:, :-1]).logits)


def expected_gradient(name, policy, older, rollout):
    """Of the method's token losses, over all completions by their probabilities."""
    key, _, variant = name.partition("/")
    algorithm = METHODS[key].variants[variant] if variant else METHODS[key].algorithm
    taken = rollout.tokens[..., None]
    old, taught = (
        jnp.take_along_axis(token_laws(*x, rollout), taken, axis=-1)[..., 0]
        for x in ((policy, 0), (older, 1))
    )
    mask = rollout.trained
    chance = jnp.exp(jnp.sum(jnp.where(mask, old, 0), axis=-1))
    batch = Scored(
        rollout=rollout,
        rewards=jnp.zeros((1, len(mask))),
        logp_old=old,
        logp_ref=taught,
    )
    regulariser = algorithm.regulariser
    token = rollouts.divergence_by_logits(
        TELLING, regulariser.divergence, k=regulariser.top
    )

    @jax.jit
    @jax.grad
    def gradient(params):
        scores = rollouts.score_by_logits(TELLING)(params, rollout)
        over = token(params, older, rollout) if regulariser.over_vocabulary else None
        rows = algorithms.prepare(algorithm, batch)
        parts = algorithms.losses(
            algorithm, scores.logp, scores.entropy, rows, over_vocabulary=over
        )
        return jnp.sum(chance[:, None] * sum(parts.values()))

    return gradient(policy)


def test_a_policy_descends_to_itself_told_more():
    """Jensen-Shannon by hand, at all prefixes by their probabilities; the reverse KL
    over the vocabulary is in expectation what sampled tokens say."""
    policy, older, rollout = told()
    mask, teacher = rollout.trained, jnp.exp(token_laws(older, 1, rollout))
    taken = rollout.tokens[..., None]

    @jax.jit
    @jax.grad
    def by_hand(params):
        log_law = token_laws(params, 0, rollout)
        law = jnp.exp(log_law)
        own = jnp.take_along_axis(jax.lax.stop_gradient(log_law), taken, -1)[..., 0]
        chance = jnp.exp(jnp.sum(jnp.where(mask, own, 0), axis=-1))
        middle = jnp.log((law + teacher) / 2)
        each = law * (log_law - middle) + teacher * (jnp.log(teacher) - middle)
        each = jnp.sum(each, axis=-1) / 2
        return jnp.sum(chance[:, None] * jnp.where(mask, each, 0))

    found = expected_gradient("sdpo", policy, older, rollout)
    jax.tree.map(lambda x, y: assert_close(x, y, rel=1e-5), found, by_hand(policy))
    sampled = expected_gradient("opsd", policy, older, rollout)
    whole = expected_gradient("sdpo/reverse kl", policy, older, rollout)
    jax.tree.map(lambda x, y: assert_close(x, y, rel=1e-5), whole, sampled)


def experts(seed):
    """A model of counted tokens: its logits follow from which came before."""
    head = jax.random.normal(jax.random.key(seed), (V, V))

    def hidden_fn(params, tokens, *, mask=None, logits_from=0, **cached):
        seen = jnp.cumsum(jax.nn.one_hot(tokens, V) * mask[..., None], axis=1)
        return HiddenOutput(seen[:, logits_from:] @ params, jnp.eye(V), None, None)

    return hidden_fn, head


def taken_of(laws, rollout):
    return np.take_along_axis(laws, np.asarray(rollout.tokens)[..., None], axis=-1)[
        ..., 0
    ]


def test_several_teachers_weigh_or_take_turns():
    rollout = dataclasses.replace(told()[2], shown_tokens=None, shown_mask=None)
    (own_fn, own), *models = (experts(seed) for seed in (5, 3, 4))
    functions, heads = zip(*models, strict=True)
    mask, tokens = np.asarray(rollout.trained), np.asarray(rollout.tokens)
    before = np.concatenate([np.zeros_like(tokens[:, :1]), tokens], axis=1)[:, :-1]
    seen = np.cumsum(np.eye(V, dtype=np.float32)[before], axis=1)
    laws = [log_softmax(seen @ np.asarray(head), axis=-1) for head in heads]
    each = [taken_of(law, rollout) for law in laws]
    one, rows = jnp.zeros(1, jnp.int32), jnp.arange(len(mask))
    form = METHODS["sdpo"].algorithm.regulariser

    @jax.jit
    def run(heads, rollout):
        pairs = tuple(zip(functions, heads, strict=True))
        token = teachers.divergence(own_fn, form, pairs)
        found = teachers.score(pairs)(rollout).logp, token(own, None, rollout)
        found += (teachers.score(pairs, mixture=True)(rollout).logp,)
        return [jnp.where(rollout.trained, x, 0) for x in found]

    mixed = teachers.with_weights(rollout, jnp.array([0.25, 0.75]), one)
    found, token, behind = run(heads, mixed)
    assert_close(found, (0.25 * each[0] + 0.75 * each[1]) * mask, rel=1e-6)
    policy = log_softmax(seen @ np.asarray(own), axis=-1)
    by_hand = 0.25 * middle(policy, laws[0]) + 0.75 * middle(policy, laws[1])
    assert_close(token, by_hand * mask, rel=1e-5)
    # Of the mixture of whole completions each token behind those before.
    so_far = np.exp(np.cumsum(np.stack(each) * mask, axis=-1))
    so_far = np.log(0.25 * so_far[0] + 0.75 * so_far[1])
    assert_close(np.cumsum(behind, axis=-1), so_far, rel=1e-5)
    # At the product of experts each prefix's advantages are its log Z: nothing pulls.
    product = 0.25 * laws[0] + 0.75 * laws[1]
    batch = Scored(
        rollout=mixed,
        rewards=jnp.zeros((1, len(mask))),
        logp_old=jnp.asarray(taken_of(log_softmax(product, axis=-1), rollout)),
        logp_ref=found,
    )
    assert_close(advantages(OPD, batch), logsumexp(product, axis=-1) * mask, rel=1e-5)

    # Each row its own; the other's word does not count, whatever it is.
    alone = teachers.with_weights(rollout, jnp.eye(2)[rows % 2], rows)
    mine = np.where(np.arange(len(mask))[:, None] % 2 == 0, *each)
    assert_close(run(heads, alone)[0], mine * mask, rel=1e-6)
    first = teachers.with_weights(rollout, jnp.array([1.0, 0.0]), one)
    broken = (heads[0], jnp.full((V, V), jnp.nan))
    assert_close(run(broken, first)[0], each[0] * mask, rel=1e-6)


def middle(a, b):
    """The Jensen-Shannon divergence of two laws, from their logarithms."""
    both = np.log((np.exp(a) + np.exp(b)) / 2)
    return np.sum(np.exp(a) * (a - both) + np.exp(b) * (b - both), axis=-1) / 2


NONE = Counters(skipped=0, skipped_in_row=0, no_signal=0)
STATE = TrainState(step=0, params=0, opt_state=0, controller=0, counters=NONE, key=0)


def test_completions_are_told_a_sibling_that_was_right():
    """By bytes: who is told what, and who is not trained."""
    tokenizer, read = data.byte_tokenizer(), {}
    written = [["no", "yes", "YES"], ["a", "b", "c"], ["1", "22", "3"]]
    ids = [tokenizer.encode(text) for group in written for text in group]
    mask = jnp.arange(3)[None] < jnp.array([[len(x)] for x in ids])
    tokens = jnp.array([x + [0] * (3 - len(x)) for x in ids])
    rollout = Rollout(tokens=tokens, attended=mask, trained=mask)

    def score(state, index, rollout, demonstrated, *, rescore, shown):
        read["shown"] = shown
        zeros = jnp.zeros(mask.shape)
        return Scored(rollout=rollout, rewards=None, logp_old=zeros, logp_ref=zeros - 1)

    records = [{"prompt": "x?"}, {"prompt": "longer?"}]
    config = types.SimpleNamespace(
        teaching=teaching.Teaching(teacher_sibling=True), right_at=0.5, max_tokens=3
    )
    size = types.SimpleNamespace(max_length=100)
    policy = Policy(size, None, None, None, tokenizer)
    parts = assembly.Parts(None, None, None, None, None, score, 3)
    tell = siblings.teller(config, parts, records, policy)
    before = Scored(
        rollout=rollout,
        rewards=jnp.array([[0.0, 1, 1], [0, 0, 0], [0, 1, 0]]),
        logp_old=jnp.zeros(mask.shape) - 3,
        index=jnp.array([1, 0, 0]),
    )
    scored, found = tell(STATE, before)
    told = [True, False, True, False, False, False, True, False, True]
    kept = METHODS["sdpo"].algorithm.keep(scored)
    np.testing.assert_array_equal(kept, mask & np.array(told)[:, None])
    np.testing.assert_array_equal(scored.mask, mask)
    np.testing.assert_array_equal(scored.logp_ref, -1)
    np.testing.assert_array_equal(scored.logp_old, -3)
    assert found["told"] == np.float32(4 / 9)
    shown = read["shown"]
    for row, answer in ((0, "yes\n\nlonger?"), (2, "yes\n\nlonger?"), (8, "22\n\nx?")):
        ids = np.asarray(shown.prompt_tokens[row])[np.asarray(shown.prompt_mask[row])]
        # The first token is the beginning's.
        text = tokenizer.decode([int(i) for i in ids[1:]])
        assert text == f"Correct solution:\n\n{answer}"
    size.max_length = 30
    with pytest.raises(InputError, match=r"teacher_sibling: a prompt of"):
        siblings.teller(config, parts, records, policy)


def parts_of(method, **options):
    config = RL(method=method, prompts=N, completions=K, learning_rate=1e-2, steps=4)
    return assembly.make(
        config,
        functional.make_apply(MODEL),
        hidden_fn=functional.make_hidden(MODEL),
        max_tokens=T,
        eos_id=EOS,
        **options,
    )


@pytest.mark.slow
@pytest.mark.parametrize("method", ["opd", "g_opd"])
def test_a_wider_teacher_scores_what_the_policy_wrote(method):
    parts = parts_of(method, teacher=(functional.make_hidden(WIDER), TEACHER))
    state = parts.init(PARAMS, jax.random.key(2))
    found = parts.sample(state, PROMPTS).scored
    score = rollouts.score_by_logits(functional.make_apply(WIDER))
    expected = jnp.where(found.mask, score(TEACHER, found.rollout).logp, 0)
    name = "logp_ref" if method == "opd" else "logp_teacher"
    assert_close(getattr(found, name), expected, rel=1e-5)
    if method == "g_opd":
        assert_close(found.logp_ref, found.logp_old, rel=1e-5)


@pytest.mark.slow
def test_a_divergence_over_the_vocabulary_is_from_the_teacher():
    """Jensen-Shannon in the loss: the policy comes nearer to it, exactly measured."""
    config = RL(
        method="opd",
        divergence="jensen_shannon",
        form="exact",
        place="loss",
        prompts=N,
        completions=K,
        learning_rate=3e-3,
        warmup=0,
        steps=30,
    )
    hidden = functional.make_hidden(MODEL)
    parts = assembly.make(
        config,
        functional.make_apply(MODEL),
        hidden_fn=hidden,
        max_tokens=T,
        eos_id=EOS,
        teacher=(functional.make_hidden(WIDER), TEACHER),
    )
    token = jax.jit(
        rollouts.divergence_by_hidden(
            hidden,
            parts.algorithm.regulariser.divergence,
            reference_fn=functional.make_hidden(WIDER),
        )
    )
    state, measured = parts.init(PARAMS, jax.random.key(2)), []
    step = tasks.host_step(parts, lambda *_: {"rewards": np.zeros(N * K, np.float32)})
    fixed = parts.sample(state, PROMPTS).rollout
    for _ in range(30):
        measured.append(float(jnp.mean(token(state.params, TEACHER, fixed))))
        state, _ = step(state, PROMPTS)
    assert measured[-1] < 0.7 * measured[0]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["sdpo", "sdft", "opsd (live teacher)"])
def test_a_policy_is_taught_by_what_it_would_say(method):
    """Its own log-probabilities of its completions behind the other prompt."""
    parts = parts_of(method)
    prompts = guide(PROMPTS)
    state = parts.init(PARAMS, jax.random.key(2), prompts=prompts)
    moved = jax.tree.map(lambda x: x + 0.01, PARAMS)
    state = dataclasses.replace(state, params=moved)
    found = parts.sample(state, prompts).scored
    whose = moved if "live" in method else PARAMS
    rollout = dataclasses.replace(
        found.rollout,
        prompt_tokens=jnp.repeat(prompts.guide, K, axis=0),
        prompt_mask=jnp.repeat(prompts.guide_mask, K, axis=0),
    )
    # Guides are right-padded, and a prompt's padding stands on the left.
    order = jnp.argsort(rollout.prompt_mask, axis=1, stable=True)
    rollout = dataclasses.replace(
        rollout,
        prompt_tokens=jnp.take_along_axis(rollout.prompt_tokens, order, axis=1),
        prompt_mask=jnp.take_along_axis(rollout.prompt_mask, order, axis=1),
    )
    score = rollouts.score_by_logits(functional.make_apply(MODEL))
    expected = jnp.where(found.mask, score(whose, rollout).logp, 0)
    assert_close(found.logp_ref, expected, rel=1e-5)
    plain = jnp.where(found.mask, score(whose, found.rollout).logp, 0)
    if method == "sdpo":
        judged = dataclasses.replace(found, rewards=jnp.zeros_like(found.rewards))
        seen = decoding.as_shown(found.rollout)
        assert_close(score(whose, seen).logp * found.mask, expected, rel=1e-6)
        assert np.isfinite(parts.step(state, judged)[1]["loss"])
    assert float(jnp.abs(plain - expected).max()) > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["g_opd (exopd)", "sdft", "sdpo"])
def test_teachers_by_the_command(home, tmp_path, method):
    config = folders.open_policy(home / "model").config
    config = dataclasses.replace(config, hidden_size=16)
    special = {f"{name}_token": f"<{name}>" for name in ("bos", "eos", "pad")}
    both = [tmp_path / name for name in ("even", "odd")]
    for seed, folder in enumerate(both):
        build_folder(folder, **special)
        hf.save(folder, config, functional.init(config, jax.random.key(seed)))
    more = ("--teacher", *map(str, both), "--teacher-field", "answer")
    rows = [{"prompt": q, "answer": both[i % 2].name} for i, (q, _) in enumerate(SUMS)]
    named = "".join(json.dumps(row) + "\n" for row in rows)
    (home / "named.jsonl").write_text(named)
    if method == "sdft":
        more = ("--teacher-context", "answer")
    kind = "named" if "g_opd" in method else "prompts"
    if method == "sdpo":
        more = ("--teacher-sibling", "--right-at", "0.01")
    args = arguments(home, "rl", kind, tmp_path / "run", *more, "--method", method)
    at = args.index("--reward")
    drop = 0 if method == "sdpo" else 2
    main([*args[:at], *args[at + drop :], "--lora.rank", "2"])
    rows = metrics.read(tmp_path / "run")
    if method == "sdpo":
        told, long, norm = (
            metrics.column(rows, f"rl/{name}")[1]
            for name in ("told", "told_long", "grad_norm")
        )
        # One of two is told; random bytes make replacement characters, three each.
        np.testing.assert_allclose(told, (1 - long) / 2)
        np.testing.assert_array_equal(norm > 0, told > 0)
        assert told.max() > 0
        return
    assert len(metrics.column(rows, "rl/eval/kl")[1]) == 3
    assert metrics.column(rows, "rl/grad_norm")[1].min() > 0
    assert not any("rl/signal" in row for row in rows)
    assert (tmp_path / "run" / "adapter").is_dir()


def test_what_a_teacher_lacks_is_refused(home, tmp_path, capsys):
    model = str(home / "model")
    two = (model, str(home / "bare"))
    for more, said in (
        (("--method", "opd"), ["teacher must be given"]),
        (("--method", "sdft"), ["teacher_context must be given"]),
        (
            ("--teacher-context", "answer"),
            ["is of methods whose teacher is the policy"],
        ),
        (
            ("--method", "sdft", "--teacher-context", "steps"),
            ["has no text in the field 'steps'", "answer"],
        ),
        (
            ("--method", "opsd", "--teacher-context", "answer", "--teacher", "x"),
            ["teacher must be left out"],
        ),
        (
            ("--method", "sdpo", "--teacher-context", "answer", "--teacher-sibling"),
            ["teacher_context must be given, or else teacher_sibling"],
        ),
        (("--teacher-sibling",), ["is of methods whose teacher is the policy itself"]),
        (
            ("--method", "opd", "--teacher", "x", "y", "--teacher-weights", "1"),
            ["teacher_weights must be one for each of the 2 teachers", "got 1.0"],
        ),
        (
            ("--method", "opd", "--teacher", "a/x", "b/x", "--teacher-field", "answer"),
            ["last part of its folder, which must differ", "x, x"],
        ),
        (
            ("--method", "opd", "--teacher-field", "answer", "--teacher", *two),
            ["in the field 'answer'", "the teachers are model, bare"],
        ),
        (
            ("--method", "opd", "--teacher", model, model, "--divergence", "pearson"),
            ["divergence pearson", "from several teachers at once"],
        ),
    ):
        message = refused(
            capsys, arguments(home, "rl", "prompts", tmp_path / "x", *more)
        )
        assert all(words in message for words in said), message
