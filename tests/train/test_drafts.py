"""Samplers with a draft: the record says what the policy's own law would."""

import jax
import numpy as np
import pytest

from alignax.models import functional
from alignax.pipeline import rollout as rollouts
from alignax.train import assembly, drafts, options
from tests.train.test_sharded import EOS, MODEL, PARAMS, PROMPTS, SMALL, K, T

APPLY = functional.make_apply(MODEL)
SCORE = rollouts.score_by_logits(APPLY)
DRAFT = functional.make_apply(SMALL), functional.init(SMALL, jax.random.key(4)), 2


@pytest.mark.slow
@pytest.mark.parametrize("method", ["nlpo", "remax"])
def test_what_is_recorded_is_the_policys(method):
    """Also where another policy's tokens rule some out, and of a greedy completion,
    which is the one without a draft."""
    config = options.RL(method=method, prompts=4, completions=K, temperature=1.3)
    parts = assembly.make(
        config,
        APPLY,
        hidden_fn=functional.make_hidden(MODEL),
        max_tokens=T,
        eos_id=EOS,
        draft=DRAFT,
    )
    state = parts.init(PARAMS, jax.random.key(3))
    samples = parts.sample(state, PROMPTS)
    rollout = samples.rollout
    logp = jax.jit(SCORE)(PARAMS, rollout).logp
    trained = np.asarray(rollout.trained)
    found = np.where(trained, rollout.logp_behaviour, 0)
    np.testing.assert_allclose(found, np.where(trained, logp, 0), atol=1e-5)
    spent = rollout.spent
    np.testing.assert_array_equal(spent.written, trained.sum(axis=1) - 1)
    found = drafts.metrics(rollout)
    assert float(found["draft_accepted"]) == pytest.approx(
        np.sum(spent.accepted) / np.sum(spent.drafted)
    )
    assert float(found["draft_block"]) == pytest.approx(
        np.sum(spent.written) / np.sum(spent.calls)
    )
    if method == "nlpo":
        assert np.any(np.asarray(rollout.support)[trained] != 255)
    else:
        plain = parts.generate(
            PARAMS, jax.random.key(0), PROMPTS, completions=1, temperature=0.0
        )
        np.testing.assert_array_equal(samples.greedy.tokens, plain.tokens)
