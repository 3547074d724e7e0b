"""Tokens per second of sampling: alignax beside transformers, and shared prefill.

    python -m benchmarks.decode

A Qwen3-shaped decoder with random parameters, every completion of full length. The
limit is the time of the products of one step with the parameters, alone.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from alignax.models import functional
from alignax.models.config import DecoderConfig
from alignax.pipeline import rollout as rollouts
from alignax.types import ApplyFn, ModelOutput, Prompts
from benchmarks import timing, tunix_peer

SMALL = DecoderConfig(
    vocab_size=32_000,
    hidden_size=256,
    num_layers=4,
    num_heads=4,
    num_kv_heads=2,
    head_dim=64,
    mlp_size=768,
    max_length=512,
    qk_norm=True,
    rope_theta=1e6,
)


# SmolLM2-135M's shape, which two cores of a CPU hold.
SMOLLM2 = DecoderConfig(
    vocab_size=49_152,
    hidden_size=576,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    mlp_size=1536,
    max_length=1024,
    rope_theta=1e5,
)

# Qwen2.5-0.5B's shape, for machines with an accelerator.
HALF_BILLION = DecoderConfig(
    vocab_size=151_936,
    hidden_size=896,
    num_layers=24,
    num_heads=14,
    num_kv_heads=2,
    head_dim=64,
    mlp_size=4864,
    max_length=1024,
    attention_bias=True,
    rope_theta=1e6,
    param_dtype="bfloat16",
    dtype="bfloat16",
)


def prompts_of(config: DecoderConfig, rows: int, length: int) -> Prompts:
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (rows, length))
    return Prompts(
        tokens=jnp.asarray(tokens, jnp.int32),
        mask=jnp.ones((rows, length), bool),
        index=jnp.arange(rows),
    )


def products(config: DecoderConfig, params, rows: int, steps: int):
    """Only the products of ``rows`` vectors with each matrix, ``steps`` times."""
    matrices = [x for x in jax.tree.leaves(params) if x.ndim == 2]

    @jax.jit
    def run(matrices):
        def step(total, i):
            for matrix in matrices:
                # The head, or another one: contract what is not the vocabulary.
                axis = 1 if matrix.shape[0] == config.vocab_size else 0
                x = jnp.full((rows, matrix.shape[axis]), 1e-3 * i).astype(matrix.dtype)
                y = jax.lax.dot_general(x, matrix, (((1,), (axis,)), ((), ())))
                total += jnp.max(y).astype(total.dtype)
            return total, None

        return jax.lax.scan(step, 0.0, jnp.arange(steps, dtype=jnp.float32))[0]

    return lambda: run(matrices)


def peer_model(config: DecoderConfig):
    """The same shape in torch, random."""
    import torch
    import transformers

    torch.manual_seed(0)
    family = "Qwen3" if config.qk_norm else "Llama"
    return getattr(transformers, f"{family}ForCausalLM")(
        getattr(transformers, f"{family}Config")(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            intermediate_size=config.mlp_size,
            max_position_embeddings=config.max_length,
            tie_word_embeddings=config.tie_embeddings,
            pad_token_id=0,
            eos_token_id=None,
            bos_token_id=None,
        )
    )


def by_transformers(config: DecoderConfig, prompts: Prompts, new_tokens: int):
    """transformers' own sampling; None where it is not installed."""
    if timing.missing("torch", "transformers"):
        return None
    import torch

    generate: Callable = peer_model(config).eval().generate
    tokens = torch.tensor(np.asarray(prompts.tokens), dtype=torch.long)

    def run():
        with torch.no_grad():
            generate(
                tokens,
                attention_mask=torch.ones_like(tokens),
                do_sample=True,
                top_k=0,
                min_new_tokens=new_tokens,
                max_new_tokens=new_tokens,
            )

    return run


def sampler(config: DecoderConfig, completions: int, new_tokens: int, **options):
    fixed = {"completions": completions, "max_tokens": new_tokens, "eos_id": None}
    apply_fn = functional.make_apply(config)
    return jax.jit(partial(rollouts.generate, apply_fn, **(fixed | options)))


def ending(apply_fn: ApplyFn, eos_id: int, chance: float) -> ApplyFn:
    """The model with another logit of one token: lengths are geometric."""

    def ending(params, tokens, **options):
        logits, cache = apply_fn(params, tokens, **options)
        others = jax.nn.logsumexp(logits, axis=-1)
        odds = jnp.log(chance / (1 - chance))
        return ModelOutput(logits.at[..., eos_id].set(others + odds), cache)

    return ending


def refill(config: DecoderConfig, params, *, slots: int, repeats: int) -> str:
    """A queue of completions of all lengths: a batch after another, or refilled."""
    batches, prompt, most, mean = 8, 64, 128, 32
    prompts = prompts_of(config, batches * slots, prompt)
    fixed = {"completions": 1, "max_tokens": most, "eos_id": 1}
    apply_fn = ending(functional.make_apply(config), 1, 1 / mean)
    run = jax.jit(
        partial(rollouts.generate, apply_fn, **fixed), static_argnames="slots"
    )
    key = jax.random.key(3)
    parts = [
        jax.tree.map(lambda x, i=i: x[i * slots : (i + 1) * slots], prompts)
        for i in range(batches)
    ]
    programs = {
        "batches": lambda: [run(params, key, part).tokens for part in parts],
        "refilled": lambda: run(params, key, prompts, slots=slots).tokens,
    }
    seconds = timing.interleaved(programs, repeats=repeats)
    lengths = np.asarray(run(params, key, prompts, slots=slots).mask).sum(axis=1)
    ratio = np.median(seconds["batches"]) / np.median(seconds["refilled"])
    return (
        f"{batches * slots} completions of {lengths.mean():.0f} tokens in the mean, "
        f"{most} at the most, {slots} at a time: in batches "
        f"{timing.spread(seconds['batches'])}, refilled "
        f"{timing.spread(seconds['refilled'])}: {ratio:.2f} × as fast."
    )


def main(
    config: DecoderConfig = SMALL,
    *,
    rows: int = 32,
    prompt: int = 64,
    new_tokens: int = 128,
    repeats: int = 5,
) -> tuple[str, timing.Seconds]:
    """The report, and what the first table was made from."""
    params = functional.init(config, jax.random.key(0))
    key = jax.random.key(1)
    apart, groups = prompts_of(config, rows, prompt), prompts_of(config, 4, prompt)
    one, group = sampler(config, 1, new_tokens), sampler(config, rows // 4, new_tokens)
    sizes = dataclasses.asdict(config)
    tunix = None
    if tunix_peer.available():
        tunix = tunix_peer.Child(
            "sampling", sizes=sizes, rows=rows, prompt=prompt, tokens=new_tokens
        )
    programs = {
        "alignax": lambda: one(params, key, apart),
        f"alignax, 4 groups of {rows // 4}": lambda: group(params, key, groups),
        "transformers": by_transformers(config, apart, new_tokens),
        tunix_peer.NAME: tunix,
        "products alone (limit)": products(config, params, rows, new_tokens),
    }
    absent = [name for name, program in programs.items() if program is None]
    programs = {name: run for name, run in programs.items() if run is not None}
    seconds = timing.interleaved(programs, repeats=repeats)
    if tunix is not None:
        tunix.close()
    base = seconds.get("transformers", seconds["alignax"])
    lines = [
        [
            name,
            timing.spread(values),
            f"{rows * new_tokens / np.median(values):,.0f}",
            f"{np.median(base) / np.median(values):.2f}",
        ]
        for name, values in seconds.items()
    ]
    against = "transformers" if "transformers" in seconds else "alignax"
    text = timing.table(
        ["sampling", "seconds", "tokens/s", f"speed / {against}'s"], lines
    )
    skipped = f"\n\nNot installed: {', '.join(absent)}." if absent else ""
    queue = refill(config, params, slots=rows, repeats=repeats)
    parts = (f"{text}{skipped}", prefill(config, params, repeats), queue)
    return "\n\n".join(parts), seconds


def absolute(
    config: DecoderConfig = HALF_BILLION,
    *,
    prompt: int = 256,
    new_tokens: int = 256,
    batches: tuple[int, ...] = (1, 16, 64, 256),
    repeats: int = 5,
) -> str:
    """A larger model by itself: what part of the device's own speed it reaches.

    The bandwidth counts each parameter once a step; the limit is the products' time on
    the same device.
    """
    params, key = functional.init(config, jax.random.key(0)), jax.random.key(1)
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    lines = []
    for rows in batches:
        run = sampler(config, 1, new_tokens)
        prompts = prompts_of(config, rows, prompt)
        programs = {
            "sampling": partial(run, params, key, prompts),
            "products": products(config, params, rows, new_tokens),
        }
        seconds = timing.interleaved(programs, repeats=repeats)
        middle = {name: float(np.median(x)) for name, x in seconds.items()}
        lines.append(
            [
                str(rows),
                timing.spread(seconds["sampling"]),
                f"{rows * new_tokens / middle['sampling']:,.0f}",
                f"{size * new_tokens / middle['sampling'] / 1e9:,.0f}",
                f"{middle['products'] / middle['sampling']:.2f}",
            ]
        )
    return timing.table(["batch", "seconds", "tokens/s", "GB/s", "of the limit"], lines)


def prefill(config: DecoderConfig, params, repeats: int) -> str:
    """One token for each of 8 completions of a prompt, against for one."""
    prompts, key = prompts_of(config, 4, 256), jax.random.key(2)
    programs = {
        str(completions): partial(sampler(config, completions, 1), params, key, prompts)
        for completions in (1, 8)
    }
    seconds = timing.interleaved(programs, repeats=4 * repeats)
    ratio = np.median(seconds["8"]) / np.median(seconds["1"])
    return (
        f"Prefill of 4 groups of 8, prompts of 256 tokens, up to the first sampled "
        f"token: {ratio:.2f} × that of groups of 1."
    )


if __name__ == "__main__":
    print(timing.machine(), main()[0], sep="\n\n")
