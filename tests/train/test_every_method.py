"""Every method of the table trains a small language model by the one path."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import algorithms
from alignax.models import functional
from alignax.models.config import DecoderConfig
from alignax.train import assembly, tasks
from alignax.train.options import RL, algorithm_of
from alignax.types import InputError, Prompts

V, P, T, N, K, EOS = 8, 3, 4, 4, 4, 1
MODEL = DecoderConfig(
    vocab_size=V,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_size=32,
    max_length=P + 3 * T + 4,
    initializer_range=0.3,
)
PARAMS = functional.init(MODEL, jax.random.key(0))
# Variants differ in stages that tests/test_algorithms.py has, all but these.
VARIANTS = ("dph_rl (JS)", "gtpo (official code)", "kdrl (every answer)")
NAMES = [
    *(key for key, method in algorithms.METHODS.items() if method.algorithm),
    *VARIANTS,
]
# Sampled by other means than tokens.
ELSEWHERE = ("cot2",)
# One of each kind; the rest are slow.
ALWAYS = {"unbiased", "ppo"}
PROMPTS = Prompts(
    tokens=jax.random.randint(jax.random.key(1), (N, P), 2, V),
    mask=jnp.ones((N, P), bool),
    index=jnp.arange(N),
)


def guide(prompts):
    return tasks.guided(prompts, [[3, 4, EOS]] * len(prompts.index), length=T)


def judge(asked, rollout, numbers):
    """The share of token 3, and all that a method may ask of the task."""
    tokens, mask = np.asarray(rollout.tokens), np.asarray(rollout.attended)
    rewards = ((tokens == 3) & mask).sum(axis=1) / T
    rows = np.arange(len(tokens))
    known = {
        "right": rewards > 0.2,
        "clusters": rows % 3,
        "reward_version": rows % 2,
        "objectives": np.stack([rewards, mask.mean(axis=1)], axis=1),
        "token_rewards": ((tokens == 3) & mask).astype(np.float32),
    }
    given = {name: value for name, value in known.items() if name in asked}
    if "objective_weights" in asked:
        given["objective_weights"] = np.ones(2, np.float32)
    return {"rewards": rewards.astype(np.float32)} | given


def parts_of(name, teacher=None, **changes):
    config = RL(
        method=name,
        prompts=N,
        completions=K,
        steps=4,
        warmup=0,
        learning_rate=1e-2,
        **changes,
    )
    return assembly.make(
        config,
        functional.make_apply(MODEL),
        hidden_fn=functional.make_hidden(MODEL),
        max_tokens=T,
        eos_id=EOS,
        teacher=teacher,
    )


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ALWAYS else [pytest.mark.slow])
        for name in NAMES
        if name.split(" (")[0] not in ELSEWHERE
    ],
)
def test_method_trains(name):
    """Three steps: finite, on-policy ratios of 1, no recompilation, and it moves."""
    other = functional.init(MODEL, jax.random.key(3))
    taught = (functional.make_hidden(MODEL), other)
    parts = parts_of(name, teacher=taught if name in ("opd", "g_opd") else None)
    asked = algorithms.needs(parts.algorithm)
    step = tasks.host_step(parts, functools.partial(judge, asked), guide=guide)
    shown = guide(PROMPTS) if parts.algorithm.sampling.guided else PROMPTS
    slots = {}
    if parts.algorithm.reference.name == "soup":
        slots["others"] = [other]
    if "logp_teacher" in asked and name != "g_opd":
        slots["preferred"] = other
    state = parts.init(PARAMS, jax.random.key(2), records=N, prompts=shown, **slots)
    seen = []
    for _ in range(3):
        state, metrics = step(state, PROMPTS)
        seen.append(jax.tree.map(float, metrics))
    assert max(parts.sample._cache_size(), parts.step._cache_size()) <= 1
    assert all(np.isfinite(list(values.values())).all() for values in seen)
    assert not any(values["skipped"] for values in seen)
    assert abs(seen[0]["ratio"] - 1) < 1e-4
    if name == "gtpo (official code)":
        # It drops completions of more than 0.7 nats a token: all of this model's.
        assert [values["no_signal"] for values in seen] == [1, 1, 1]
        return
    policies = state.params if parts.algorithm.sampling.roles > 1 else [state.params]
    moved = [
        jax.tree.map(lambda x, y: float(jnp.abs(x - y).max()), policy, PARAMS)
        for policy in policies
    ]
    alone = parts.algorithm.critic is not None and parts.algorithm.critic.pretrain > 3
    assert (max(jax.tree.leaves(moved)) > 1e-4) != alone
    assert int(state.step) == 3


def test_what_the_task_lacks_is_refused_by_name():
    parts = parts_of("dapo")
    state = parts.init(PARAMS, jax.random.key(2))
    step = tasks.host_step(parts, functools.partial(judge, frozenset()))
    with pytest.raises(InputError, match=r"scored\.right is missing.*task's to say"):
        step(state, PROMPTS)


def test_a_guide_that_is_missing_is_refused_by_name():
    parts = parts_of("rl_plus")
    state = parts.init(PARAMS, jax.random.key(2))
    with pytest.raises(InputError, match=r"prompts\.guide is missing.*demonstration"):
        parts.sample(state, PROMPTS)


@pytest.mark.parametrize(
    "changes",
    [
        {"divergence": "jensen_shannon"},
        pytest.param(
            {"divergence": "alpha:0.3", "level": "myopic", "place": "loss"},
            marks=pytest.mark.slow,
        ),
        {"form": "exact", "place": "loss"},
        pytest.param(
            {
                "form": "top_k",
                "place": "loss",
                "level": "myopic",
                "divergence_top_k": 2,
            },
            marks=pytest.mark.slow,
        ),
        pytest.param({"top_p": 0.8, "temperature": 0.7}, marks=pytest.mark.slow),
        pytest.param({"reference": "moving_average"}, marks=pytest.mark.slow),
        pytest.param({"target_kl": 0.1, "updates": 2}, marks=pytest.mark.slow),
    ],
)
def test_options_train(changes):
    parts = parts_of("unbiased", **changes)
    step = tasks.host_step(parts, functools.partial(judge, frozenset()))
    state = parts.init(PARAMS, jax.random.key(2))
    for _ in range(2):
        state, metrics = step(state, PROMPTS)
        assert abs(float(metrics["ratio"]) - 1) < 1e-4
        assert float(metrics["ratio_outside"]) == 0
        # The policy is its own sampler, and scored as it sampled.
        assert abs(float(metrics["sampler_ratio"]) - 1) < 1e-4
        assert float(metrics["sampler_largest"]) < 1e-3
        assert np.isfinite(list(map(float, metrics.values()))).all()
    assert parts.step._cache_size() <= 1


def test_without_a_signal_nothing_moves():
    """Equal rewards and a policy that is its reference: Adam must not take a step."""
    parts = parts_of("unbiased")
    state = parts.init(PARAMS, jax.random.key(2))

    def equal(rollout, numbers):
        return {"rewards": np.zeros(len(numbers), np.float32)}

    step = tasks.host_step(parts, equal)
    for _ in range(3):
        state, metrics = step(state, PROMPTS)
        assert metrics["no_signal"] == 1
    jax.tree.map(np.testing.assert_array_equal, state.params, PARAMS)
    assert state.counters.no_signal == 3
    assert metrics["signal"] == 0


@pytest.mark.parametrize(
    "name",
    [
        "unbiased",
        pytest.param("ppo_max", marks=pytest.mark.slow),
        pytest.param("remix", marks=pytest.mark.slow),
    ],
)
def test_a_reward_that_is_not_finite_costs_one_step(name, capsys):
    """Nothing of it stays: not in moments, a buffer or a controller's state."""
    parts = parts_of(name, **({"target_kl": 0.1} if name == "unbiased" else {}))
    first = parts.init(PARAMS, jax.random.key(2), records=N, prompts=PROMPTS)
    kept = ("params", "opt_state", "critic", "memory", "controller")
    before = jax.device_get({field: getattr(first, field) for field in kept[:-1]})
    calls = []

    def broken(rollout, numbers):
        rewards = judge(frozenset(), rollout, numbers)["rewards"]
        calls.append(len(rewards))
        bad = (np.arange(len(rewards)) == 5) & (len(calls) == 1)
        return {"rewards": np.where(bad, np.nan, rewards)}

    step = tasks.host_step(parts, broken)
    state, metrics = step(first, PROMPTS)
    assert "not finite: nan for record 1 (completion 5)" in capsys.readouterr().err
    assert metrics["skipped"] == 1
    assert metrics["reward_failed"] == np.float32(1 / (N * K))
    assert state.counters.skipped == 1
    for field, value in before.items():
        jax.tree.map(np.testing.assert_array_equal, getattr(state, field), value)
    state, metrics = step(state, PROMPTS)
    assert metrics["skipped"] == 0
    assert state.counters.skipped_in_row == 0
    for leaf in jax.tree.leaves([getattr(state, field) for field in kept]):
        assert np.isfinite(leaf).all()


def test_rewards_of_another_shape_are_refused():
    parts = parts_of("unbiased")
    samples = parts.sample(parts.init(PARAMS, jax.random.key(2)), PROMPTS)
    with pytest.raises(InputError, match=r"rewards must be one number .*\[16, 1\]"):
        samples.rewarded(np.zeros((N * K, 1)))
    for shape in ((N * K,), (N + 1, 2), (N, 0)):
        with pytest.raises(InputError, match="reference_rewards must be some numbers"):
            samples.rewarded(np.zeros(N * K), reference_rewards=np.zeros(shape))


def drift(parts, judge, steps=2):
    state = parts.init(PARAMS, jax.random.key(2))
    step = tasks.host_step(parts, judge)
    for _ in range(steps):
        state, metrics = step(state, PROMPTS)
    return state, metrics


@pytest.mark.parametrize(
    ("changes", "scale"),
    [
        pytest.param({"method": "dr_grpo"}, 1e-5, marks=pytest.mark.slow),
        pytest.param({"beta": 1.0}, 1e-4, marks=pytest.mark.slow),
    ],
)
def test_small_rewards_are_a_signal(changes, scale):
    changes = dict(changes)
    parts = parts_of(changes.pop("method", "unbiased"), **changes)

    def small(rollout, numbers):
        return {"rewards": scale * judge(frozenset(), rollout, numbers)["rewards"]}

    state, metrics = drift(parts, small, steps=1)
    assert metrics["signal"] > 0
    assert metrics["no_signal"] == 0
    assert int(state.counters.no_signal) == 0


@pytest.mark.slow
def test_a_critic_that_is_pretrained_learns_alone():
    parts = parts_of("ppo_max")
    assert parts.algorithm.critic.pretrain > 2
    asked = algorithms.needs(parts.algorithm)
    state, _ = drift(parts, functools.partial(judge, asked))
    jax.tree.map(np.testing.assert_array_equal, state.params, PARAMS)
    assert float(jnp.abs(state.critic["bias"]).max()) > 1e-4


@pytest.mark.slow
def test_demonstrations_were_drawn_from_all_tokens():
    """Truncated sampling: what a teacher wrote may be outside of the support."""
    parts = parts_of("rl_plus", top_k=2)
    samples = parts.sample(parts.init(PARAMS, jax.random.key(2)), guide(PROMPTS))
    assert np.isfinite(np.asarray(samples.scored.logp_old)).all()


REFUSED = {
    "cot2": {"method": "cot2"},
    "alpha takes a number": {"divergence": "alpha"},
    "reverse_kl takes no number": {"divergence": "reverse_kl:2"},
    "did you mean grpo": {"method": "GRPO"},
    r"alignax\.train\.preference": {"method": "rebel"},
    "target_kl has nothing to act on": {"method": "dapo", "target_kl": 1.0},
    "beta has nothing to act on": {"method": "dapo", "beta": 0.5},
    "weight_cap has nothing to act on.* dapo": {
        "method": "dapo",
        "divergence_weight_cap": 2.0,
    },
    "no divergence in the loss on": {"divergence_weight_cap": 2.0},
    "divergence_weight_cap must not be negative, got -1": {
        "place": "loss",
        "divergence_weight_cap": -1.0,
    },
    "completions does not suit": {"completions": 1},
    "top_p must be in": {"top_p": 1.5},
    "infinite where top_k or top_p": {
        "divergence": "forward_kl",
        "form": "exact",
        "level": "myopic",
        "place": "loss",
        "top_k": 4,
    },
    "adds earlier groups to each batch": {"method": "remix", "microbatches": 2},
    "which holds its ratio at 1": {"method": "rloo", "updates": 2},
}


@pytest.mark.parametrize("message", REFUSED)
def test_options_that_do_not_fit_are_refused(message):
    given = REFUSED[message]
    if message in ELSEWHERE:
        with pytest.raises(InputError, match="this sampler does not"):
            parts_of(given["method"])
        return
    with pytest.raises(InputError, match=message):
        RL(**given)


@pytest.mark.parametrize(("given", "held"), [(0.0, None), (3.0, 3.0)])
def test_the_weights_bound_is_the_option_s(given, held):
    algorithm = algorithm_of(RL(place="loss", divergence_weight_cap=given))
    assert algorithm.regulariser.weight_cap == held
    assert algorithm_of(RL(place="loss")).regulariser.weight_cap == 2


def test_a_divergence_comes_with_a_strength():
    parts = parts_of("dapo", divergence="jensen_shannon")
    state = parts.init(PARAMS, jax.random.key(2))
    assert float(state.controller.beta) == pytest.approx(0.1)


def test_fields_that_nobody_knows_are_refused():
    parts = parts_of("unbiased")
    samples = parts.sample(parts.init(PARAMS, jax.random.key(2)), PROMPTS)
    with pytest.raises(InputError, match=r"fields must be among .*got accuracy"):
        samples.rewarded(np.zeros(N * K), accuracy=np.zeros(N * K))
