"""Log-probabilities from hidden states: the plain form's numbers, in little memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from alignax import divergences, logprobs, sampling
from alignax.pipeline import sharding
from alignax.types import InputError

N, D, E, V = 7, 6, 5, 53
RNG = np.random.default_rng(0)
HIDDEN, HEAD, HIDDEN_REF, HEAD_REF = (
    jnp.asarray(RNG.standard_normal(shape), jnp.float32)
    for shape in ((N, D), (V, D), (N, E), (V, E))
)
TOKENS = jnp.asarray(RNG.integers(0, V, (N, 2)))
WEIGHTS = jnp.asarray(RNG.standard_normal((5, N)), jnp.float32)
# Laws as a sampler leaves them: rows of several temperatures, and supports that hold
# the taken tokens; of the last row nothing was taken down.
TEMPERATURES = jnp.asarray(RNG.uniform(0.5, 2, N), jnp.float32)
KEPT = RNG.random((N, V)) < 0.3
np.put_along_axis(KEPT, np.asarray(TOKENS), True, axis=1)
SUPPORT = sampling.support_bits(jnp.where(KEPT, 0.0, -jnp.inf)).at[-1].set(0)
LAWS = {
    "plain": {},
    "capped": {"temperature": 0.7, "soft_cap": 3.0},
    "truncated": {"support": SUPPORT},
    "all": {"temperature": TEMPERATURES, "support": SUPPORT, "soft_cap": 3.0},
}


def logits(hidden, head, *, temperature=1.0, soft_cap=None):
    z = jnp.einsum("nd,vd->nv", hidden, head, preferred_element_type=jnp.float32)
    if soft_cap is not None:
        z = soft_cap * jnp.tanh(z / soft_cap)
    return z / jnp.reshape(temperature, (-1, 1))


def kept_logits(z, support):
    kept = jnp.ones_like(KEPT) if support is None else jnp.asarray(KEPT)
    return jnp.where(kept.at[-1].set(True), z, -jnp.inf)


def weighted(stats):
    """A number to which every output adds."""
    logp = jnp.einsum("kn,nk->", WEIGHTS[:2], stats.logp)
    others = (stats.entropy, stats.log_normaliser, stats.log_mass)
    return logp + sum(w @ x for w, x in zip(WEIGHTS[2:], others, strict=True))


def plain(hidden, head, tokens=TOKENS, *, support=None, **options):
    whole = logits(hidden, head, **options)
    z = kept_logits(whole, support)
    logp = jnp.take_along_axis(logprobs.log_softmax(z), tokens, axis=-1)
    lse, lse_whole = (jax.nn.logsumexp(x, axis=-1) for x in (z, whole))
    return weighted(
        logprobs.TokenStats(logp, logprobs.entropy(z), lse, lse - lse_whole)
    )


def ours(hidden, head, tokens=TOKENS, **options):
    return weighted(logprobs.from_hidden(hidden, head, tokens, **options))


def both(function, *args):
    return jax.jit(jax.value_and_grad(function, argnums=(0, 1)))(*args)


def check(found, expected, tolerance=2e-5):
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance * (1 + np.abs(y).max()))


@pytest.mark.parametrize(
    ("law", "block_size"),
    [(law, size) for law in ("plain", "all") for size in (None, 53, 100, 10, 1)]
    + [("capped", 10), ("truncated", 10)],
)
def test_equal_to_the_plain_form(block_size, law):
    """Block sizes that divide the vocabulary, do not, or exceed it."""
    options = LAWS[law]
    found = both(
        functools.partial(ours, block_size=block_size, **options), HIDDEN, HEAD
    )
    check(found, both(functools.partial(plain, **options), HIDDEN, HEAD))


def test_against_finite_differences():
    with jax.enable_x64(True):
        args = [x.astype(jnp.float64)[:3] for x in (HIDDEN, HEAD)]
        tokens = TOKENS[:3] % 3

        def logp(hidden, head):
            hidden, head = jnp.asarray(hidden), jnp.asarray(head)
            return logprobs.from_hidden(hidden, head, tokens, block_size=2).logp

        # Its numbers are float32's.
        check_grads(logp, args, order=1, modes=["rev"], rtol=2e-2, atol=2e-2, eps=1e-2)


def test_shapes_follow_the_tokens():
    one = logprobs.from_hidden(HIDDEN, HEAD, TOKENS[:, 0])
    two = logprobs.from_hidden(HIDDEN, HEAD, TOKENS)
    assert one.logp.shape == one.entropy.shape == (N,)
    np.testing.assert_array_equal(one.logp, two.logp[:, 0])
    empty = logprobs.from_hidden(HIDDEN[:0], HEAD, TOKENS[:0])
    assert empty.logp.shape == (0, 2)


def test_far_logits_stay_finite():
    """One token has all the mass; others are hundreds of nats below."""
    (value, grads) = both(ours, 300 * HIDDEN, HEAD)
    assert np.isfinite(value)
    assert all(np.isfinite(x).all() for x in grads)
    check((value, grads), both(plain, 300 * HIDDEN, HEAD), 1e-4)


def test_bfloat16_keeps_float32_results():
    args = [x.astype(jnp.bfloat16) for x in (HIDDEN, HEAD)]
    value, grads = both(functools.partial(ours, block_size=10), *args)
    expected, wide = both(plain, *(x.astype(jnp.float32) for x in args))
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    for x, y in zip(grads, wide, strict=True):
        assert x.dtype == jnp.bfloat16
        np.testing.assert_allclose(
            x.astype(jnp.float32), y, atol=0.02 * np.abs(y).max()
        )


CATALOGUE = {
    "reverse_kl": divergences.reverse_kl(),
    "forward_kl": divergences.forward_kl(),
    "jensen_shannon": divergences.jensen_shannon(0.3),
    "alpha": divergences.alpha(0.5),
    "pearson": divergences.pearson(),
    "neyman": divergences.neyman(),
    "squared_hellinger": divergences.squared_hellinger(),
    "jeffreys": divergences.jeffreys(),
    "chi2_kl": divergences.chi2_kl(),
    "total_variation": divergences.total_variation(),
}


QUICK = {"reverse_kl", "jensen_shannon"}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK))
        for name in CATALOGUE
    ],
)
def test_divergences_equal_the_plain_form(name):
    """A reference of another width; blocks that overlap."""
    check_divergence(CATALOGUE[name], {"temperature": 1.5})


@pytest.mark.parametrize("name", ["reverse_kl", "jensen_shannon"])
def test_divergences_of_a_truncated_policy(name):
    """The reference is whole, at the rows' temperatures."""
    check_divergence(CATALOGUE[name], LAWS["all"])


def check_divergence(div, options):
    support = options.get("support")
    whole = {k: x for k, x in options.items() if k == "temperature"}
    capped = {k: x for k, x in options.items() if k != "support"}
    z_ref = logits(HIDDEN_REF, HEAD_REF, **whole)

    def expected(hidden, head):
        z = kept_logits(logits(hidden, head, **capped), support)
        return WEIGHTS[0] @ divergences.exact(div, z, z_ref)

    def found(hidden, head):
        return WEIGHTS[0] @ logprobs.divergence_from_hidden(
            div, hidden, head, HIDDEN_REF, HEAD_REF, block_size=10, **options
        )

    check(both(found, HIDDEN, HEAD), both(expected, HIDDEN, HEAD))


def test_the_reference_is_held_fixed():
    def total(hidden_ref, head_ref):
        return logprobs.divergence_from_hidden(
            divergences.reverse_kl(), HIDDEN, HEAD, hidden_ref, head_ref
        ).sum()

    value, grads = both(total, HIDDEN_REF, HEAD_REF)
    assert value > 0
    assert all((x == 0).all() for x in grads)


def test_top_k_of_a_teacher():
    """Log-probabilities at chosen tokens: all that a top-k loss needs."""
    z_ref = logits(HIDDEN_REF, HEAD_REF)
    _, top = jax.lax.top_k(z_ref, 3)
    stats = logprobs.from_hidden(HIDDEN, HEAD, top, block_size=10)
    stats_ref = logprobs.from_hidden(HIDDEN_REF, HEAD_REF, top, block_size=10)
    expected = jnp.take_along_axis(jax.nn.log_softmax(logits(HIDDEN, HEAD)), top, -1)
    np.testing.assert_allclose(stats.logp, expected, atol=1e-5)
    assert (jnp.diff(stats_ref.logp, axis=-1) <= 0).all()


@pytest.fixture(scope="module")
def mesh():
    return sharding.make_mesh(fsdp=1, tensor=8)


def test_sharded_over_the_vocabulary(mesh):
    """Each of eight devices holds 7 rows of the heads; all get the results."""
    head, head_ref = (jnp.resize(x, (56, x.shape[1])) for x in (HEAD, HEAD_REF))
    kl = divergences.forward_kl()

    # 56 tokens in as many bytes as 53.
    law = LAWS["all"]

    def local(hidden, head, hidden_ref, head_ref, axis_name=None):
        options = law | {"axis_name": axis_name, "block_size": 3}
        stats = logprobs.from_hidden(hidden, head, TOKENS, **options)
        distance = logprobs.divergence_from_hidden(
            kl, hidden, head, hidden_ref, head_ref, **options
        )
        return weighted(stats) + WEIGHTS[0] @ distance

    spec = (P(), P("tensor"), P(), P("tensor"))
    sharded = jax.shard_map(
        functools.partial(local, axis_name="tensor"),
        mesh=mesh,
        in_specs=spec,
        out_specs=P(),
    )
    args = (HIDDEN, head, HIDDEN_REF, head_ref)
    expected = both(local, *args)
    check(both(sharded, *args), expected)
    # And by the compiler alone.
    placed = [
        jax.device_put(x, NamedSharding(mesh, s))
        for x, s in zip(args, spec, strict=True)
    ]
    check(both(local, *placed), expected)


def compiled_at(function, rows=2048, width=1024, vocabulary=151_936, truncated=False):
    shapes = [((rows, width), jnp.float32), ((vocabulary, width), jnp.float32)]
    args = [jax.ShapeDtypeStruct(*x) for x in (*shapes, ((rows,), jnp.int32))]
    if truncated:
        args.append(jax.ShapeDtypeStruct((rows, -(-vocabulary // 8)), jnp.uint8))
        args.append(jax.ShapeDtypeStruct((rows,), jnp.float32))
    compiled = jax.jit(jax.grad(function, argnums=(0, 1))).lower(*args).compile()
    size = rows * vocabulary * 4
    least = 6 * rows * width * vocabulary
    memory = compiled.memory_analysis().temp_size_in_bytes / size
    return memory, compiled.cost_analysis()["flops"] / least


def total_logp(hidden, head, tokens, **options):
    stats = logprobs.from_hidden(hidden, head, tokens, **options)
    return jnp.sum(stats.logp) + jnp.sum(stats.entropy)


def test_memory_and_work_of_the_gradient():
    """At Qwen's vocabulary: a fifth of one array of logits at most, and 1.35 of the
    three products' work (nothing is run)."""
    memory, once = compiled_at(total_logp)
    assert memory <= 0.2
    # A loop's body is counted once; here it is run 19 times.
    block, steps = 8000, 19
    assert -(-151_936 // block) == steps
    assert 1.3 <= once * steps <= 1.35
    # That the count is of one block: a vocabulary of three has the same.
    blocks = functools.partial(total_logp, block_size=block)
    _, few = compiled_at(blocks, vocabulary=3 * block)
    np.testing.assert_allclose(once * 151_936, few * 3 * block, rtol=0.05)
    plain_memory, plain_work = compiled_at(
        lambda h, w, t: jnp.sum(logprobs.token_logp(h @ w.T, t))
    )
    assert plain_memory > 1.9
    assert plain_work == pytest.approx(1, abs=0.01)


def test_memory_and_work_of_a_truncated_law():
    """Its bits are spread out for a block at a time."""

    def total(hidden, head, tokens, support, temperature):
        options = {"support": support, "temperature": temperature}
        stats = logprobs.from_hidden(hidden, head, tokens, **options)
        return jnp.sum(stats.logp + stats.entropy + stats.log_mass)

    memory, once = compiled_at(total, truncated=True)
    assert memory <= 0.25
    assert 1.3 <= once * 19 <= 1.4


def test_bad_input():
    bits = SUPPORT[:, 1:]
    for options in (
        {"temperature": 0.0},
        {"soft_cap": -1.0},
        {"block_size": 0},
        {"support": bits},
    ):
        (name,) = options
        with pytest.raises(InputError, match=name):
            logprobs.from_hidden(HIDDEN, HEAD, TOKENS, **options)
    with pytest.raises(InputError, match="head_ref must have head's 53 rows, got 52"):
        logprobs.divergence_from_hidden(
            divergences.reverse_kl(), HIDDEN, HEAD, HIDDEN_REF, HEAD_REF[:-1]
        )


def test_head_and_rows_both_sharded():
    """Under shard_map's own checks, rows over two devices and the head over four."""
    mesh = sharding.make_mesh(fsdp=2, tensor=4)
    rows = len(HIDDEN) // 2 * 2
    hidden, hidden_ref, tokens = HIDDEN[:rows], HIDDEN_REF[:rows], TOKENS[:rows]
    head, head_ref = (jnp.resize(x, (56, x.shape[1])) for x in (HEAD, HEAD_REF))

    def local(hidden, head, hidden_ref, head_ref, tokens, axis_name=None):
        options = {"axis_name": axis_name, "block_size": 3}
        stats = logprobs.from_hidden(hidden, head, tokens, **options)
        distance = logprobs.divergence_from_hidden(
            divergences.forward_kl(), hidden, head, hidden_ref, head_ref, **options
        )
        return jnp.sum(stats.logp, axis=range(1, tokens.ndim)) + distance

    data = P("fsdp")
    sharded = jax.shard_map(
        functools.partial(local, axis_name="tensor"),
        mesh=mesh,
        in_specs=(data, P("tensor"), data, P("tensor"), data),
        out_specs=data,
    )
    args = (hidden, head, hidden_ref, head_ref, tokens)
    check(
        both(lambda *x: sharded(*x).sum(), *args),
        both(lambda *x: local(*x).sum(), *args),
    )


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.slow
def test_no_gradient_where_the_heads_would_be_a_share(mesh, inside):
    """With check_vma=False, differentiated from outside, it would be an eighth."""
    head = jnp.resize(HEAD, (56, HEAD.shape[1]))

    def local(head):
        stats = logprobs.from_hidden(HIDDEN, head, TOKENS, axis_name="tensor")
        kl = divergences.forward_kl()
        distance = logprobs.divergence_from_hidden(
            kl, HIDDEN, head, HIDDEN, head, axis_name="tensor"
        )
        return stats.logp.sum() + distance.sum()

    function = jax.grad(local) if inside else local
    spec = P("tensor")
    sharded = (
        jax.shard_map(
            function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False
        )
        if inside
        else jax.shard_map(
            function, mesh=mesh, in_specs=spec, out_specs=P(), check_vma=False
        )
    )
    if not inside:
        expected = logprobs.from_hidden(HIDDEN, head, TOKENS).logp.sum()
        np.testing.assert_allclose(sharded(head), expected, rtol=1e-5)
        sharded = jax.grad(sharded)
    with pytest.raises(InputError, match="check_vma=True"):
        sharded(head)


def test_tokens_of_padding_are_finite():
    """Both forms alike: one outside counts as the nearest inside, under jit too."""
    tokens = jnp.array([-1, len(HEAD), 0, len(HEAD) - 1])
    hidden = HIDDEN[:1].repeat(4, axis=0)
    for wrap in (lambda f: f, jax.jit):
        found = wrap(logprobs.from_hidden)(hidden, HEAD, tokens).logp
        plain = wrap(logprobs.token_logp)(hidden @ HEAD.T, tokens)
        assert np.isfinite(found).all()
        np.testing.assert_array_equal(found[:2], found[2:])
        np.testing.assert_allclose(plain, found, atol=1e-5)


def test_from_hidden_in_float64():
    with jax.enable_x64(True):
        hidden, head = jnp.float64(HIDDEN), jnp.float64(HEAD)
        stats = logprobs.from_hidden(hidden, head, TOKENS, block_size=10)
        expected = jax.nn.log_softmax(hidden @ head.T)
        np.testing.assert_allclose(
            stats.log_normaliser,
            jax.nn.logsumexp(hidden @ head.T, axis=-1),
            rtol=1e-14,
        )
        assert stats.logp.dtype == expected.dtype == jnp.float64
