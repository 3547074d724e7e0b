"""Models of several: shared prompts, slots and one full forward agree."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alignax import decoding, logprobs
from alignax.models import functional
from alignax.pipeline import rollout as rollouts
from alignax.types import Prompts
from tests.close import assert_close, decoder_rel
from tests.models.cases import CONFIGS, random_params, random_tokens

LARGE, SMALL = CONFIGS["qwen2"], CONFIGS["one key"]
APPLIES = tuple(map(functional.make_apply, (LARGE, SMALL)))
BUILT = {
    "contrastive": decoding.combine(
        partial(decoding.contrastive, strength=0.5, alpha=0.05, gate=0.1), *APPLIES
    ),
    "switching": decoding.switching(*APPLIES, threshold=2.5, window=2, least=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILT)
def test_shared_prompts_slots_and_scores_agree(name):
    apply_fn = BUILT[name]
    params = random_params(LARGE, seed=0), random_params(SMALL, seed=1)
    prompts = Prompts(
        tokens=jnp.asarray(random_tokens(LARGE, (3, 4))),
        mask=jnp.asarray(np.arange(4)[None] >= np.array([[3], [0], [2]])),
        index=jnp.arange(3),
    )
    fixed = {"completions": 3, "max_tokens": 6, "eos_id": 2, "restricted": True}

    def sample(**options):
        run = jax.jit(partial(rollouts.generate, apply_fn, **fixed, **options))
        return run(params, jax.random.key(1), prompts)

    expected, actual = sample(), sample(slots=4)
    assert_close(actual, expected, rel=decoder_rel(4))
    logits = jax.jit(partial(rollouts.completion_logits, apply_fn))(params, expected)
    logp = jnp.where(
        expected.trained, logprobs.token_logp(logits, expected.tokens), 0.0
    )
    assert_close(logp, expected.logp_behaviour, rel=decoder_rel(4))
    if name == "switching":
        parts = [
            rollouts.completion_logits(f, p, expected)
            for f, p in zip(APPLIES, params, strict=True)
        ]
        large, small = (
            np.isclose(logits, part, atol=1e-4).all(-1)[expected.trained]
            for part in parts
        )
        # Each position is one of the two models', and both write.
        assert (large | small).all()
        assert large.any()
        assert small.any()
