"""A prefix shared by adjacent rows, packed segments, rematerialisation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import logprobs
from alignax.models import attention, functional
from alignax.types import HiddenFn, InputError
from tests.close import EPS, assert_close, decoder_rel
from tests.models.cases import CONFIGS, FAMILIES, jitted, random_params, random_tokens

N, K, P, S = 2, 3, 4, 5
CONFIG = CONFIGS["qwen3"]
VALUES = decoder_rel(CONFIG.num_layers)
GRADIENTS = decoder_rel(CONFIG.num_layers, gradient=True)
PARAMS = random_params(CONFIG)
PROMPTS = random_tokens(CONFIG, (N, P))
PROMPT_MASK = np.array([[0, 0, 1, 1], [1, 1, 1, 1]], bool)
TOKENS = random_tokens(CONFIG, (N * K, S), seed=1)
MASK = np.arange(S)[None] < np.array([5, 4, 3, 5, 2, 1])[:, None]
WHOLE = np.concatenate([PROMPTS.repeat(K, 0), TOKENS], axis=1)
WHOLE_MASK = np.concatenate([PROMPT_MASK.repeat(K, 0), MASK], axis=1)
APPLY, HIDDEN = functional.make_apply(CONFIG), functional.make_hidden(CONFIG)


def by_numpy(q, keys, values, mask, *, scale, soft_cap):
    """Attention of all to all in float64, one query and head at a time."""
    q, keys, values = (np.asarray(x, np.float64) for x in (q, keys, values))
    out = np.zeros_like(q)
    for b, s, n in np.ndindex(q.shape[:3]):
        m = n // (q.shape[2] // keys.shape[1])
        z = scale * keys[b, m] @ q[b, s, n]
        if soft_cap is not None:
            z = soft_cap * np.tanh(z / soft_cap)
        weights = np.where(mask[b, s], np.exp(z), 0)
        out[b, s, n] = weights / weights.sum() @ values[b, m]
    return out


@pytest.mark.parametrize("soft_cap", [None, 2.0])
@pytest.mark.parametrize("each", [False, True])
def test_joined_softmax_is_one_softmax(soft_cap, each):
    """``each``: every query has its own mask of the prefix, as windows give."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    q, keys, values = draw(6, 2, 4, 3), draw(6, 2, 5, 3), draw(6, 2, 5, 3)
    far_keys, far_values = draw(2, 2, 7, 3), draw(2, 2, 7, 3)
    mask = rng.random((6, 2, 5)) < 0.7
    far_mask = rng.random((2, 6 if each else 1, 7)) < 0.7
    mask[..., 0] = far_mask[..., 0] = True
    every = np.broadcast_to(far_mask, (2, 6, 7)).reshape(6, 2, 7)
    expected = by_numpy(
        q,
        np.concatenate([far_keys.repeat(3, 0), keys], axis=2),
        np.concatenate([far_values.repeat(3, 0), values], axis=2),
        np.concatenate([every, mask], axis=2),
        scale=0.7,
        soft_cap=soft_cap,
    )
    prefix = attention.Prefix(*map(jnp.asarray, (far_keys, far_values, far_mask)))
    arrays = map(jnp.asarray, (q, keys, values, mask))
    actual = attention.attend(*arrays, prefix=prefix, scale=0.7, soft_cap=soft_cap)
    # Scores of 3 terms, then sums over 12 keys, and exponentials of both.
    assert_close(actual, expected, rel=4 * 12 * EPS)


def test_a_kernel_of_jax_is_the_same_softmax():
    """cuDNN's has the same arguments; here XLA's stands for it."""
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    arrays = draw(2, 3, 4, 8), draw(2, 2, 5, 8), draw(2, 2, 5, 8)
    mask = rng.random((2, 3, 5)) < 0.7
    mask[..., 0] = True
    expected = by_numpy(*arrays, mask, scale=0.7, soft_cap=None)
    arrays = [*map(jnp.asarray, (*arrays, mask))]
    actual = attention.fused(*arrays, scale=0.7, kernel="xla")
    assert_close(actual, expected, rel=4 * 8 * EPS)


def test_what_a_kernel_does_not_do_is_refused():
    with pytest.raises(InputError, match="half precision"):
        dataclasses.replace(CONFIG, attention="cudnn")
    with pytest.raises(InputError, match="xla or cudnn, got 'flash'"):
        dataclasses.replace(CONFIG, attention="flash")
    config = dataclasses.replace(CONFIG, attention="cudnn", dtype="bfloat16")
    with pytest.raises(InputError, match="caps its scores"):
        dataclasses.replace(config, attention_soft_cap=2.0)
    apply_fn = functional.make_apply(config)
    prefix = APPLY(PARAMS, PROMPTS, mask=PROMPT_MASK, cache_length=P).cache
    with pytest.raises(InputError, match="share a prefix"):
        apply_fn(PARAMS, TOKENS, mask=MASK, prefix=prefix)


def grouped(params):
    """Logits of the completions' positions, each prompt seen once."""
    prefix = APPLY(params, PROMPTS, mask=PROMPT_MASK, cache_length=P).cache
    return APPLY(params, TOKENS, mask=MASK, prefix=prefix).logits


def plain(params):
    return APPLY(params, WHOLE, mask=WHOLE_MASK, logits_from=P).logits


def test_shared_prefix_is_the_plain_forward():
    def total(logits_of):
        def loss(params):
            logits = logits_of(params)
            logp = logprobs.token_logp(logits, jnp.asarray(TOKENS))
            return jnp.sum(jnp.where(MASK, logp, 0)), logits

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(PARAMS)

    (value, logits), gradient = total(grouped)
    (expected, logits_plain), gradient_plain = total(plain)
    assert_close(logits[MASK], logits_plain[MASK], rel=VALUES)
    assert_close(value, expected, rel=VALUES)
    assert_close(gradient, gradient_plain, rel=GRADIENTS)


def test_decoding_goes_on_from_a_shared_prefix():
    """One token at a time behind it, with room in the prefix that nobody wrote to."""
    step = jitted(CONFIG)
    prefix = step(PARAMS, PROMPTS, mask=PROMPT_MASK, cache_length=P + 2).cache
    out = step(PARAMS, TOKENS[:, :1], mask=MASK[:, :1], prefix=prefix, cache_length=S)
    logits = [out.logits]
    for t in range(1, S):
        part = slice(t, t + 1)
        out = step(PARAMS, TOKENS[:, part], mask=MASK[:, part], cache=out.cache)
        logits.append(out.logits)
    actual = np.concatenate(logits, axis=1)
    assert_close(actual[MASK], jax.jit(plain)(PARAMS)[MASK], rel=VALUES)
    jax.tree.map(np.testing.assert_array_equal, out.cache["prefix"], prefix)


def test_packed_segments_are_separate_rows():
    segments = jnp.array([[0, 0, 0, 1, 1, 1, 1, 2, 2]])
    tokens = random_tokens(CONFIG, (1, 9))

    def packed(params):
        return HIDDEN(params, tokens, segments=segments).hidden[0]

    def apart(params):
        parts = [HIDDEN(params, tokens[:, i:j]) for i, j in ((0, 3), (3, 7), (7, 9))]
        return jnp.concatenate([part.hidden[0] for part in parts])

    weights = jnp.sin(jnp.arange(9 * CONFIG.hidden_size)).reshape(9, -1)

    def loss(params, hidden_of):
        hidden = hidden_of(params)
        return jnp.sum(hidden * weights), hidden

    one, other = (
        jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(PARAMS, f)
        for f in (packed, apart)
    )
    assert_close(one[0], other[0], rel=GRADIENTS)
    assert_close(one[1], other[1], rel=VALUES)


def test_hidden_states_and_head_make_the_logits():
    assert isinstance(HIDDEN, HiddenFn)
    for name in ("qwen3", "llama"):
        config = CONFIGS[name]
        params, tokens = random_params(config), random_tokens(config, (2, 5))
        hidden_fn = functional.make_hidden(config)

        @jax.jit
        def logits_of(params, hidden_fn=hidden_fn, tokens=tokens):
            out = hidden_fn(params, tokens, logits_from=2)
            return out.hidden @ out.head.T

        logits = jitted(config)(params, tokens, logits_from=2).logits
        assert_close(logits_of(params), logits, rel=VALUES)


def test_rematerialisation_costs_work_and_changes_nothing():
    def compiled(remat):
        hidden_fn = functional.make_hidden(CONFIG, remat=remat)

        def loss(params):
            return jnp.sum(jnp.sin(hidden_fn(params, WHOLE, mask=WHOLE_MASK).hidden))

        return jax.jit(jax.grad(loss)).lower(PARAMS).compile()

    programs = {remat: compiled(remat) for remat in ("none", "products", "block")}
    expected = programs["none"](PARAMS)
    work = []
    for program in programs.values():
        assert_close(program(PARAMS), expected, rel=GRADIENTS)
        work.append(program.cost_analysis()["flops"])
    assert work[0] < work[1] < work[2]


@pytest.mark.parametrize(
    ("name", "remat"), [("qwen3", "none"), ("gemma3", "block"), ("gpt2", "products")]
)
def test_scanned_layers_are_the_layers(name, remat):
    """Values and gradients, behind a shared prefix, with windows in some layers."""
    config = (CONFIGS | FAMILIES)[name]

    def compiled(**options):
        hidden_fn = functional.make_hidden(config, **options)

        def loss(params):
            out = hidden_fn(params, PROMPTS, mask=PROMPT_MASK, cache_length=P)
            rest = hidden_fn(params, TOKENS, mask=MASK, prefix=out.cache).hidden
            return jnp.sum(jnp.where(MASK[..., None], jnp.sin(rest), 0))

        return jax.jit(jax.value_and_grad(loss))(random_params(config))

    assert_close(compiled(scan=True, remat=remat), compiled(), rel=GRADIENTS)


def test_a_scan_compiles_one_layer():
    def size(layers, scan):
        config = dataclasses.replace(CONFIG, num_layers=layers)
        hidden_fn = functional.make_hidden(config, scan=scan)
        lowered = jax.jit(hidden_fn).lower(functional.shapes(config), TOKENS)
        return lowered.as_text().count("dot_general")

    assert size(4, scan=True) == size(2, scan=True) < size(4, scan=False)


def prefix_of():
    return jitted(CONFIG)(PARAMS, PROMPTS, mask=PROMPT_MASK, cache_length=P).cache


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[pytest.mark.slow] * (n != "gemma2")) for n in FAMILIES],
)
def test_each_family_shares_prefixes_and_decodes(name):
    """Windows reach into the prefix, by the number of real tokens between."""
    config = FAMILIES[name]
    apply_fn, params = jitted(config), random_params(config)
    expected = apply_fn(params, WHOLE, mask=WHOLE_MASK, logits_from=P).logits
    prefix = apply_fn(params, PROMPTS, mask=PROMPT_MASK, cache_length=P).cache
    at_once = apply_fn(params, TOKENS, mask=MASK, prefix=prefix).logits
    assert_close(at_once[MASK], expected[MASK], rel=VALUES)
    part = {"mask": MASK[:, :2], "prefix": prefix, "cache_length": S}
    out = apply_fn(params, TOKENS[:, :2], **part)
    rest = apply_fn(params, TOKENS[:, 2:], mask=MASK[:, 2:], cache=out.cache)
    steps = np.concatenate([out.logits, rest.logits], axis=1)
    assert_close(steps[MASK], expected[MASK], rel=VALUES)
    hidden = functional.make_hidden(config)(params, WHOLE, mask=WHOLE_MASK)
    logits = hidden.hidden[:, P:] @ hidden.head.T
    if hidden.soft_cap is not None:
        logits = hidden.soft_cap * np.tanh(logits / hidden.soft_cap)
    assert_close(logits[MASK], expected[MASK], rel=VALUES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda: {"prefix": prefix_of(), "cache": prefix_of()}, "only one of"),
        (lambda: {"prefix": prefix_of(), "cache_length": 13}, "max_length of 16"),
        (lambda: {"prefix": nested()}, "without a prefix of its own"),
        (lambda: {"prefix": wide()}, "as many rows for each of the prefix's 4"),
    ],
)
def test_refused(options, message):
    with pytest.raises(InputError, match=message):
        APPLY(PARAMS, TOKENS, **options())


def nested():
    return jitted(CONFIG)(PARAMS, TOKENS, prefix=prefix_of(), cache_length=S).cache


def wide():
    return jitted(CONFIG)(
        PARAMS, random_tokens(CONFIG, (4, P)), mask=None, cache_length=P
    ).cache


def test_refused_words_and_segments():
    with pytest.raises(InputError, match=r"remat must be one of .* got 'all'"):
        functional.make_hidden(CONFIG, remat="all")
    with pytest.raises(InputError, match="cache_length must be None"):
        HIDDEN(PARAMS, TOKENS, segments=jnp.zeros_like(TOKENS), cache_length=S)
