"""Whole steps on eight virtual devices against one: kinds of methods, and forms of the
divergence that sum over a vocabulary which is split."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import algorithms
from alignax.models import functional
from alignax.models.config import DecoderConfig
from alignax.pipeline import sharding, update
from alignax.train import assembly, drafts, options
from alignax.types import Prompts

pytestmark = pytest.mark.slow

V, P, T, N, K, EOS = 16, 3, 4, 4, 4, 1
MODEL = DecoderConfig(
    vocab_size=V,
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    mlp_size=32,
    max_length=P + T + 2,
    initializer_range=0.2,
)
SMALL = dataclasses.replace(MODEL, hidden_size=8, head_dim=4, mlp_size=16)
PARAMS = functional.init(MODEL, jax.random.key(0))
REFERENCE = functional.init(MODEL, jax.random.key(1))
PROMPTS = Prompts(
    tokens=jax.random.randint(jax.random.key(2), (N, P), 2, V),
    mask=jnp.ones((N, P), bool),
    index=jnp.arange(N),
)
DATA, VOCABULARY = {"fsdp": 4, "tensor": 2}, {"fsdp": 1, "tensor": 8}
OVER = {"place": "loss", "microbatches": 2, "beta": 0.5}
CASES = {
    "dapo": ({"method": "dapo", "microbatches": 2}, DATA),
    "gspo": ({"method": "gspo", "microbatches": 2}, DATA),
    "ppo with a critic": ({"method": "ppo"}, DATA),
    "k3 in the loss": ({"method": "grpo", "beta": 0.5}, DATA),
    "weighted": ({"place": "loss", "beta": 0.5}, DATA),
    "exact": (OVER | {"form": "exact"}, VOCABULARY),
    "exact, of another divergence": (
        OVER | {"form": "exact", "level": "myopic", "divergence": "jensen_shannon"},
        VOCABULARY,
    ),
    "top_k": (OVER | {"form": "top_k", "divergence_top_k": 3}, VOCABULARY),
    "exact, rows and vocabulary": (OVER | {"form": "exact"}, DATA),
    "dapo with a draft": ({"method": "dapo", "slots": 6}, DATA),
}


def run(config, mesh=None, *, drafted=False):
    """Two rollouts of two updates each: the state, tokens and metrics."""
    shardings, place = None, lambda x: x
    small = functional.init(SMALL, jax.random.key(4))

    def made():
        parts = assembly.make(
            config,
            functional.make_apply(MODEL),
            hidden_fn=functional.make_hidden(MODEL),
            max_tokens=T,
            eos_id=EOS,
            draft=(functional.make_apply(SMALL), small, 2) if drafted else None,
            shardings=shardings,
        )
        return parts, parts.init(PARAMS, jax.random.key(3), reference=REFERENCE)

    parts, state = made()
    if mesh is not None:
        mesh = sharding.make_mesh(**mesh)
        params = sharding.param_shardings(PARAMS, functional.logical_axes(MODEL), mesh)
        split = [s.spec for s in jax.tree.leaves(params) if any(s.spec)]
        assert len(split) >= 4, "most matrices are split"
        axes = functional.logical_axes(SMALL)
        small = jax.device_put(small, sharding.param_shardings(small, axes, mesh))
        shardings = update.state_shardings(
            state,
            options.optimiser(config),
            params=params,
            replicated=sharding.replicated(mesh),
        )
        parts, state = made()
        state = jax.device_put(state, shardings)
        place = functools.partial(sharding.shard_rows, mesh=mesh)
    seen = []
    for _ in range(2):
        samples = parts.sample(state, place(PROMPTS))
        rewards = jnp.sin(jnp.sum(samples.rollout.tokens, axis=-1) * 1.0)
        fields = {}
        if "right" in algorithms.needs(parts.algorithm):
            fields["right"] = rewards > 0
        scored = samples.rewarded(rewards, **fields)
        scored = dataclasses.replace(scored, rewards=place(scored.rewards))
        more = drafts.metrics(samples.rollout)
        assert len(more) == (2 if drafted else 0)
        state, metrics = parts.step(state, scored)
        metrics |= more
        seen.append((np.asarray(samples.rollout.tokens), jax.tree.map(float, metrics)))
    assert max(parts.sample._cache_size(), parts.step._cache_size()) <= 1
    return state, seen


def moved(state):
    change = jax.tree.map(
        lambda x, y: np.ravel(np.asarray(x) - np.asarray(y)), state.params, PARAMS
    )
    return np.concatenate(jax.tree.leaves(change))


@pytest.mark.parametrize("name", CASES)
def test_eight_devices_do_as_one(name):
    changes, mesh = CASES[name]
    config = options.RL(
        prompts=N, completions=K, updates=2, steps=2, warmup=0, **changes
    )
    drafted = "draft" in name
    expected, alone = run(dataclasses.replace(config, slots=None), drafted=drafted)
    state, split = run(config, mesh, drafted=drafted)
    for (tokens, values), (others, found) in zip(alone, split, strict=True):
        np.testing.assert_array_equal(tokens, others)
        assert values["skipped"] == values["no_signal"] == 0
        for key, value in values.items():
            assert found[key] == pytest.approx(value, rel=1e-3, abs=1e-5), key
    # Adam makes steps of the rounding of gradients that are nearly zero.
    error = np.linalg.norm(moved(state) - moved(expected))
    assert error < 5e-3 * np.linalg.norm(moved(expected))
    if mesh is VOCABULARY:
        spec = state.params["embedding"].sharding.spec
        assert spec[0] == "tensor"
