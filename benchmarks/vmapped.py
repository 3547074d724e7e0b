"""Thirty-two whole training runs in one program, against one after another.

    python -m benchmarks.vmapped

A run is sampling, scoring, advantages, loss and optimiser for all of its steps, under
``lax.scan``; 8 seeds × 4 strengths of regularisation are mapped over. The results of
both ways are compared, too.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from alignax import exact
from alignax.models import functional
from alignax.models.config import DecoderConfig
from alignax.train import assembly
from alignax.train.options import RL
from alignax.types import ApplyFn, Params, Prompts
from benchmarks import timing

VOCABULARY, TOKENS = 4, 3
TINY = DecoderConfig(
    vocab_size=16,
    hidden_size=32,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    mlp_size=64,
    max_length=16,
)
Init = Callable[[jax.Array], Params]


def make_run(
    apply_fn: ApplyFn, init: Init, *, steps: int
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """``(key, beta) -> rewards [steps]``: the share of tokens that are token 1."""
    config = RL(steps=steps, prompts=4, completions=8, learning_rate=1e-2)
    parts = assembly.make(config, apply_fn, max_tokens=TOKENS, eos_id=None, jit=False)
    prompts = Prompts(
        tokens=jnp.zeros((4, 1), jnp.int32),
        mask=jnp.ones((4, 1), bool),
        index=jnp.arange(4),
    )

    def run(key, beta):
        state = parts.init(init(key), key, beta=1.0)
        controller = state.controller._replace(beta=beta)
        state = dataclasses.replace(state, controller=controller)

        def step(state, _):
            samples = parts.sample(state, prompts)
            ones = (samples.rollout.tokens == 1).astype(jnp.float32)
            state, metrics = parts.step(state, samples.rewarded(jnp.mean(ones, axis=1)))
            return state, metrics["reward"]

        return jax.lax.scan(step, state, length=steps)[1]

    return run


def main(*, repeats: int = 5, steps: int = 100) -> str:
    runs = {
        "tabular policy": make_run(
            exact.make_tabular_apply(vocab_size=VOCABULARY, horizon=TOKENS),
            lambda key: exact.tabular_init(
                key, prompts=1, vocab_size=VOCABULARY, horizon=TOKENS
            ),
            steps=steps,
        ),
        "tiny language model": make_run(
            functional.make_apply(TINY),
            lambda key: functional.init(TINY, key),
            steps=steps,
        ),
    }
    seeds, betas = jnp.arange(8), jnp.array([0.01, 0.03, 0.1, 0.3])
    keys = jax.vmap(jax.random.key)(jnp.repeat(seeds, 4))
    strengths = jnp.tile(betas, 8)
    lines = []
    for name, run in runs.items():
        one, all_at_once = jax.jit(run), jax.jit(jax.vmap(run))

        def sequential(one=one):
            return jnp.stack(
                [one(key, beta) for key, beta in zip(keys, strengths, strict=True)]
            )

        def together(all_at_once=all_at_once):
            return all_at_once(keys, strengths)

        np.testing.assert_allclose(
            sequential()[:, :5], together()[:, :5], rtol=1e-3, atol=1e-3
        )
        seconds = timing.interleaved(
            {"sequential": sequential, "together": together}, repeats=repeats
        )
        ratio = np.median(seconds["sequential"]) / np.median(seconds["together"])
        counts = (1, 2, 8, 32)
        grown = {str(n): partial(all_at_once, keys[:n], strengths[:n]) for n in counts}
        each = timing.interleaved(grown, repeats=repeats)
        lines.append(
            [name, *(timing.spread(x) for x in seconds.values()), f"{ratio:.1f}"]
            + [f"{1e6 * np.median(each[str(n)]) / n / steps:,.0f}" for n in counts]
        )
    return timing.table(
        [f"32 runs of {steps} steps", "one after another", "in one program", "factor"]
        + [f"µs a step and run, {n} at once" for n in (1, 2, 8, 32)],
        lines,
    )


if __name__ == "__main__":
    print(timing.machine(), main(), sep="\n\n")
