"""Losses of language models: in enumerated worlds their expected gradients are those
of the game; formulas of papers and peers on shared arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import exact, games, logprobs
from alignax.types import InputError
from tests.games.cases import GRPS, REF3, game, x64

V, T, EOS = 3, 3, 2
TOKENS, MASK = exact.enumerate_completions(V, T, eos_id=EOS)
N = len(TOKENS)
APPLY = exact.make_tabular_apply(vocab_size=V, horizon=T)
PROMPT = jnp.zeros(1, jnp.int32)


def judge(a, b):
    """A preference over completions that no reward explains."""
    letters = [jnp.sum(jnp.where(x[1], x[0], 0) + x[1]) % 3 for x in (a, b)]
    return 0.5 + 0.4 * jnp.sin(2 * jnp.pi * (letters[0] - letters[1]) / 3)


def world(seed):
    keys = jax.random.split(jax.random.key(seed), 2)
    policy, ref = (
        exact.tabular_init(k, prompts=1, vocab_size=V, horizon=T) for k in keys
    )
    ref = exact.completion_logp(APPLY, ref, PROMPT, TOKENS, MASK)
    return policy, ref


def token_logp(params):
    """``[N, T]``, zero where masked, of every completion."""
    prompts = jnp.broadcast_to(PROMPT, (N, 1))
    whole = jnp.concatenate([prompts, TOKENS], axis=1)
    logits = APPLY(params, whole[:, :-1]).logits
    return jnp.where(MASK, logprobs.token_logp(logits, TOKENS), 0)


POLICY, _ = world(0)
REFERENCE = exact.tabular_init(jax.random.key(9), prompts=1, vocab_size=V, horizon=T)
BETA = 0.3
PREFERENCE = games.preference_matrix(judge, (TOKENS, MASK))


def total(params):
    return jnp.sum(token_logp(params), axis=-1)


def expected_gradient(token_loss):
    """``Σ_y sg π(y) Σ_t ∇ loss_t(y)``: what sampling estimates."""

    def loss(params):
        logp = token_logp(params)
        weights = jax.lax.stop_gradient(jnp.exp(jnp.sum(logp, axis=-1)))
        return jnp.sum(weights * jnp.sum(token_loss(logp), axis=-1))

    return jax.jit(jax.grad(loss))(POLICY)["logits"]


def game_of_sequences(anchors=()):
    """``−∇[P(π ≻ π') − β KL(π‖ρ) − Σ c KL(π‖anchor)]`` by autodiff of the sums."""

    def value(params, opponent):
        logp, logp_ref = total(params), total(REFERENCE)
        gain = games.policy_preference(PREFERENCE, logp, opponent)
        cost = BETA * exact.kl(logp, logp_ref)
        for anchor, strength in anchors:
            cost = cost + strength * exact.kl(logp, total(anchor))
        return cost - gain

    return jax.jit(jax.grad(value))


def opponents():
    """Self-play, the token-level mixture, the reference, another policy."""
    mixed = games.mixture_policy(APPLY, APPLY, mixture=0.4)
    other = jax.tree.map(lambda x, y: 0.9 * x + 0.1 * y, POLICY, REFERENCE)
    return {
        "self": total(POLICY),
        "mixture": exact.completion_logp(
            mixed, (POLICY, REFERENCE), PROMPT, TOKENS, MASK
        ),
        "reference": total(REFERENCE),
        "average": total(other),
    }


@pytest.mark.parametrize("name", ["self", "mixture", "reference", "average"])
def test_nash_pg_is_the_gradient_of_the_regularised_preference(name):
    """Munos et al.: Nash-MD-PG and Nash-EMA-PG, expectation over all completions;
    the opponent is held fixed, the KL is the sequences'."""
    opponent = opponents()[name]
    wins = games.win_rate(PREFERENCE, opponent)
    found = expected_gradient(
        lambda logp: games.nash_pg_surrogate(
            logp, token_logp(REFERENCE), wins, MASK, beta=BETA
        )
    )
    expected = game_of_sequences()(POLICY, opponent)["logits"]
    np.testing.assert_allclose(found, expected, atol=3e-7)
    assert np.abs(expected).max() > 0.01


def test_the_token_local_form_is_another_gradient():
    """TRL's: right for the preference, and for the KL of the last tokens alone."""
    wins = games.win_rate(PREFERENCE, total(POLICY))

    def of(surrogate, beta):
        return expected_gradient(
            lambda logp: surrogate(logp, token_logp(REFERENCE), wins, MASK, beta=beta)
        )

    whole, myopic = games.nash_pg_surrogate, games.nash_pg_myopic_surrogate
    np.testing.assert_allclose(of(whole, 0.0), of(myopic, 0.0), atol=1e-7)
    difference = np.abs(of(whole, BETA) - of(myopic, BETA))[0]
    assert difference[0].max() > 0.01  # the first token's law
    assert difference[1 + V :].max() < 1e-6  # the last tokens' laws


def test_nash_mp_adds_the_kl_to_its_anchor():
    shift = 0.3 * jax.random.normal(jax.random.key(4), POLICY["logits"].shape)
    anchor = {"logits": POLICY["logits"] + shift}
    wins = games.win_rate(PREFERENCE, total(anchor))
    found = expected_gradient(
        lambda logp: games.nash_mp_surrogate(
            logp,
            token_logp(REFERENCE),
            token_logp(anchor),
            wins,
            MASK,
            beta=BETA,
            eta=2.0,
        )
    )
    expected = game_of_sequences([(anchor, 0.5)])(POLICY, total(anchor))["logits"]
    np.testing.assert_allclose(found, expected, atol=3e-7)


def pair_gradient(params, sampler, loss):
    """Expected gradient of a loss over pairs ``y, y' ~ sampler``, held fixed."""

    def expected(params):
        logp, ref = total(params), total(REFERENCE)
        logp_a, ref_a = (jnp.repeat(x, N) for x in (logp, ref))
        logp_b, ref_b = (jnp.tile(x, N) for x in (logp, ref))
        weights = jnp.exp(jnp.repeat(sampler, N) + jnp.tile(sampler, N))
        values = loss(logp_a, logp_b, ref_a, ref_b, PREFERENCE.reshape(-1))
        return jnp.sum(jax.lax.stop_gradient(weights) * values)

    return jax.jit(jax.grad(expected))(params)["logits"]


@pytest.mark.parametrize("name", ["self", "mixture", "reference"])
def test_ipo_md_is_a_multiple_of_the_game_s_gradient_with_its_baseline(name):
    """Calandriello et al., propositions 4.2 and 5.1: ``−(4/β) E_ν[∇log π f]`` with
    ``f = P(y≻ν) − ½ − β(l − E_ν l)``. The proposition drops ``E_ν l``, which is no
    identity unless ν = π: then it is ``−(4/β) ∇P_β``."""
    sampler = opponents()[name]
    loss = functools.partial(games.online_ipo_loss, beta=BETA)
    found = pair_gradient(POLICY, sampler, loss)
    nu = jnp.exp(sampler)

    def weighted(params, baseline):
        l = total(POLICY) - total(REFERENCE)
        force = games.win_rate(PREFERENCE, sampler) - 0.5
        force = force - BETA * (l - baseline * jnp.sum(nu * l))
        return -4 / BETA * jnp.sum(nu * force * total(params))

    gradient = jax.jit(jax.grad(weighted))
    restored = gradient(POLICY, 1.0)["logits"]
    dropped = gradient(POLICY, 0.0)["logits"]
    np.testing.assert_allclose(found, restored, atol=2e-5)
    if name == "self":
        np.testing.assert_allclose(found, dropped, atol=2e-5)
        whole = game_of_sequences()(POLICY, sampler)["logits"]
        np.testing.assert_allclose(found, 4 / BETA * whole, atol=2e-5)
    else:
        assert np.abs(found - dropped).max() > 0.05


@pytest.mark.parametrize(
    ("mixture", "expected"),
    [
        (0.0, [0.00908186342, 0.001751879456, -0.010833742876]),
        (0.5, [-0.005213195670, 0.0000744307838, 0.005138764886]),
    ],
)
def test_nash_md_pg_gradient_of_the_reference(mixture, expected):
    """GRPS, ρ = (.2, .5, .3), β = .1, θ = (.3, −.2, .5): the reference's numbers."""
    with x64():
        played = game(GRPS, REF3, 0.1)
        theta = jnp.array([0.3, -0.2, 0.5])

        def gain(theta):
            logp = jax.nn.log_softmax(theta)
            mixed = games.geometric_mixture(logp, played.logp_ref, mixture=mixture)
            opponent = jax.lax.stop_gradient(mixed)
            return games.regularised_preference(played, logp, opponent)

        found = jax.grad(gain)(theta)
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_inpo_loss_is_minimised_by_its_step():
    """Zhang et al.: no gradient at ``π_{t+1}``; at π_t = ρ it is IPO of β = η."""
    with x64():
        prev, ref = jnp.log(jnp.array([0.5, 0.3, 0.2])), jnp.log(jnp.asarray(REF3))
        played = game(GRPS, REF3, 0.1)
        after = games.run_solver(
            games.mirror_descent(eta=1 / 0.4), played, prev, steps=1
        )[0].logp

        def expected(logits):
            def pairs(x):
                return jnp.repeat(x, 3), jnp.tile(x, 3)

            logp = pairs(jax.nn.log_softmax(logits))
            args = (*logp, *pairs(ref), *pairs(prev))
            swapped = (logp[1], logp[0], *pairs(ref)[::-1], *pairs(prev)[::-1])
            p = jnp.asarray(GRPS).reshape(-1)
            loss = p * games.inpo_loss(*args, eta=0.4, beta=0.1)
            loss += (1 - p) * games.inpo_loss(*swapped, eta=0.4, beta=0.1)
            return jnp.sum(jnp.exp(sum(pairs(prev))) * loss)

        np.testing.assert_allclose(jax.grad(expected)(after), 0, atol=1e-13)
        w, l = jnp.array([-1.0, -2.0]), jnp.array([-1.5, -0.5])
        zero, ones = jnp.zeros(2), jnp.ones(2)
        first = games.inpo_loss(w, l, zero, zero, zero, zero, eta=0.4, beta=0.1)
        ipo = games.online_ipo_loss(w, l, zero, zero, ones, beta=0.4)
        np.testing.assert_allclose(first, ipo, rtol=1e-13)


# The reference's pairs: h = (1.5, −2, 1.25, 4), with the prev of its INPO row.
FIXTURE = {
    "w": np.array([-10.0, -20.0, -5.5, -30.0]),
    "l": np.array([-12.0, -18.0, -6.0, -33.0]),
    "rw": np.array([-11.0, -19.0, -6.0, -31.0]),
    "rl": np.array([-11.5, -19.0, -5.25, -30.0]),
}


def test_squared_losses_by_hand():
    """SPPO (Wu et al.), soft and hard; online IPO with labels; gradients of only
    ``logp``."""
    w, l, rw, rl = map(jnp.float32, FIXTURE.values())
    lr = FIXTURE["w"] - FIXTURE["rw"]
    soft = games.sppo_loss(w, rw, jnp.full(4, 0.8), eta=10.0)
    np.testing.assert_allclose(soft, (lr - 3.0) ** 2, rtol=1e-5)
    hard = games.sppo_loss(w, rw, jnp.ones(4), eta=10.0)
    np.testing.assert_allclose(hard, (lr - 5.0) ** 2, rtol=1e-5)
    h = lr - (FIXTURE["l"] - FIXTURE["rl"])
    ipo = games.online_ipo_loss(w, l, rw, rl, jnp.ones(4), beta=0.1)
    np.testing.assert_allclose(ipo, (h - 5.0) ** 2, rtol=1e-5)
    mixed = games.online_ipo_loss(w, l, rw, rl, jnp.full(4, 0.7), beta=0.1)
    np.testing.assert_allclose(mixed, h**2 - 0.4 * 10 / 2 * 2 * h + 25, rtol=1e-4)
    for number in (2, 3, 4):
        gradient = jax.grad(
            lambda *args: games.online_ipo_loss(*args, beta=0.1).sum(), argnums=number
        )(w, l, rw, rl, jnp.full(4, 0.7))
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parity
def test_trl_nash_md_is_the_token_local_form():
    """TRL's ``NashMDTrainer``: ``β Σ_t sg(l_t) log π_t − (P − ½) Σ_t log π_t``, the
    mean over rows, written in torch from its description."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    mask = np.arange(6)[None] < np.array([6, 3, 1, 4])[:, None]
    logp, ref = (np.where(mask, -rng.exponential(size=(4, 6)), 0) for _ in range(2))
    wins = rng.random(4)
    x = torch.tensor(logp, requires_grad=True)
    ratio = (x - torch.tensor(ref)).detach()
    score = (torch.tensor(wins) - 0.5) * x.sum(1)
    (0.1 * (ratio * x).sum(1) - score).mean().backward()

    def loss(logp):
        tokens = games.nash_pg_myopic_surrogate(
            logp, jnp.float32(ref), jnp.float32(wins), jnp.asarray(mask), beta=0.1
        )
        return jnp.sum(tokens) / 4

    found = jax.grad(loss)(jnp.float32(logp))
    np.testing.assert_allclose(found, np.where(mask, x.grad, 0), atol=1e-6)


@pytest.mark.parity
def test_trl_xpo_loss():
    """TRL's ``XPOTrainer``: DPO on the chosen of a policy and a reference completion,
    plus ``α log π`` of the reference's, whoever won."""
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    own, other, own_ref, other_ref = -5 * rng.random((4, 8))
    wins = rng.random(8) < 0.5
    a, b = (torch.tensor(x, requires_grad=True) for x in (own, other))
    won = torch.tensor(wins)
    lr_a, lr_b = a - torch.tensor(own_ref), b - torch.tensor(other_ref)
    chosen, rejected = torch.where(won, lr_a, lr_b), torch.where(won, lr_b, lr_a)
    dpo = -torch.nn.functional.logsigmoid(0.3 * (chosen - rejected))
    peer = dpo + 0.02 * b
    peer.sum().backward()

    def loss(a, b):
        return games.xpo_loss(
            a,
            b,
            jnp.float32(own_ref),
            jnp.float32(other_ref),
            jnp.float32(wins),
            beta=0.3,
            alpha=0.02,
        )

    args = jnp.float32(own), jnp.float32(other)
    np.testing.assert_allclose(loss(*args), peer.detach(), atol=1e-5)
    found = jax.grad(lambda *x: loss(*x).sum(), argnums=(0, 1))(*args)
    np.testing.assert_allclose(found[0], a.grad, atol=1e-6)
    np.testing.assert_allclose(found[1], b.grad, atol=1e-6)


def test_xpo_by_hand():
    """Xie et al.: ``−log σ(βh) + α log π(y')``."""
    w, l, rw, rl = map(jnp.float32, FIXTURE.values())
    h = (FIXTURE["w"] - FIXTURE["rw"]) - (FIXTURE["l"] - FIXTURE["rl"])
    found = games.xpo_loss(w, l, rw, rl, jnp.ones(4), beta=0.1, alpha=0.01)
    expected = np.log1p(np.exp(-0.1 * h)) + 0.01 * FIXTURE["l"]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    lost = games.xpo_loss(w, l, rw, rl, jnp.zeros(4), beta=0.1, alpha=0.0)
    np.testing.assert_allclose(lost, np.log1p(np.exp(0.1 * h)), rtol=1e-5)


@pytest.mark.parametrize(
    ("loss", "count", "options", "message"),
    [
        (games.online_ipo_loss, 5, {"beta": 0.0}, "beta must be positive"),
        (games.inpo_loss, 6, {"eta": 0.0, "beta": 0.0}, "eta must be positive"),
        (games.inpo_loss, 6, {"eta": 0.1, "beta": 0.2}, "beta must be in"),
        (games.sppo_loss, 3, {"eta": -1.0}, "eta must be positive"),
        (games.xpo_loss, 5, {"beta": 0.1, "alpha": -1.0}, "alpha must be at least 0"),
    ],
)
def test_bad_strengths_are_named(loss, count, options, message):
    with pytest.raises(InputError, match=message):
        loss(*[jnp.zeros(1)] * count, **options)
