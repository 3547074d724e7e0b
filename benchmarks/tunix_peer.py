"""Tunix's sampler and GRPO step, in a process that runs one whenever it is told to.

Tunix pins other versions of transformers and safetensors than alignax needs, so it has
an environment of its own, whose Python ``ALIGNAX_TUNIX_PYTHON`` names:

    python -m venv tunix && tunix/bin/pip install google-tunix
    ALIGNAX_TUNIX_PYTHON=tunix/bin/python python -m benchmarks

This file imports nothing of alignax. It reads a line for each run and answers with one.
"""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

PYTHON = "ALIGNAX_TUNIX_PYTHON"
NAME = "Tunix"


class Child:
    """A program of this file in its own process."""

    def __init__(self, program: str, *, env: Any = None, **settings: Any):
        self._process = subprocess.Popen(
            [os.environ[PYTHON], __file__, program, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )

    def __call__(self) -> str:
        """Run once; the answer says how many GB the process took, at its peak, above
        its imports."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        while line := self._process.stdout.readline():
            if line.startswith("done"):
                return line.split()[1]
        raise RuntimeError(f"{NAME} ended with {self._process.wait()}: see its output")

    def close(self) -> None:
        self._process.terminate()
        # It also closes the pipes.
        with contextlib.suppress(BrokenPipeError):
            self._process.communicate()


def available() -> bool:
    return PYTHON in os.environ


def _model(sizes: dict[str, Any]):
    from flax import nnx
    from tunix.models.qwen3.model import ModelConfig, Qwen3

    return Qwen3(
        ModelConfig(
            num_layers=sizes["num_layers"],
            vocab_size=sizes["vocab_size"],
            embed_dim=sizes["hidden_size"],
            hidden_dim=sizes["mlp_size"],
            num_heads=sizes["num_heads"],
            head_dim=sizes["head_dim"],
            num_kv_heads=sizes["num_kv_heads"],
            rope_theta=int(sizes["rope_theta"]),
            norm_eps=sizes["norm_eps"],
            use_tied_embedding=sizes["tie_embeddings"],
        ),
        rngs=nnx.Rngs(0),
    )


class _Numbers:
    """A tokenizer of texts that are numbers already."""

    def encode(self, text: str, **_: Any) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int], **_: Any) -> str:
        return " ".join(map(str, ids))

    def bos_id(self) -> int:
        return 0

    def pad_id(self) -> int:
        return 0

    def eos_id(self) -> int:
        return -1

    def dedup_bos_ids(self, ids: list[int]) -> list[int]:
        return ids


def _sampling(sizes: dict[str, Any], rows: int, prompt: int, tokens: int):
    import numpy as np
    from tunix.generate.sampler import CacheConfig, Sampler

    sampler = Sampler(
        _model(sizes),
        _Numbers(),
        CacheConfig(
            cache_size=prompt + tokens,
            num_layers=sizes["num_layers"],
            num_kv_heads=sizes["num_kv_heads"],
            head_dim=sizes["head_dim"],
        ),
    )
    draws = np.random.default_rng(0).integers(1, sizes["vocab_size"], (rows, prompt))
    texts = [" ".join(map(str, row)) for row in draws]

    def run():
        out = sampler(
            texts,
            max_generation_steps=tokens,
            max_prompt_length=prompt,
            eos_tokens=[-1],
            temperature=1.0,
            top_p=1.0,
            return_logprobs=True,
        )
        assert all(len(row) == tokens for row in out.tokens)

    return run


def _step(sizes: dict[str, Any], groups: int, completions: int, prompt: int, tokens):
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    from flax import nnx
    from tunix.rl.algo_core import compute_advantages, grpo_loss_fn
    from tunix.rl.common import TrainExample
    from tunix.rl.grpo.grpo_learner import GRPOConfig

    model, rng = _model(sizes), np.random.default_rng(0)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-6))
    optimiser = nnx.Optimizer(model, tx, wrt=nnx.Param)
    rows = groups * completions
    config = GRPOConfig(num_generations=completions, beta=0.05, epsilon=0.2)
    # Its learner takes it over from the rollout's configuration.
    config.temperature = 1.0

    def draw(*shape):
        return jnp.asarray(rng.integers(1, sizes["vocab_size"], shape), jnp.int32)

    logp = jnp.full((rows, tokens), -np.log(sizes["vocab_size"]), jnp.float32)
    example = TrainExample(
        prompt_ids=jnp.repeat(draw(groups, prompt), completions, axis=0),
        prompt_mask=jnp.ones((rows, prompt), jnp.int32),
        completion_ids=draw(rows, tokens),
        completion_mask=jnp.ones((rows, tokens), jnp.int32),
        advantages=jnp.asarray(compute_advantages(rng.random(rows), completions)),
        ref_per_token_logps=logp,
        old_per_token_logps=logp,
    )

    @nnx.jit(donate_argnames=("model", "optimiser"))
    def step(model, optimiser, example):
        def loss(model):
            return grpo_loss_fn(model, example, config, pad_id=0, eos_id=-1)

        (value, _), grads = nnx.value_and_grad(loss, has_aux=True)(model)
        optimiser.update(model, grads)
        return value

    def run():
        jax.block_until_ready(step(model, optimiser, example))
        jax.block_until_ready(nnx.state(model))

    return run


def _peak() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e6


def main() -> None:
    # For their memory alone, which is not the program's.
    import tunix.generate.sampler
    import tunix.rl.grpo.grpo_learner  # noqa: F401

    before = _peak()
    programs = {"sampling": _sampling, "step": _step}
    run = programs[sys.argv[1]](**json.loads(sys.argv[2]))
    for _ in sys.stdin:
        run()
        print("done", _peak() - before, flush=True)


if __name__ == "__main__":
    main()
