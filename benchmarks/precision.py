"""Sampler against scorer in each precision: docs/precision.md.

    python -m benchmarks.precision

The same parameters and prompts; tokens sampled with a cache, then scored by full
forward passes. Nothing is timed: every machine should print nearly the same shares.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from alignax import reduce, surrogates
from alignax.models import functional
from alignax.models.config import DecoderConfig
from alignax.pipeline import rollout as rollouts
from alignax.types import Params, Rollout
from benchmarks import timing
from benchmarks.decode import prompts_of

SMALL = DecoderConfig(
    vocab_size=4096,
    hidden_size=256,
    num_layers=8,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    mlp_size=768,
    max_length=128,
    qk_norm=True,
    rope_theta=1e6,
    tie_embeddings=False,
    initializer_range=1 / 16,
)
WIDE = {"residual_dtype": "float32", "head_dtype": "float32"}
PRECISIONS: dict[str, dict[str, Any]] = {
    "float32": {},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, float32 head": {"dtype": "bfloat16", "head_dtype": "float32"},
    "bfloat16, float32 residual": {"dtype": "bfloat16", "residual_dtype": "float32"},
    "bfloat16, both": {"dtype": "bfloat16", **WIDE},
    "float16": {"dtype": "float16"},
    "float16, both": {"dtype": "float16", **WIDE},
}
DOCS = Path(__file__).parent.parent / "docs" / "precision.md"
TEXT = """# Precision

*Does the trainer see the probabilities that the sampler drew from?*

Measured on: {machine}. Written by `python -m benchmarks.precision`.

A rollout records the log-probability of each token under the distribution that really
drew it. The trainer computes it again by another program: other shapes, another order
of sums, no cache. In float32 both agree to rounding. In half precision they do not,
and every ratio that should be 1 carries the difference.

Below, 8 layers of width 256 with random parameters whose next token has {entropy:.1f}
nats of entropy sample {tokens:,} tokens, with weights in float32 and computation in the
stated precision. *Groups* are scored with their prompt encoded once, as the sampler has
it (`score_by_hidden(completions=4)`), *rows* one by one. *Batch* is the largest change
of a token's log-probability when its row is scored in a smaller batch, *error* the
standard deviation from what float32 says of the same tokens, both in nats.

{table}

## What it comes from

- **Rounding the inputs of products**, in every layer. Two orders of a sum differ by
  1e-7; where that moves one number over an edge of bfloat16's grid it moves by 1/256,
  the next layer spreads it over all numbers, and after a few layers the two programs
  round independently. The mean ratio stays 1: both are distributions over the same
  tokens. Only more bits, or kernels that sum in one order whatever the batch, change
  this; XLA does not promise the second.
- **The residual stream**: each of its {sums} sums rounds once more.
  `DecoderConfig(residual_dtype="float32")` keeps it, and what layers add to it, in
  float32.
- **The head** accumulates in float32 as it is, and softmax and log-probabilities are
  float32 everywhere; `head_dtype="float32"` also keeps the last hidden state and the
  table unrounded.
- **The cache** has the dtype of the keys and values that the scorer sees as well:
  none of the difference.
- **Attention** is one function for sampling, scoring and training, with the
  probabilities' normaliser in float32.

## What to do

- Prefer `dtype="float16"` for sampling and scoring where activations stay below 65,504:
  three more bits take an eighth of the difference (Qi et al., "Defeating the
  training-inference mismatch via FP16", arXiv 2510.26788). Small gradients vanish
  below 6e-8 in it: keep the parameters in float32, and scale the loss if they do.
- With bfloat16, keep the residual stream in float32.
- Watch `ratio` and `ratio_outside` among a run's metrics, the mean and the share
  outside [0.9, 1.1] at a rollout's first update (`surrogates.ratio_tail`). A mean that
  is not 1 says that another distribution was scored; a tail says rounding.
- `estimators.truncated_weights` and `surrogates.corrections` bound what a ratio's tail
  can do.
"""


def params_of(config: DecoderConfig, *, spread: float) -> Params:
    """Random, with logits of this standard deviation and an embedding of order 1."""
    params = functional.init(config, jax.random.key(0))
    scale = config.initializer_range
    return params | {
        "embedding": params["embedding"] / scale,
        "head": params["head"] * (spread / (scale * config.hidden_size**0.5)),
    }


def one(
    config: DecoderConfig,
    fine: DecoderConfig,
    params: Params,
    *,
    groups: int,
    completions: int,
    prompt: int,
    tokens: int,
) -> tuple[list[str], float]:
    """A line of the table, and the mean entropy."""
    generate = partial(
        rollouts.generate,
        functional.make_apply(config),
        completions=completions,
        max_tokens=tokens,
        eos_id=None,
    )
    prompts = prompts_of(config, groups, prompt)
    rollout = jax.jit(generate)(params, jax.random.key(1), prompts)

    def scorer(config, completions):
        hidden_fn = functional.make_hidden(config)
        return jax.jit(rollouts.score_by_hidden(hidden_fn, completions=completions))

    group, row = scorer(config, completions), scorer(config, 1)
    line = []
    for score in (group, row):
        logp = score(params, rollout).logp
        tail = surrogates.ratio_tail(logp, rollout.logp_behaviour, rollout.trained)
        line += [
            f"{reduce.divide(*tail.mean):.4f}",
            f"{100 * reduce.divide(*tail.outside):.2f} %",
            f"{tail.largest:.3f}",
        ]
    scores = group(params, rollout)
    part: Rollout = jax.tree.map(lambda x: x[:completions], rollout)
    alone = group(params, part).logp
    truth = scorer(fine, completions)(params, rollout).logp
    line += [
        f"{jnp.max(jnp.abs(alone - scores.logp[:completions])):.3f}",
        f"{jnp.std(scores.logp - truth):.4f}",
    ]
    return line, float(jnp.mean(scores.entropy))


def main(
    config: DecoderConfig = SMALL,
    *,
    spread: float = 3.5,
    groups: int = 8,
    completions: int = 4,
    prompt: int = 32,
    tokens: int = 64,
    precisions: tuple[str, ...] = tuple(PRECISIONS),
) -> str:
    """The page."""
    params = params_of(config, spread=spread)
    lines, entropies = [], []
    for name in precisions:
        line, entropy = one(
            dataclasses.replace(config, **PRECISIONS[name]),
            config,
            params,
            groups=groups,
            completions=completions,
            prompt=prompt,
            tokens=tokens,
        )
        print(name, *line, flush=True)
        lines.append([name, *line])
        entropies.append(entropy)
    places = ("mean ratio", "outside [0.9, 1.1]", "largest")
    columns = [f"{place}, {of}" for of in ("groups", "rows") for place in places]
    return TEXT.format(
        machine=timing.machine(),
        entropy=np.mean(entropies),
        tokens=groups * completions * tokens,
        sums=2 * config.num_layers,
        table=timing.table(["precision", *columns, "batch", "error"], lines),
    )


if __name__ == "__main__":
    DOCS.write_text(main(), encoding="utf-8")
