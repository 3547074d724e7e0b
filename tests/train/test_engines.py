"""Completions of another library's engine: a stand-in with vLLM's interface."""

import dataclasses
import sys
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax.models import functional, hf
from alignax.models.lora import LoRA
from alignax.pipeline import data
from alignax.train import assembly, engines
from alignax.train import policy as policies
from alignax.train.options import RL
from alignax.types import InputError, Prompts, RunError
from tests.train.test_every_method import MODEL, N, P, T

WIDE = dataclasses.replace(MODEL, vocab_size=259)
TOKENIZER = data.byte_tokenizer()
CONFIG = RL(method="tis", prompts=N, completions=2, learning_rate=1e-2, steps=4)
PROMPTS = data.encode_prompts(["ab", "c", "de", "f"][:N], TOKENIZER, length=P)


def stand_in(folder: Path, calls: list):
    """``vllm`` and ``torch``, as far as they are asked; the engine is our own sampler
    on whatever weights it was handed."""

    class LLM:
        def __init__(self, model, **options):
            calls.append(("made", model, options))
            self.held = None
            runner = types.SimpleNamespace(
                model=types.SimpleNamespace(load_weights=self.load_weights)
            )
            worker = types.SimpleNamespace(model_runner=runner)
            executor = types.SimpleNamespace(driver_worker=worker)
            self.llm_engine = types.SimpleNamespace(model_executor=executor)

        def load_weights(self, weights):
            hf.write(folder, WIDE, dict(weights).items(), token_ids={})
            _, self.held = hf.load(folder)

        def reset_prefix_cache(self):
            calls.append(("reset",))

        def generate(self, asked, how, use_tqdm):
            assert not use_tqdm
            calls.append(("asked", how))
            ids = [x["prompt_token_ids"] for x in asked]
            tokens = np.zeros((len(ids), P), np.int32)
            mask = np.zeros((len(ids), P), bool)
            for row, one in enumerate(ids):
                tokens[row, P - len(one) :], mask[row, P - len(one) :] = one, True
            prompts = Prompts(tokens=tokens, mask=mask, index=np.arange(len(ids)))
            rl = dataclasses.replace(CONFIG, temperature=how["temperature"])
            parts = assembly.make(
                rl,
                functional.make_apply(WIDE),
                max_tokens=how["max_tokens"],
                eos_id=how["stop_token_ids"],
            )
            found = parts.generate(
                self.held, jax.random.key(how["seed"]), prompts, completions=how["n"]
            )
            rows = []
            for i in range(len(found.tokens)):
                kept = np.flatnonzero(np.asarray(found.attended[i]))
                own = [int(found.tokens[i, t]) for t in kept]
                said = [
                    {
                        o: types.SimpleNamespace(
                            logprob=float(found.logp_behaviour[i, t])
                        )
                    }
                    for o, t in zip(own, kept, strict=True)
                ]
                reason = "stop" if found.finished[i] else "length"
                rows.append(
                    types.SimpleNamespace(
                        token_ids=own, logprobs=said, finish_reason=reason
                    )
                )
            k = how["n"]
            groups = [rows[i : i + k] for i in range(0, len(rows), k)]
            return [types.SimpleNamespace(outputs=group) for group in groups]

    vllm = types.SimpleNamespace(LLM=LLM, SamplingParams=lambda **how: how)
    return {"vllm": vllm, "torch": types.SimpleNamespace(from_numpy=lambda x: x)}


@pytest.fixture(scope="module")
def policy():
    params = functional.init(WIDE, jax.random.key(0))
    lora = LoRA(rank=2, alpha=4.0)
    made = policies.make(WIDE, params, TOKENIZER, adapters=lora, key=jax.random.key(1))
    return made._replace(params=jax.tree.map(lambda x: x + 0.1, made.params))


@pytest.mark.slow
def test_an_engine_writes_for_the_policy(policy, tmp_path, monkeypatch):
    """Adapters merged, the engine's word for its draws, our own score beside it."""
    calls: list = []
    for name, module in stand_in(tmp_path / "held", calls).items():
        monkeypatch.setitem(sys.modules, name, module)
    engine = engines.vllm(tmp_path, seed=7)
    parts = assembly.of_policy(CONFIG, policy, max_tokens=T)
    parts = engines.sampled(parts, engine, policy, max_tokens=T, temperature=0.7)
    state = parts.init(policy.params, jax.random.key(2))
    samples = parts.sample(state, PROMPTS)
    rollout, scored = samples.rollout, samples.scored
    mask = np.asarray(rollout.trained)
    assert calls[0][2]["logprobs_mode"] == "processed_logprobs"
    assert calls[-1][1]["temperature"] == 0.7
    # Both say the same of the tokens, at the temperature, with adapters merged or not.
    apart = np.abs(np.asarray(scored.logp_old) - rollout.logp_behaviour) * mask
    assert apart.max() < 1e-4
    rewards = np.sum(rollout.tokens % 3 == 0, axis=1).astype(np.float32)
    state, metrics = parts.step(state, samples.rewarded(rewards, right=rewards > 0))
    assert abs(metrics["sampler_kl"]) < 1e-4
    np.testing.assert_allclose(metrics["ratio"], 1, rtol=1e-4)

    # An engine of other weights is seen.
    stale = engine._replace(load=lambda weights: None)
    parts = engines.sampled(parts, stale, policy, max_tokens=T)
    moved = dataclasses.replace(
        state, params=jax.tree.map(lambda x: x * 1.5, state.params)
    )
    samples = parts.sample(moved, PROMPTS)
    _, metrics = parts.step(moved, samples.rewarded(rewards, right=rewards > 0))
    assert metrics["sampler_kl"] > 1e-3


def written(**changed):
    row = engines.Written(tokens=[3, 2], logps=[-0.5, -0.25], finished=True)
    return row._replace(**changed)


SIZES = {"completions": 1, "max_tokens": 3, "temperature": 1.0, "pad_id": 0}


def test_a_record_of_what_was_written():
    rollout = engines.record(
        [[written()], [written(tokens=[4], logps=[-1.0])]], **SIZES
    )
    rollout = rollout(version=jnp.zeros((2, 3), jnp.int32))
    np.testing.assert_array_equal(rollout.tokens, [[3, 2, 0], [4, 0, 0]])
    np.testing.assert_array_equal(rollout.trained.sum(1), [2, 1])
    np.testing.assert_allclose(rollout.logp_behaviour, [[-0.5, -0.25, 0], [-1, 0, 0]])


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (written(tokens=[1]), "1 with 2"),
        (written(tokens=[], logps=[]), "1 to 3 tokens"),
        (written(logps=[0.5, 0.0]), "at most 0"),
        (written(logps=[-0.5, float("nan")]), "finite"),
    ],
)
def test_what_an_engine_may_not_write(row, said):
    with pytest.raises(RunError, match=said):
        engines.record([[row]], **SIZES)
    with pytest.raises(RunError, match="1 completions of each prompt, it wrote"):
        engines.record([[row, row]], **SIZES)


def test_methods_that_sample_by_rules_of_their_own(policy):
    parts = assembly.of_policy(
        RL(method="remax", prompts=N, completions=1), policy, max_tokens=T
    )
    none = engines.Engine(lambda *_, **__: [], lambda _: None)
    with pytest.raises(InputError, match="engine must be None"):
        engines.sampled(parts, none, policy, max_tokens=T)
