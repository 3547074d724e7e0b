"""A policy's compiled functions hold no weights, and are those of closures."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax.models import functional
from alignax.models.lora import LoRA
from alignax.pipeline import data
from alignax.train import assembly, compiling, evaluation
from alignax.train import policy as policies
from alignax.train.options import RL
from tests.close import assert_close
from tests.train.test_every_method import MODEL, N, P, T

WIDE = dataclasses.replace(MODEL, vocab_size=259)
TOKENIZER = data.byte_tokenizer()
CONFIG = RL(method="unbiased", prompts=N, completions=2, learning_rate=1e-2, steps=4)
PROMPTS = data.encode_prompts(["ab", "c", "de", "f"][:N], TOKENIZER, length=P)
SIZES = {"max_tokens": T}
LARGE = 1000  # the embedding alone has four times as many


@pytest.fixture(scope="module")
def policy():
    params = functional.init(WIDE, jax.random.key(0))
    lora = LoRA(rank=2, alpha=4.0)
    made = policies.make(WIDE, params, TOKENIZER, adapters=lora, key=jax.random.key(1))
    # At their first values adapters change nothing.
    moved = jax.tree.map(lambda x: x + 0.1, made.params)
    return made._replace(params=moved)


def constants(function, *args, **options):
    """Sizes of what the program holds beside its arguments."""
    jitted, bound = getattr(function, "func", function), getattr(function, "args", ())
    closed = jitted.trace(*bound, *args, **options).jaxpr
    return [np.size(x) for x in closed.consts]


def closures(policy):
    ends = {"eos_id": TOKENIZER.end_ids, "pad_id": TOKENIZER.pad_id}
    return assembly.make(
        CONFIG, policy.apply_fn, hidden_fn=policy.hidden_fn, **SIZES, **ends
    )


def test_no_compiled_function_of_adapters_holds_the_base(policy):
    parts = assembly.of_policy(CONFIG, policy, **SIZES)
    state = jax.eval_shape(parts.init, policy.params, jax.random.key(2))
    scored = jax.eval_shape(parts.sample, state, PROMPTS).scored
    rollout = scored.rollout
    for sizes in (
        constants(parts.sample, state, PROMPTS),
        constants(parts.step, state, scored),
        constants(parts.generate, state.params, state.key, PROMPTS, completions=1),
        constants(parts.score, state, PROMPTS.index, rollout, rescore=True),
    ):
        assert max(sizes, default=0) < LARGE
    # What the check would find.
    held = constants(closures(policy).sample, state, PROMPTS)
    assert max(held) > LARGE


@pytest.mark.slow
def test_the_step_is_compiled_once_and_beside_the_sampler(policy, caplog):
    parts = compiling.beside(assembly.of_policy(CONFIG, policy, **SIZES))
    state = parts.init(policy.params, jax.random.key(2))
    jax.config.update("jax_log_compiles", True)
    try:
        for _ in range(2):
            samples = parts.sample(state, PROMPTS)
            rewards = np.sum(np.asarray(samples.rollout.tokens) % 3 == 0, axis=1)
            fields = {"rewards": rewards.astype(np.float32), "right": rewards > 0}
            state, _ = parts.step(state, samples.rewarded(**fields))
    finally:
        jax.config.update("jax_log_compiles", False)
    threads = {
        name: [
            record.threadName
            for record in caplog.records
            if f"Finished XLA compilation of jit({name})" in record.getMessage()
        ]
        for name in ("sample", "step")
    }
    assert threads["sample"] == ["MainThread"]
    assert len(threads["step"]) == 1
    assert threads["step"] != ["MainThread"]


@pytest.mark.slow
def test_a_base_among_the_arguments_changes_no_number(policy):
    found = []
    for parts in (assembly.of_policy(CONFIG, policy, **SIZES), closures(policy)):
        state = parts.init(policy.params, jax.random.key(2))
        samples = parts.sample(state, PROMPTS)
        rewards = np.sum(np.asarray(samples.rollout.tokens) % 3 == 0, axis=1)
        _, metrics = parts.step(state, samples.rewarded(rewards))
        # Not the parameters: Adam makes a step of what rounding leaves of a zero.
        found.append((samples.rollout.tokens, metrics["grad_norm"], metrics["loss"]))
    assert_close(found[0], found[1], rel=1e-4)


@pytest.mark.slow
def test_the_evaluator_measures_adapters_from_their_first_values(policy):
    first = jax.tree.map(lambda x: x - 0.1, policy.params)
    key = jax.random.key(3)
    whole = [policies.whole(policy, p) for p in (policy.params, first)]
    plain, found = policies.make(WIDE, whole[0], TOKENIZER), []
    for model, params in ((policy, (policy.params, first)), (plain, whole)):
        write = evaluation.make_writer(model, max_tokens=T, completions=2)
        evaluate = evaluation.make_evaluator(model, write, completions=2)
        found.append(evaluate(*params, key, PROMPTS))
    (rollout, kl), (again, kl_whole) = found
    np.testing.assert_array_equal(rollout.tokens, again.tokens)
    np.testing.assert_allclose(kl, kl_whole, rtol=1e-4)
    assert jnp.all(kl > 0)
