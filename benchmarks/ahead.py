"""Sampling while the host judges, against one after the other.

    python -m benchmarks.ahead

A reward that sleeps stands for a compiler, a checker or a judge over the network. Both
loops train on the same number of samples; the longer of sampling and judging hides the
shorter.
"""

import time
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from alignax.models import functional
from alignax.models.config import DecoderConfig
from alignax.train import assembly, tasks
from alignax.train.options import RL
from alignax.types import Prompts
from benchmarks import timing

SMALL = DecoderConfig(
    vocab_size=4096,
    hidden_size=64,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    mlp_size=192,
    max_length=128,
)


_LOOPS = ("one after the other", "one batch ahead")


def batches(config: DecoderConfig, *, prompts: int) -> Iterator[Prompts]:
    """Prompts of eight tokens, with numbers of their own."""
    number = 0
    while True:
        key, shape = jax.random.key(number), (prompts, 8)
        yield Prompts(
            tokens=jax.random.randint(key, shape, 2, config.vocab_size),
            mask=jnp.ones(shape, bool),
            index=jnp.arange(number, number + prompts),
        )
        number += prompts


def make_run(
    config: DecoderConfig, *, ahead: int, seconds: float, steps: int, **options: int
):
    """Steps of a fresh run, its parts compiled once."""
    tokens, prompts = options["tokens"], options["prompts"]
    rl = RL(method="grpo", prompts=prompts, completions=8, learning_rate=1e-5)
    parts = assembly.make(
        rl,
        functional.make_apply(config),
        hidden_fn=functional.make_hidden(config),
        max_tokens=tokens,
        eos_id=None,
    )
    params = functional.init(config, jax.random.key(0))

    def judge(rollout, numbers):
        del numbers
        found = np.asarray(rollout.tokens)
        time.sleep(seconds)
        return {"rewards": (found % 2).mean(axis=1).astype(np.float32)}

    def run():
        state = parts.init(params, jax.random.key(1))
        step = tasks.host_step(parts, judge, ahead=ahead)
        data = batches(config, prompts=prompts)
        window = [next(data) for _ in range(ahead)]
        for number in range(steps):
            # The last step has nothing to sample ahead of.
            window += [next(data)] if number + ahead < steps else []
            state, _ = step(state, tuple(window) if ahead else window[0])
            window.pop(0)
        return state.params

    return run


def main(
    config: DecoderConfig = SMALL,
    *,
    sleeps: tuple[float, ...] = (0.1, 0.3, 1.0),
    steps: int = 8,
    repeats: int = 3,
    tokens: int = 64,
    prompts: int = 4,
) -> str:
    lines = []
    for seconds in sleeps:
        fixed = {"steps": steps, "tokens": tokens, "prompts": prompts}
        found = timing.interleaved(
            {
                name: make_run(config, ahead=ahead, seconds=seconds, **fixed)
                for ahead, name in enumerate(_LOOPS)
            },
            repeats=repeats,
        )
        medians = [np.median(found[name]) for name in _LOOPS]
        texts, ratio = (
            [timing.spread(found[x]) for x in _LOOPS],
            medians[0] / medians[1],
        )
        lines.append([f"{seconds:g} s", *texts, f"{ratio:.2f}"])
    return timing.table(["a reward of", *_LOOPS, "factor"], lines)


if __name__ == "__main__":
    print(timing.machine())
    print(main())
