"""Values and gradients beside TRL's own GRPO loss, and beside verl's formulas.

TRL's ``GRPOTrainer._compute_loss`` itself is called, on a stand-in for the trainer
that only hands it the log-probabilities. verl is no dependency: its functions are
restated in torch from the reference notes (verl b178a3c, ``core_algos.py``).
"""

import collections
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import advantages, estimators, reduce, surrogates

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

B, T = 6, 5
RNG = np.random.default_rng(0)
OLD, REF, BEHAVIOUR = (
    -0.1 - RNG.exponential(size=(B, T)).astype(np.float32) for _ in range(3)
)
LOGP = OLD + 0.5 * RNG.normal(size=(B, T)).astype(np.float32)
ENTROPY = RNG.exponential(size=(B, T)).astype(np.float32)
A = RNG.normal(size=B).astype(np.float32)
MASK = np.arange(T)[None] < np.array([5, 4, 3, 2, 1, 5])[:, None]
SPREAD = np.repeat(A[:, None], T, axis=1)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch", reason="extra parity: torch is not installed")


@pytest.fixture(scope="module")
def trl_loss(torch):
    reason = "extra parity: trl is not installed"
    pytest.importorskip("trl", reason=reason)
    from trl.trainer.grpo_trainer import GRPOTrainer

    def loss(**options):
        """TRL's value, and its gradient in the log-probabilities."""
        logp = torch.tensor(LOGP, requires_grad=True)
        arguments = {
            "use_bias_correction_kl": False,
            "delta": None,
            "sapo_temperature_pos": 1.0,
            "sapo_temperature_neg": 1.05,
            "vespo_k_pos": 2.0,
            "vespo_lambda_pos": 3.0,
            "vespo_k_neg": 3.0,
            "vespo_lambda_neg": 2.0,
            "steps_per_generation": 1,
        }
        settings = {
            "aux_loss_enabled": False,
            "top_entropy_quantile": 1.0,
            "off_policy_mask_threshold": None,
            "importance_sampling_level": "token",
            "beta": 0.0,
            "loss_type": "grpo",
            "epsilon_low": 0.2,
            "epsilon_high": 0.2,
            "use_vllm": False,
            "vllm_importance_sampling_correction": True,
            "current_gradient_accumulation_steps": 1,
            "max_completion_length": 8,
            "_entropy_bonus_enabled": False,
        }
        inputs = {
            "prompt_ids": torch.zeros(B, 1),
            "prompt_mask": torch.ones(B, 1),
            "completion_ids": torch.zeros(B, T),
            "completion_mask": torch.tensor(MASK).float(),
            "advantages": torch.tensor(A),
            "old_per_token_logps": torch.tensor(OLD),
            "ref_per_token_logps": torch.tensor(REF),
            "sampling_per_token_logps": torch.tensor(BEHAVIOUR),
            "num_items_in_batch": torch.tensor(float(MASK.sum())),
        }
        for name, value in options.items():
            home = (
                inputs
                if name == "importance_sampling_ratio"
                else arguments
                if name in arguments
                else settings
            )
            home[name] = value
        accelerator = types.SimpleNamespace(
            num_processes=1,
            sync_gradients=False,
            gather=lambda x: x,
            gather_for_metrics=lambda x: x,
            reduce=lambda x, reduction: x,
        )
        trainer = types.SimpleNamespace(
            model=types.SimpleNamespace(training=True),
            args=types.SimpleNamespace(**arguments),
            accelerator=accelerator,
            _metrics={"train": collections.defaultdict(list)},
            _get_per_token_logps_and_entropies=lambda *a, **k: (
                logp,
                torch.tensor(ENTROPY),
                None,
            ),
            get_gamma_weights=GRPOTrainer.get_gamma_weights,
            get_off_policy_mask=GRPOTrainer.get_off_policy_mask,
            **settings,
        )
        value = GRPOTrainer._compute_loss(trainer, None, inputs)
        value.backward()
        return value.item(), logp.grad.numpy()

    return loss


def ours(loss, reduction):
    """Value and gradient; ``loss`` of token log-ratios and log-probabilities."""
    mask = jnp.asarray(MASK)

    def total(logp):
        ratios = reduce.log_ratio(logp, jnp.asarray(OLD), mask)
        return reduce.divide(*reduction(loss(ratios, logp), mask))

    return jax.value_and_grad(total)(jnp.asarray(LOGP))


def rule(function, **bound):
    return lambda ratios, logp: function(
        ratios, jnp.asarray(SPREAD), jnp.asarray(MASK), **bound
    )


def level(of, function, **bound):
    def loss(ratios, logp):
        reached = of(ratios, jnp.asarray(MASK))
        return function(reached, jnp.asarray(SPREAD), jnp.asarray(MASK), **bound)

    return loss


def own_score(of, function):
    def loss(ratios, logp):
        value = surrogates.token_gradient(of(ratios, jnp.asarray(MASK)), ratios)
        return function(value, jnp.asarray(SPREAD), jnp.asarray(MASK))

    return loss


def with_k3(ratios, logp):
    policy = rule(surrogates.ppo_surrogate)(ratios, logp)
    k3 = estimators.k3(logp, jnp.asarray(REF), jnp.asarray(MASK))
    return policy + 0.04 * k3


def truncated(ratios, logp):
    weights = estimators.token_weights(
        jnp.asarray(OLD), jnp.asarray(BEHAVIOUR), jnp.asarray(MASK)
    )
    capped = estimators.truncated_weights(weights, cap=2.0)
    return capped * rule(surrogates.ppo_surrogate)(ratios, logp)


def without_drifted(ratios, logp):
    gone = surrogates.off_policy_sequences(
        logp,
        jnp.asarray(BEHAVIOUR),
        jnp.asarray(SPREAD),
        jnp.asarray(MASK),
        threshold=0.2,
    )
    losses = rule(surrogates.ppo_surrogate)(ratios, logp)
    return jnp.where(gone[:, None], 0, losses)


def constant(values, mask):
    return reduce.constant_length_mean(values, mask, length=8)


PPO = rule(surrogates.ppo_surrogate)
GEOMETRIC = surrogates.geometric_log_ratio
GSPO = level(GEOMETRIC, surrogates.ppo_surrogate)
MEAN, TOKENS = reduce.sequence_mean_token_mean, reduce.token_mean
TIS = np.minimum(np.exp(OLD - BEHAVIOUR), 2)
# name: (TRL's options, ours, reduction, whether the values are the same number)
PAIRS = {
    "grpo": ({}, PPO, MEAN, True),
    "grpo + k3": ({"beta": 0.04}, with_k3, MEAN, True),
    "clip higher": (
        {"epsilon_high": 0.28},
        rule(surrogates.ppo_surrogate, clip_high=0.28),
        MEAN,
        True,
    ),
    "bnpo": ({"loss_type": "bnpo"}, PPO, TOKENS, True),
    "dapo": ({"loss_type": "dapo"}, PPO, TOKENS, True),
    "dr_grpo": ({"loss_type": "dr_grpo"}, PPO, constant, True),
    "delta": (
        {"delta": 1.5},
        rule(surrogates.dual_clip_surrogate, cap=1.5),
        MEAN,
        True,
    ),
    "gspo": ({"importance_sampling_level": "sequence"}, GSPO, MEAN, True),
    "luspo": (
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
        GSPO,
        reduce.sequence_mean_token_sum,
        True,
    ),
    # TRL's epsilon_high is the cap itself.
    "cispo": (
        {"loss_type": "cispo", "epsilon_high": 1.28},
        rule(surrogates.cispo_surrogate, clip_high=0.28),
        TOKENS,
        False,
    ),
    "sapo": ({"loss_type": "sapo"}, rule(surrogates.sapo_surrogate), MEAN, True),
    "vespo": (
        {"loss_type": "vespo"},
        own_score(surrogates.sequence_log_ratio, surrogates.vespo_surrogate),
        TOKENS,
        False,
    ),
    "tis": (
        {"loss_type": "dapo", "use_vllm": True, "importance_sampling_ratio": TIS},
        truncated,
        TOKENS,
        True,
    ),
    "opsm": ({"off_policy_mask_threshold": 0.2}, without_drifted, MEAN, True),
}


@pytest.mark.parametrize("name", PAIRS)
def test_losses_are_trls(torch, trl_loss, name):
    options, loss, reduction, same_value = PAIRS[name]
    options = {
        key: torch.tensor(value) if isinstance(value, np.ndarray) else value
        for key, value in options.items()
    }
    their_value, their_gradient = trl_loss(**options)
    value, gradient = ours(loss, reduction)
    np.testing.assert_allclose(gradient, their_gradient, rtol=2e-4, atol=1e-6)
    assert np.abs(gradient).sum() > 0
    if same_value:
        assert value == pytest.approx(their_value, rel=1e-4, abs=1e-6)


def test_overlong_penalty_is_trls():
    pytest.importorskip("trl", reason="extra parity: trl is not installed")
    from trl.rewards import get_soft_overlong_punishment

    lengths = [0, 79, 80, 81, 90, 99, 100, 101]
    theirs = get_soft_overlong_punishment(100, 20)([[0] * n for n in lengths])
    actual = advantages.overlong_penalty(jnp.array(lengths), max_length=100, buffer=20)
    np.testing.assert_allclose(actual, theirs, atol=1e-6)


def verl_policy_loss(torch, logp, old, a, mask, *, low=0.2, high=0.28, c=10.0):
    """``compute_policy_loss_vanilla`` at token mean."""
    ratio = torch.exp(torch.clamp(logp - old, -20, 20))
    first = torch.maximum(-a * ratio, -a * torch.clamp(ratio, 1 - low, 1 + high))
    second = torch.minimum(-a * c, first)
    return (torch.where(a < 0, second, first) * mask).sum() / mask.sum()


def verl_gae(rewards, values, mask, *, gamma, lam):
    """``compute_gae_advantage_return``, before whitening."""
    next_value, last, result = np.zeros(B), np.zeros(B), []
    for t in reversed(range(T)):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        now = delta + gamma * lam * last
        next_value = values[:, t] * mask[:, t] + (1 - mask[:, t]) * next_value
        last = now * mask[:, t] + (1 - mask[:, t]) * last
        result.append(last)
    return np.stack(result[::-1], axis=1)


def test_policy_loss_is_verls(torch):
    logp = torch.tensor(LOGP, requires_grad=True)
    tensors = [torch.tensor(x) for x in (OLD, SPREAD, MASK)]
    theirs = verl_policy_loss(torch, logp, *tensors)
    theirs.backward()
    value, gradient = ours(
        rule(surrogates.dual_clip_surrogate, clip_high=0.28, cap=10.0), TOKENS
    )
    assert value == pytest.approx(theirs.item(), rel=1e-5)
    np.testing.assert_allclose(gradient, logp.grad.numpy(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 0.8)])
def test_gae_and_whitening_are_verls(torch, gamma, lam):
    mask = RNG.random((B, T)) < 0.7
    rewards, values = (
        np.where(mask, RNG.normal(size=(B, T)), 0).astype(np.float32) for _ in range(2)
    )
    theirs = verl_gae(rewards, values, mask.astype(np.float32), gamma=gamma, lam=lam)
    actual = advantages.gae(
        *(jnp.asarray(x) for x in (rewards, values, mask)), discount=gamma, trace=lam
    )
    np.testing.assert_allclose(actual, theirs * mask, rtol=1e-4, atol=1e-5)
    # masked_whiten, with Bessel's correction and eps 1e-8 in the variance.
    x, m = torch.tensor(theirs), torch.tensor(mask)
    mean = (x * m).sum() / m.sum()
    variance = ((x - mean) ** 2 * m).sum() / m.sum()
    variance = variance * m.sum() / (m.sum() - 1)
    white = (x - mean) * torch.rsqrt(variance + 1e-8) * m
    ours_white = advantages.whitened(actual, jnp.asarray(mask))
    np.testing.assert_allclose(ours_white, white, rtol=1e-3, atol=1e-4)


def test_reductions_are_verls():
    """``agg_loss``; verl's sum-norm lacks the 1/N of Dr. GRPO."""
    x, mask = jnp.asarray(LOGP), jnp.asarray(MASK)
    n = MASK.sum(1)
    sums = (LOGP * MASK).sum(1)
    expected = {
        reduce.token_mean: sums.sum() / n.sum(),
        reduce.sequence_mean_token_sum: sums.mean(),
        reduce.sequence_mean_token_mean: (sums / n).mean(),
    }
    for function, value in expected.items():
        assert reduce.divide(*function(x, mask)) == pytest.approx(value, rel=1e-5)
    norm = reduce.constant_length_mean(x, mask, length=T)
    assert B * reduce.divide(*norm) == pytest.approx(sums.sum() / T, rel=1e-5)
